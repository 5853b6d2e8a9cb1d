// The samplers: each updates one element, alike in every storage and on every device.
#pragma once

#include "llcf_update.h"

namespace llcf {

// What an element's update is given and gives back. `aux` is the sampler's own fp32 state of the element.
template <class L>
struct Element {
  typename L::F w, g, w0, z, aux;
};

// A sampler has
//   kAux      whether it keeps an fp32 of its own an element,
//   step      the new w; it may change e->aux. `terms` is a constant wherever speed matters. `xi` is the
//             friction. Where `sums` is not null, it also adds up what the step saw.
// and a line in LLCF_SAMPLERS, whose order is its code.

// Stochastic gradient Langevin dynamics (Welling & Teh 2011).
struct Sgld {
  static constexpr bool kAux = false;

  template <class L>
  LLCF_FN typename L::F step(Element<L>* e, const Scalars& s, float, int terms, Sums<L>* sums) {
    using F = typename L::F;
    const F a = drift<L>(e->w, e->g, e->w0, s, terms);
    F u = a * s.c1;
    if (terms & kNoise) u = u + e->z * s.c2;
    if (sums) observe<L>(sums, e->w, e->g, e->w - e->w0, e->z, terms);
    const F out = e->w + u;
    return terms & kBox ? boxed<L>(out, e->w0, s) : out;
  }
};

// SGLD preconditioned by a running mean square of the loss gradient, V in `aux` (Li et al. 2016).
struct Rmsprop {
  static constexpr bool kAux = true;

  template <class L>
  LLCF_FN typename L::F step(Element<L>* e, const Scalars& s, float, int terms, Sums<L>* sums) {
    using F = typename L::F;
    const F a = drift<L>(e->w, e->g, e->w0, s, terms);
    const F V = e->aux * s.alpha + (e->g * e->g) * s.beta;
    e->aux = V;
    const F G = Shortcut<L>::reciprocal(L::sqrt(V) + s.delta);
    F u = (a * G) * s.c1, root = G;
    if ((terms & kNoise) || sums) root = L::sqrt(G);
    if (terms & kNoise) u = u + (e->z * root) * s.c2;
    if (sums) {
      const F d = e->w - e->w0;
      observe<L>(sums, e->w, e->g, d, e->z, terms);
      const F Gg = G * e->g, Gd = G * d, y = root * e->z;
      F* at = sums->at;
      at[kPre] = at[kPre] + G;
      at[kPreG2] = at[kPreG2] + Gg * Gg;
      at[kPreD2] = at[kPreD2] + Gd * Gd;
      at[kPreGd] = at[kPreGd] + Gg * Gd;
      at[kPreZ2] = at[kPreZ2] + y * y;
      at[kPreGz] = at[kPreGz] + Gg * y;
      at[kPreDz] = at[kPreDz] + Gd * y;
      at[kHalfDz] = at[kHalfDz] + d * y;
      if (terms & kWeightDecay) {
        const F Gw = G * e->w;
        at[kPreW2] = at[kPreW2] + Gw * Gw;
        at[kPreGw] = at[kPreGw] + Gg * Gw;
        at[kPreWz] = at[kPreWz] + Gw * y;
      }
    }
    const F out = e->w + u;
    return terms & kBox ? boxed<L>(out, e->w0, s) : out;
  }
};

// Hamiltonian dynamics with friction xi and velocity v in `aux`: SGHMC where xi is constant (Chen et al.
// 2014), SGNHT where the caller moves it (Ding et al. 2014). At the box v changes sign.
struct Momentum {
  static constexpr bool kAux = true;

  template <class L>
  LLCF_FN typename L::F step(Element<L>* e, const Scalars& s, float xi, int terms, Sums<L>* sums) {
    using F = typename L::F;
    const F a = drift<L>(e->w, e->g, e->w0, s, terms);
    F v = e->aux - (a * s.lr + e->aux * xi);
    if (terms & kNoise) v = v + e->z * s.c3;
    F out = e->w + v;
    if (terms & kBox) {
      const F lo = e->w0 - s.box, hi = e->w0 + s.box, back = -v;
      v = L::where_less(out, lo, back, L::where_less(hi, out, back, v));
      out = boxed<L>(out, e->w0, s);
    }
    e->aux = v;
    if (sums) {
      observe<L>(sums, e->w, e->g, e->w - e->w0, e->z, terms);
      sums->at[kV2] = sums->at[kV2] + v * v;
    }
    return out;
  }
};

#define LLCF_SAMPLERS(X) X(Sgld) X(Rmsprop) X(Momentum)

enum Sampler : int {
#define LLCF_CODE(name) k##name,
  LLCF_SAMPLERS(LLCF_CODE)
#undef LLCF_CODE
      kSamplers
};

}  // namespace llcf
