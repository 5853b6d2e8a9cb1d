// A chunk of whole units: sixteen bytes at a time, random words of consecutive blocks.
#pragma once

#include "launch.h"
#include "rounds.h"
#include "storage.h"

namespace llcf {
namespace cuda {

LLCF_FN Scalars uniform(const Scalars& s) {
  Scalars u = s;
  u.nbeta = uniform(s.nbeta);
  u.lambda = uniform(s.lambda);
  u.gamma = uniform(s.gamma);
  u.c1 = uniform(s.c1);
  u.c2 = uniform(s.c2);
  u.alpha = uniform(s.alpha);
  u.beta = uniform(s.beta);
  u.delta = uniform(s.delta);
  u.box = uniform(s.box);
  u.lr = uniform(s.lr);
  u.c3 = uniform(s.c3);
  return u;
}

// A unit's bits of a mask, the lowest for its first element. They may begin anywhere in a byte.
LLCF_FN uint32_t mask_bits(int64_t mask, uint32_t bit) {
  const int64_t at = mask + (bit >> 3);
  return (load_byte(at) | load_byte(at + 1) << 8) >> (bit & 7);
}

LLCF_FN uint32_t ones(uint32_t x) {
#if defined(__CUDA_ARCH__)
  return __popc(x);
#else
  return (uint32_t)__builtin_popcount(x);
#endif
}

// The update of the four elements of one Philox block of a unit in registers: `z` is their noise, `random`
// the two words that round them, `keep` the unit's bits of the mask.
template <class V, bool MASKED>
LLCF_FN void update(Operands* q, int block, const float* z, const uint32_t* random, uint32_t keep,
                    const Scalars& s, float xi, int terms, Sums<LaneGpu>* sums) {
  using S = typename V::Sampler;
  float out[4];
#if defined(__CUDA_ARCH__)
#pragma unroll
#endif
  for (int i = 0; i < 4; ++i) {
    const int n = 4 * block + i;
    Element<LaneGpu> e = {};
    e.w = weight<V::kStorage>(*q, n);
    e.g = element<V::kStorage>(q->g, n);
    if (V::kSummed || needs_anchor(terms)) e.w0 = element<V::kStorage>(q->w0, n);
    if (terms & kNoise) e.z = z[i];
    if (S::kAux) e.aux = word(q->aux, n);
    const bool kept = !MASKED || (keep >> n & 1);
    if (!V::kSummed) {
      out[i] = S::template step<LaneGpu>(&e, s, xi, terms, nullptr);
    } else if (kept) {  // what is not selected adds nothing
      out[i] = S::template step<LaneGpu>(&e, s, xi, terms, sums);
    } else {
      out[i] = 0.0f;
    }
    if (S::kAux && kept) q->aux[n >> 2].x[n & 3] = Lane1::float_to_bits(e.aux);
    if (V::kStorage == kFloat32 && kept) q->w.x[i] = Lane1::float_to_bits(out[i]);
    if (V::kStorage == kFloat16 && kept) q->lo[n >> 2].x[n & 3] = Lane1::float_to_bits(out[i]);
  }
  if constexpr (V::kStorage != kFloat32) {
#if defined(__CUDA_ARCH__)
#pragma unroll
#endif
    for (int i = 0; i < 2; ++i)
      put_pair<V::kStorage, MASKED>(q, 2 * block + i, out[2 * i], out[2 * i + 1], random[i], keep);
  }
}

// Unit j - 1 (j from 1, as row_of wants it) has the same offset from all addresses of two-byte or of
// four-byte elements.
template <class V, bool MASKED>
LLCF_FN void plain_chunk(const Launch& p, const DeviceTile& t, int64_t grad, const Chunk& c, uint32_t thread,
                         Sums<LaneGpu>* sums) {
  constexpr int kStorage = V::kStorage;
  constexpr int kPer = unit_elements(kStorage);
  constexpr uint32_t kBlocks = kPer / 4;  // Philox blocks a unit, and quads of four-byte elements
  constexpr bool kAux = V::Sampler::kAux, kRounds = kStorage == kRoundedBfloat16;
  constexpr bool kMaster = kStorage == kFloat16;
  const int terms = V::terms(p), noise = V::noise(p);
  const bool anchored = V::kSummed || needs_anchor(terms);
  const int64_t column = c.unit * kPer - t.phase, first = c.row * t.row.w_stride + column;
  const int64_t origin = first * element_bytes(kStorage) - kUnitBytes;
  const int64_t wide = (first - kPer) * 4;
  const int64_t w = uniform(t.row.w + origin), lo = uniform(t.row.lo + (kMaster ? wide : origin));
  const int64_t w0 = uniform(t.row.w0 + origin), g = uniform(grad + origin);
  const int64_t aux = kAux ? uniform(t.row.aux + wide) : 0;
  const bool has_grad = uniform((uint32_t)(grad != 0)) != 0;
  const int64_t block = (t.row.start + c.row * t.row.global_stride + column) >> 2;
  const uint32_t low = uniform((uint32_t)block - kBlocks);
  const uint32_t top = kRounds ? uniform((uint32_t)(block >> 32) << 31) : 0;
  const uint32_t skip = uniform((uint32_t)(t.row.w_stride / kPer) - t.chunk_units);
  const uint32_t block_skip = uniform((uint32_t)(t.row.global_stride >> 2) - t.chunk_units * kBlocks);
  const uint32_t reciprocal = uniform(t.reciprocal);
  const uint32_t n = uniform(c.rows * c.units);
  const NoiseSource source = {t.row.key, p.scalars->step, (uint32_t)t.row.tensor_id, kStepNoise};
  const NoiseSource rounding = {t.row.key, p.scalars->step, (uint32_t)t.row.tensor_id, kRounding};
  const Rounds r = fold_rounds((uint64_t)block, source);
  const Rounds rounder = kRounds ? refold(r, (uint64_t)block >> 1, rounding) : r;
  const Scalars s = uniform(*p.scalars);
  const float xi = uniform(t.row.xi == 0 ? p.scalars->friction : load_rounded(t.row.xi));
  const int64_t bit = t.row.mask_start + c.row * t.row.mask_stride + column - kPer;
  const int64_t mask = MASKED ? uniform(t.row.mask + (bit >> 3)) : 0;
  const uint32_t mask_skip = MASKED ? uniform((uint32_t)t.row.mask_stride - t.chunk_units * kPer) : 0;
  // Counted alike by all threads of a block: in a loop that they leave apart, nothing is kept uniform.
  for (uint32_t pass = 0; pass < n; pass += kThreads) {
    const uint32_t j = pass + thread + 1;
    if (j > n) break;
    const uint32_t row = row_of(j, reciprocal);
    const uint64_t at = j + row * skip;
    const int64_t offset = (int64_t)(at * kUnitBytes), far = (int64_t)(at * (4 * kPer));
    Operands q = {};
    if (!kMaster || MASKED) q.w = load_quad(w + offset, false);  // otherwise only written
    if (kStorage == kSplitBfloat16) q.lo[0] = load_quad(lo + offset, false);
    if (has_grad) q.g = load_quad(g + offset, true);
    if (anchored) q.w0 = load_quad(w0 + offset, true);
    uint32_t keep = 0;
    if (MASKED) keep = mask_bits(mask, ((uint32_t)bit & 7) + row * mask_skip + j * kPer) & ((1u << kPer) - 1);
#if defined(__CUDA_ARCH__)
#pragma unroll
#endif
    for (uint32_t i = 0; i < kBlocks && !V::kSummed; ++i) {
      if (kMaster) q.lo[i] = load_quad(lo + far + i * kUnitBytes, false);
      if (kAux) q.aux[i] = load_quad(aux + far + i * kUnitBytes, false);
    }
    const uint32_t b = low + j * kBlocks + row * block_skip;
    Words random = {};
#if defined(__CUDA_ARCH__)
#pragma unroll
#endif
    for (uint32_t i = 0; i < kBlocks; ++i) {
      if (kMaster && V::kSummed) q.lo[i] = load_quad(lo + far + i * kUnitBytes, false);
      if (kAux && V::kSummed) q.aux[i] = load_quad(aux + far + i * kUnitBytes, false);
      float z[4];
      if (terms & kNoise) normals(folded(b + i, r), noise, z);
      if (kRounds && i == 0) random = folded(b >> 1 | top, rounder);
      update<V, MASKED>(&q, i, z, random.x + 2 * i, keep, s, xi, terms, sums);
      if (kMaster) store_quad(lo + far + i * kUnitBytes, q.lo[i]);
      if (kAux) store_quad(aux + far + i * kUnitBytes, q.aux[i]);
    }
    if (V::kSummed) sums->at[kN] += (float)(MASKED ? ones(keep) : kPer);
    // Sums take many registers: addresses are computed twice rather than kept.
    const int64_t back = V::kSummed ? (int64_t)((uint64_t)anew((uint32_t)at) * kUnitBytes) : offset;
    store_quad(w + back, q.w);
    if (kStorage == kSplitBfloat16) store_quad(lo + back, q.lo[0]);
  }
}

}  // namespace cuda
}  // namespace llcf
