// Fuzzed tiles through every instruction set, in memory of exactly the size that a tile may touch.
// Built with AddressSanitizer and UndefinedBehaviorSanitizer by check.py; also compares every bit with the
// scalar element math. Arguments: seed, cases, threads, and for tests of the test itself "read" or "write":
// one element of a gradient or of the weights is then out of bounds.

#include <sanitizer/asan_interface.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "kernel.h"
#include "llcf_noise.h"

using namespace llcf;

namespace {

std::mt19937_64 rng;

int64_t between(int64_t low, int64_t high) { return low + (int64_t)(rng() % (uint64_t)(high - low + 1)); }

// Rows of a tensor: an allocation that ends with the last element, its gaps between rows poisoned.
template <typename T>
class Rows {
 public:
  Rows(int64_t rows, int64_t cols, int64_t gap, bool special)
      : rows_(rows), cols_(cols), stride_(cols + gap), lead_(between(0, 3)) {
    size_ = lead_ + (rows > 0 ? (rows - 1) * stride_ + cols : 0);
    data_ = static_cast<T*>(std::malloc(sizeof(T) * (size_t)size_));
    for (int64_t i = 0; i < size_; ++i) data_[i] = value(special);
    for (int64_t r = 0; r + 1 < rows; ++r)
      ASAN_POISON_MEMORY_REGION(data_ + lead_ + r * stride_ + cols, sizeof(T) * (size_t)gap);
  }
  Rows(const Rows&) = delete;
  Rows& operator=(const Rows&) = delete;
  ~Rows() {
    ASAN_UNPOISON_MEMORY_REGION(data_, sizeof(T) * (size_t)size_);
    std::free(data_);
  }
  int64_t address() const { return reinterpret_cast<int64_t>(data_ + lead_); }
  int64_t stride() const { return stride_; }
  T& at(int64_t r, int64_t c) { return data_[lead_ + r * stride_ + c]; }
  std::vector<T> values() {
    std::vector<T> all;
    for (int64_t r = 0; r < rows_; ++r)
      for (int64_t c = 0; c < cols_; ++c) all.push_back(at(r, c));
    return all;
  }
  void set(const std::vector<T>& all) {
    for (int64_t r = 0, i = 0; r < rows_; ++r)
      for (int64_t c = 0; c < cols_; ++c) at(r, c) = all[(size_t)i++];
  }

