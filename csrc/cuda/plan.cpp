// Cuts tiles into chunks: large enough to pay for their own search, small enough to occupy every block.

#include "plan.h"

#include <algorithm>
#include <limits>

namespace llcf {
namespace cuda {
namespace {

constexpr double kOverhead = 0.75;  // cost of finding a chunk, in passes of a block over its units

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Whether every row looks alike to the kernel: one phase, one stride, operands and noise counter aligned.
bool is_regular(const TileRow& t, int storage) {
  const int64_t phase = row_phase(t.w, t.start, storage), counted = counted_elements(storage);
  if ((t.start - phase) % counted != 0) return false;
  const struct {
    int64_t address, stride, bytes;
  } operands[] = {{t.w, t.w_stride, element_bytes(storage)},
                  {t.w0, t.w0_stride, element_bytes(storage)},
                  {t.lo, t.lo_stride, lo_bytes(storage)},
                  {t.aux, t.aux_stride, 4}};
  for (const auto& o : operands) {
    if (o.address == 0) continue;
    if ((o.address - phase * o.bytes) % kUnitBytes != 0) return false;
    if (t.rows > 1 && o.stride != t.w_stride) return false;
  }
  return t.rows == 1 || (t.w_stride % unit_elements(storage) == 0 && t.global_stride % counted == 0 &&
                         t.g_stride == t.w_stride && t.mask_stride <= t.w_stride);
}

// Chunks of at most `limit` units; returns how many.
int64_t cut(const TileRow& t, int storage, int64_t limit, DeviceTile* out) {
  const int64_t per = unit_elements(storage);
  *out = DeviceTile{};
  out->row = t;
  if (t.rows <= 0 || t.cols <= 0) return 0;
  out->regular = is_regular(t, storage);
  out->phase = row_phase(t.w, t.start, storage);
  const bool alike = out->regular || t.rows == 1;
  out->units = ceil_div(t.cols + (alike ? out->phase : per - 1), per);
  out->tail = static_cast<uint32_t>((out->phase + t.cols) % per);
  const int64_t across = ceil_div(out->units, limit);
  const int64_t chunk_units = ceil_div(out->units, across);
  int64_t rows = across > 1 ? 1 : std::min(t.rows, limit / chunk_units);
  if (out->regular && rows > 1) {  // offsets within a chunk have 32 bits
    constexpr int64_t reach = std::numeric_limits<int32_t>::max();
    rows = std::min(
        rows, std::max<int64_t>(1, reach / std::max(t.w_stride * element_bytes(storage), t.global_stride)));
  }
  if (across > std::numeric_limits<uint32_t>::max()) return std::numeric_limits<uint32_t>::max();
  out->across = static_cast<uint32_t>(across);
  out->chunk_units = static_cast<uint32_t>(chunk_units);
  out->chunk_rows = static_cast<uint32_t>(rows);
  out->reciprocal = 0xffffffffu / out->chunk_units;
  return across * ceil_div(t.rows, rows);
}

// About how long a launch takes, in passes: a resident block's share of the work, and half a chunk of
// waiting.
double cost(const TileRow* rows, int64_t n, int storage, int64_t limit, int64_t resident) {
  double work = 0;
  DeviceTile t;
  for (int64_t i = 0; i < n; ++i) {
    const double chunks = static_cast<double>(cut(rows[i], storage, limit, &t));
    work +=
        chunks * (kOverhead + static_cast<double>(ceil_div(int64_t{t.chunk_rows} * t.chunk_units, kThreads)));
  }
  return work / static_cast<double>(resident) + 0.5 * static_cast<double>(limit / kThreads);
}

}  // namespace

int64_t plan_tiles(const TileRow* rows, int64_t n, int storage, int64_t resident, DeviceTile* tiles,
                   uint32_t* first) {
  int64_t best = kThreads;
  double least = std::numeric_limits<double>::infinity();
  for (int64_t limit = kThreads; limit <= kMaxChunk; limit *= 2) {
    const double c = cost(rows, n, storage, limit, std::max<int64_t>(1, resident));
    if (c < least) {
      least = c;
      best = limit;
    }
  }
  int64_t chunks = 0;
  for (int64_t i = 0; i < n; ++i) {
    first[i] = static_cast<uint32_t>(chunks);
    chunks += cut(rows[i], storage, best, &tiles[i]);
    if (chunks >= std::numeric_limits<int32_t>::max()) return -1;
  }
  first[n] = static_cast<uint32_t>(chunks);
  return chunks;
}

bool plan_slots(const TileRow* rows, int64_t n, const uint32_t* first, int64_t n_slots, uint32_t* slots) {
  int64_t tile = 0;
  for (int64_t slot = 0; slot < n_slots; ++slot) {
    slots[slot] = first[tile];
    while (tile < n && rows[tile].slot == slot) ++tile;
  }
  slots[n_slots] = first[tile];
  return tile == n;
}

}  // namespace cuda
}  // namespace llcf
