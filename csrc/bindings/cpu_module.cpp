// `llc_fast._cpu`: raw addresses in, nothing of torch known here.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/kernel.h"
#if defined(_OPENMP)
#include <omp.h>
#endif

namespace py = pybind11;
using namespace llcf;

namespace {

const IsaTable& require(const std::string& isa) {
  const IsaTable* table = isa_table(isa.c_str());
  if (table == nullptr) throw std::invalid_argument("instruction set '" + isa + "' cannot run here");
  return *table;
}

std::vector<std::string> isas() {
  std::vector<std::string> names;
  for (const char* name : kIsaNames)
    if (isa_table(name) != nullptr) names.emplace_back(name);
  return names;
}

void step(uintptr_t tiles, uintptr_t grads, int64_t n_tiles, uintptr_t scalars, int sampler, int storage,
          int noise, int terms, uintptr_t sums, int threads, const std::string& isa) {
  const IsaTable& table = require(isa);
  if (sampler < 0 || sampler >= kSamplers || storage < 0 || storage >= kStorages)
    throw std::invalid_argument("unknown sampler or storage");
  py::gil_scoped_release release;
  sgld_step(table, reinterpret_cast<const TileRow*>(tiles), reinterpret_cast<const int64_t*>(grads), n_tiles,
            *reinterpret_cast<const Scalars*>(scalars), Kind{sampler, storage, noise, terms},
            reinterpret_cast<double*>(sums), threads);
}

void noise(uintptr_t out, uint64_t start, int64_t numel, int kind, uint64_t key, uint32_t step,
           uint32_t tensor_id, uint32_t domain, int threads, const std::string& isa) {
  const IsaTable& table = require(isa);
  py::gil_scoped_release release;
  normal(table, reinterpret_cast<float*>(out), start, numel, kind, NoiseSource{key, step, tensor_id, domain},
         threads);
}

std::vector<std::string> samplers() {
  return {
#define LLCF_NAME(name) #name,
      LLCF_SAMPLERS(LLCF_NAME)
#undef LLCF_NAME
  };
}

py::tuple words(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint32_t k0, uint32_t k1) {
  const Words w = philox(Words{{c0, c1, c2, c3}}, k0, k1);
  return py::make_tuple(w.x[0], w.x[1], w.x[2], w.x[3]);
}

}  // namespace

PYBIND11_MODULE(_cpu, m) {
  m.doc() = "The Langevin step and its noise on the CPU.";
  m.def("isas", &isas, "Instruction sets that run here, best first.");
  m.def("chain_key", &chain_key, py::arg("seed"), py::arg("chain"),
        "The Philox key of a chain, k0 | k1 << 32.");
  m.def("philox4x32", &words, "Ten rounds of Philox4x32: four counter words, two key words.");
  m.def("sgld_step", &step, py::arg("tiles"), py::arg("grads"), py::arg("n_tiles"), py::arg("scalars"),
        py::arg("sampler"), py::arg("storage"), py::arg("noise"), py::arg("terms"), py::arg("sums"),
        py::arg("threads"), py::arg("isa"));
  m.def("samplers", &samplers, "Names of the samplers, in the order of their codes.");
  m.def("normal", &noise, py::arg("out"), py::arg("start"), py::arg("numel"), py::arg("kind"), py::arg("key"),
        py::arg("step"), py::arg("tensor_id"), py::arg("domain"), py::arg("threads"), py::arg("isa"));
#if defined(_OPENMP)
  m.attr("openmp") = true;
#else
  m.attr("openmp") = false;
#endif
}
