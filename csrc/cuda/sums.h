// Sums over the threads of a block, and over the chunks of a slot: always in the same order.
#pragma once

#include "launch.h"
#include "rounds.h"

namespace llcf {
namespace cuda {

// Between the phases of each of the two every thread waits for all others.

constexpr int kFolders = 8;  // threads that add up one column
constexpr int kPitch = kThreads + kFolders;
static_assert(kSums * kFolders <= kThreads, "a block folds in one go");

// What the threads of a block share while they add up a chunk.
struct Fold {
  float part[kSums * kPitch];
  float rest[kSums * kFolders];
};

LLCF_FN void fold_put(Fold* f, uint32_t thread, const Sums<LaneGpu>& sums) {
#if defined(__CUDA_ARCH__)
#pragma unroll
#endif
  for (int k = 0; k < kSums; ++k) f->part[k * kPitch + thread] = sums.at[k];
}

LLCF_FN void fold_columns(Fold* f, uint32_t thread) {
  if (thread >= kSums * kFolders) return;
  const float* part = f->part + thread / kFolders * kPitch + thread % kFolders;
  float total = 0.0f;
  for (int i = 0; i < kThreads; i += kFolders) total = total + part[i];
  f->rest[thread] = total;
}

LLCF_FN void fold_end(const Fold* f, uint32_t thread, float* out) {
  if (thread >= kSums) return;
  float total = 0.0f;
  for (int i = 0; i < kFolders; ++i) total = total + f->rest[thread * kFolders + i];
  out[thread] = total;
}

// The chunks of one slot, `kStrips` of them at a time.
constexpr int kStrips = 32;
constexpr int kTotalThreads = kStrips * kSums;

LLCF_FN void totals_put(double* shared, uint32_t thread, const float* partials, uint32_t first,
                        uint32_t end) {
  const uint32_t column = thread % kSums;
  double total = 0.0;
#if defined(__CUDA_ARCH__)
#pragma unroll 4
#endif
  for (uint32_t chunk = first + thread / kSums; chunk < end; chunk += kStrips)
    total = total + (double)partials[(uint64_t)chunk * kSums + column];
  shared[thread] = total;
}

LLCF_FN void totals_end(const double* shared, uint32_t thread, double* out) {
  if (thread >= kSums) return;
  double total = 0.0;
  for (int i = 0; i < kStrips; ++i) total = total + shared[i * kSums + thread];
  out[thread] = out[thread] + total;
}

}  // namespace cuda
}  // namespace llcf
