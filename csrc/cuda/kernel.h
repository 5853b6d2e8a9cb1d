// The C++ interface of the CUDA step: what the bindings call. Every failed call to CUDA throws.
#pragma once

#include <cuda_runtime_api.h>

#include <stdexcept>

#include "sgld_block.h"

namespace llcf {
namespace cuda {

struct CudaError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

void check(cudaError_t error, const char* call);

// The current device of this thread for as long as it lives.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device);
  ~DeviceGuard();
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int saved_ = -1;
};

// Blocks of the step that the device holds at a time.
int64_t resident_blocks(int device, int storage, int terms);

void sgld_step(int device, cudaStream_t stream, const Launch& launch, int terms, int storage);

// Normals of elements start, ..., start + n - 1.
void normal(int device, cudaStream_t stream, float* out, uint64_t start, int64_t n,
            const NoiseSource& source);

// scalars->step += 1: the last node of a captured step.
void advance_step(int device, cudaStream_t stream, Scalars* scalars);

}  // namespace cuda
}  // namespace llcf
