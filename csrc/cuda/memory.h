// Access to device memory by address; on the host, as the tests run it, every access is checked.
#pragma once

#include "llcf_lane.h"

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

LLCF_FN uint32_t load_byte(int64_t address) {
#if defined(__CUDA_ARCH__)
  uint32_t v;
  asm volatile("ld.global.u8 %0, [%1];" : "=r"(v) : "l"(address));
  return v;
#else
  return LLCF_MAY_ACCESS(address, 1, false) ? *reinterpret_cast<const uint8_t*>(address) : 0;
#endif
}

// A double, rounded once. Nothing of the launch writes it, and a sampler may have no use for it.
LLCF_FN float load_rounded(int64_t address) {
#if defined(__CUDA_ARCH__)
  double v;
  asm("ld.global.f64 %0, [%1];" : "=d"(v) : "l"(address));
  return __double2float_rn(v);
#else
  return LLCF_MAY_ACCESS(address, 8, false) ? (float)*reinterpret_cast<const double*>(address) : 0.0f;
#endif
}

LLCF_FN float load_float(int64_t address) { return Lane1::bits_to_float(load_word(address)); }
LLCF_FN void store_float(int64_t address, float v) { store_word(address, Lane1::float_to_bits(v)); }

}  // namespace cuda
}  // namespace llcf
