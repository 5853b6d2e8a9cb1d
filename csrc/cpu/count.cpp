// Runs steps so that their instructions can be counted: by an outside counter that watches `measured`, or by
// the processor's own trap after each instruction, which no instruction set is too new for. Not part of the
// extension: benchmarks/_counting.py builds it, once per instruction set.
//
//   count [--step] SAMPLER,STORAGE,NOISE,TERMS,SUMS,ELEMENTS ...
//
// --step prints a line for each: the instructions of `measured`, and a few around it. The difference of two
// lengths holds only what an element takes.

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "kernel.h"

namespace llcf {

namespace LLCF_ISA {
extern const IsaTable kTable;
}

namespace {

constexpr int64_t kMost = 1 << 13;  // elements

// A step and its operands, always as large, so that making them takes as many instructions for every length.
struct Case {
  Kind kind;
  bool summed;
  int64_t elements;
  alignas(64) char w[4 * kMost], g[4 * kMost], w0[4 * kMost], lo[4 * kMost], aux[4 * kMost];
  double sums[kSums];
};

int sampler_code(const char* name) {
#define LLCF_CASE(sampler) \
  if (std::strcmp(name, #sampler) == 0) return k##sampler;
  LLCF_SAMPLERS(LLCF_CASE)
#undef LLCF_CASE
  return -1;
}

// Numbers of a trained model's sizes, in the dtype of a storage.
void fill(void* at, Storage storage, float size) {
  uint32_t state = 1;
  for (int64_t i = 0; i < kMost; ++i) {
    state = state * 1664525u + 1013904223u;
    const float value = size * ((float)(state >> 8) * 0x1p-23f - 1.0f);
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    const uint16_t half = storage == kFloat16 ? float_to_half(value) : (uint16_t)(bits >> 16);
    if (storage == kFloat32)
      std::memcpy((char*)at + 4 * i, &value, 4);
    else
      std::memcpy((char*)at + 2 * i, &half, 2);
  }
}

bool read_case(const char* text, Case* c) {
  char sampler[32] = {};
  long elements = 0;
  int summed = 0;
  if (std::sscanf(text, "%31[^,],%d,%d,%d,%d,%ld", sampler, &c->kind.storage, &c->kind.noise, &c->kind.terms,
                  &summed, &elements) != 6)
    return false;
  c->kind.sampler = sampler_code(sampler);
  c->summed = summed != 0;
  c->elements = elements;
  if (c->kind.sampler < 0 || elements < 1 || elements > kMost) return false;
  const Storage storage = (Storage)c->kind.storage;
  fill(c->w, storage, 0.05f);
  fill(c->g, storage, 1e-3f);
  fill(c->w0, storage, 0.05f);
  fill(c->lo, storage == kFloat16 ? kFloat32 : storage, 0.05f);
  fill(c->aux, kFloat32, 1e-3f);
  return true;
}

}  // namespace

extern "C" __attribute__((noinline, visibility("default"))) void measured(Case* c) {
  TileRow tile = {};
  tile.w = (int64_t)c->w;
  tile.w0 = (int64_t)c->w0;
  tile.lo = (int64_t)c->lo;
  tile.aux = (int64_t)c->aux;
  tile.rows = 1;
  tile.cols = c->elements;
  tile.key = 0x0123456789abcdefull;
  Scalars s = {};
  s.nbeta = 30.0f;
  s.lambda = 0.1f;
  s.gamma = 100.0f;
  s.c1 = -5e-7f;
  s.c2 = 1e-3f;
  s.alpha = 0.99f;
  s.beta = 0.01f;
  s.delta = 0.1f;
  s.box = 1.0f;
  s.lr = 1e-6f;
  s.friction = 0.1f;
  s.c3 = 4e-4f;
  LLCF_ISA::kTable.step(tile, (int64_t)c->g, s, c->kind, {0, 1, 0, c->elements},
                        c->summed ? c->sums : nullptr);
}

namespace {

#if defined(__x86_64__)
volatile std::sig_atomic_t steps;

// The trap flag, set and cleared; the leaf's red zone is stepped over.
#define LLCF_TRAP(change)                                                                               \
  __asm__ volatile("lea -128(%%rsp), %%rsp; pushf; " change ", (%%rsp); popf; lea 128(%%rsp), %%rsp" :: \
                       : "memory", "cc")

bool step_through(Case* c) {
  std::signal(SIGTRAP, [](int) { steps = steps + 1; });
  steps = 0;
  LLCF_TRAP("orl $0x100");
  measured(c);
  LLCF_TRAP("andl $0xfffffeff");
  std::printf("%ld\n", (long)steps);
  return true;
}
#else
bool step_through(Case*) { return false; }
#endif

}  // namespace
}  // namespace llcf

int main(int argc, char** argv) {
  const bool stepping = argc > 1 && std::strcmp(argv[1], "--step") == 0;
  const std::unique_ptr<llcf::Case> c(new llcf::Case());
  for (int i = stepping ? 2 : 1; i < argc; ++i) {
    if (!llcf::read_case(argv[i], c.get())) {
      std::fprintf(stderr, "cannot read %s\n", argv[i]);
      return 2;
    }
    if (!stepping) {
      llcf::measured(c.get());
    } else if (!llcf::step_through(c.get())) {
      std::fprintf(stderr, "--step needs an x86-64 processor\n");
      return 3;
    }
  }
}
