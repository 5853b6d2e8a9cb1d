// Philox with what is constant over a chunk folded away, and the device's own lane.
#pragma once

#include "llcf_noise.h"
#include "llcf_tile.h"

namespace llcf {
namespace cuda {

// Lane1 by a type of its own, for it has shortcuts.
struct LaneGpu : Lane1 {};

}  // namespace cuda

template <>
struct Shortcut<cuda::LaneGpu> : Longhand<Lane1> {
  LLCF_FN int32_t centred_bytes(uint32_t x) {
#if defined(__CUDA_ARCH__)
    return (int32_t)__dp4a(x, 0x02020202u, (uint32_t)-1020);
#else
    return Longhand<Lane1>::centred_bytes(x);
#endif
  }
  // A float holds a few bits of exponent wherever they are, so that they need not be shifted down.
  static constexpr int kUnit = 1 << 23;
  LLCF_FN int32_t above(int32_t x) { return x & ~0x7fffff; }
  LLCF_FN int32_t below(int32_t x, int32_t k) { return x - k; }
  // By a predicate: the sign of a shifted word costs one instruction more.
  LLCF_FN float by_bit_1(uint32_t x, float yes, float no) { return x & 2 ? yes : no; }
  // Any correctly rounded quotient is the same one; this takes fewer instructions than 1 / f.
  LLCF_FN float reciprocal(float f) {
#if defined(__CUDA_ARCH__)
    return __frcp_rn(f);
#else
    return Longhand<Lane1>::reciprocal(f);
#endif
  }
};

namespace cuda {

// A value that all threads of a warp share, held where it is: the assembler then keeps it in a uniform
// register, and the keys of ten rounds cost neither registers nor instructions in the loop. Without this they
// are derived anew.
LLCF_FN uint32_t uniform(uint32_t x) {
#if defined(__CUDA_ARCH__)
  asm("mov.b32 %0, %0;" : "+r"(x));
  return x;
#else
  return x;
#endif
}
LLCF_FN float uniform(float x) { return Lane1::bits_to_float(uniform(Lane1::float_to_bits(x))); }
LLCF_FN int64_t uniform(int64_t x) {
  return (int64_t)(((uint64_t)uniform((uint32_t)((uint64_t)x >> 32)) << 32) | uniform((uint32_t)x));
}

// The same value, which the compiler takes for another one: what follows from it is not kept until then.
LLCF_FN uint32_t anew(uint32_t x) { return uniform(x); }

// Words 1 to 3 of the counter are constant within a chunk, which leaves one product in each of the first two
// rounds.
struct Rounds {
  uint32_t a, b, c, d;  // constants of rounds 1 and 2
  uint32_t k0[kPhiloxRounds], k1[kPhiloxRounds];
};

LLCF_FN Rounds fold_rounds(uint64_t block, const NoiseSource& source) {
  Rounds r;
#if defined(__CUDA_ARCH__)
#pragma unroll
#endif
  for (int i = 0; i < kPhiloxRounds; ++i) {
    r.k0[i] = uniform((uint32_t)source.key + (uint32_t)i * kPhiloxW0);
    r.k1[i] = uniform((uint32_t)(source.key >> 32) + (uint32_t)i * kPhiloxW1);
  }
  const uint32_t y0 = mul_hi(kPhiloxM1, source.step) ^ counter_high(block, source.domain) ^ r.k0[0];
  const uint32_t y1 = kPhiloxM1 * source.step;
  r.a = uniform(source.tensor_id ^ r.k1[0]);
  r.b = uniform(y1 ^ r.k0[1]);
  r.c = uniform(mul_hi(kPhiloxM0, y0) ^ r.k1[1]);
  r.d = uniform((kPhiloxM0 * y0) ^ r.k1[2]);
  return r;
}

// The same of another domain, for the blocks that share the high word of `block`.
LLCF_FN Rounds refold(const Rounds& other, uint64_t block, const NoiseSource& source) {
  Rounds r = other;
  const uint32_t y0 = mul_hi(kPhiloxM1, source.step) ^ counter_high(block, source.domain) ^ r.k0[0];
  r.c = uniform(mul_hi(kPhiloxM0, y0) ^ r.k1[1]);
  r.d = uniform((kPhiloxM0 * y0) ^ r.k1[2]);
  return r;
}

// Ten rounds on the block whose low word is `block`; the high one is in `r`.
LLCF_FN Words folded(uint32_t block, const Rounds& r) {
  const uint64_t p0 = (uint64_t)block * kPhiloxM0;
  const uint64_t q1 = (uint64_t)((uint32_t)(p0 >> 32) ^ r.a) * kPhiloxM1;
  const uint64_t s0 = (uint64_t)((uint32_t)(q1 >> 32) ^ r.b) * kPhiloxM0;
  const uint64_t s1 = (uint64_t)((uint32_t)p0 ^ r.c) * kPhiloxM1;
  Words w{{(uint32_t)(s1 >> 32) ^ (uint32_t)q1 ^ r.k0[2], (uint32_t)s1, (uint32_t)(s0 >> 32) ^ r.d,
           (uint32_t)s0}};
#if defined(__CUDA_ARCH__)
#pragma unroll
#endif
  for (int i = 3; i < kPhiloxRounds; ++i) {
    const uint64_t t0 = (uint64_t)w.x[0] * kPhiloxM0, t1 = (uint64_t)w.x[2] * kPhiloxM1;
    w = Words{{(uint32_t)(t1 >> 32) ^ w.x[1] ^ r.k0[i], (uint32_t)t1, (uint32_t)(t0 >> 32) ^ w.x[3] ^ r.k1[i],
               (uint32_t)t0}};
  }
  return w;
}

// The four normals of one block.
LLCF_FN void normals(const Words& w, int kind, float n[4]) {
  if (kind == kIh4) {
#if defined(__CUDA_ARCH__)
#pragma unroll
#endif
    for (int i = 0; i < 4; ++i) n[i] = ih4<LaneGpu>(w.x[i]);
  } else {
    gaussian<LaneGpu>(w.x[0], w.x[1], &n[0], &n[1]);
    gaussian<LaneGpu>(w.x[2], w.x[3], &n[2], &n[3]);
  }
}

}  // namespace cuda
}  // namespace llcf
