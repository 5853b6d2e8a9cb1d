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

bool is_nan(float x) { return x != x; }
bool is_nan(uint16_t half) { return (half & 0x7fff) > 0x7c00; }

template <typename T>
bool same(const std::vector<T>& a, const std::vector<T>& b) {
  for (size_t i = 0; i < a.size(); ++i)
    if (!same(a[i], b[i])) return false;
  return a.size() == b.size();
}

uint64_t index_of(const TileRow& t, int64_t r, int64_t c) {
  return (uint64_t)(t.start + r * t.global_stride + c);
}

Words words_of(const TileRow& t, const Scalars& s, uint64_t block, uint32_t domain) {
  return block_words(block, domain, s.step, (uint32_t)t.tensor_id, (uint32_t)t.key, (uint32_t)(t.key >> 32));
}

float noise_of(const TileRow& t, const Scalars& s, int kind, uint64_t e) {
  const Words x = words_of(t, s, e >> 2, kStepNoise);
  if (kind == kIh4) return ih4<Lane1>(x.x[e & 3]);
  float n[4];
  gaussian_block(x, n);
  return n[e & 3];
}

// What a tile consists of: weights and gradients of T, what completes weights of type R.
template <typename T, typename R>
struct Operands {
  Rows<T> w, g, w0;
  Rows<R> lo;
  Rows<float> aux;
  std::vector<uint8_t> mask;  // empty: everything
};

float widened(float x, int) { return x; }
float widened(uint16_t x, int storage) { return storage == kFloat16 ? half_to_float(x) : bf16_to_float(x); }

float full(float w, uint16_t, int) { return w; }
float full(uint16_t w, uint16_t lo, int storage) {
  return storage == kSplitBfloat16 ? Lane1::bits_to_float(join(w, (int16_t)lo)) : bf16_to_float(w);
}
float full(uint16_t, float master, int) { return master; }

void put(float* w, uint16_t*, int, float out, uint32_t) { *w = out; }
void put(uint16_t* w, uint16_t* lo, int storage, float out, uint32_t h) {
  const uint32_t u = Lane1::float_to_bits(out);
  *w = storage == kSplitBfloat16 ? split_hi(u) : round_by(u, h);
  if (storage == kSplitBfloat16) *lo = (uint16_t)split_lo(u);
}
void put(uint16_t* w, float* master, int, float out, uint32_t) {
  *w = float_to_half(out);
  *master = out;
}

