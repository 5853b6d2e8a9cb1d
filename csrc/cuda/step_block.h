// What one thread does to one chunk: compiled for the device, and by the tests for the host.
#pragma once

#include "edge.h"
#include "plain.h"

namespace llcf {
namespace cuda {

// `tile`: where the last chunk of this block was, for the next one lies behind it. Chunks are dealt to blocks
// in turn, and threads of a block share one.
template <class V>
LLCF_FN void step_chunk(const Launch& p, uint32_t chunk, uint32_t thread, uint32_t* tile,
                        Sums<LaneGpu>* sums) {
  *tile = find_tile(p, chunk, *tile);
  const DeviceTile& t = p.tiles[*tile];
  const int64_t grad = p.grads[*tile];
  const Chunk c = chunk_of(t, chunk - p.first[*tile]);
  if (!is_plain(t, grad, c, V::kStorage))
    edge_chunk<V>(p, t, grad, c, thread, sums);
  else if (!V::kFixed && t.row.mask != 0)
    plain_chunk<V, !V::kFixed>(p, t, grad, c, thread, sums);
  else
    plain_chunk<V, false>(p, t, grad, c, thread, sums);
}

}  // namespace cuda
}  // namespace llcf
