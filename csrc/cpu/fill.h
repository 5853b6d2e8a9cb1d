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

// Ten rounds on W/2 blocks, one in the low half of each 64-bit lane; high halves hold rubbish.
LLCF_FN void philox_lanes(VQ block, const Rounds& r, VQ x[4]) {
  const VQ p0 = mul_low(block, kPhiloxM0);
  const VQ q1 = mul_low((p0 >> 32) ^ (uint64_t)r.a, kPhiloxM1);
  const VQ z0 = (q1 >> 32) ^ (uint64_t)r.b;
  const VQ z2 = p0 ^ (uint64_t)r.c;
  const VQ s0 = mul_low(z0, kPhiloxM0), s1 = mul_low(z2, kPhiloxM1);
  VQ x0 = (s1 >> 32) ^ q1 ^ (uint64_t)r.k0[2], x1 = s1, x2 = (s0 >> 32) ^ (uint64_t)r.d, x3 = s0;
#pragma GCC unroll 8
  for (int i = 3; i < kPhiloxRounds; ++i) {
    const VQ t0 = mul_low(x0, kPhiloxM0), t1 = mul_low(x2, kPhiloxM1);
    x0 = (t1 >> 32) ^ x1 ^ (uint64_t)r.k0[i];
    x2 = (t0 >> 32) ^ x3 ^ (uint64_t)r.k1[i];
    x1 = t1;
    x3 = t0;
  }
  x[0] = x0;
  x[1] = x1;
  x[2] = x2;
  x[3] = x3;
}

// Addresses stay integers: what is fetched ahead may lie beyond the operand.
struct Prefetch {
  int count = 0;
  int64_t at[5];
  int64_t bytes[5];  // a group of kGroup elements
  void add(int64_t address, int64_t size) {
    at[count] = address;
    bytes[count++] = size;
  }
};

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
    even[i] = first + (uint64_t)((W / 4) * (p & 3) + (p >> 2));
    odd[i] = first + (uint64_t)((W / 4) * (q & 3) + (q >> 2));
  }
  for (int g = 0; g < groups; ++g) {
    for (int t = 0; t < ahead.count; ++t)
      for (int64_t line = 0; line < ahead.bytes[t]; line += 64)
        __builtin_prefetch((const void*)(ahead.at[t] + g * ahead.bytes[t] + line), 1);
    VQ e[4], o[4];
    philox_lanes(even, r, e);
    philox_lanes(odd, r, o);
    VU x[4];
    for (int j = 0; j < 4; ++j) x[j] = (VU)((e[j] & 0xffffffffull) | (o[j] << 32));
    VF n[4];
    if (KIND == kGaussian) {
      gaussian<LaneV>(x[0], x[1], &n[0], &n[1]);
      gaussian<LaneV>(x[2], x[3], &n[2], &n[3]);
    } else {
      for (int j = 0; j < 4; ++j) n[j] = KIND == kIh4 ? ih4<LaneV>(x[j]) : (VF)x[j];
    }
    transpose4(n);
    for (int j = 0; j < 4; ++j) store(out + g * kGroup + j * W, n[j]);
    even += (uint64_t)W;
    odd += (uint64_t)W;
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
