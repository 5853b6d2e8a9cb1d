// Picks an instruction set at run time and spreads a step over threads.

#include <algorithm>
#include <cstring>
#include <vector>

#include "kernel.h"

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif
#if defined(_OPENMP)
#include <omp.h>
#endif

namespace llcf {

namespace generic {
extern const IsaTable kTable;
}
#if defined(LLCF_HAVE_X86)
namespace avx2 {
extern const IsaTable kTable;
}
namespace avx512 {
extern const IsaTable kTable;
}
#endif

const char* const kIsaNames[3] = {"avx512", "avx2", "generic"};

const IsaTable* isa_table(const char* name) {
  if (std::strcmp(name, "generic") == 0) return &generic::kTable;
#if defined(LLCF_HAVE_X86)
  __builtin_cpu_init();
  if (std::strcmp(name, "avx2") == 0 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c"))
    return &avx2::kTable;
  if (std::strcmp(name, "avx512") == 0 && __builtin_cpu_supports("avx512f") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl"))
    return &avx512::kTable;
#endif
  return nullptr;
}

namespace {

constexpr int64_t kChunk = 32768;  // elements a task
constexpr int64_t kAlone = 65536;  // below this many, waking threads costs more than it saves

// Default rounding, no flush to zero, for as long as it lives: bits must not depend on the caller's mode.
class FloatMode {
 public:
#if defined(__x86_64__) || defined(_M_X64)
  FloatMode() : saved_(_mm_getcsr()) { _mm_setcsr(0x1F80); }
  ~FloatMode() { _mm_setcsr(saved_); }

 private:
  unsigned saved_;
#elif defined(__aarch64__)
  FloatMode() {
    __asm__ volatile("mrs %0, fpcr" : "=r"(saved_));
    __asm__ volatile("msr fpcr, %0" : : "r"((uint64_t)0));
  }
  ~FloatMode() { __asm__ volatile("msr fpcr, %0" : : "r"(saved_)); }

 private:
  uint64_t saved_;
#endif
};

// A tile as a grid of chunks.
struct Grid {
  int64_t rows_per, cols_per, down, across;
  explicit Grid(const TileRow& t) {
    cols_per = std::max<int64_t>(1, std::min(t.cols, kChunk));
    rows_per = std::max<int64_t>(1, std::min(t.rows, kChunk / cols_per));
    down = (t.rows + rows_per - 1) / rows_per;
    across = (t.cols + cols_per - 1) / cols_per;
  }
  Span span(const TileRow& t, int64_t i) const {
    const int64_t r = i / across * rows_per, c = i % across * cols_per;
    return {r, std::min(r + rows_per, t.rows), c, std::min(c + cols_per, t.cols)};
  }
};

template <class Body>
void parallel(int64_t tasks, int threads, const Body& body) {
#if defined(_OPENMP)
  if (threads > 1 && tasks > 1) {
#pragma omp parallel num_threads(threads)
    {
      FloatMode mode;
#pragma omp for schedule(dynamic)
      for (int64_t i = 0; i < tasks; ++i) body(i);
    }
    return;
  }
#endif
  (void)threads;
  FloatMode mode;
  for (int64_t i = 0; i < tasks; ++i) body(i);
}

}  // namespace

void sgld_step(const IsaTable& isa, const TileRow* tiles, const int64_t* grads, int64_t n_tiles,
               const Scalars& s, const Kind& kind, double* sums, int threads) {
  std::vector<int64_t> first(static_cast<size_t>(n_tiles) + 1, 0);
  int64_t elements = 0;
  for (int64_t i = 0; i < n_tiles; ++i) {
    const Grid grid(tiles[i]);
    first[i + 1] = first[i] + grid.down * grid.across;
    elements += tiles[i].rows * tiles[i].cols;
  }
  // Each task adds to sums of its own, which are added up in the order of the tasks.
  std::vector<double> parts(sums == nullptr ? 0 : static_cast<size_t>(first.back()) * kSums, 0.0);
  parallel(first.back(), elements <= kAlone ? 1 : threads, [&](int64_t task) {
    const int64_t i = std::upper_bound(first.begin(), first.end(), task) - first.begin() - 1;
    double* part = sums == nullptr ? nullptr : parts.data() + task * kSums;
    isa.step(tiles[i], grads[i], s, kind, Grid(tiles[i]).span(tiles[i], task - first[i]), part);
  });
  for (int64_t i = 0; sums != nullptr && i < n_tiles; ++i)
    for (int64_t task = first[i]; task < first[i + 1]; ++task)
      for (int k = 0; k < kSums; ++k) sums[tiles[i].slot * kSums + k] += parts[task * kSums + k];
}

void normal(const IsaTable& isa, float* out, uint64_t start, int64_t n, int noise, const NoiseSource& source,
            int threads) {
  parallel((n + kChunk - 1) / kChunk, n <= kAlone ? 1 : threads, [&](int64_t task) {
    const int64_t i = task * kChunk;
    isa.normal(out + i, start + static_cast<uint64_t>(i), std::min(kChunk, n - i), noise, source);
  });
}

}  // namespace llcf
