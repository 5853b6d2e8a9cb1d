// What element math may assume of a "lane": one scalar on CPU and GPU, or a SIMD vector on CPU.
#pragma once

#include <stdint.h>
#include <string.h>

#if defined(__FAST_MATH__) || defined(__USE_FAST_MATH__)
#error "llc_fast is bit-exact: build without fast-math"
#endif

#if defined(__CUDACC__)
#define LLCF_FN static __host__ __device__ __forceinline__
#elif defined(__GNUC__)
#define LLCF_FN static inline __attribute__((always_inline))
#else
#define LLCF_FN static inline
#endif

#if !defined(__CUDA_ARCH__)
#include <math.h>
#endif

namespace llcf {

// The scalar lane: plain floats and 32-bit integers.
struct Lane1 {
  using F = float;
  using I = int32_t;
  using U = uint32_t;

  LLCF_FN F to_float(I i) {
#if defined(__CUDA_ARCH__)
    return __int2float_rn(i);
#else
    return (float)i;
#endif
  }
  LLCF_FN F bits_to_float(U u) {
#if defined(__CUDA_ARCH__)
    return __uint_as_float(u);
#else
    F f;
    memcpy(&f, &u, 4);
    return f;
#endif
  }
  LLCF_FN U float_to_bits(F f) {
#if defined(__CUDA_ARCH__)
    return __float_as_uint(f);
#else
    U u;
    memcpy(&u, &f, 4);
    return u;
#endif
  }
  LLCF_FN I as_signed(U u) { return (I)u; }
  LLCF_FN U as_unsigned(I i) { return (U)i; }
  // Rounded to nearest even everywhere; on the device never the approximate one.
  LLCF_FN F sqrt(F f) {
#if defined(__CUDA_ARCH__)
    return __fsqrt_rn(f);
#else
    return ::sqrtf(f);
#endif
  }
  LLCF_FN F div(F a, F b) {
#if defined(__CUDA_ARCH__)
    return __fdiv_rn(a, b);
#else
    return a / b;
#endif
  }
  LLCF_FN F constant(float f) { return f; }
  // The top bit of `mask` chooses: set, `yes`; clear, `no`.
  LLCF_FN F select(U mask, F yes, F no) { return (mask >> 31) ? yes : no; }
  LLCF_FN F where_less(F a, F b, F yes, F no) { return a < b ? yes : no; }
};

// Operations that take a lane several instructions.
template <class L>
struct Longhand {
  using F = typename L::F;
  using I = typename L::I;
  using U = typename L::U;

  // Twice the sum of the bytes of x, less the sum's mean.
  LLCF_FN I centred_bytes(U x) {
    const U pairs = (x & 0x00ff00ffu) + ((x >> 8) & 0x00ff00ffu);
    const U sum = (pairs & 0xffffu) + (pairs >> 16);
    return L::as_signed(sum + sum) - 1020;
  }
  // x = k * 2^23 + m with 0 <= m < 2^23: kUnit * k, and m.
  static constexpr int kUnit = 1;
  LLCF_FN I above(I x) { return x >> 23; }
  LLCF_FN I below(I x, I) { return x & 0x7fffff; }
  // Bit 1 of x chooses.
  LLCF_FN F by_bit_1(U x, F yes, F no) { return L::select(x << 30, yes, no); }
  LLCF_FN F reciprocal(F f) { return L::div(L::constant(1.0f), f); }
};

// The same bits by fewer instructions where there are such: a lane specialises this.
template <class L>
struct Shortcut : Longhand<L> {};

}  // namespace llcf
