// A unit in registers: what its bytes mean in each storage, and how new values are put back.
#pragma once

#include "llcf_round.h"
#include "memory.h"
#include "plan.h"

namespace llcf {
namespace cuda {

// What a unit consists of: sixteen bytes of w, and as many elements of what else there is.
struct Operands {
  Quad w, g, w0, lo[2], aux[2];
};

LLCF_FN float word(const Quad* q, int i) { return Lane1::bits_to_float(q[i >> 2].x[i & 3]); }

LLCF_FN uint16_t half(const Quad& q, int i) { return (uint16_t)(q.x[i >> 1] >> (16 * (i & 1))); }

// Element i of a unit of w, g or w0, exactly upcast.
template <int STORAGE>
LLCF_FN float element(const Quad& q, int i) {
  if (STORAGE == kFloat32) return word(&q, i);
  if (STORAGE == kFloat16) return half_to_float(half(q, i));
  return Lane1::bits_to_float(i & 1 ? q.x[i >> 1] & 0xffff0000u : q.x[i >> 1] << 16);
}

// join() of element i: hi * 2^16 + lo with lo signed, modulo 2^32.
LLCF_FN float joined(const Quad& hi, const Quad& lo, int i) {
  const uint32_t h = hi.x[i >> 1], l = lo.x[i >> 1];
  const uint32_t rest = (uint32_t)(i & 1 ? (int32_t)l >> 16 : (int32_t)(int16_t)l);
  return Lane1::bits_to_float((i & 1 ? h & 0xffff0000u : h << 16) + rest);
}

template <int STORAGE>
LLCF_FN float weight(const Operands& q, int i) {
  if (STORAGE == kSplitBfloat16) return joined(q.w, q.lo[0], i);
  if (STORAGE == kFloat16) return word(q.lo, i);
  return element<STORAGE>(q.w, i);
}

// The bits of what a step has computed; a NaN becomes 0x7fc00000, whose upper half is 0x7fc0 even where a
// half is added. The one NaN that arithmetic on the device makes is 0x7fffffff, a signed integer above those
// of all numbers.
LLCF_FN uint32_t plain_bits(float f) {
#if defined(__CUDA_ARCH__)
  return (uint32_t)min(__float_as_int(f), 0x7fc00000);
#else
  return f == f ? Lane1::float_to_bits(f) : 0x7fc00000u;
#endif
}

// The upper halves of two words, and the lower ones, as one word.
LLCF_FN uint32_t upper(uint32_t even, uint32_t odd) {
#if defined(__CUDA_ARCH__)
  return __byte_perm(even, odd, 0x7632);
#else
  return (even >> 16) | (odd & 0xffff0000u);
#endif
}
LLCF_FN uint32_t lower(uint32_t even, uint32_t odd) {
#if defined(__CUDA_ARCH__)
  return __byte_perm(even, odd, 0x5410);
#else
  return (even & 0xffffu) | (odd << 16);
#endif
}

// split_hi() and split_lo() of two elements.
LLCF_FN void split_pair(float even, float odd, uint32_t* hi, uint32_t* lo) {
  const uint32_t a = plain_bits(even), b = plain_bits(odd);
  *hi = upper(a + 0x8000u, b + 0x8000u);
  *lo = lower(a, b);
}

// a + the lower half of b.
LLCF_FN uint32_t add_lower(uint32_t a, uint32_t b) {
#if defined(__CUDA_ARCH__)
  return __dp2a_lo(b, 1u, a);
#else
  return a + (b & 0xffffu);
#endif
}

// round_by() of two elements, by the two halves of a random word.
LLCF_FN uint32_t round_pair(float even, float odd, uint32_t random) {
  return upper(add_lower(plain_bits(even), random), plain_bits(odd) + (random >> 16));
}

LLCF_FN uint32_t half_pair(float even, float odd) {
#if defined(__CUDA_ARCH__)
  uint32_t pair;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(odd), "f"(even));
  return pair;
#else
  return float_to_half(even) | (uint32_t)float_to_half(odd) << 16;
#endif
}

LLCF_FN uint32_t chosen(uint32_t yes, uint32_t no, uint32_t bits) { return (yes & bits) | (no & ~bits); }

// Elements 2i and 2i + 1 of w, in words of two halves, from their new values. `random`: what rounds them.
// MASKED: only those whose bit of `keep` is set, the others stay as they are.
template <int STORAGE, bool MASKED>
LLCF_FN void put_pair(Operands* q, int i, float even, float odd, uint32_t random, uint32_t keep) {
  uint32_t w, lo = 0;
  if (STORAGE == kSplitBfloat16)
    split_pair(even, odd, &w, &lo);
  else
    w = STORAGE == kFloat16 ? half_pair(even, odd) : round_pair(even, odd, random);
  if (MASKED) {
    const uint32_t bits = (keep >> (2 * i) & 1 ? 0xffffu : 0) | (keep >> (2 * i + 1) & 1 ? 0xffff0000u : 0);
    w = chosen(w, q->w.x[i], bits);
    lo = chosen(lo, q->lo[0].x[i], bits);
  }
  q->w.x[i] = w;
  if (STORAGE == kSplitBfloat16) q->lo[0].x[i] = lo;
}

// --- one element in memory, where no whole unit is ---

template <int STORAGE>
LLCF_FN float load_element(int64_t address) {
  if (STORAGE == kFloat32) return load_float(address);
  return STORAGE == kFloat16 ? half_to_float(load_half(address)) : bf16_to_float(load_half(address));
}

template <int STORAGE>
LLCF_FN float load_weight(int64_t w, int64_t lo) {
  if (STORAGE == kSplitBfloat16) return Lane1::bits_to_float(join(load_half(w), (int16_t)load_half(lo)));
  return STORAGE == kFloat16 ? load_float(lo) : load_element<STORAGE>(w);
}

// `random`: sixteen bits that round.
template <int STORAGE>
LLCF_FN void store_weight(int64_t w, int64_t lo, float value, uint32_t random) {
  const uint32_t u = Lane1::float_to_bits(value);
  if (STORAGE == kFloat32) store_word(w, u);
  if (STORAGE == kRoundedBfloat16) store_half(w, round_by(u, random));
  if (STORAGE == kSplitBfloat16) {
    store_half(w, split_hi(u));
    store_half(lo, (uint16_t)split_lo(u));
  }
  if (STORAGE == kFloat16) {
    store_half(w, float_to_half(value));
    store_word(lo, u);
  }
}

}  // namespace cuda
}  // namespace llcf
