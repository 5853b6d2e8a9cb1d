// The kernels run on the CPU, one thread of one block after the other, with every access checked: for the
// tests only. It shows without a GPU which elements a launch reads and writes, that each is written once, and
// the resulting bits. With LLCF_PTX it runs the PTX that nvcc made, which the tests have turned into C++,
// instead of the source.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

namespace {

// One row of a tile in one operand: the bytes that may be touched.
struct Region {
  int64_t begin, end;
  int64_t count;  // where its bytes are counted in `written`, -1 if it may only be read
};

std::vector<Region> regions;  // by address
std::vector<uint8_t> written;
int64_t violations = 0;

bool may_access(int64_t address, int64_t bytes, bool write) {
  const auto after = std::upper_bound(regions.begin(), regions.end(), address,
                                      [](int64_t a, const Region& r) { return a < r.begin; });
  const bool inside = after != regions.begin() && address + bytes <= (after - 1)->end;
  if (!inside || address % bytes != 0 || (write && (after - 1)->count < 0)) {
    ++violations;
    return false;
  }
  if (!write) return true;
  const Region& r = *(after - 1);
  for (int64_t i = 0; i < bytes; ++i) ++written[static_cast<size_t>(r.count + address - r.begin + i)];
  return true;
}

}  // namespace

#define LLCF_MAY_ACCESS(address, bytes, write) may_access(address, bytes, write)

#include "normal_block.h"
#include "sgld_block.h"

using namespace llcf;
using namespace llcf::cuda;

namespace {

#if defined(LLCF_PTX)
}  // namespace

void ptx_sgld_step(int storage, int terms, const void* params, uint32_t block, uint32_t blocks,
                   uint32_t thread);
void ptx_normal(const void* params, uint32_t block, uint32_t blocks, uint32_t thread);

// Reads go to tables too, so that only their alignment is checked.
bool ptx_access(int64_t address, int64_t bytes, bool write) {
  if (write) return may_access(address, bytes, true);
  if (address % bytes != 0) ++violations;
  return address % bytes == 0;
}

namespace {
#endif

using BlockFn = void (*)(const Launch&, uint32_t, uint32_t, uint32_t);

template <int STORAGE, int... TERMS>
BlockFn pick(int terms, std::integer_sequence<int, TERMS...>) {
  static const BlockFn table[] = {&sgld_block<STORAGE, TERMS>...};
  return table[terms & kAllTerms];
}

void allow(int64_t base, int64_t stride, const TileRow& t, int64_t size, bool write) {
  if (base == 0) return;
  for (int64_t row = 0; row < t.rows; ++row) {
    const int64_t begin = base + row * stride * size, bytes = t.cols * size;
    regions.push_back({begin, begin + bytes, write ? static_cast<int64_t>(written.size()) : -1});
    if (write) written.resize(written.size() + static_cast<size_t>(bytes), 0);
  }
}

void forget() {
  regions.clear();
  written.clear();
  violations = 0;
}

void by_address() {
  std::sort(regions.begin(), regions.end(),
            [](const Region& a, const Region& b) { return a.begin < b.begin; });
}

int64_t not_written_once() {
  return std::count_if(written.begin(), written.end(), [](uint8_t n) { return n != 1; });
}

}  // namespace

