// The kernels run on the CPU, one thread of one block after the other, with every access checked: for the
// tests only. It shows without a GPU which elements a launch reads and writes, that each is written once, and
// the resulting bits. With LLCF_PTX it runs the PTX that nvcc made, which the tests have turned into C++,
// instead of the source; kernels that sum are run from their source even then.

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "host_memory.h"

#define LLCF_MAY_ACCESS(address, bytes, write) may_access(address, bytes, write)

#include "normal_block.h"
#include "step_block.h"
#include "sums.h"

using namespace llcf;
using namespace llcf::cuda;

namespace {

#if defined(LLCF_PTX)
}  // namespace

bool ptx_step(int sampler, int storage, int terms, int noise, const void* params, uint32_t block,
              uint32_t blocks, uint32_t thread);
void ptx_normal(const void* params, uint32_t block, uint32_t blocks, uint32_t thread);

// Reads go to tables too, so that only their alignment is checked.
bool ptx_access(int64_t address, int64_t bytes, bool write) {
  if (write) return may_access(address, bytes, true);
  if (address % bytes != 0) ++violations;
  return address % bytes == 0;
}

namespace {
#endif

template <class SAMPLER>
constexpr int kCode = -1;
#define LLCF_CODE_OF(name) \
  template <>              \
  constexpr int kCode<name> = k##name;
LLCF_SAMPLERS(LLCF_CODE_OF)
#undef LLCF_CODE_OF

// Every thread of a block in turn, between one wait for all others and the next.
template <class F>
void each_thread(uint32_t threads, const F& f) {
  for (uint32_t thread = 0; thread < threads; ++thread) f(thread);
}

template <class V>
void run_block(const Launch& p, uint32_t block, uint32_t blocks) {
#if defined(LLCF_PTX)
  if constexpr (!V::kSummed) {
    each_thread(kThreads, [&](uint32_t thread) {
      if (!ptx_step(kCode<typename V::Sampler>, V::kStorage, V::kKnownTerms, V::kKnownNoise, &p, block,
                    blocks, thread))
        std::abort();
    });
    return;
  }
#endif
  std::vector<uint32_t> tile(kThreads, 0);
  std::vector<Sums<LaneGpu>> sums(kThreads);
  std::vector<Fold> fold(1);
  for (uint32_t chunk = block; chunk < p.n_chunks; chunk += blocks) {
    each_thread(kThreads, [&](uint32_t thread) {
      sums[thread] = {};
      step_chunk<V>(p, chunk, thread, &tile[thread], V::kSummed ? &sums[thread] : nullptr);
    });
    if (!V::kSummed) continue;
    each_thread(kThreads, [&](uint32_t thread) { fold_put(fold.data(), thread, sums[thread]); });
    each_thread(kThreads, [&](uint32_t thread) { fold_columns(fold.data(), thread); });
    float* out = p.partials + static_cast<size_t>(chunk) * kSums;
    each_thread(kThreads, [&](uint32_t thread) { fold_end(fold.data(), thread, out); });
  }
}

using BlockFn = void (*)(const Launch&, uint32_t, uint32_t);

struct BlockOf {
  template <class V>
  BlockFn of() const {
    return &run_block<V>;
  }
};

}  // namespace

