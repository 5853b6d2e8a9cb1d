// SIMD lanes for the element math: GNU vector types, and the few intrinsics that they do not cover.
// Included by files that are compiled once per instruction set; everything is static or in LLCF_ISA's
// namespace.
#pragma once

#include "llcf_noise.h"
#include "llcf_round.h"

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__) && defined(LLCF_AVX512)
#define LLCF_WIDTH 16
#elif defined(__AVX2__)
#define LLCF_WIDTH 8
#else
#define LLCF_WIDTH 4
#endif

namespace llcf {
namespace LLCF_ISA {

constexpr int W = LLCF_WIDTH;  // floats a vector

typedef float VF __attribute__((vector_size(4 * LLCF_WIDTH)));
typedef int32_t VI __attribute__((vector_size(4 * LLCF_WIDTH)));
typedef uint32_t VU __attribute__((vector_size(4 * LLCF_WIDTH)));
typedef uint16_t VH __attribute__((vector_size(2 * LLCF_WIDTH)));
typedef int16_t VS __attribute__((vector_size(2 * LLCF_WIDTH)));
typedef uint64_t VQ __attribute__((vector_size(4 * LLCF_WIDTH)));
typedef double VD __attribute__((vector_size(8 * LLCF_WIDTH)));

// 32 x 32 -> 64 bit products of the low halves; whatever stands in the high halves is ignored.
LLCF_FN VQ mul_low(VQ a, uint32_t m) {
#if LLCF_WIDTH == 16
  return (VQ)_mm512_mul_epu32((__m512i)a, _mm512_set1_epi64(m));
#elif LLCF_WIDTH == 8
  return (VQ)_mm256_mul_epu32((__m256i)a, _mm256_set1_epi64x(m));
#elif defined(__SSE2__)
  return (VQ)_mm_mul_epu32((__m128i)a, _mm_set1_epi64x(m));
#else
  return (a & 0xffffffffull) * (uint64_t)m;
#endif
}

// The 32-bit lanes of two vectors' 64-bit lanes, in turn: of their low halves, or of their high halves.
LLCF_FN VU pack_low(VQ even, VQ odd) {
#if LLCF_WIDTH == 16
  return (VU)_mm512_mask_moveldup_ps((__m512)even, 0xAAAA, (__m512)odd);
#elif LLCF_WIDTH == 8
  return (VU)_mm256_blend_epi32((__m256i)even, _mm256_slli_epi64((__m256i)odd, 32), 0xAA);
#else
  return (VU)((even & 0xffffffffull) | (odd << 32));
#endif
}

LLCF_FN VU pack_high(VQ even, VQ odd) {
#if LLCF_WIDTH == 16
  return (VU)_mm512_mask_movehdup_ps((__m512)odd, 0x5555, (__m512)even);
#elif LLCF_WIDTH == 8
  return (VU)_mm256_blend_epi32(_mm256_srli_epi64((__m256i)even, 32), (__m256i)odd, 0xAA);
#else
  return (VU)((even >> 32) | (odd & 0xffffffff00000000ull));
#endif
}

struct LaneV {
  using F = VF;
  using I = VI;
  using U = VU;

