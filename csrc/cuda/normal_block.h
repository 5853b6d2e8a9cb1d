// The normals of consecutive elements, one Philox block at a time: compiled for the device, and by the tests
// for the host.
#pragma once

#include "rounds.h"
#include "storage.h"

namespace llcf {
namespace cuda {

// The four normals of one block, those of them that lie within [0, n) of the output.
LLCF_FN void normal_unit(int64_t out, uint64_t start, int64_t n, const NoiseSource& source, int kind,
                         int64_t unit) {
  const int64_t first = unit * 4 - (int64_t)(start & 3);
  float z[4];
  normals(block_words((start >> 2) + (uint64_t)unit, source.domain, source.step, source.tensor_id,
                      (uint32_t)source.key, (uint32_t)(source.key >> 32)),
          kind, z);
  const int64_t at = out + first * 4;
  if (first >= 0 && first + 4 <= n && at % kUnitBytes == 0) {
    store_quad(at, Quad{{Lane1::float_to_bits(z[0]), Lane1::float_to_bits(z[1]), Lane1::float_to_bits(z[2]),
                         Lane1::float_to_bits(z[3])}});
    return;
  }
#if defined(__CUDA_ARCH__)
#pragma unroll
#endif
  for (int i = 0; i < 4; ++i)
    if (first + i >= 0 && first + i < n) store_word(at + 4 * i, Lane1::float_to_bits(z[i]));
}

LLCF_FN int64_t normal_units(uint64_t start, int64_t n) { return ((int64_t)(start & 3) + n + 3) / 4; }

}  // namespace cuda
}  // namespace llcf
