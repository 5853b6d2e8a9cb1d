// `llc_fast._cuda`: raw addresses and streams in, nothing of torch known here. Importing it calls no CUDA
// function.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/kernel.h"

namespace py = pybind11;
using namespace llcf;

namespace {

cudaStream_t stream_of(uintptr_t stream) { return reinterpret_cast<cudaStream_t>(stream); }

int device_count() {
  int n = 0;
  if (cudaGetDeviceCount(&n) == cudaSuccess) return n;
  cudaGetLastError();
  return 0;
}

// Why no device can be used, or an empty string.
std::string problem() {
  int n = 0;
  const cudaError_t error = cudaGetDeviceCount(&n);
  if (error == cudaSuccess) return n > 0 ? "" : cudaGetErrorString(cudaErrorNoDevice);
  cudaGetLastError();
  int driver = 0;
  if (error == cudaErrorInsufficientDriver && cudaDriverGetVersion(&driver) == cudaSuccess && driver == 0)
    return "no NVIDIA driver is installed";
  return cudaGetErrorString(error);
}

cuda::Kind kind_of(int sampler, int storage, int noise, int terms, bool masked, bool sums) {
  if (sampler < 0 || sampler >= kSamplers || storage < 0 || storage >= kStorages)
    throw std::invalid_argument("unknown sampler or storage");
  return {sampler, storage, noise, terms & kAllTerms, masked, sums};
}

// The table on the device: the tiles, then the prefix sum of their chunks, then the same for slots.
py::tuple plan(uintptr_t rows, int64_t n, int storage, int64_t resident, int64_t n_slots) {
  std::vector<cuda::DeviceTile> tiles(static_cast<size_t>(n));
  std::vector<uint32_t> first(static_cast<size_t>(n + 1 + n_slots + 1));
  int64_t chunks = 0;
  bool ordered = true;
  {
    py::gil_scoped_release release;
    const TileRow* given = reinterpret_cast<const TileRow*>(rows);
    chunks = cuda::plan_tiles(given, n, storage, resident, tiles.data(), first.data());
    if (chunks >= 0 && n_slots > 0)
      ordered = cuda::plan_slots(given, n, first.data(), n_slots, first.data() + n + 1);
  }
  if (chunks < 0) throw std::invalid_argument("the tiles are too large or too many for one launch");
  if (!ordered) throw std::invalid_argument("the tiles are not in the order of their slots");
  std::string table(reinterpret_cast<const char*>(tiles.data()), tiles.size() * sizeof(cuda::DeviceTile));
  table.append(reinterpret_cast<const char*>(first.data()), first.size() * sizeof(uint32_t));
  return py::make_tuple(py::bytearray(table.data(), table.size()), chunks);
}

void step(int device, uintptr_t stream, uintptr_t table, int64_t n_tiles, int64_t n_chunks, uintptr_t grads,
          uintptr_t scalars, int sampler, int storage, int noise, int terms, bool masked, uintptr_t partials,
          uintptr_t sums, int64_t n_slots) {
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  if (n_tiles < 0 || n_tiles > kMost || n_chunks < 0 || n_chunks > kMost || n_slots < 0 || n_slots > kMost)
    throw std::invalid_argument("n_tiles, n_chunks or n_slots is out of range");
  const cuda::Kind kind = kind_of(sampler, storage, noise, terms, masked, sums != 0);
  py::gil_scoped_release release;
  cuda::Launch launch = {};
  launch.tiles = reinterpret_cast<const cuda::DeviceTile*>(table);
  launch.first =
      reinterpret_cast<const uint32_t*>(table + static_cast<size_t>(n_tiles) * sizeof(cuda::DeviceTile));
  launch.grads = reinterpret_cast<const int64_t*>(grads);
  launch.scalars = reinterpret_cast<const Scalars*>(scalars);
  launch.partials = reinterpret_cast<float*>(partials);
  launch.n_tiles = static_cast<uint32_t>(n_tiles);
  launch.n_chunks = static_cast<uint32_t>(n_chunks);
  cuda::sgld_step(device, stream_of(stream), launch, kind);
  if (kind.sums)
    cuda::add_totals(device, stream_of(stream), launch.partials, launch.first + n_tiles + 1, n_slots,
                     reinterpret_cast<double*>(sums));
}

void noise(int device, uintptr_t stream, uintptr_t out, uint64_t start, int64_t numel, int kind, uint64_t key,
           uint32_t step, uint32_t tensor_id, uint32_t domain) {
  py::gil_scoped_release release;
  cuda::normal(device, stream_of(stream), reinterpret_cast<float*>(out), start, numel,
               NoiseSource{key, step, tensor_id, domain}, kind);
}

void advance(int device, uintptr_t stream, uintptr_t scalars) {
  py::gil_scoped_release release;
  cuda::advance_step(device, stream_of(stream), reinterpret_cast<Scalars*>(scalars));
}

int64_t resident(int device, int sampler, int storage, int noise, int terms, bool masked, bool sums) {
  const cuda::Kind kind = kind_of(sampler, storage, noise, terms, masked, sums);
  py::gil_scoped_release release;
  cuda::prepare_capture(device);
  return cuda::resident_blocks(device, kind);
}

std::vector<std::string> samplers() {
  return {
#define LLCF_NAME(name) #name,
      LLCF_SAMPLERS(LLCF_NAME)
#undef LLCF_NAME
  };
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "The Langevin step and its noise on CUDA devices.";
  py::register_exception<cuda::CudaError>(m, "CudaError", PyExc_RuntimeError);
  m.attr("archs") = LLCF_CUDA_ARCHS;
  m.attr("runtime_version") = CUDART_VERSION;
  m.def("device_count", &device_count, "Devices that can be used; 0 without a driver.");
  m.def("problem", &problem, "Why no device can be used, or ''.");
  m.def("samplers", &samplers, "Names of the samplers, in the order of their codes.");
  m.def("resident_blocks", &resident, py::arg("device"), py::arg("sampler"), py::arg("storage"),
        py::arg("noise"), py::arg("terms"), py::arg("masked"), py::arg("sums"),
        "Blocks of the step that the device holds at a time. Also makes ready for a capture.");
  m.def("plan", &plan, py::arg("rows"), py::arg("n_tiles"), py::arg("storage"), py::arg("resident"),
        py::arg("n_slots"),
        "The table for the device, as bytes, and its number of chunks. Slots must not descend.");
  m.def("sgld_step", &step, py::arg("device"), py::arg("stream"), py::arg("table"), py::arg("n_tiles"),
        py::arg("n_chunks"), py::arg("grads"), py::arg("scalars"), py::arg("sampler"), py::arg("storage"),
        py::arg("noise"), py::arg("terms"), py::arg("masked"), py::arg("partials"), py::arg("sums"),
        py::arg("n_slots"));
  m.def("normal", &noise, py::arg("device"), py::arg("stream"), py::arg("out"), py::arg("start"),
        py::arg("numel"), py::arg("kind"), py::arg("key"), py::arg("step"), py::arg("tensor_id"),
        py::arg("domain"));
  m.def("advance_step", &advance, py::arg("device"), py::arg("stream"), py::arg("scalars"),
        "Adds one to the step counter of scalars in device memory.");
}
