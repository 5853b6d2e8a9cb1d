// The C++ interface of the CPU step: what the bindings call, and what each instruction set provides.
#pragma once

#include "llcf_philox.h"
#include "llcf_round.h"
#include "llcf_update.h"

namespace llcf {

// One row of the geometry table: sixteen 64-bit integers, built in Python once per chain.
struct TileRow {
  int64_t w, w0, lo;                                 // addresses of the first element; 0 where there is none
  int64_t rows, cols;                                // size
  int64_t w_stride, w0_stride, lo_stride, g_stride;  // row strides in elements
  int64_t start, global_stride;  // index of the first element, row stride, in the full tensor
  uint64_t key;                  // the chain's Philox key, k0 | k1 << 32
  int64_t tensor_id;
  int64_t reserved[3];
};
static_assert(sizeof(TileRow) == 128, "the layout is shared with Python");

enum Storage : int { kFloat32 = 0, kSplitBfloat16 = 1 };

// Where the random words of one stretch of noise come from.
struct NoiseSource {
  uint64_t key;
  uint32_t step, tensor_id, domain;
};

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
