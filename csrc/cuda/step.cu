// The step: one persistent launch for all tiles of one storage; and the totals of its sums.

#include <algorithm>
#include <map>
#include <mutex>
#include <tuple>

#include "kernel.h"
#include "step_block.h"
#include "sums.h"

namespace llcf {
namespace cuda {
namespace {

template <class V>
__global__ void __launch_bounds__(kThreads, V::kResident) step_kernel(const Launch p) {
  uint32_t tile = 0;
  for (uint32_t chunk = blockIdx.x; chunk < p.n_chunks; chunk += gridDim.x) {
    if constexpr (V::kSummed) {
      __shared__ Fold fold;
      Sums<LaneGpu> sums = {};
      step_chunk<V>(p, chunk, threadIdx.x, &tile, &sums);
      fold_put(&fold, threadIdx.x, sums);
      __syncthreads();
      fold_columns(&fold, threadIdx.x);
      __syncthreads();
      fold_end(&fold, threadIdx.x, p.partials + static_cast<uint64_t>(chunk) * kSums);
    } else {
      step_chunk<V>(p, chunk, threadIdx.x, &tile, nullptr);
    }
  }
}

__global__ void __launch_bounds__(kTotalThreads)
    totals_kernel(const float* partials, const uint32_t* slots, double* sums) {
  __shared__ double shared[kTotalThreads];
  const uint32_t slot = blockIdx.x;
  totals_put(shared, threadIdx.x, partials, slots[slot], slots[slot + 1]);
  __syncthreads();
  totals_end(shared, threadIdx.x, sums + static_cast<uint64_t>(slot) * kSums);
}

struct KernelOf {
  template <class V>
  const void* of() const {
    return reinterpret_cast<const void*>(&step_kernel<V>);
  }
};

}  // namespace

int64_t resident_blocks(int device, const Kind& kind) {
  static std::mutex mutex;
  static std::map<std::tuple<int, const void*>, int64_t> known;
  const std::lock_guard<std::mutex> lock(mutex);
  const void* kernel = with_variant(kind, KernelOf());
  int64_t& blocks = known[{device, kernel}];
  if (blocks == 0) {
    const DeviceGuard guard(device);
    int processors = 0, each = 0;
    check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device),
          "cudaDeviceGetAttribute");
    check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, kernel, kThreads, 0),
          "cudaOccupancyMaxActiveBlocksPerMultiprocessor");
    blocks = static_cast<int64_t>(processors) * std::max(each, 1);
  }
  return blocks;
}

void sgld_step(int device, cudaStream_t stream, const Launch& launch, const Kind& kind) {
  if (launch.n_chunks == 0) return;
  const DeviceGuard guard(device);
  const int64_t blocks = std::min<int64_t>(launch.n_chunks, resident_blocks(device, kind));
  Launch argument = launch;
  argument.terms = kind.terms;
  argument.noise = kind.noise;
  void* arguments[] = {&argument};
  check(cudaLaunchKernel(with_variant(kind, KernelOf()), dim3(static_cast<unsigned>(blocks)), dim3(kThreads),
                         arguments, 0, stream),
        "cudaLaunchKernel(sgld_step)");
}

void add_totals(int device, cudaStream_t stream, const float* partials, const uint32_t* slots,
                int64_t n_slots, double* sums) {
  if (n_slots == 0) return;
  const DeviceGuard guard(device);
  void* arguments[] = {&partials, &slots, &sums};
  check(cudaLaunchKernel(reinterpret_cast<const void*>(&totals_kernel), dim3(static_cast<unsigned>(n_slots)),
                         dim3(kTotalThreads), arguments, 0, stream),
        "cudaLaunchKernel(add_totals)");
}

}  // namespace cuda
}  // namespace llcf