 private:
  static T value(bool special);
  int64_t rows_, cols_, stride_, lead_, size_;
  T* data_;
};

template <>
float Rows<float>::value(bool special) {
  if (special && rng() % 8 == 0) return Lane1::bits_to_float((uint32_t)rng());
  return (float)between(-1000, 1000) * 1e-3f;
}
template <>
uint16_t Rows<uint16_t>::value(bool) {
  return (uint16_t)rng();
}

bool same(float a, float b) { return (a != a && b != b) || std::memcmp(&a, &b, 4) == 0; }
bool same(uint16_t a, uint16_t b) { return a == b; }

template <typename T>
bool same(const std::vector<T>& a, const std::vector<T>& b) {
  for (size_t i = 0; i < a.size(); ++i)
    if (!same(a[i], b[i])) return false;
  return a.size() == b.size();
}

float noise(const TileRow& t, const Scalars& s, int64_t r, int64_t c) {
  const uint64_t e = (uint64_t)(t.start + r * t.global_stride + c);
  float n[4];
  gaussian_block(block_words(e >> 2, kStepNoise, s.step, (uint32_t)t.tensor_id, (uint32_t)t.key,
                             (uint32_t)(t.key >> 32)),
                 n);
  return n[e & 3];
}

// What the tile must become, one element after the other.
void expect(const TileRow& t, const Scalars& s, int terms, Rows<float>& w, Rows<float>* g, Rows<float>* w0) {
  for (int64_t r = 0; r < t.rows; ++r)
    for (int64_t c = 0; c < t.cols; ++c)
      w.at(r, c) = sgld<Lane1>(w.at(r, c), g ? g->at(r, c) : 0.0f, w0 ? w0->at(r, c) : 0.0f,
                               terms & kNoise ? noise(t, s, r, c) : 0.0f, s, terms);
}

void expect(const TileRow& t, const Scalars& s, int terms, Rows<uint16_t>& w, Rows<uint16_t>& lo,
            Rows<uint16_t>* g, Rows<uint16_t>* w0) {
  for (int64_t r = 0; r < t.rows; ++r)
    for (int64_t c = 0; c < t.cols; ++c) {
      const float full = Lane1::bits_to_float(join(w.at(r, c), (int16_t)lo.at(r, c)));
      const float out =
          sgld<Lane1>(full, g ? bf16_to_float(g->at(r, c)) : 0.0f, w0 ? bf16_to_float(w0->at(r, c)) : 0.0f,
                      terms & kNoise ? noise(t, s, r, c) : 0.0f, s, terms);
      w.at(r, c) = split_hi(Lane1::float_to_bits(out));
      lo.at(r, c) = (uint16_t)split_lo(Lane1::float_to_bits(out));
    }
}

struct Size {
  int64_t rows, cols;
};

Size size(bool large) {
  if (large && rng() % 2) return {between(1, 9), between(20000, 40000)};
  if (large) return {between(600, 2000), between(40, 130)};
  switch (rng() % 5) {
    case 0:
      return {1, between(1, 5001)};
    case 1:
      return {between(1, 60), between(1, 130)};
    case 2:
      return {between(1, 5), between(1000, 1100)};
    case 3:
      return {between(300, 900), between(100, 130)};
    default:
      return {between(0, 3), between(0, 70)};
  }
}

template <typename T>
void check(const char* isa_name, int threads, bool large, const std::string& fault) {
  const IsaTable& isa = *isa_table(isa_name);
  const bool split = sizeof(T) == 2;
  const int terms = (int)(rng() % 16);
  const Size n = size(large);
  Rows<T> w(n.rows, n.cols, between(0, 40), true), g(n.rows, n.cols - (fault == "read"), 0, true);
  Rows<T> w0(n.rows, n.cols, between(0, 9), true), lo(n.rows, n.cols, between(0, 9), true);
  Scalars s = {};
  s.step = (uint32_t)rng();
  s.nbeta = 3.5f;
  s.lambda = 0.25f;
  s.gamma = 7.0f;
  s.c1 = -1e-3f;
  s.c2 = 0.03f;
  s.box = 0.5f;
  const bool has_grad = fault == "read" || rng() % 4 != 0, has_anchor = needs_anchor(terms) || rng() % 2;
  const int64_t wrap = (int64_t)4 << 32;  // where a block index outgrows 32 bits
  const int64_t starts[] = {0, between(0, 9), wrap - between(1, 4000), ((int64_t)1 << 57) + between(0, 9)};
  const TileRow t = {w.address(),
                     has_anchor ? w0.address() : 0,
                     split ? lo.address() : 0,
                     n.rows,
                     n.cols + (fault == "write"),
                     w.stride(),
                     w0.stride(),
                     lo.stride(),
                     g.stride(),
                     starts[rng() % 4],
                     n.cols + between(0, 1000),
                     rng(),
                     (int64_t)(uint32_t)rng(),
                     {}};
  const int64_t grad = has_grad ? g.address() : 0;
  const auto before = w.values(), low = lo.values();
  sgld_step(isa, &t, &grad, 1, s, terms, split ? kSplitBfloat16 : kFloat32, threads);
  const auto got = w.values(), got_low = lo.values();
  w.set(before);
  lo.set(low);
  if constexpr (split)
    expect(t, s, terms, w, lo, has_grad ? &g : nullptr, has_anchor ? &w0 : nullptr);
  else
    expect(t, s, terms, w, has_grad ? &g : nullptr, has_anchor ? &w0 : nullptr);
  if (!same(got, w.values()) || !same(got_low, lo.values())) {
    std::printf("%s: %s step of %lld x %lld, terms %d, start %lld: other bits than the scalar step\n",
                isa_name, split ? "split" : "fp32", (long long)n.rows, (long long)n.cols, terms,
                (long long)t.start);
    std::exit(1);
  }
}

void check_normal(const char* isa_name, int threads, bool large) {
  const int64_t n = large ? between(70000, 200000) : between(0, 5001);
  const uint64_t start = (uint64_t)(((int64_t)4 << 32) - between(0, 5000));
  const NoiseSource source = {rng(), (uint32_t)rng(), (uint32_t)rng(), kInitialNoise};
  float* out = static_cast<float*>(std::malloc(sizeof(float) * (size_t)n));
  normal(*isa_table(isa_name), out, start, n, source, threads);
  for (int64_t i = 0; i < n; ++i) {
    const uint64_t e = start + (uint64_t)i;
    float z[4];
    gaussian_block(block_words(e >> 2, source.domain, source.step, source.tensor_id, (uint32_t)source.key,
                               (uint32_t)(source.key >> 32)),
                   z);
    if (!same(out[i], z[e & 3])) {
      std::printf("%s: normal %lld of %lld differs\n", isa_name, (long long)i, (long long)n);
      std::exit(1);
    }
  }
  std::free(out);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 4) return 2;
  rng.seed((uint64_t)std::atoll(argv[1]));
  const int cases = std::atoi(argv[2]), threads = std::atoi(argv[3]);
  const std::string fault = argc > 4 ? argv[4] : "";
  for (const char* name : kIsaNames) {
    if (isa_table(name) == nullptr) continue;
    for (int i = 0; i < cases; ++i) {
      const bool large = threads > 1;
      check<float>(name, threads, large, fault);
      check<uint16_t>(name, threads, large, fault);
      check_normal(name, threads, large);
    }
    std::printf("%s ", name);
  }
  std::printf("\n");
  return 0;
}
