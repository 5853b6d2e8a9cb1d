// A unit in memory and in registers: sixteen bytes an operand, whole or in part.
#pragma once

#include <string.h>

#include "llcf_round.h"
#include "plan.h"

// Whether memory may be accessed: the host check keeps account.
#if !defined(LLCF_MAY_ACCESS)
#define LLCF_MAY_ACCESS(address, bytes, write) true
#endif

namespace llcf {
namespace cuda {

struct alignas(16) Quad {
  uint32_t x[4];
};

// `once`: nothing reads it again soon, so it should not displace what will be.
LLCF_FN Quad load_quad(int64_t address, bool once) {
#if defined(__CUDA_ARCH__)
  Quad q;
  if (once)
    asm volatile("ld.global.cs.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(q.x[0]), "=r"(q.x[1]), "=r"(q.x[2]), "=r"(q.x[3])
                 : "l"(address));
  else
    asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(q.x[0]), "=r"(q.x[1]), "=r"(q.x[2]), "=r"(q.x[3])
                 : "l"(address));
  return q;
#else
  (void)once;
  return LLCF_MAY_ACCESS(address, 16, false) ? *reinterpret_cast<const Quad*>(address) : Quad{};
#endif
}

LLCF_FN void store_quad(int64_t address, const Quad& q) {
#if defined(__CUDA_ARCH__)
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(address), "r"(q.x[0]), "r"(q.x[1]),
               "r"(q.x[2]), "r"(q.x[3]));
#else
  if (LLCF_MAY_ACCESS(address, 16, true)) *reinterpret_cast<Quad*>(address) = q;
#endif
}

LLCF_FN uint32_t load_word(int64_t address) {
#if defined(__CUDA_ARCH__)
  uint32_t v;
  asm volatile("ld.global.u32 %0, [%1];" : "=r"(v) : "l"(address));
  return v;
#else
  return LLCF_MAY_ACCESS(address, 4, false) ? *reinterpret_cast<const uint32_t*>(address) : 0;
#endif
}

LLCF_FN uint16_t load_half(int64_t address) {
#if defined(__CUDA_ARCH__)
  uint16_t v;
  asm volatile("ld.global.u16 %0, [%1];" : "=h"(v) : "l"(address));
  return v;
#else
  return LLCF_MAY_ACCESS(address, 2, false) ? *reinterpret_cast<const uint16_t*>(address) : 0;
#endif
}

LLCF_FN void store_word(int64_t address, uint32_t v) {
#if defined(__CUDA_ARCH__)
  asm volatile("st.global.u32 [%0], %1;" ::"l"(address), "r"(v));
#else
  if (LLCF_MAY_ACCESS(address, 4, true)) *reinterpret_cast<uint32_t*>(address) = v;
#endif
}

LLCF_FN void store_half(int64_t address, uint16_t v) {
#if defined(__CUDA_ARCH__)
  asm volatile("st.global.u16 [%0], %1;" ::"l"(address), "h"(v));
#else
  if (LLCF_MAY_ACCESS(address, 2, true)) *reinterpret_cast<uint16_t*>(address) = v;
#endif
}

template <int STORAGE>
LLCF_FN float load_float(int64_t address) {
  return STORAGE == kFloat32 ? Lane1::bits_to_float(load_word(address)) : bf16_to_float(load_half(address));
}

LLCF_FN float load_joined(int64_t hi, int64_t lo) {
  return Lane1::bits_to_float(join(load_half(hi), (int16_t)load_half(lo)));
}

LLCF_FN void store_split(int64_t hi, int64_t lo, float value) {
  const uint32_t u = Lane1::float_to_bits(value);
  store_half(hi, split_hi(u));
  store_half(lo, (uint16_t)split_lo(u));
}

// Element i of a unit of fp32, or of bf16 (exactly upcast).
template <int STORAGE>
LLCF_FN float element(const Quad& q, int i) {
  if (STORAGE == kFloat32) return Lane1::bits_to_float(q.x[i & 3]);
  return Lane1::bits_to_float(i & 1 ? q.x[i >> 1] & 0xffff0000u : q.x[i >> 1] << 16);
}

// join() of element i: hi * 2^16 + lo with lo signed, modulo 2^32.
LLCF_FN float joined(const Quad& hi, const Quad& lo, int i) {
  const uint32_t h = hi.x[i >> 1], l = lo.x[i >> 1];
  const uint32_t rest = (uint32_t)(i & 1 ? (int32_t)l >> 16 : (int32_t)(int16_t)l);
  return Lane1::bits_to_float((i & 1 ? h & 0xffff0000u : h << 16) + rest);
}

// split_hi() and split_lo() of elements 2i and 2i + 1. A NaN becomes 0x7fc00000, which splits into 0x7fc0 and
// 0.
LLCF_FN void split_pair(float even, float odd, Quad* hi, Quad* lo, int i) {
  const uint32_t a = even == even ? Lane1::float_to_bits(even) : 0x7fc00000u;
  const uint32_t b = odd == odd ? Lane1::float_to_bits(odd) : 0x7fc00000u;
#if defined(__CUDA_ARCH__)
  hi->x[i] = __byte_perm(a + 0x8000u, b + 0x8000u, 0x7632);
  lo->x[i] = __byte_perm(a, b, 0x5410);
#else
  hi->x[i] = ((a + 0x8000u) >> 16) | ((b + 0x8000u) & 0xffff0000u);
  lo->x[i] = (a & 0xffffu) | (b << 16);
#endif
}

}  // namespace cuda
}  // namespace llcf
