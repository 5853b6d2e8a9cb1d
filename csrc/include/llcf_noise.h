// Two standard normals from two random words: Box-Muller on an eighth of the circle.
#pragma once

#include "llcf_philox.h"

namespace llcf {

// -2 ln(u) with u = (a >> 2 + 1/2) 2^-30: exponent and a polynomial on [sqrt(1/2), sqrt(2)).
template <class L>
LLCF_FN typename L::F minus_two_log(typename L::U a) {
  using F = typename L::F;
  using I = typename L::I;
  const F m = L::to_float(L::as_signed(a >> 2)) + 0.5f;
  const I ix = L::as_signed(L::float_to_bits(m) - (0x3f3504f3u + (30u << 23)));
  const I k = Shortcut<L>::above(ix);
  const F f = L::bits_to_float(L::as_unsigned(Shortcut<L>::below(ix, k)) + 0x3f3504f3u) - 1.0f;
  F q = f * 0.2016475796699524f + -0.3236100375652313f;
  q = q * f + 0.34486448764801025f;
  q = q * f + -0.3981376588344574f;
  q = q * f + 0.4994245767593384f;
  q = q * f + -0.6666942834854126f;
  q = q * f + 1.0000064373016357f;
  q = q * f + -2.0f;
  return L::to_float(k) * (-1.3862943611198906f / Shortcut<L>::kUnit) + q * f;
}

template <class L>
LLCF_FN void gaussian(typename L::U a, typename L::U c, typename L::F* n0, typename L::F* n1) {
  using F = typename L::F;
  const F r = L::sqrt(minus_two_log<L>(a));
  const F y = L::to_float(L::as_signed(c)) * 4.656612873077393e-10f;  // 2^-31
  const F v = y * y;
  F s = v * -3.587725950637832e-05f + 0.002489872043952346f;
  s = s * v + -0.08074536919593811f;
  s = s * v + 0.7853981256484985f;
  s = y * s;
  F k = v * -0.00031888068770058453f + 0.015849916264414787f;
  k = k * v + -0.3084242641925812f;
  k = k * v + 1.0f;
  k = L::bits_to_float(L::float_to_bits(k) ^ (a << 31));  // a & 1: the other half plane
  *n0 = r * Shortcut<L>::by_bit_1(a, s, k);               // a & 2: the other diagonal
  *n1 = r * Shortcut<L>::by_bit_1(a, k, s);
}

// A cheaper, coarser normal from one word: the sum of its bytes, 1,021 atoms, shaped by a polynomial.
template <class L>
LLCF_FN typename L::F ih4(typename L::U x) {
  using F = typename L::F;
  const F t = L::to_float(Shortcut<L>::centred_bytes(x)) * 0.0033829498570412397f;
  const F p = t * t;
  F q = p * 0.00031776257674209774f + -0.002032571006566286f;
  q = q * p + 0.01667272485792637f;
  q = q * p + 0.9588397145271301f;
  return t * q;
}

// The four normals of one block.
LLCF_FN void gaussian_block(const Words& w, float n[4]) {
  gaussian<Lane1>(w.x[0], w.x[1], &n[0], &n[1]);
  gaussian<Lane1>(w.x[2], w.x[3], &n[2], &n[3]);
}

}  // namespace llcf