extern "C" {

int64_t host_table_bytes(int64_t n) { return n * static_cast<int64_t>(sizeof(DeviceTile)) + (n + 1) * 4; }

int64_t host_plan(const TileRow* rows, int64_t n, int storage, int64_t resident, void* table) {
  DeviceTile* tiles = static_cast<DeviceTile*>(table);
  return plan_tiles(rows, n, storage, resident, tiles, reinterpret_cast<uint32_t*>(tiles + n));
}

// One launch of `blocks` blocks. found: chunks that are plain, forbidden accesses, bytes not written exactly
// once.
void host_sgld_step(const void* table, int64_t n, int64_t chunks, const int64_t* grads,
                    const Scalars* scalars, int terms, int storage, int64_t blocks, int64_t* found) {
  const DeviceTile* tiles = static_cast<const DeviceTile*>(table);
  const uint32_t* first = reinterpret_cast<const uint32_t*>(tiles + n);
  forget();
  found[0] = 0;
  for (int64_t i = 0; i < n; ++i) {
    const TileRow& t = tiles[i].row;
    allow(t.w, t.w_stride, t, element_bytes(storage), true);
    if (storage == kSplitBfloat16) allow(t.lo, t.lo_stride, t, element_bytes(storage), true);
    if (needs_anchor(terms)) allow(t.w0, t.w0_stride, t, element_bytes(storage), false);
    allow(grads[i], t.g_stride, t, element_bytes(storage), false);
    for (uint32_t c = 0; c < first[i + 1] - first[i]; ++c)
      found[0] += is_plain(tiles[i], grads[i], chunk_of(tiles[i], c), storage) ? 1 : 0;
  }
  by_address();
  const Launch launch = {
      tiles, first, grads, scalars, static_cast<uint32_t>(n), static_cast<uint32_t>(chunks)};
  using All = std::make_integer_sequence<int, kAllTerms + 1>;
  [[maybe_unused]] const BlockFn body =
      storage == kFloat32 ? pick<kFloat32>(terms, All()) : pick<kSplitBfloat16>(terms, All());
  for (int64_t block = 0; block < blocks; ++block)
    for (uint32_t thread = 0; thread < kThreads; ++thread) {
#if defined(LLCF_PTX)
      ptx_sgld_step(storage, terms, &launch, static_cast<uint32_t>(block), static_cast<uint32_t>(blocks),
                    thread);
#else
      body(launch, static_cast<uint32_t>(block), static_cast<uint32_t>(blocks), thread);
#endif
    }
  found[1] = violations;
  found[2] = not_written_once();
}

void host_normal(float* out, uint64_t start, int64_t n, uint64_t key, uint32_t step, uint32_t tensor_id,
                 uint32_t domain, int64_t* found) {
  forget();
  const int64_t begin = reinterpret_cast<int64_t>(out);
  regions.push_back({begin, begin + 4 * n, 0});
  written.assign(static_cast<size_t>(4 * n), 0);
  const NoiseSource source = {key, step, tensor_id, domain};
#if defined(LLCF_PTX)
  const struct {
    int64_t out;
    uint64_t start;
    int64_t n;
    NoiseSource source;
  } params = {begin, start, n, source};
  for (uint32_t block = 0; block < 2; ++block)
    for (uint32_t thread = 0; thread < kThreads; ++thread) ptx_normal(&params, block, 2, thread);
#else
  for (int64_t unit = 0; unit < normal_units(start, n); ++unit) normal_unit(begin, start, n, source, unit);
#endif
  found[0] = violations;
  found[1] = not_written_once();
}

// What a plan makes of one tile: units, across, chunk_rows, chunk_units, regular, chunks.
void host_geometry(const TileRow* row, int storage, int64_t resident, int64_t* geometry) {
  DeviceTile t;
  uint32_t first[2];
  const int64_t chunks = plan_tiles(row, 1, storage, resident, &t, first);
  const int64_t values[6] = {t.units, t.across, t.chunk_rows, t.chunk_units, t.regular, chunks};
  std::memcpy(geometry, values, sizeof(values));
}

// How often split_pair and joined disagree with llcf_round.h, over the fp32 of bits seed, seed + stride, ...
int64_t host_rounding(uint32_t seed, uint32_t stride, int64_t n) {
  int64_t wrong = 0;
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t u = seed + static_cast<uint32_t>(i) * stride, v = u * 0x9E3779B9u;
    Quad hi = {}, lo = {};
    split_pair(Lane1::bits_to_float(u), Lane1::bits_to_float(v), &hi, &lo, 1);
    wrong += hi.x[1] != (split_hi(u) | static_cast<uint32_t>(split_hi(v)) << 16);
    wrong += lo.x[1] != (static_cast<uint16_t>(split_lo(u)) | static_cast<uint32_t>(split_lo(v)) << 16);
    const Quad h = {{u, v, u, v}}, l = {{v, u * 3u, u, v}};  // any two halves, also those that no split gives
    for (int e = 0; e < 8; ++e) {
      const int shift = 16 * (e & 1);
      const uint16_t above = static_cast<uint16_t>(h.x[e >> 1] >> shift);
      const int16_t below = static_cast<int16_t>(l.x[e >> 1] >> shift);
      wrong += Lane1::float_to_bits(joined(h, l, e)) != join(above, below);
    }
  }
  return wrong;
}

// How often row_of disagrees with a division, over all units of all chunk widths.
int64_t host_division() {
  int64_t wrong = 0;
  for (uint32_t units = 1; units <= kMaxChunk; ++units)
    for (uint32_t i = 0; i < kMaxChunk; ++i) wrong += row_of(i + 1, 0xffffffffu / units) != i / units;
  return wrong;
}

// How often the folded rounds disagree with ten plain ones, over blocks first, first + 1, ... below the next
// 2^32.
int64_t host_rounds(uint64_t first, int64_t n, uint64_t key, uint32_t step, uint32_t tensor_id,
                    uint32_t domain) {
  const Rounds rounds = fold_rounds(first, {key, step, tensor_id, domain});
  int64_t wrong = 0;
  for (int64_t i = 0; i < n; ++i) {
    const uint64_t block = first + static_cast<uint64_t>(i);
    const Words a = folded(static_cast<uint32_t>(block), rounds);
    const Words b = block_words(block, domain, step, tensor_id, static_cast<uint32_t>(key),
                                static_cast<uint32_t>(key >> 32));
    wrong += std::memcmp(&a, &b, sizeof(a)) != 0;
  }
  return wrong;
}

}  // extern "C"
