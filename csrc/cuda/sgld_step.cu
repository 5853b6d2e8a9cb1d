// The SGLD step: one persistent launch for all tiles of one storage, one kernel for each set of terms.

#include <algorithm>
#include <map>
#include <mutex>
#include <tuple>
#include <utility>

#include "kernel.h"

namespace llcf {
namespace cuda {
namespace {

// Registers for 48 (fp32) and 40 (split) warps a multiprocessor, without spilling.
constexpr int kResident[2] = {6, 5};

template <int STORAGE, int TERMS>
__global__ void __launch_bounds__(kThreads, kResident[STORAGE]) sgld_kernel(const Launch p) {
  sgld_block<STORAGE, TERMS>(p, blockIdx.x, gridDim.x, threadIdx.x);
}

template <int STORAGE, int... TERMS>
const void* pick(int terms, std::integer_sequence<int, TERMS...>) {
  static const void* const kernels[] = {reinterpret_cast<const void*>(&sgld_kernel<STORAGE, TERMS>)...};
  return kernels[terms & kAllTerms];
}

const void* kernel_of(int storage, int terms) {
  using All = std::make_integer_sequence<int, kAllTerms + 1>;
  return storage == kFloat32 ? pick<kFloat32>(terms, All()) : pick<kSplitBfloat16>(terms, All());
}

}  // namespace

int64_t resident_blocks(int device, int storage, int terms) {
  static std::mutex mutex;
  static std::map<std::tuple<int, int, int>, int64_t> known;
  const std::lock_guard<std::mutex> lock(mutex);
  int64_t& blocks = known[{device, storage, terms & kAllTerms}];
  if (blocks == 0) {
    const DeviceGuard guard(device);
    int processors = 0, each = 0;
    check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device),
          "cudaDeviceGetAttribute");
    check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, kernel_of(storage, terms), kThreads, 0),
          "cudaOccupancyMaxActiveBlocksPerMultiprocessor");
    blocks = static_cast<int64_t>(processors) * std::max(each, 1);
  }
  return blocks;
}

void sgld_step(int device, cudaStream_t stream, const Launch& launch, int terms, int storage) {
  if (launch.n_chunks == 0) return;
  const DeviceGuard guard(device);
  const int64_t blocks = std::min<int64_t>(launch.n_chunks, resident_blocks(device, storage, terms));
  Launch argument = launch;
  void* arguments[] = {&argument};
  check(cudaLaunchKernel(kernel_of(storage, terms), dim3(static_cast<unsigned>(blocks)), dim3(kThreads),
                         arguments, 0, stream),
        "cudaLaunchKernel(sgld_step)");
}

}  // namespace cuda
}  // namespace llcf
