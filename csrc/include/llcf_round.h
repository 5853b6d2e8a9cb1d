// Narrow storage: bf16 as the high half of an exact fp32, bf16 by stochastic rounding, fp16 by nearest even.
#pragma once

#include "llcf_lane.h"

namespace llcf {

//   fp32 bits    s eeeeeeee mmmmmmm | rrrrrrrrrrrrrrrr
//   hi           the upper half, rounded to nearest (ties away from zero): the model's bf16
//   lo           the lower half as a signed number: what completes hi
LLCF_FN uint16_t split_hi(uint32_t u) {
  return (u & 0x7fffffffu) > 0x7f800000u ? (uint16_t)0x7fc0 : (uint16_t)((u + 0x8000u) >> 16);
}

LLCF_FN int16_t split_lo(uint32_t u) {
  return (u & 0x7fffffffu) > 0x7f800000u ? (int16_t)0 : (int16_t)(u & 0xffffu);
}

// hi << 16 plus the signed remainder: a negative one borrows from hi, modulo 2^32.
LLCF_FN uint32_t join(uint16_t hi, int16_t lo) { return ((uint32_t)hi << 16) + (uint32_t)(int32_t)lo; }

// Stochastic rounding: `h` is uniform in 16 bits, and carries with the probability that the lower half asks
// for.
LLCF_FN uint16_t round_by(uint32_t u, uint32_t h) {
  return (u & 0x7fffffffu) > 0x7f800000u ? (uint16_t)0x7fc0 : (uint16_t)((u + h) >> 16);
}

// Which 16 bits of the words of block e >> 3 in the rounding domain belong to element e.
LLCF_FN uint32_t rounding_bits(const uint32_t x[4], uint32_t e) {
  return (x[(e & 7) >> 1] >> (16 * (e & 1))) & 0xffffu;
}

LLCF_FN uint16_t float_to_half(float f) {
#if defined(__CUDA_ARCH__)
  uint16_t h;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(f));
  return h;
#else
  const uint32_t u = Lane1::float_to_bits(f), sign = (u >> 16) & 0x8000u, a = u & 0x7fffffffu;
  if (a > 0x7f800000u) return (uint16_t)(sign | 0x7e00u);
  if (a >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u);  // 65520 and above: infinity
  if (a < 0x38800000u)  // subnormal: adding 1/2 rounds to multiples of 2^-24
    return (uint16_t)(sign | (Lane1::float_to_bits(Lane1::bits_to_float(a) + 0.5f) - 0x3f000000u));
  return (uint16_t)(sign | ((a + 0xc8000fffu + ((a >> 13) & 1u)) >> 13));
#endif
}

LLCF_FN float half_to_float(uint16_t h) {
#if defined(__CUDA_ARCH__)
  float f;
  asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h));
  return f;
#else
  const uint32_t sign = ((uint32_t)h & 0x8000u) << 16;
  uint32_t m = ((uint32_t)h & 0x7fffu) << 13;
  const uint32_t exponent = m & 0x0f800000u;
  m += 112u << 23;
  if (exponent == 0x0f800000u) m += 112u << 23;
  if (exponent != 0) return Lane1::bits_to_float(sign | m);
  const float f = Lane1::bits_to_float(m + (1u << 23)) - Lane1::bits_to_float(113u << 23);
  return Lane1::bits_to_float(sign | Lane1::float_to_bits(f));
#endif
}

LLCF_FN float bf16_to_float(uint16_t h) { return Lane1::bits_to_float((uint32_t)h << 16); }

}  // namespace llcf
