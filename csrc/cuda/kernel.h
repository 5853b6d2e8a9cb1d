// The C++ interface of the CUDA step: what the bindings call. Every failed call to CUDA throws.
#pragma once

#include <cuda_runtime_api.h>

#include <stdexcept>

#include "launch.h"

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
int64_t resident_blocks(int device, const Kind& kind);

void sgld_step(int device, cudaStream_t stream, const Launch& launch, const Kind& kind);

// Adds the partial sums of each slot's chunks, slots[i] to slots[i + 1], to its row of `sums`.
void add_totals(int device, cudaStream_t stream, const float* partials, const uint32_t* slots,
                int64_t n_slots, double* sums);

// Normals of elements start, ..., start + n - 1.
void normal(int device, cudaStream_t stream, float* out, uint64_t start, int64_t n, const NoiseSource& source,
            int kind);

// scalars->step += 1: the first node of a captured step. Its code is loaded by prepare_capture, because
// loading it may not be possible during a capture.
void prepare_capture(int device);
void advance_step(int device, cudaStream_t stream, Scalars* scalars);

}  // namespace cuda
}  // namespace llcf