// What the tile must become, one element after the other; returns how many elements moved.
template <class S, typename T, typename R>
double expect(const TileRow& t, const Scalars& s, const Kind& k, Operands<T, R>& o, bool grad, bool anchor) {
  double moved = 0;
  for (int64_t r = 0; r < t.rows; ++r)
    for (int64_t c = 0; c < t.cols; ++c) {
      const int64_t bit = t.mask_start + r * t.mask_stride + c;
      if (!o.mask.empty() && !(o.mask[(size_t)(bit >> 3)] >> (bit & 7) & 1)) continue;
      const uint64_t index = index_of(t, r, c);
      Element<Lane1> e = {};
      e.w = full(o.w.at(r, c), o.lo.at(r, c), k.storage);
      e.g = grad ? widened(o.g.at(r, c), k.storage) : 0.0f;
      e.w0 = anchor ? widened(o.w0.at(r, c), k.storage) : 0.0f;
      e.z = k.terms & kNoise ? noise_of(t, s, k.noise, index) : 0.0f;
      e.aux = S::kAux ? o.aux.at(r, c) : 0.0f;
      const float xi = t.xi == 0 ? s.friction : (float)*reinterpret_cast<const double*>(t.xi);
      const float out = S::template step<Lane1>(&e, s, xi, k.terms, nullptr);
      const Words x = words_of(t, s, index >> 3, kRounding);
      put(&o.w.at(r, c), &o.lo.at(r, c), k.storage, out, rounding_bits(x.x, (uint32_t)index));
      if (S::kAux) o.aux.at(r, c) = e.aux;
      moved += 1;
    }
  return moved;
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

template <class S, typename T, typename R>
void check(const char* isa_name, int threads, bool large, const std::string& fault, int sampler,
           int storage) {
  const IsaTable& isa = *isa_table(isa_name);
  const Kind kind = {sampler, storage, (int)(rng() % 3 == 0), (int)(rng() % 16)};
  const Size n = size(large);
  Operands<T, R> o = {
      Rows<T>(n.rows, n.cols, between(0, 40), true),    Rows<T>(n.rows, n.cols - (fault == "read"), 0, true),
      Rows<T>(n.rows, n.cols, between(0, 9), true),     Rows<R>(n.rows, n.cols, between(0, 9), true),
      Rows<float>(n.rows, n.cols, between(0, 9), true), {}};
  Scalars s = {};
  s.step = (uint32_t)rng();
  s.nbeta = 3.5f;
  s.lambda = 0.25f;
  s.gamma = 7.0f;
  s.c1 = -1e-3f;
  s.c2 = 0.03f;
  s.alpha = 0.9f;
  s.beta = 0.1f;
  s.delta = 1e-3f;
  s.box = 0.5f;
  s.lr = 2e-3f;
  s.friction = 0.3f;
  s.c3 = 0.02f;
  const bool wants_sums = rng() % 3 == 0;
  const bool has_grad = fault == "read" || rng() % 4 != 0;
  const bool has_anchor = wants_sums || needs_anchor(kind.terms) || rng() % 2;
  const int64_t wrap = (int64_t)4 << 32;  // where a block index outgrows 32 bits
  const int64_t starts[] = {0, between(0, 9), wrap - between(1, 4000), ((int64_t)1 << 57) + between(0, 9)};
  const double xi = 0.7;
  TileRow t = {};
  t.w = o.w.address();
  t.w0 = has_anchor ? o.w0.address() : 0;
  t.lo = storage == kSplitBfloat16 || storage == kFloat16 ? o.lo.address() : 0;
  t.rows = n.rows;
  t.cols = n.cols + (fault == "write");
  t.w_stride = o.w.stride();
  t.w0_stride = o.w0.stride();
  t.lo_stride = o.lo.stride();
  t.g_stride = o.g.stride();
  t.start = starts[rng() % 4];
  t.global_stride = n.cols + between(0, 1000);
  t.key = rng();
  t.tensor_id = (int64_t)(uint32_t)rng();
  t.aux = S::kAux ? o.aux.address() : 0;
  t.aux_stride = o.aux.stride();
  t.xi = rng() % 2 ? reinterpret_cast<int64_t>(&xi) : 0;
  if (fault.empty() && rng() % 3 == 0) {
    t.mask_start = between(0, 20);
    t.mask_stride = n.cols + between(0, 20);
    o.mask.resize((size_t)((t.mask_start + n.rows * t.mask_stride) / 8 + 9));  // eight bytes to spare
    for (uint8_t& byte : o.mask) byte = (uint8_t)rng();
    t.mask = reinterpret_cast<int64_t>(o.mask.data());
  }
  const int64_t grad = has_grad ? o.g.address() : 0;
  const auto before = o.w.values();
  const auto low = o.lo.values();
  const auto aux = o.aux.values();
  std::vector<double> sums(kSums, 0.0);
  sgld_step(isa, &t, &grad, 1, s, kind, wants_sums ? sums.data() : nullptr, threads);
  const auto got = o.w.values();
  const auto got_low = o.lo.values();
  const auto got_aux = o.aux.values();
  o.w.set(before);
  o.lo.set(low);
  o.aux.set(aux);
  const double moved = expect<S>(t, s, kind, o, has_grad, has_anchor);
  const bool counted = !wants_sums || sums[kN] == moved;
  if (storage == kFloat16)  // whose NaNs are free
    for (int64_t r = 0; r < t.rows; ++r)
      for (int64_t c = 0; c < t.cols; ++c)
        if (o.w.at(r, c) != got[(size_t)(r * n.cols + c)] && is_nan(o.w.at(r, c)) &&
            is_nan(got[(size_t)(r * n.cols + c)]))
          o.w.at(r, c) = got[(size_t)(r * n.cols + c)];
  if (!same(got, o.w.values()) || !same(got_low, o.lo.values()) || !same(got_aux, o.aux.values()) ||
      !counted) {
    std::printf("%s: sampler %d, storage %d, %lld x %lld, terms %d, start %lld: not the scalar step\n",
                isa_name, sampler, storage, (long long)n.rows, (long long)n.cols, kind.terms,
                (long long)t.start);
    std::exit(1);
  }
}

template <class S>
void check_storages(const char* isa_name, int threads, bool large, const std::string& fault, int sampler) {
  check<S, float, uint16_t>(isa_name, threads, large, fault, sampler, kFloat32);
  check<S, uint16_t, uint16_t>(isa_name, threads, large, fault, sampler, kSplitBfloat16);
  check<S, uint16_t, uint16_t>(isa_name, threads, large, fault, sampler, kRoundedBfloat16);
  check<S, uint16_t, float>(isa_name, threads, large, fault, sampler, kFloat16);
}

void check_normal(const char* isa_name, int threads, bool large) {
  const int64_t n = large ? between(70000, 200000) : between(0, 5001);
  const uint64_t start = (uint64_t)(((int64_t)4 << 32) - between(0, 5000));
  const NoiseSource source = {rng(), (uint32_t)rng(), (uint32_t)rng(), kInitialNoise};
  float* out = static_cast<float*>(std::malloc(sizeof(float) * (size_t)n));
  const int kind = (int)(rng() % 2);
  normal(*isa_table(isa_name), out, start, n, kind, source, threads);
  for (int64_t i = 0; i < n; ++i) {
    const uint64_t e = start + (uint64_t)i;
    const Words x = block_words(e >> 2, source.domain, source.step, source.tensor_id, (uint32_t)source.key,
                                (uint32_t)(source.key >> 32));
    float z[4];
    gaussian_block(x, z);
    if (!same(out[i], kind == kIh4 ? ih4<Lane1>(x.x[e & 3]) : z[e & 3])) {
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
#define LLCF_CHECK(S) check_storages<S>(name, threads, large, fault, k##S);
      LLCF_SAMPLERS(LLCF_CHECK)
#undef LLCF_CHECK
      check_normal(name, threads, large);
    }
    std::printf("%s ", name);
  }
  std::printf("\n");
  return 0;
}
