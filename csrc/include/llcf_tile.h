// What a launch is given: rows of the geometry table, and where random words come from.
#pragma once

#include <stdint.h>

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

}  // namespace llcf
