// Noise into a buffer, W Philox blocks at a time, while what it will be added to is fetched. Included once
// per instruction set, within its namespace's file; no standard library here either.
#pragma once

#include "kernel.h"
#include "lanes.h"

namespace llcf {
namespace LLCF_ISA {
namespace {

constexpr int kBlock = 1024;   // elements staged through L1
constexpr int kGroup = 4 * W;  // elements of one vector pass: W Philox blocks
constexpr int kBuffer = kBlock + 2 * kGroup;

// What the rounds have in common over consecutive blocks: words 1 to 3 of the counter are constant,
// which leaves one product in each of the first two rounds.
struct Rounds {
  uint32_t a, b, c, d;  // folded constants of rounds 1 and 2
  uint32_t k0[kPhiloxRounds], k1[kPhiloxRounds];
};

Rounds fold_rounds(uint64_t block, const NoiseSource& source) {
  Rounds r;
  for (int i = 0; i < kPhiloxRounds; ++i) {
    r.k0[i] = (uint32_t)source.key + (uint32_t)i * kPhiloxW0;
    r.k1[i] = (uint32_t)(source.key >> 32) + (uint32_t)i * kPhiloxW1;
  }
  const uint32_t y0 = mul_hi(kPhiloxM1, source.step) ^ counter_high(block, source.domain) ^ r.k0[0];
  const uint32_t y1 = kPhiloxM1 * source.step;
  r.a = source.tensor_id ^ r.k1[0];
  r.b = y1 ^ r.k0[1];
  r.c = mul_hi(kPhiloxM0, y0) ^ r.k1[1];
  r.d = (kPhiloxM0 * y0) ^ r.k1[2];
  return r;
}

// W/2 blocks before the last exchange of their tenth round, one in each 64-bit lane: the round's products t0
// and t1, and x1 and x3, whose high halves are rubbish.
struct Tenth {
  VQ t0, t1, x1, x3;
};

// first: the products of the blocks with the first multiplier. High halves hold rubbish on the way.
LLCF_FN Tenth philox_lanes(VQ first, const Rounds& r) {
  const VQ q1 = mul_low((first >> 32) ^ (uint64_t)r.a, kPhiloxM1);
  const VQ z0 = (q1 >> 32) ^ (uint64_t)r.b;
  const VQ z2 = first ^ (uint64_t)r.c;
  const VQ s0 = mul_low(z0, kPhiloxM0), s1 = mul_low(z2, kPhiloxM1);
  VQ x0 = (s1 >> 32) ^ q1 ^ (uint64_t)r.k0[2], x1 = s1, x2 = (s0 >> 32) ^ (uint64_t)r.d, x3 = s0;
#pragma GCC unroll 8
  for (int i = 3; i < kPhiloxRounds - 1; ++i) {
    const VQ t0 = mul_low(x0, kPhiloxM0), t1 = mul_low(x2, kPhiloxM1);
    x0 = (t1 >> 32) ^ x1 ^ (uint64_t)r.k0[i];
    x2 = (t0 >> 32) ^ x3 ^ (uint64_t)r.k1[i];
    x1 = t1;
    x3 = t0;
  }
  return {mul_low(x0, kPhiloxM0), mul_low(x2, kPhiloxM1), x1, x3};
}

// What is fetched while noise is computed. Addresses stay integers: they may lie beyond the operand.
struct Prefetch {
  int count = 0;
  int64_t at[5];
  int64_t bytes[5];  // a group of kGroup elements, at most four lines
  void add(int64_t address, int64_t size) {
    at[count] = address;
    bytes[count++] = size;
  }
  // A line of each operand's group g, for `line` from 0 to 3. The four calls stand apart, for a processor has
  // room for few requests: a dozen in a row stall it.
  void fetch(int g, int line) const {
    for (int t = 0; t < count; ++t)
      if (line * 64 < bytes[t]) __builtin_prefetch((const char*)(at[t] + g * bytes[t] + line * 64), 1);
  }
};
static_assert(4 * kGroup <= 4 * 64, "an fp32 operand's group has at most four lines");

constexpr int kWords = 2;  // besides the kinds of noise: the random words themselves

// Noise of the blocks first, first + 1, ...: `groups` passes of kGroup elements. The blocks must not cross a
// multiple of 2^32.
template <int KIND>
void fill_groups(float* out, uint64_t first, int groups, const NoiseSource& source, const Prefetch& ahead) {
  const Rounds r = fold_rounds(first, source);
  // Position 4j + k of a vector works on block (W/4) k + j, so that transposing within 128 bits puts blocks
  // in order.
  VQ even, odd;
  for (int i = 0; i < W / 2; ++i) {
    const int p = 2 * i, q = 2 * i + 1;
    even[i] = (uint64_t)((W / 4) * (p & 3) + (p >> 2));
    odd[i] = (uint64_t)((W / 4) * (q & 3) + (q >> 2));
  }
  // Of a block the first round only needs its product, which grows evenly from group to group.
  const uint64_t product = (first & 0xffffffffull) * kPhiloxM0;
  even = even * kPhiloxM0 + product;
  odd = odd * kPhiloxM0 + product;
  for (int g = 0; g < groups; ++g) {
    ahead.fetch(g, 0);
    const Tenth e = philox_lanes(even, r);
    ahead.fetch(g, 1);
    const Tenth o = philox_lanes(odd, r);
    const VU x[4] = {
        pack_high(e.t1, o.t1) ^ pack_low(e.x1, o.x1) ^ r.k0[kPhiloxRounds - 1], pack_low(e.t1, o.t1),
        pack_high(e.t0, o.t0) ^ pack_low(e.x3, o.x3) ^ r.k1[kPhiloxRounds - 1], pack_low(e.t0, o.t0)};
    VF n[4];
    ahead.fetch(g, 2);
    if (KIND == kGaussian) {
      gaussian<LaneV>(x[0], x[1], &n[0], &n[1]);
      ahead.fetch(g, 3);
      gaussian<LaneV>(x[2], x[3], &n[2], &n[3]);
    } else {
      ahead.fetch(g, 3);
      for (int j = 0; j < 4; ++j) n[j] = KIND == kIh4 ? ih4<LaneV>(x[j]) : (VF)x[j];
    }
    transpose4(n);
    for (int j = 0; j < 4; ++j) store(out + g * kGroup + j * W, n[j]);
    even += (uint64_t)W * kPhiloxM0;
    odd += (uint64_t)W * kPhiloxM0;
  }
}

// Noise of elements start .. start + n - 1 (n <= kBlock): returns where the first one stands in the buffer.
template <int KIND>
const float* fill(float* buffer, uint64_t start, int n, const NoiseSource& source, const Prefetch& ahead) {
  const int phase = (int)(start & 3);
  uint64_t block = start >> 2;
  int blocks = (phase + n + 3) >> 2;
  float* out = buffer;
  while (blocks > 0) {
    const uint64_t left = 0x100000000ull - (block & 0xffffffffull);  // the counter's low word wraps here
    const int here = left < (uint64_t)blocks ? (int)left : blocks;
    fill_groups<KIND>(out, block, (here + W - 1) / W, source, ahead);
    out += 4 * here;
    block += (uint64_t)here;
    blocks -= here;
  }
  return buffer + phase;
}

const float* fill(int noise, float* buffer, uint64_t start, int n, const NoiseSource& source,
                  const Prefetch& ahead) {
  return noise == kIh4 ? fill<kIh4>(buffer, start, n, source, ahead)
                       : fill<kGaussian>(buffer, start, n, source, ahead);
}

}  // namespace
}  // namespace LLCF_ISA
}  // namespace llcf