  LLCF_FN F to_float(I i) { return __builtin_convertvector(i, VF); }
  LLCF_FN F bits_to_float(U u) { return (VF)u; }
  LLCF_FN U float_to_bits(F f) { return (VU)f; }
  LLCF_FN I as_signed(U u) { return (VI)u; }
  LLCF_FN U as_unsigned(I i) { return (VU)i; }
  LLCF_FN F sqrt(F f) {
#if LLCF_WIDTH == 16
    return (VF)_mm512_sqrt_ps((__m512)f);
#elif LLCF_WIDTH == 8
    return (VF)_mm256_sqrt_ps((__m256)f);
#elif defined(__SSE2__)
    return (VF)_mm_sqrt_ps((__m128)f);
#else
    for (int i = 0; i < W; ++i) f[i] = ::sqrtf(f[i]);
    return f;
#endif
  }
  LLCF_FN F div(F a, F b) { return a / b; }
  LLCF_FN F constant(float f) { return VF{} + f; }
  LLCF_FN F select(U mask, F yes, F no) { return (VI)mask < 0 ? yes : no; }
  LLCF_FN F where_less(F a, F b, F yes, F no) { return a < b ? yes : no; }
};

}  // namespace LLCF_ISA

template <>
struct Shortcut<LLCF_ISA::LaneV> : Longhand<LLCF_ISA::LaneV> {
  // Bits of an exponent stay where they are: a mask goes through more ports than a shift.
  static constexpr int kUnit = 1 << 23;
  LLCF_FN I above(I x) { return x & ~0x7fffff; }
  LLCF_FN I below(I x, I above) { return x - above; }
#if LLCF_WIDTH == 16
  LLCF_FN F by_bit_1(U x, F yes, F no) {
    const __mmask16 set = _mm512_test_epi32_mask((__m512i)x, _mm512_set1_epi32(2));
    return (F)_mm512_mask_blend_ps(set, (__m512)no, (__m512)yes);
  }
#endif
};

namespace LLCF_ISA {

template <class V, class T>
LLCF_FN V load(const T* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof(V));
  return v;
}

template <class V, class T>
LLCF_FN void store(T* p, V v) {
  __builtin_memcpy(p, &v, sizeof(V));
}

// 16-bit to 32-bit lanes; GCC's own conversion of such vectors takes five instructions for one.
LLCF_FN VU widen(VH h) {
#if LLCF_WIDTH == 16
  return (VU)_mm512_cvtepu16_epi32((__m256i)h);
#elif LLCF_WIDTH == 8
  return (VU)_mm256_cvtepu16_epi32((__m128i)h);
#else
  return __builtin_convertvector(h, VU);
#endif
}

LLCF_FN VU widen_signed(VS h) {
#if LLCF_WIDTH == 16
  return (VU)_mm512_cvtepi16_epi32((__m256i)h);
#elif LLCF_WIDTH == 8
  return (VU)_mm256_cvtepi16_epi32((__m128i)h);
#else
  return (VU) __builtin_convertvector(h, VI);
#endif
}

// bf16 to fp32, join and split as in llcf_round.h, for vectors.
LLCF_FN VF bf16_lanes(VH h) { return (VF)(widen(h) << 16); }

LLCF_FN VU join_lanes(VH hi, VS lo) { return (widen(hi) << 16) + widen_signed(lo); }

LLCF_FN void split_lanes(VU u, VH* hi, VH* lo) {
  const VI nan = (VI)(u & 0x7fffffffu) > 0x7f800000;
  const VU high = nan ? VU{} + 0x7fc0u : (u + 0x8000u) >> 16;
  const VU low = u & ~(VU)nan;
#if LLCF_WIDTH == 16
  *hi = (VH)_mm512_cvtepi32_epi16((__m512i)high);
  *lo = (VH)_mm512_cvtepi32_epi16((__m512i)low);
#elif LLCF_WIDTH == 8
  // One pack for both halves; it works within 128 bits, which the permutation undoes.
  const __m256i both = _mm256_packus_epi32((__m256i)high, (__m256i)(low & 0xffffu));
  const __m256i ordered = _mm256_permute4x64_epi64(both, 0xD8);
  *hi = (VH)_mm256_castsi256_si128(ordered);
  *lo = (VH)_mm256_extracti128_si256(ordered, 1);
#else
  *hi = __builtin_convertvector(high, VH);
  *lo = __builtin_convertvector(low, VH);
#endif
}

// fp16, exactly from it and to nearest even into it.
LLCF_FN VF half_lanes(VH h) {
#if LLCF_WIDTH == 16
  return (VF)_mm512_cvtph_ps((__m256i)h);
#elif LLCF_WIDTH == 8
  return (VF)_mm256_cvtph_ps((__m128i)h);
#else
  VF f;
  for (int i = 0; i < W; ++i) f[i] = half_to_float(h[i]);
  return f;
#endif
}

LLCF_FN VH to_half_lanes(VF f) {
#if LLCF_WIDTH == 16
  return (VH)_mm512_cvtps_ph((__m512)f, _MM_FROUND_TO_NEAREST_INT);
#elif LLCF_WIDTH == 8
  return (VH)_mm256_cvtps_ph((__m256)f, _MM_FROUND_TO_NEAREST_INT);
#else
  VH h;
  for (int i = 0; i < W; ++i) h[i] = float_to_half(f[i]);
  return h;
#endif
}

LLCF_FN VH narrow(VU u) {
#if LLCF_WIDTH == 16
  return (VH)_mm512_cvtepi32_epi16((__m512i)u);
#else
  return __builtin_convertvector(u, VH);
#endif
}

// round_by of llcf_round.h, for vectors.
LLCF_FN VH round_lanes(VU u, VH h) {
  const VI nan = (VI)(u & 0x7fffffffu) > 0x7f800000;
  return narrow(nan ? VU{} + 0x7fc0u : (u + widen(h)) >> 16);
}

// All bits of a lane whose bit of the mask is set; `at` counts bits, and eight bytes there may be read.
LLCF_FN VI mask_lanes(int64_t mask, int64_t at) {
  uint64_t bits;
  __builtin_memcpy(&bits, (const void*)(mask + (at >> 3)), 8);
  const uint32_t word = (uint32_t)(bits >> (at & 7));
  VU lane;
  for (int i = 0; i < W; ++i) lane[i] = 1u << i;
  return (VI)((lane & word) != 0u);
}

// Within each 128-bit group, turns four vectors of one normal a block into four of one block each.
LLCF_FN void transpose4(VF n[4]) {
#if LLCF_WIDTH == 16
#define LLCF_LO(a, b) (VF) _mm512_unpacklo_ps((__m512)(a), (__m512)(b))
#define LLCF_HI(a, b) (VF) _mm512_unpackhi_ps((__m512)(a), (__m512)(b))
#define LLCF_LO2(a, b) (VF) _mm512_unpacklo_pd((__m512d)(a), (__m512d)(b))
#define LLCF_HI2(a, b) (VF) _mm512_unpackhi_pd((__m512d)(a), (__m512d)(b))
#elif LLCF_WIDTH == 8
#define LLCF_LO(a, b) (VF) _mm256_unpacklo_ps((__m256)(a), (__m256)(b))
#define LLCF_HI(a, b) (VF) _mm256_unpackhi_ps((__m256)(a), (__m256)(b))
#define LLCF_LO2(a, b) (VF) _mm256_unpacklo_pd((__m256d)(a), (__m256d)(b))
#define LLCF_HI2(a, b) (VF) _mm256_unpackhi_pd((__m256d)(a), (__m256d)(b))
#elif defined(__SSE2__)
#define LLCF_LO(a, b) (VF) _mm_unpacklo_ps((__m128)(a), (__m128)(b))
#define LLCF_HI(a, b) (VF) _mm_unpackhi_ps((__m128)(a), (__m128)(b))
#define LLCF_LO2(a, b) (VF) _mm_unpacklo_pd((__m128d)(a), (__m128d)(b))
#define LLCF_HI2(a, b) (VF) _mm_unpackhi_pd((__m128d)(a), (__m128d)(b))
#else
#define LLCF_LO(a, b) (VF){a[0], b[0], a[1], b[1]}
#define LLCF_HI(a, b) (VF){a[2], b[2], a[3], b[3]}
#define LLCF_LO2(a, b) (VF){a[0], a[1], b[0], b[1]}
#define LLCF_HI2(a, b) \
  (VF) { a[2], a[3], b[2], b[3] }
#endif
  const VF t0 = LLCF_LO(n[0], n[1]), t1 = LLCF_HI(n[0], n[1]);
  const VF t2 = LLCF_LO(n[2], n[3]), t3 = LLCF_HI(n[2], n[3]);
  n[0] = LLCF_LO2(t0, t2);
  n[1] = LLCF_HI2(t0, t2);
  n[2] = LLCF_LO2(t1, t3);
  n[3] = LLCF_HI2(t1, t3);
#undef LLCF_LO
#undef LLCF_HI
#undef LLCF_LO2
#undef LLCF_HI2
}

}  // namespace LLCF_ISA
}  // namespace llcf
