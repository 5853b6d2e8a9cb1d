// What a launch is given: rows of the geometry table, and where random words come from.
#pragma once

#include <stdint.h>

namespace llcf {

// One row of the geometry table: twenty-four 64-bit integers, built in Python once per chain.
struct TileRow {
  int64_t w, w0, lo;                                 // addresses of the first element; 0 where there is none.
                                                     // lo: what completes w, int16 or (fp16) an fp32 master
  int64_t rows, cols;                                // size
  int64_t w_stride, w0_stride, lo_stride, g_stride;  // row strides in elements
  int64_t start, global_stride;  // index of the first element, row stride, in the full tensor
  uint64_t key;                  // the chain's Philox key, k0 | k1 << 32
  int64_t tensor_id;
  int64_t triton[3];
  int64_t aux, aux_stride;  // the sampler's own fp32 state
  int64_t xi;               // address of a double, the friction; 0: the scalars' own
  // Address of a bit an element, the lowest of a byte first, 0 where all are selected; the bit of the first
  // element, and of a row; at least eight bytes may be read beyond the last.
  int64_t mask, mask_start, mask_stride;
  int64_t slot;  // the row of the table of sums
  int64_t reserved;
};
static_assert(sizeof(TileRow) == 192, "the layout is shared with Python");

enum Storage : int { kFloat32 = 0, kSplitBfloat16 = 1, kRoundedBfloat16 = 2, kFloat16 = 3, kStorages = 4 };
enum Noise : int { kGaussian = 0, kIh4 = 1 };

// Where the random words of one stretch of noise come from.
struct NoiseSource {
  uint64_t key;
  uint32_t step, tensor_id, domain;
};

}  // namespace llcf
