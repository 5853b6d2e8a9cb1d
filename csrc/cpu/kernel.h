// The C++ interface of the CPU step: what the bindings call, and what each instruction set provides.
#pragma once

#include "llcf_philox.h"
#include "llcf_round.h"
#include "llcf_samplers.h"
#include "llcf_tile.h"

namespace llcf {

// Rows [row0, row1) and columns [col0, col1) of one tile.
struct Span {
  int64_t row0, row1, col0, col1;
};

// Which step it is.
struct Kind {
  int sampler, storage, noise, terms;
};

struct IsaTable {
  const char* name;
  // sums: kSums doubles that are added to, or nullptr.
  void (*step)(const TileRow& tile, int64_t grad, const Scalars& s, const Kind& kind, Span span,
               double* sums);
  void (*normal)(float* out, uint64_t start, int64_t n, int noise, const NoiseSource& source);
};

const IsaTable* isa_table(const char* name);  // nullptr: not compiled in, or not on this machine
extern const char* const kIsaNames[3];        // best first

// sums: a row of kSums doubles for each slot, which are added to in a fixed order, or nullptr.
void sgld_step(const IsaTable& isa, const TileRow* tiles, const int64_t* grads, int64_t n_tiles,
               const Scalars& s, const Kind& kind, double* sums, int threads);
void normal(const IsaTable& isa, float* out, uint64_t start, int64_t n, int noise, const NoiseSource& source,
            int threads);

}  // namespace llcf
