// The noise by itself, and the step counter of a captured graph.

#include <algorithm>

#include "kernel.h"
#include "normal_block.h"

namespace llcf {
namespace cuda {
namespace {

constexpr int64_t kMaxBlocks = 1 << 16;  // beyond this a thread takes several units

__global__ void __launch_bounds__(kThreads)
    normal_kernel(int64_t out, uint64_t start, int64_t n, NoiseSource source, int kind) {
  const int64_t units = normal_units(start, n);
  for (int64_t i = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x; i < units;
       i += static_cast<int64_t>(gridDim.x) * kThreads)
    normal_unit(out, start, n, source, kind, i);
}

__global__ void advance_kernel(Scalars* scalars) { ++scalars->step; }

}  // namespace

void normal(int device, cudaStream_t stream, float* out, uint64_t start, int64_t n, const NoiseSource& source,
            int kind) {
  if (n <= 0) return;
  const DeviceGuard guard(device);
  const int64_t blocks = std::min(kMaxBlocks, (normal_units(start, n) + kThreads - 1) / kThreads);
  int64_t address = reinterpret_cast<int64_t>(out);
  NoiseSource from = source;
  void* arguments[] = {&address, &start, &n, &from, &kind};
  check(cudaLaunchKernel(reinterpret_cast<const void*>(&normal_kernel), dim3(static_cast<unsigned>(blocks)),
                         dim3(kThreads), arguments, 0, stream),
        "cudaLaunchKernel(normal)");
}

void prepare_capture(int device) {
  const DeviceGuard guard(device);
  cudaFuncAttributes attributes;
  check(cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(&advance_kernel)),
        "cudaFuncGetAttributes(advance_step)");
}

void advance_step(int device, cudaStream_t stream, Scalars* scalars) {
  const DeviceGuard guard(device);
  void* arguments[] = {&scalars};
  check(cudaLaunchKernel(reinterpret_cast<const void*>(&advance_kernel), dim3(1), dim3(1), arguments, 0,
                         stream),
        "cudaLaunchKernel(advance_step)");
}

}  // namespace cuda
}  // namespace llcf
