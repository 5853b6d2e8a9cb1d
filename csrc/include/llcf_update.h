// The Langevin update of one element, and the scalars that every element shares.
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
  float lr, friction, c3;
  uint32_t reserved[3];
};
static_assert(sizeof(Scalars) == 64, "the layout is shared with Python and Triton");

// Which terms a step has; a term whose scalar is exactly 0 is left out.
enum Terms : int { kWeightDecay = 1, kLocalization = 2, kNoise = 4, kBox = 8, kAllTerms = 15 };

LLCF_FN bool needs_anchor(int terms) { return (terms & (kLocalization | kBox)) != 0; }

// w' of one element; `terms` is a compile-time constant wherever speed matters.
template <class L>
LLCF_FN typename L::F sgld(typename L::F w, typename L::F g, typename L::F w0, typename L::F z,
                           const Scalars& s, int terms) {
  using F = typename L::F;
  F a = g * s.nbeta;
  if (terms & kWeightDecay) a = a + w * s.lambda;
  if (terms & kLocalization) a = a + (w - w0) * s.gamma;
  F u = a * s.c1;
  if (terms & kNoise) u = u + z * s.c2;
  F out = w + u;
  if (terms & kBox) {  // compare and select: min and max would hide a NaN
    const F lo = w0 - s.box, hi = w0 + s.box;
    out = L::where_less(out, lo, lo, out);
    out = L::where_less(hi, out, hi, out);
  }
  return out;
}

}  // namespace llcf
