// How a launch is cut into chunks: computed on the host once per chain, read by the kernel.
#pragma once

#include "llcf_lane.h"
#include "llcf_tile.h"

namespace llcf {
namespace cuda {

// A unit is what one thread updates at a time: sixteen bytes of w, one or two Philox blocks.
//
//   elements of a row      | - - - x x x x x | x x x x x x x x | x x x - - - - - |
//   units                  |  phase          |                 |       tail      |
//
// Units lie at multiples of sixteen bytes where memory and the noise counter agree on that, otherwise at
// multiples of four in the noise counter; the first and the last one of a row may be partial.
LLCF_FN constexpr int unit_elements(int storage) { return storage == kFloat32 ? 4 : 8; }
LLCF_FN constexpr int element_bytes(int storage) { return storage == kFloat32 ? 4 : 2; }
LLCF_FN constexpr int lo_bytes(int storage) {
  return storage == kSplitBfloat16 ? 2 : storage == kFloat16 ? 4 : 0;
}
// Elements that share random words: four of a block of noise, eight of one that rounds.
LLCF_FN constexpr int counted_elements(int storage) { return storage == kRoundedBfloat16 ? 8 : 4; }
constexpr int kUnitBytes = 16;
constexpr int kThreads = 256;             // a block
constexpr int kMaxChunk = 32 * kThreads;  // units of the largest chunk

// One row of the table on the device. A chunk is `chunk_rows` rows of `chunk_units` units, some fewer at the
// edges; it has several rows only where it takes them whole.
struct DeviceTile {
  TileRow row;
  int64_t units;    // a row, the partial ones included
  uint32_t across;  // chunks side by side
  uint32_t chunk_rows, chunk_units;
  uint32_t reciprocal;   // of chunk_units, for row_of
  uint32_t phase, tail;  // elements that the first unit lacks, and that the last one has (0: all)
  uint32_t regular;      // every row has the same phase, strides are equal, operands are aligned
  uint32_t reserved[7];
};
static_assert(sizeof(DeviceTile) == 256, "the table is an array of these");

// i / chunk_units from i + 1: exact while both are at most 2^16.
LLCF_FN uint32_t row_of(uint32_t i_plus_1, uint32_t reciprocal) {
#if defined(__CUDA_ARCH__)
  return __umulhi(i_plus_1, reciprocal);
#else
  return (uint32_t)(((uint64_t)i_plus_1 * reciprocal) >> 32);
#endif
}

// Elements before the first one of a row within its unit.
LLCF_FN uint32_t row_phase(int64_t address, int64_t global, int storage) {
  const uint32_t counted = (uint32_t)global & 3;
  const uint32_t placed =
      (uint32_t)(address / element_bytes(storage)) & (uint32_t)(unit_elements(storage) - 1);
  return ((placed - counted) & 3) == 0 ? placed : counted;
}

// The plan of `n` tiles for a device that holds `resident` blocks at a time: fills tiles[n] and first[n + 1],
// the chunks before each tile, and returns how many there are, or -1 if they cannot be counted in 32 bits.
int64_t plan_tiles(const TileRow* rows, int64_t n, int storage, int64_t resident, DeviceTile* tiles,
                   uint32_t* first);

// The chunks before each slot of the sums, and in all: n_slots + 1. Returns whether the tiles are ordered by
// slot, as they must be for a slot's chunks to be consecutive.
bool plan_slots(const TileRow* rows, int64_t n, const uint32_t* first, int64_t n_slots, uint32_t* slots);

}  // namespace cuda
}  // namespace llcf