extern "C" {

const char* host_samplers() {
#define LLCF_NAME(name) #name " "
  return LLCF_SAMPLERS(LLCF_NAME);
#undef LLCF_NAME
}

int64_t host_table_bytes(int64_t n, int64_t n_slots) {
  return n * static_cast<int64_t>(sizeof(DeviceTile)) + (n + 1 + n_slots + 1) * 4;
}

int64_t host_plan(const TileRow* rows, int64_t n, int storage, int64_t resident, int64_t n_slots,
                  void* table) {
  DeviceTile* tiles = static_cast<DeviceTile*>(table);
  uint32_t* first = reinterpret_cast<uint32_t*>(tiles + n);
  const int64_t chunks = plan_tiles(rows, n, storage, resident, tiles, first);
  return plan_slots(rows, n, first, n_slots, first + n + 1) || n_slots == 0 ? chunks : -1;
}

// One launch of `blocks` blocks. kind: sampler, storage, noise, terms, masked. found: chunks that are plain,
// forbidden accesses, bytes not written exactly once.
void host_sgld_step(const void* table, int64_t n, int64_t chunks, const int64_t* grads,
                    const Scalars* scalars, const int* kind, float* partials, int64_t blocks,
                    int64_t* found) {
  const Kind k = {kind[0], kind[1], kind[2], kind[3], kind[4] != 0, partials != nullptr};
  const DeviceTile* tiles = static_cast<const DeviceTile*>(table);
  const uint32_t* first = reinterpret_cast<const uint32_t*>(tiles + n);
  const int64_t size = element_bytes(k.storage);
  forget();
  found[0] = 0;
  for (int64_t i = 0; i < n; ++i) {
    const TileRow& t = tiles[i].row;
    const auto allow = [&](int64_t base, int64_t stride, int64_t bytes, bool write) {
      for (int64_t row = 0; base != 0 && row < t.rows; ++row)
        allow_bytes(base + row * stride * bytes, t.cols * bytes, write);
    };
    allow(t.w, t.w_stride, size, true);
    allow(t.lo, t.lo_stride, lo_bytes(k.storage), true);
    allow(t.aux, t.aux_stride, 4, true);
    if (k.sums || needs_anchor(k.terms)) allow(t.w0, t.w0_stride, size, false);
    allow(grads[i], t.g_stride, size, false);
    const int64_t last = t.mask_start + (t.rows - 1) * t.mask_stride + t.cols - 1;
    if (t.mask != 0) allow_bytes(t.mask + (t.mask_start >> 3), (last >> 3) - (t.mask_start >> 3) + 9, false);
    if (t.xi != 0) allow_bytes(t.xi, 8, false);
    for (uint32_t c = 0; c < first[i + 1] - first[i]; ++c)
      found[0] += is_plain(tiles[i], grads[i], chunk_of(tiles[i], c), k.storage) ? 1 : 0;
  }
  by_address();
  const Launch launch = {
      tiles,   first,  grads, scalars, partials, static_cast<uint32_t>(n), static_cast<uint32_t>(chunks),
      k.terms, k.noise};
  const BlockFn body = with_variant(k, BlockOf());
  for (int64_t block = 0; block < blocks; ++block)
    body(launch, static_cast<uint32_t>(block), static_cast<uint32_t>(blocks));
  found[1] = violations;
  found[2] = not_written_once(k.masked);
}

// What a block makes of its threads' sums, kThreads rows of kSums.
void host_fold(const float* parts, float* out) {
  std::vector<Fold> fold(1);
  each_thread(kThreads, [&](uint32_t thread) {
    Sums<LaneGpu> sums;
    std::memcpy(sums.at, parts + thread * kSums, sizeof(sums.at));
    fold_put(fold.data(), thread, sums);
  });
  each_thread(kThreads, [&](uint32_t thread) { fold_columns(fold.data(), thread); });
  each_thread(kThreads, [&](uint32_t thread) { fold_end(fold.data(), thread, out); });
}

void host_totals(const float* partials, const void* table, int64_t n, int64_t n_slots, double* sums) {
  const uint32_t* slots =
      reinterpret_cast<const uint32_t*>(static_cast<const DeviceTile*>(table) + n) + n + 1;
  std::vector<double> shared(kTotalThreads);
  for (int64_t slot = 0; slot < n_slots; ++slot) {
    each_thread(kTotalThreads, [&](uint32_t thread) {
      totals_put(shared.data(), thread, partials, slots[slot], slots[slot + 1]);
    });
    each_thread(kTotalThreads,
                [&](uint32_t thread) { totals_end(shared.data(), thread, sums + slot * kSums); });
  }
}

void host_normal(float* out, uint64_t start, int64_t n, int kind, uint64_t key, uint32_t step,
                 uint32_t tensor_id, uint32_t domain, int64_t* found) {
  forget();
  const int64_t begin = reinterpret_cast<int64_t>(out);
  allow_bytes(begin, 4 * n, true);
  const NoiseSource source = {key, step, tensor_id, domain};
#if defined(LLCF_PTX)
  const struct {
    int64_t out;
    uint64_t start;
    int64_t n;
    NoiseSource source;
    int64_t kind;
  } params = {begin, start, n, source, kind};
  for (uint32_t block = 0; block < 2; ++block)
    for (uint32_t thread = 0; thread < kThreads; ++thread) ptx_normal(&params, block, 2, thread);
#else
  for (int64_t unit = 0; unit < normal_units(start, n); ++unit)
    normal_unit(begin, start, n, source, kind, unit);
#endif
  found[0] = violations;
  found[1] = not_written_once(false);
}

// What a plan makes of one tile: units, across, chunk_rows, chunk_units, regular, chunks.
void host_geometry(const TileRow* row, int storage, int64_t resident, int64_t* geometry) {
  DeviceTile t;
  uint32_t first[2];
  const int64_t chunks = plan_tiles(row, 1, storage, resident, &t, first);
  const int64_t values[6] = {t.units, t.across, t.chunk_rows, t.chunk_units, t.regular, chunks};
  std::memcpy(geometry, values, sizeof(values));
}

// How often what a unit does to its elements disagrees with llcf_round.h, over the fp32 of bits seed,
// seed + stride, ...
int64_t host_rounding(uint32_t seed, uint32_t stride, int64_t n) {
  int64_t wrong = 0;
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t u = seed + static_cast<uint32_t>(i) * stride, v = u * 0x9E3779B9u, random = v ^ (u >> 7);
    const float even = Lane1::bits_to_float(u), odd = Lane1::bits_to_float(v);
    uint32_t hi = 0, lo = 0;
    split_pair(even, odd, &hi, &lo);
    wrong += hi != (split_hi(u) | static_cast<uint32_t>(split_hi(v)) << 16);
    wrong += lo != (static_cast<uint16_t>(split_lo(u)) | static_cast<uint32_t>(split_lo(v)) << 16);
    const uint32_t rounded = round_by(u, random & 0xffffu) | static_cast<uint32_t>(round_by(v, random >> 16))
                                                                 << 16;
    wrong += round_pair(even, odd, random) != rounded;
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
// 2^32; and those of another domain that are folded again.
int64_t host_rounds(uint64_t first, int64_t n, uint64_t key, uint32_t step, uint32_t tensor_id,
                    uint32_t domain) {
  const uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
  const Rounds rounds = fold_rounds(first, {key, step, tensor_id, domain});
  const Rounds others = refold(rounds, first >> 1, {key, step, tensor_id, kRounding});
  int64_t wrong = 0;
  for (int64_t i = 0; i < n; ++i) {
    const uint64_t block = first + static_cast<uint64_t>(i);
    const Words a = folded(static_cast<uint32_t>(block), rounds);
    const Words b = block_words(block, domain, step, tensor_id, k0, k1);
    wrong += std::memcmp(&a, &b, sizeof(a)) != 0;
    const Words c = folded(static_cast<uint32_t>(block >> 1), others);
    const Words d = block_words(block >> 1, kRounding, step, tensor_id, k0, k1);
    wrong += std::memcmp(&c, &d, sizeof(c)) != 0;
  }
  return wrong;
}

}  // extern "C"
