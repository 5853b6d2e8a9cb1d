// What a launch is given, which kernel it takes, and which piece of which tile a block works on.
#pragma once

#include <stdexcept>
#include <type_traits>

#include "llcf_samplers.h"
#include "plan.h"

namespace llcf {
namespace cuda {

// Every pointer is to device memory.
struct Launch {
  const DeviceTile* tiles;
  const uint32_t* first;  // chunks before each tile, and in all
  const int64_t* grads;   // address of each tile's first gradient element, 0 where there is none
  const Scalars* scalars;
  float* partials;  // kSums of each chunk, or nullptr
  uint32_t n_tiles, n_chunks;
  int32_t terms, noise;
};

// Which step it is.
struct Kind {
  int sampler, storage, noise, terms;
  bool masked, sums;
};

constexpr int kTold = -1;  // terms and noise: at run time, and so are masks

// Blocks of a kernel that a multiprocessor holds, as many as its registers allow without spilling on any
// architecture.
constexpr int resident(int storage, bool aux, bool sums, bool fixed, int noise) {
  if (sums) return 2;
  const bool wide = storage == kFloat32;
  if (fixed) return aux ? 4 : wide || noise == kIh4 ? 6 : 5;
  return aux && !wide ? 3 : 4;
}

// What a kernel knows when it is compiled.
template <class SAMPLER, int STORAGE, bool SUMS, int TERMS = kTold, int NOISE = kTold>
struct Variant {
  using Sampler = SAMPLER;
  static constexpr int kStorage = STORAGE;
  static constexpr bool kSummed = SUMS;
  static constexpr int kKnownTerms = TERMS, kKnownNoise = NOISE;
  static constexpr bool kFixed = TERMS != kTold;
  static constexpr int kResident = resident(STORAGE, SAMPLER::kAux, SUMS, kFixed, NOISE);

  LLCF_FN int terms(const Launch& p) { return TERMS == kTold ? p.terms : TERMS; }
  LLCF_FN int noise(const Launch& p) { return NOISE == kTold ? p.noise : NOISE; }
};

// `f.of<V>()` with the variant that runs a kind of step. What is usual has kernels of its own, which know
// their terms; plain SGLD has them for all terms.
constexpr int kUsual = kLocalization | kNoise;

template <int STORAGE, int TERMS = kAllTerms, class F>
auto with_terms(int terms, const F& f) {
  if constexpr (TERMS > 0)
    if (terms != TERMS) return with_terms<STORAGE, TERMS - 1>(terms, f);
  return f.template of<Variant<Sgld, STORAGE, false, TERMS, kGaussian>>();
}

template <class SAMPLER, int STORAGE, class F>
auto with_storage(const Kind& k, const F& f) {
  constexpr bool kPlain = std::is_same<SAMPLER, Sgld>::value;
  if (k.sums) return f.template of<Variant<SAMPLER, STORAGE, true>>();
  if (!k.masked && k.noise == kGaussian) {
    if constexpr (kPlain && (STORAGE == kFloat32 || STORAGE == kSplitBfloat16))
      return with_terms<STORAGE>(k.terms, f);
    else if (k.terms == kUsual)
      return f.template of<Variant<SAMPLER, STORAGE, false, kUsual, kGaussian>>();
  }
  if constexpr (kPlain && STORAGE == kRoundedBfloat16)
    if (!k.masked && k.noise == kIh4 && k.terms == kUsual)
      return f.template of<Variant<SAMPLER, STORAGE, false, kUsual, kIh4>>();
  return f.template of<Variant<SAMPLER, STORAGE, false>>();
}

template <class SAMPLER, class F>
auto with_sampler(const Kind& k, const F& f) {
  switch (k.storage) {
    case kFloat32:
      return with_storage<SAMPLER, kFloat32>(k, f);
    case kSplitBfloat16:
      return with_storage<SAMPLER, kSplitBfloat16>(k, f);
    case kRoundedBfloat16:
      return with_storage<SAMPLER, kRoundedBfloat16>(k, f);
    default:
      return with_storage<SAMPLER, kFloat16>(k, f);
  }
}

template <class F>
auto with_variant(const Kind& k, const F& f) {
  switch (k.sampler) {
#define LLCF_CASE(name) \
  case k##name:         \
    return with_sampler<name>(k, f);
    LLCF_SAMPLERS(LLCF_CASE)
#undef LLCF_CASE
  }
  throw std::invalid_argument("unknown sampler");
}

// Rows row, row + 1, ... and their units unit, unit + 1, ... of one tile.
struct Chunk {
  int64_t row, unit;
  uint32_t rows, units;
};

LLCF_FN Chunk chunk_of(const DeviceTile& t, uint32_t index) {
  const uint32_t down = index / t.across;
  const uint32_t aside = index - down * t.across;
  Chunk c;
  c.row = (int64_t)down * t.chunk_rows;
  c.unit = (int64_t)aside * t.chunk_units;
  const int64_t rows = t.row.rows - c.row, units = t.units - c.unit;
  c.rows = rows < t.chunk_rows ? (uint32_t)rows : t.chunk_rows;
  c.units = units < t.chunk_units ? (uint32_t)units : t.chunk_units;
  return c;
}

// The tile that a chunk belongs to, at or after `from`.
LLCF_FN uint32_t find_tile(const Launch& p, uint32_t chunk, uint32_t from) {
  if (chunk < p.first[from + 1]) return from;
  uint32_t low = from + 1, high = p.n_tiles;  // the last one whose first chunk is at most this one
  while (high - low > 1) {
    const uint32_t middle = low + ((high - low) >> 1);
    if (p.first[middle] <= chunk)
      low = middle;
    else
      high = middle;
  }
  return low;
}

// Whether the chunk consists of whole units in aligned memory, with one high word of the noise counter.
LLCF_FN bool is_plain(const DeviceTile& t, int64_t grad, const Chunk& c, int storage) {
  const int64_t per = unit_elements(storage);
  const int64_t begin = t.row.start + c.row * t.row.global_stride + c.unit * per - t.phase;
  const int64_t end = begin + (int64_t)(c.rows - 1) * t.row.global_stride + c.units * per - 1;
  return t.regular && !(c.unit == 0 && t.phase != 0) && !(c.unit + c.units == t.units && t.tail != 0) &&
         ((grad - (int64_t)t.phase * element_bytes(storage)) & (grad == 0 ? 0 : kUnitBytes - 1)) == 0 &&
         begin >> 34 == end >> 34;
}

}  // namespace cuda
}  // namespace llcf
