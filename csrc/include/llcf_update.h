// What every sampler shares: the scalars of a step, its terms, the drift, the box and the sums.
#pragma once

#include "llcf_lane.h"

namespace llcf {

// Computed on the host in double and rounded once; sixteen 32-bit words, read from memory by every kernel.
struct Scalars {
  uint32_t step;
  float nbeta, lambda, gamma;
  float c1, c2;  // -eps/2, sqrt(eps) * sigma
  float alpha, beta, delta;
  float box;
  float lr, friction, c3;  // c3 = sqrt(2 * friction * lr) * sigma
  uint32_t reserved[3];
};
static_assert(sizeof(Scalars) == 64, "the layout is shared with Python and Triton");

// Which terms a step has; a term whose scalar is exactly 0 is left out.
enum Terms : int { kWeightDecay = 1, kLocalization = 2, kNoise = 4, kBox = 8, kAllTerms = 15 };

LLCF_FN bool needs_anchor(int terms) { return (terms & (kLocalization | kBox)) != 0; }

// Sums over elements before the step: g the gradient, d = w - w0, z the noise, G the preconditioner (1 where
// there is none; `Gg2` is the sum of (G g)^2, `Ggz` of G^1.5 g z, `Hdz` of G^.5 d z); v after the step.
enum Sum : int {
  kN,
  kG2,
  kD2,
  kZ2,
  kGd,
  kGz,
  kDz,
  kW2,
  kGw,
  kWz,
  kDw,
  kV2,
  kPre,
  kPreG2,
  kPreD2,
  kPreGd,
  kPreZ2,
  kPreGz,
  kPreDz,
  kPreW2,
  kPreGw,
  kPreWz,
  kHalfDz,
  kSums = 24
};

// Sums of one lane; a sampler adds to them, whoever runs it decides how lanes are added up.
template <class L>
struct Sums {
  typename L::F at[kSums];
};

// The drift before preconditioning: a = nbeta g [+ lambda w] [+ gamma d].
template <class L>
LLCF_FN typename L::F drift(typename L::F w, typename L::F g, typename L::F w0, const Scalars& s, int terms) {
  typename L::F a = g * s.nbeta;
  if (terms & kWeightDecay) a = a + w * s.lambda;
  if (terms & kLocalization) a = a + (w - w0) * s.gamma;
  return a;
}

// Clamped to w0 +- box by comparing and selecting: min and max would hide a NaN.
template <class L>
LLCF_FN typename L::F boxed(typename L::F w, typename L::F w0, const Scalars& s) {
  const typename L::F lo = w0 - s.box, hi = w0 + s.box;
  const typename L::F out = L::where_less(w, lo, lo, w);
  return L::where_less(hi, out, hi, out);
}

// The sums that every sampler has; those with w only where weight decay makes them wanted.
template <class L>
LLCF_FN void observe(Sums<L>* sums, typename L::F w, typename L::F g, typename L::F d, typename L::F z,
                     int terms) {
  typename L::F* at = sums->at;
  at[kG2] = at[kG2] + g * g;
  at[kD2] = at[kD2] + d * d;
  at[kZ2] = at[kZ2] + z * z;
  at[kGd] = at[kGd] + g * d;
  at[kGz] = at[kGz] + g * z;
  at[kDz] = at[kDz] + d * z;
  if (terms & kWeightDecay) {
    at[kW2] = at[kW2] + w * w;
    at[kGw] = at[kGw] + g * w;
    at[kWz] = at[kWz] + w * z;
    at[kDw] = at[kDw] + d * w;
  }
}

}  // namespace llcf
