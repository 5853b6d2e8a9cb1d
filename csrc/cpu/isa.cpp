// The step of one span of one tile, compiled once per instruction set (LLCF_ISA).
// No standard library here: an inline function compiled for AVX-512 must never be merged into portable code.

#include "fill.h"
#include "kernel.h"
#include "lanes.h"

namespace llcf {
namespace LLCF_ISA {
namespace {

// An absent gradient is +0: a row of zeros is read instead, so that there is one loop.
alignas(64) const float kZeros[kBlock] = {};

// Consecutive elements of one row of a tile, in memory; what a step does not have is not read.
struct Run {
  int64_t w, lo, g, w0, aux;  // addresses
  const float* z;
  const uint16_t* h;  // random bits that round
  int64_t mask, bit;  // where the bits of the mask begin, and the first element's
};

constexpr int storage_bytes(int storage) { return storage == kFloat32 ? 4 : 2; }
constexpr int lo_bytes(int storage) { return storage == kSplitBfloat16 ? 2 : storage == kFloat16 ? 4 : 0; }

template <class V>
LLCF_FN V at(int64_t address, int64_t i, int size) {
  return load<V>((const char*)(address + i * size));
}

template <class V>
LLCF_FN void put(int64_t address, int64_t i, int size, V v) {
  store((char*)(address + i * size), v);
}

template <class V, class M>
LLCF_FN V blend(M keep, V yes, V no) {
  return (V)(((M)yes & keep) | ((M)no & ~keep));
}

// One vector of a run, from element i.
template <class S, int STORAGE, bool SUMS>
LLCF_FN void step_vector(const Run& r, int64_t i, const Scalars& s, float xi, int terms, bool masked,
                         Sums<LaneV>* sums) {
  constexpr int kSize = storage_bytes(STORAGE);
  Element<LaneV> e = {};
  VH hi = {};
  if (STORAGE == kFloat32) {
    e.w = at<VF>(r.w, i, 4);
    e.g = at<VF>(r.g, i, 4);
    if (SUMS || needs_anchor(terms)) e.w0 = at<VF>(r.w0, i, 4);
  } else {
    hi = at<VH>(r.w, i, 2);
    if (STORAGE == kSplitBfloat16) e.w = (VF)join_lanes(hi, at<VS>(r.lo, i, 2));
    if (STORAGE == kRoundedBfloat16) e.w = bf16_lanes(hi);
    if (STORAGE == kFloat16) e.w = at<VF>(r.lo, i, 4);
    const VH g = at<VH>(r.g, i, 2);
    e.g = STORAGE == kFloat16 ? half_lanes(g) : bf16_lanes(g);
    if (SUMS || needs_anchor(terms)) {
      const VH w0 = at<VH>(r.w0, i, 2);
      e.w0 = STORAGE == kFloat16 ? half_lanes(w0) : bf16_lanes(w0);
    }
  }
  if (terms & kNoise) e.z = load<VF>(r.z + i);
  if (S::kAux) e.aux = at<VF>(r.aux, i, 4);
  const Element<LaneV> old = e;
  VI keep = {};
  Sums<LaneV> here;
  if (SUMS) {
    if (masked) {
      keep = mask_lanes(r.mask, r.bit + i);
      // What is not selected adds nothing, not even an infinity.
      e.w = blend(keep, e.w, VF{});
      e.g = blend(keep, e.g, VF{});
      e.w0 = blend(keep, e.w0, VF{});
      e.z = blend(keep, e.z, VF{});
      if (S::kAux) e.aux = blend(keep, e.aux, VF{});
      here = *sums;
    }
  } else if (masked) {
    keep = mask_lanes(r.mask, r.bit + i);
  }
  VF out = S::template step<LaneV>(&e, s, xi, terms, SUMS ? sums : nullptr);
  if (SUMS && masked && S::kAux)  // a preconditioner and a velocity are not 0 where w and g are
    for (int k = 0; k < kSums; ++k) sums->at[k] = blend(keep, sums->at[k], here.at[k]);
  if (masked) {
    out = blend(keep, out, old.w);
    if (S::kAux) e.aux = blend(keep, e.aux, old.aux);
  }
  if (S::kAux) put(r.aux, i, 4, e.aux);
  if (STORAGE == kFloat32) {
    put(r.w, i, kSize, out);
  } else if (STORAGE == kSplitBfloat16) {
    VH high, low;
    split_lanes((VU)out, &high, &low);
    if (masked) {  // a pair that no split gives stays as it is
      const VH few = (VH) __builtin_convertvector(keep, VS);
      high = blend(few, high, hi);
      low = blend(few, low, at<VH>(r.lo, i, 2));
    }
    put(r.w, i, kSize, high);
    put(r.lo, i, 2, low);
  } else {
    VH high = STORAGE == kFloat16 ? to_half_lanes(out) : round_lanes((VU)out, load<VH>(r.h + i));
    if (masked) high = blend((VH) __builtin_convertvector(keep, VS), high, hi);
    if (STORAGE == kFloat16) put(r.lo, i, 4, out);
    put(r.w, i, kSize, high);
  }
}

// The elements of a run: whole vectors, then the rest in a vector of its own.
template <class S, int STORAGE, bool SUMS>
void step_run(const Run& run, int n, const Scalars& scalars, float xi, int terms, VD* totals) {
  const Scalars s = scalars;
  const Run r = run;
  Sums<LaneV> sums = {};
  int i = 0;
  if (terms == (kLocalization | kNoise) && r.mask == 0) {
    for (; i + W <= n; i += W)
      step_vector<S, STORAGE, SUMS>(r, i, s, xi, kLocalization | kNoise, false, &sums);
  } else if (r.mask == 0) {
    for (; i + W <= n; i += W) step_vector<S, STORAGE, SUMS>(r, i, s, xi, terms, false, &sums);
  } else {
    for (; i + W <= n; i += W) step_vector<S, STORAGE, SUMS>(r, i, s, xi, terms, true, &sums);
  }
  if (i < n) {
    constexpr int kSize = storage_bytes(STORAGE), kLo = lo_bytes(STORAGE);
    const bool anchored = SUMS || needs_anchor(terms);
    const size_t left = (size_t)(n - i);
    alignas(64) char w[4 * W] = {}, lo[4 * W] = {}, g[4 * W] = {}, w0[4 * W] = {}, aux[4 * W] = {};
    alignas(64) float z[W] = {};
    alignas(64) uint16_t h[W] = {};
    alignas(8) uint8_t bits[16] = {};
    __builtin_memcpy(w, (const char*)r.w + i * kSize, left * kSize);
    __builtin_memcpy(g, (const char*)r.g + i * kSize, left * kSize);
    if (kLo) __builtin_memcpy(lo, (const char*)r.lo + i * kLo, left * kLo);
    if (anchored) __builtin_memcpy(w0, (const char*)r.w0 + i * kSize, left * kSize);
    if (S::kAux) __builtin_memcpy(aux, (const char*)r.aux + i * 4, left * 4);
    if (terms & kNoise) __builtin_memcpy(z, r.z + i, left * 4);
    if (STORAGE == kRoundedBfloat16) __builtin_memcpy(h, r.h + i, left * 2);
    for (size_t j = 0; j < left; ++j) {
      const int64_t bit = r.bit + i + (int64_t)j;
      if (r.mask == 0 || (((const uint8_t*)r.mask)[bit >> 3] >> (bit & 7) & 1))
        bits[j >> 3] |= (uint8_t)(1u << (j & 7));
    }
    const Run rest = {(int64_t)w, (int64_t)lo, (int64_t)g, (int64_t)w0, (int64_t)aux, z, h, (int64_t)bits, 0};
    step_vector<S, STORAGE, SUMS>(rest, 0, s, xi, terms, true, &sums);
    __builtin_memcpy((char*)r.w + i * kSize, w, left * kSize);
    if (kLo) __builtin_memcpy((char*)r.lo + i * kLo, lo, left * kLo);
    if (S::kAux) __builtin_memcpy((char*)r.aux + i * 4, aux, left * 4);
  }
  if (SUMS)
    for (int k = 0; k < kSums; ++k) totals[k] += __builtin_convertvector(sums.at[k], VD);
}

int selected(const Run& r, int n) {
  if (r.mask == 0) return n;
  int count = 0;
  for (int64_t bit = r.bit; bit < r.bit + n; ++bit)
    count += ((const uint8_t*)r.mask)[bit >> 3] >> (bit & 7) & 1;
  return count;
}

template <class S, int STORAGE, bool SUMS>
void step_span(const TileRow& t, int64_t grad, const Scalars& s, const Kind& kind, Span span, double* sums) {
  constexpr int kSize = storage_bytes(STORAGE), kLo = lo_bytes(STORAGE);
  alignas(64) float buffer[kBuffer];
  alignas(64) float words[STORAGE == kRoundedBfloat16 ? kBuffer : 1];
  const NoiseSource source{t.key, s.step, (uint32_t)t.tensor_id, kStepNoise};
  const NoiseSource rounding{t.key, s.step, (uint32_t)t.tensor_id, kRounding};
  const float xi = t.xi == 0 ? s.friction : (float)*(const double*)t.xi;
  const bool anchored = SUMS || needs_anchor(kind.terms);
  alignas(64) VD totals[SUMS ? kSums : 1] = {};
  for (int64_t row = span.row0; row < span.row1; ++row) {
    for (int64_t col = span.col0; col < span.col1; col += kBlock) {
      const int n = (int)(span.col1 - col < kBlock ? span.col1 - col : kBlock);
      const uint64_t first = (uint64_t)(t.start + row * t.global_stride + col);
      Run r = {};
      r.w = t.w + (row * t.w_stride + col) * kSize;
      r.lo = t.lo + (row * t.lo_stride + col) * kLo;
      r.w0 = t.w0 + (row * t.w0_stride + col) * kSize;
      r.aux = t.aux + (row * t.aux_stride + col) * 4;
      r.g = grad == 0 ? (int64_t)kZeros : grad + (row * t.g_stride + col) * kSize;
      r.mask = t.mask;
      r.bit = t.mask_start + row * t.mask_stride + col;
      if (kind.terms & kNoise) {
        // The block's own weights are fetched while its noise is computed.
        Prefetch ahead;
        ahead.add(r.w, kGroup * kSize);
        if (grad != 0) ahead.add(r.g, kGroup * kSize);
        if (anchored) ahead.add(r.w0, kGroup * kSize);
        if (kLo) ahead.add(r.lo, kGroup * kLo);
        if (S::kAux) ahead.add(r.aux, kGroup * 4);
        r.z = fill(kind.noise, buffer, first, n, source, ahead);
      }
      if (STORAGE == kRoundedBfloat16) {
        // Eight elements share the four words of a block, in the order of their bits in memory.
        const uint64_t block = first >> 3, last = (first + (uint64_t)n - 1) >> 3;
        fill<kWords>(words, 4 * block, (int)(4 * (last - block + 1)), rounding, Prefetch{});
        r.h = (const uint16_t*)words + (first & 7);
      }
      step_run<S, STORAGE, SUMS>(r, n, s, xi, kind.terms, totals);
      if (SUMS) sums[kN] += (double)selected(r, n);
    }
  }
  for (int k = 0; SUMS && k < kSums; ++k)
    for (int j = 0; j < W; ++j) sums[k] += totals[k][j];
}

using StepFn = void (*)(const TileRow&, int64_t, const Scalars&, const Kind&, Span, double*);

template <class S>
StepFn pick(int storage, bool sums) {
  static constexpr StepFn table[kStorages][2] = {
      {&step_span<S, kFloat32, false>, &step_span<S, kFloat32, true>},
      {&step_span<S, kSplitBfloat16, false>, &step_span<S, kSplitBfloat16, true>},
      {&step_span<S, kRoundedBfloat16, false>, &step_span<S, kRoundedBfloat16, true>},
      {&step_span<S, kFloat16, false>, &step_span<S, kFloat16, true>},
  };
  return table[storage][sums];
}

void step_any(const TileRow& t, int64_t grad, const Scalars& s, const Kind& kind, Span span, double* sums) {
  switch (kind.sampler) {
#define LLCF_CASE(name) \
  case k##name:         \
    return pick<name>(kind.storage, sums != nullptr)(t, grad, s, kind, span, sums);
    LLCF_SAMPLERS(LLCF_CASE)
#undef LLCF_CASE
  }
}

void normal_any(float* out, uint64_t start, int64_t n, int noise, const NoiseSource& source) {
  alignas(64) float buffer[kBuffer];
  const Prefetch none = {};
  for (int64_t i = 0; i < n; i += kBlock) {
    const int m = (int)(n - i < kBlock ? n - i : kBlock);
    __builtin_memcpy(out + i, fill(noise, buffer, start + (uint64_t)i, m, source, none),
                     sizeof(float) * (size_t)m);
  }
}

}  // namespace

extern const IsaTable kTable = {LLCF_ISA_NAME, &step_any, &normal_any};

}  // namespace LLCF_ISA
}  // namespace llcf
