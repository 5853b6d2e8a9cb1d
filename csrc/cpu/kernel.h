// The C++ interface of the CPU step: what the bindings call, and what each instruction set provides.
#pragma once

#include "llcf_philox.h"
#include "llcf_round.h"
#include "llcf_tile.h"
#include "llcf_update.h"

namespace llcf {

// Rows [row0, row1) and columns [col0, col1) of one tile.
struct Span {
  int64_t row0, row1, col0, col1;
};

struct IsaTable {
  const char* name;
  void (*sgld)(const TileRow& tile, int64_t grad, const Scalars& s, int terms, int storage, Span span);
  void (*normal)(float* out, uint64_t start, int64_t n, const NoiseSource& source);
};

const IsaTable* isa_table(const char* name);  // nullptr: not compiled in, or not on this machine
extern const char* const kIsaNames[3];        // best first

void sgld_step(const IsaTable& isa, const TileRow* tiles, const int64_t* grads, int64_t n_tiles,
               const Scalars& s, int terms, int storage, int threads);
void normal(const IsaTable& isa, float* out, uint64_t start, int64_t n, const NoiseSource& source,
            int threads);

}  // namespace llcf
