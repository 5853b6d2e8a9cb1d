// The SGLD step as one thread of one block sees it: compiled for the device, and by the tests for the host.
#pragma once

#include "llcf_update.h"
#include "rounds.h"
#include "unit.h"

namespace llcf {
namespace cuda {

// What one launch is given; every pointer is to device memory.
struct Launch {
  const DeviceTile* tiles;
  const uint32_t* first;  // chunks before each tile, and in all
  const int64_t* grads;   // address of each tile's first gradient element, 0 where there is none
  const Scalars* scalars;
  uint32_t n_tiles, n_chunks;
};

// Rows row, row + 1, ... and their units unit, unit + 1, ... of one tile.
struct Chunk {
  int64_t row, unit;
  uint32_t rows, units;
};

LLCF_FN Chunk chunk_of(const DeviceTile& t, uint32_t index) {
  const uint32_t down = index / t.across;
  const uint32_t aside = index - down * t.across;
  Chunk c;
  c.row = (int64_t)down * t.chunk_rows;
  c.unit = (int64_t)aside * t.chunk_units;
  const int64_t rows = t.row.rows - c.row, units = t.units - c.unit;
  c.rows = rows < t.chunk_rows ? (uint32_t)rows : t.chunk_rows;
  c.units = units < t.chunk_units ? (uint32_t)units : t.chunk_units;
  return c;
}

// The tile that a chunk belongs to, at or after `from`.
LLCF_FN uint32_t find_tile(const Launch& p, uint32_t chunk, uint32_t from) {
  if (chunk < p.first[from + 1]) return from;
  uint32_t low = from + 1, high = p.n_tiles;  // the last one whose first chunk is at most this one
  while (high - low > 1) {
    const uint32_t middle = low + ((high - low) >> 1);
    if (p.first[middle] <= chunk)
      low = middle;
    else
      high = middle;
  }
  return low;
}

// Sixteen bytes of each operand.
struct Operands {
  Quad w, lo, g, w0;
};

// The update of the four elements of one Philox block of a unit in registers, `z` their noise.
template <int STORAGE>
LLCF_FN void update(Operands* q, int block, const float* z, const Scalars& s, int terms) {
  float out[4];
#if defined(__CUDA_ARCH__)
#pragma unroll
#endif
  for (int i = 0; i < 4; ++i) {
    const int e = 4 * block + i;
    const float w = STORAGE == kFloat32 ? element<STORAGE>(q->w, e) : joined(q->w, q->lo, e);
    const float w0 = needs_anchor(terms) ? element<STORAGE>(q->w0, e) : 0.0f;
    out[i] = sgld<LaneGpu>(w, element<STORAGE>(q->g, e), w0, terms & kNoise ? z[i] : 0.0f, s, terms);
  }
#if defined(__CUDA_ARCH__)
#pragma unroll
#endif
  for (int i = 0; i < 4; ++i) {
    if (STORAGE == kFloat32)
      q->w.x[i] = Lane1::float_to_bits(out[i]);
    else if (i < 2)
      split_pair(out[2 * i], out[2 * i + 1], &q->w, &q->lo, 2 * block + i);
  }
}

// Whether the chunk consists of whole units in aligned memory, with one high word of the noise counter.
LLCF_FN bool is_plain(const DeviceTile& t, int64_t grad, const Chunk& c, int storage) {
  const int64_t per = unit_elements(storage);
  const int64_t begin = t.row.start + c.row * t.row.global_stride + c.unit * per - t.phase;
  const int64_t end = begin + (int64_t)(c.rows - 1) * t.row.global_stride + c.units * per - 1;
  return t.regular && !(c.unit == 0 && t.phase != 0) && !(c.unit + c.units == t.units && t.tail != 0) &&
         ((grad - (int64_t)t.phase * element_bytes(storage)) & (grad == 0 ? 0 : kUnitBytes - 1)) == 0 &&
         begin >> 34 == end >> 34;
}

// A plain chunk. Unit j - 1 (j from 1, as row_of wants it) has the same offset from all of these addresses.
template <int STORAGE, int TERMS>
LLCF_FN void plain_chunk(const DeviceTile& t, int64_t grad, const Scalars& scalars, const Chunk& c,
                         uint32_t thread) {
  constexpr int kPer = unit_elements(STORAGE);
  constexpr uint32_t kBlocks = kPer / 4;  // Philox blocks a unit
  const int64_t column = c.unit * kPer - t.phase;
  const int64_t origin = (c.row * t.row.w_stride + column) * element_bytes(STORAGE) - kUnitBytes;
  const int64_t w = uniform(t.row.w + origin), lo = uniform(t.row.lo + origin);
  const int64_t w0 = uniform(t.row.w0 + origin), g = uniform(grad + origin);
  const bool has_grad = uniform((uint32_t)(grad != 0)) != 0;
  const int64_t block = (t.row.start + c.row * t.row.global_stride + column) >> 2;
  const uint32_t low = uniform((uint32_t)block - kBlocks);
  const uint32_t skip = uniform((uint32_t)(t.row.w_stride / kPer) - t.chunk_units);
  const uint32_t block_skip = uniform((uint32_t)(t.row.global_stride >> 2) - t.chunk_units * kBlocks);
  const uint32_t reciprocal = uniform(t.reciprocal);
  const uint32_t n = uniform(c.rows * c.units);
  const Rounds r =
      fold_rounds((uint64_t)block, {t.row.key, scalars.step, (uint32_t)t.row.tensor_id, kStepNoise});
  Scalars s = scalars;
  s.nbeta = uniform(s.nbeta);
  s.lambda = uniform(s.lambda);
  s.gamma = uniform(s.gamma);
  s.c1 = uniform(s.c1);
  s.c2 = uniform(s.c2);
  s.box = uniform(s.box);
  // Counted alike by all threads of a block: in a loop that they leave apart, nothing is kept uniform.
  for (uint32_t pass = 0; pass < n; pass += kThreads) {
    const uint32_t j = pass + thread + 1;
    if (j > n) break;
    const uint32_t row = row_of(j, reciprocal);
    const int64_t offset = (int64_t)((uint64_t)(j + row * skip) * kUnitBytes);
    Operands q = {};
    q.w = load_quad(w + offset, false);
    if (STORAGE == kSplitBfloat16) q.lo = load_quad(lo + offset, false);
    if (has_grad) q.g = load_quad(g + offset, true);
    if (needs_anchor(TERMS)) q.w0 = load_quad(w0 + offset, true);
    const uint32_t b = low + j * kBlocks + row * block_skip;
#if defined(__CUDA_ARCH__)
#pragma unroll
#endif
    for (uint32_t i = 0; i < kBlocks; ++i) {
      float z[4];
      if (TERMS & kNoise) normals(folded(b + i, r), z);
      update<STORAGE>(&q, i, z, s, TERMS);
    }
    store_quad(w + offset, q.w);
    if (STORAGE == kSplitBfloat16) store_quad(lo + offset, q.lo);
  }
}

// Any chunk: one Philox block of a unit after the other, its elements one by one.
template <int STORAGE, int TERMS>
LLCF_FN void edge_chunk(const DeviceTile& t, int64_t grad, const Scalars& s, const Chunk& c,
                        uint32_t thread) {
  constexpr int kPer = unit_elements(STORAGE);
  constexpr int64_t kSize = element_bytes(STORAGE);
  const TileRow& r = t.row;
  for (uint32_t j = thread + 1; j <= c.rows * c.units; j += kThreads) {
    const uint32_t down = row_of(j, t.reciprocal);
    const int64_t row = c.row + down, unit = c.unit + (j - 1 - down * t.chunk_units);
    const int64_t start = r.start + row * r.global_stride;
    int64_t column = unit * kPer - row_phase(r.w + row * r.w_stride * kSize, start, STORAGE);
#if defined(__CUDA_ARCH__)
#pragma unroll 1
#endif
    for (int block = 0; block < kPer / 4; ++block, column += 4) {
      if (column + 4 <= 0 || column >= r.cols) continue;
      float z[4];
      if (TERMS & kNoise)
        normals(block_words((uint64_t)((start + column) >> 2), kStepNoise, s.step, (uint32_t)r.tensor_id,
                            (uint32_t)r.key, (uint32_t)(r.key >> 32)),
                z);
#if defined(__CUDA_ARCH__)
#pragma unroll
#endif
      for (int i = 0; i < 4; ++i) {
        if (column + i < 0 || column + i >= r.cols) continue;
        const int64_t w = r.w + (row * r.w_stride + column + i) * kSize;
        const int64_t lo = r.lo + (row * r.lo_stride + column + i) * kSize;
        const int64_t w0 = r.w0 + (row * r.w0_stride + column + i) * kSize;
        const int64_t g = grad + (row * r.g_stride + column + i) * kSize;
        const float weight = STORAGE == kFloat32 ? load_float<STORAGE>(w) : load_joined(w, lo);
        const float anchor = needs_anchor(TERMS) ? load_float<STORAGE>(w0) : 0.0f;
        const float gradient = grad != 0 ? load_float<STORAGE>(g) : 0.0f;
        const float out = sgld<LaneGpu>(weight, gradient, anchor, TERMS & kNoise ? z[i] : 0.0f, s, TERMS);
        if (STORAGE == kFloat32)
          store_word(w, Lane1::float_to_bits(out));
        else
          store_split(w, lo, out);
      }
    }
  }
}

// What thread `thread` of block `block` does in a launch of `blocks` blocks: every blocks-th chunk.
template <int STORAGE, int TERMS>
LLCF_FN void sgld_block(const Launch& p, uint32_t block, uint32_t blocks, uint32_t thread) {
  uint32_t tile = 0;
  for (uint32_t chunk = block; chunk < p.n_chunks; chunk += blocks) {
    tile = find_tile(p, chunk, tile);
    const DeviceTile& t = p.tiles[tile];
    const int64_t grad = p.grads[tile];
    const Chunk c = chunk_of(t, chunk - p.first[tile]);
    if (is_plain(t, grad, c, STORAGE))
      plain_chunk<STORAGE, TERMS>(t, grad, *p.scalars, c, thread);
    else
      edge_chunk<STORAGE, TERMS>(t, grad, *p.scalars, c, thread);
  }
}

}  // namespace cuda
}  // namespace llcf
