// Any chunk: one Philox block of a unit after the other, its elements one by one.
#pragma once

#include "launch.h"
#include "rounds.h"
#include "storage.h"

namespace llcf {
namespace cuda {

// One element of row `row`; `z` is its noise, `random` sixteen bits that round it.
template <class V>
LLCF_FN void edge_element(const TileRow& r, int64_t grad, int64_t row, int64_t column, float z,
                          uint32_t random, const Scalars& s, float xi, int terms, Sums<LaneGpu>* sums) {
  using S = typename V::Sampler;
  constexpr int kStorage = V::kStorage;
  constexpr int64_t kSize = element_bytes(kStorage);
  const int64_t bit = r.mask_start + row * r.mask_stride + column;
  if (!V::kFixed && r.mask != 0 && !(load_byte(r.mask + (bit >> 3)) >> (bit & 7) & 1)) return;
  const int64_t w = r.w + (row * r.w_stride + column) * kSize;
  const int64_t lo = r.lo + (row * r.lo_stride + column) * lo_bytes(kStorage);
  const int64_t aux = r.aux + (row * r.aux_stride + column) * 4;
  Element<LaneGpu> e = {};
  e.w = load_weight<kStorage>(w, lo);
  if (grad != 0) e.g = load_element<kStorage>(grad + (row * r.g_stride + column) * kSize);
  if (V::kSummed || needs_anchor(terms))
    e.w0 = load_element<kStorage>(r.w0 + (row * r.w0_stride + column) * kSize);
  if (terms & kNoise) e.z = z;
  if (S::kAux) e.aux = load_float(aux);
  const float out = S::template step<LaneGpu>(&e, s, xi, terms, V::kSummed ? sums : nullptr);
  if (V::kSummed) sums->at[kN] += 1.0f;
  if (S::kAux) store_float(aux, e.aux);
  store_weight<kStorage>(w, lo, out, random);
}

LLCF_FN Words edge_words(const TileRow& r, uint64_t block, uint32_t domain, uint32_t step) {
  return block_words(block, domain, step, (uint32_t)r.tensor_id, (uint32_t)r.key, (uint32_t)(r.key >> 32));
}

template <class V>
LLCF_FN void edge_chunk(const Launch& p, const DeviceTile& t, int64_t grad, const Chunk& c, uint32_t thread,
                        Sums<LaneGpu>* sums) {
  constexpr int kStorage = V::kStorage;
  constexpr int kPer = unit_elements(kStorage);
  const TileRow& r = t.row;
  const Scalars& s = *p.scalars;
  const int terms = V::terms(p);
  const float xi = r.xi == 0 ? s.friction : load_rounded(r.xi);
  for (uint32_t j = thread + 1; j <= c.rows * c.units; j += kThreads) {
    const uint32_t down = row_of(j, t.reciprocal);
    const int64_t row = c.row + down, unit = c.unit + (j - 1 - down * t.chunk_units);
    const int64_t start = r.start + row * r.global_stride;
    int64_t column =
        unit * kPer - row_phase(r.w + row * r.w_stride * element_bytes(kStorage), start, kStorage);
#if defined(__CUDA_ARCH__)
#pragma unroll 1
#endif
    for (int block = 0; block < kPer / 4; ++block, column += 4) {
      if (column + 4 <= 0 || column >= r.cols) continue;
      const uint64_t index = (uint64_t)(start + column);
      uint32_t random[2] = {0, 0};
      if (kStorage == kRoundedBfloat16) {
        const Words x = edge_words(r, index >> 3, kRounding, s.step);
        random[0] = index & 4 ? x.x[2] : x.x[0];
        random[1] = index & 4 ? x.x[3] : x.x[1];
      }
      float z[4];
      if (terms & kNoise) normals(edge_words(r, index >> 2, kStepNoise, s.step), V::noise(p), z);
#if defined(__CUDA_ARCH__)
#pragma unroll
#endif
      for (int i = 0; i < 4; ++i) {
        if (column + i < 0 || column + i >= r.cols) continue;
        const uint32_t half = (random[i >> 1] >> (16 * (i & 1))) & 0xffffu;
        edge_element<V>(r, grad, row, column + i, z[i], half, s, xi, terms, sums);
      }
    }
  }
}

}  // namespace cuda
}  // namespace llcf
