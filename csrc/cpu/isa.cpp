// The step of one span of one tile, compiled once per instruction set (LLCF_ISA).
// No standard library here: an inline function compiled for AVX-512 must never be merged into portable code.

#include "kernel.h"
#include "lanes.h"

namespace llcf {
namespace LLCF_ISA {
namespace {

constexpr int kBlock = 1024;   // elements staged through L1
constexpr int kGroup = 4 * W;  // elements of one vector pass: W Philox blocks
constexpr int kBuffer = kBlock + 2 * kGroup;

// What the rounds have in common over consecutive blocks: words 1 to 3 of the counter are constant,
// which leaves one product in each of the first two rounds.
struct Rounds {
  uint32_t a, b, c, d;  // folded constants of rounds 1 and 2
  uint32_t k0[kPhiloxRounds], k1[kPhiloxRounds];
};

Rounds fold_rounds(uint64_t block, const NoiseSource& source) {
  Rounds r;
  for (int i = 0; i < kPhiloxRounds; ++i) {
    r.k0[i] = (uint32_t)source.key + (uint32_t)i * kPhiloxW0;
    r.k1[i] = (uint32_t)(source.key >> 32) + (uint32_t)i * kPhiloxW1;
  }
  const uint32_t y0 = mul_hi(kPhiloxM1, source.step) ^ counter_high(block, source.domain) ^ r.k0[0];
  const uint32_t y1 = kPhiloxM1 * source.step;
  r.a = source.tensor_id ^ r.k1[0];
  r.b = y1 ^ r.k0[1];
  r.c = mul_hi(kPhiloxM0, y0) ^ r.k1[1];
  r.d = (kPhiloxM0 * y0) ^ r.k1[2];
  return r;
}

// Ten rounds on W/2 blocks, one in the low half of each 64-bit lane; high halves hold rubbish.
LLCF_FN void philox_lanes(VQ block, const Rounds& r, VQ x[4]) {
  const VQ p0 = mul_low(block, kPhiloxM0);
  const VQ q1 = mul_low((p0 >> 32) ^ (uint64_t)r.a, kPhiloxM1);
  const VQ z0 = (q1 >> 32) ^ (uint64_t)r.b;
  const VQ z2 = p0 ^ (uint64_t)r.c;
  const VQ s0 = mul_low(z0, kPhiloxM0), s1 = mul_low(z2, kPhiloxM1);
  VQ x0 = (s1 >> 32) ^ q1 ^ (uint64_t)r.k0[2], x1 = s1, x2 = (s0 >> 32) ^ (uint64_t)r.d, x3 = s0;
#pragma GCC unroll 8
  for (int i = 3; i < kPhiloxRounds; ++i) {
    const VQ t0 = mul_low(x0, kPhiloxM0), t1 = mul_low(x2, kPhiloxM1);
    x0 = (t1 >> 32) ^ x1 ^ (uint64_t)r.k0[i];
    x2 = (t0 >> 32) ^ x3 ^ (uint64_t)r.k1[i];
    x1 = t1;
    x3 = t0;
  }
  x[0] = x0;
  x[1] = x1;
  x[2] = x2;
  x[3] = x3;
}

// Addresses stay integers: what is fetched ahead may lie beyond the operand.
struct Prefetch {
  int64_t at[4];
  int64_t bytes[4];  // a group of kGroup elements
};

// Normals of the blocks first, first + 1, ...: `groups` passes of kGroup elements. The blocks must not cross
// a multiple of 2^32.
void fill_groups(float* out, uint64_t first, int groups, const NoiseSource& source, const Prefetch& ahead) {
  const Rounds r = fold_rounds(first, source);
  // Position 4j + k of a vector works on block (W/4) k + j, so that transposing within 128 bits puts blocks
  // in order.
  VQ even, odd;
  for (int i = 0; i < W / 2; ++i) {
    const int p = 2 * i, q = 2 * i + 1;
    even[i] = first + (uint64_t)((W / 4) * (p & 3) + (p >> 2));
    odd[i] = first + (uint64_t)((W / 4) * (q & 3) + (q >> 2));
  }
  for (int g = 0; g < groups; ++g) {
    for (int t = 0; t < 4; ++t)
      for (int64_t line = 0; line < ahead.bytes[t]; line += 64)
        __builtin_prefetch((const void*)(ahead.at[t] + g * ahead.bytes[t] + line), 1);
    VQ e[4], o[4];
    philox_lanes(even, r, e);
    philox_lanes(odd, r, o);
    VU x[4];
    for (int j = 0; j < 4; ++j) x[j] = (VU)((e[j] & 0xffffffffull) | (o[j] << 32));
    VF n[4];
    gaussian<LaneV>(x[0], x[1], &n[0], &n[1]);
    gaussian<LaneV>(x[2], x[3], &n[2], &n[3]);
    transpose4(n);
    for (int j = 0; j < 4; ++j) store(out + g * kGroup + j * W, n[j]);
    even += (uint64_t)W;
    odd += (uint64_t)W;
  }
}

// Normals of elements start .. start + n - 1 (n <= kBlock): returns where the first one stands in the buffer.
const float* fill(float* buffer, uint64_t start, int n, const NoiseSource& source, const Prefetch& ahead) {
  const int phase = (int)(start & 3);
  uint64_t block = start >> 2;
  int blocks = (phase + n + 3) >> 2;
  float* out = buffer;
  while (blocks > 0) {
    const uint64_t left = 0x100000000ull - (block & 0xffffffffull);  // the counter's low word wraps here
    const int here = left < (uint64_t)blocks ? (int)left : blocks;
    fill_groups(out, block, (here + W - 1) / W, source, ahead);
    out += 4 * here;
    block += (uint64_t)here;
    blocks -= here;
  }
  return buffer + phase;
}

// An absent gradient is +0: a row of zeros is read instead, so that there is one loop.
alignas(64) const float kZeros[kBlock] = {};

template <int TERMS>
void update_f32(float* __restrict w, const float* __restrict g, const float* __restrict w0,
                const float* __restrict z, int n, const Scalars& scalars) {
  const Scalars s = scalars;
  for (int i = 0; i < n; ++i)
    w[i] =
        sgld<Lane1>(w[i], g[i], needs_anchor(TERMS) ? w0[i] : 0.0f, TERMS & kNoise ? z[i] : 0.0f, s, TERMS);
}

template <int TERMS>
void update_split(uint16_t* __restrict hi, int16_t* __restrict lo, const uint16_t* __restrict g,
                  const uint16_t* __restrict w0, const float* __restrict z, int n, const Scalars& scalars) {
  const Scalars s = scalars;
  int i = 0;
  for (; i + W <= n; i += W) {
    const VF w = (VF)join_lanes(load<VH>(hi + i), load<VS>(lo + i));
    const VF anchor = needs_anchor(TERMS) ? bf16_lanes(load<VH>(w0 + i)) : VF{};
    const VF noise = TERMS & kNoise ? load<VF>(z + i) : VF{};
    VH high, low;
    split_lanes((VU)sgld<LaneV>(w, bf16_lanes(load<VH>(g + i)), anchor, noise, s, TERMS), &high, &low);
    store(hi + i, high);
    store(lo + i, low);
  }
  for (; i < n; ++i) {
    const float w = Lane1::bits_to_float(join(hi[i], lo[i]));
    const float anchor = needs_anchor(TERMS) ? bf16_to_float(w0[i]) : 0.0f;
    const float out = sgld<Lane1>(w, bf16_to_float(g[i]), anchor, TERMS & kNoise ? z[i] : 0.0f, s, TERMS);
    const uint32_t u = Lane1::float_to_bits(out);
    hi[i] = split_hi(u);
    lo[i] = split_lo(u);
  }
}

template <typename T>
T* element(int64_t base, int64_t index) {
  return (T*)(base + index * (int64_t)sizeof(T));
}

template <typename T>
const T* gradient(int64_t base, int64_t index) {
  return base == 0 ? (const T*)kZeros : element<const T>(base, index);
}

template <int TERMS>
void sgld_span(const TileRow& t, int64_t grad, const Scalars& s, int storage, Span span) {
  alignas(64) float buffer[kBuffer];
  const NoiseSource source{t.key, s.step, (uint32_t)t.tensor_id, kStepNoise};
  const int64_t size = storage == kFloat32 ? 4 : 2;
  for (int64_t row = span.row0; row < span.row1; ++row) {
    for (int64_t col = span.col0; col < span.col1; col += kBlock) {
      const int n = (int)(span.col1 - col < kBlock ? span.col1 - col : kBlock);
      const int64_t iw = row * t.w_stride + col, i0 = row * t.w0_stride + col;
      const int64_t ig = row * t.g_stride + col, il = row * t.lo_stride + col;
      const float* z = buffer;
      if (TERMS & kNoise) {
        // The block's own weights are fetched while its noise is computed.
        const Prefetch ahead = {
            {t.w + iw * size, grad + ig * size, t.w0 + i0 * size, t.lo + il * 2},
            {kGroup * size, grad ? kGroup * size : 0, needs_anchor(TERMS) ? kGroup * size : 0,
             storage == kFloat32 ? 0 : kGroup * 2}};
        z = fill(buffer, (uint64_t)(t.start + row * t.global_stride + col), n, source, ahead);
      }
      if (storage == kFloat32)
        update_f32<TERMS>(element<float>(t.w, iw), gradient<float>(grad, ig), element<const float>(t.w0, i0),
                          z, n, s);
      else
        update_split<TERMS>(element<uint16_t>(t.w, iw), element<int16_t>(t.lo, il),
                            gradient<uint16_t>(grad, ig), element<const uint16_t>(t.w0, i0), z, n, s);
    }
  }
}

using SpanFn = void (*)(const TileRow&, int64_t, const Scalars&, int, Span);

template <int... T>
struct Terms_ {
  static constexpr SpanFn table[] = {&sgld_span<T>...};
};
template <int... T>
constexpr SpanFn Terms_<T...>::table[];
using AllTerms = Terms_<0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15>;

void sgld_any(const TileRow& t, int64_t grad, const Scalars& s, int terms, int storage, Span span) {
  AllTerms::table[terms & kAllTerms](t, grad, s, storage, span);
}

void normal_any(float* out, uint64_t start, int64_t n, const NoiseSource& source) {
  alignas(64) float buffer[kBuffer];
  const Prefetch none = {};
  for (int64_t i = 0; i < n; i += kBlock) {
    const int m = (int)(n - i < kBlock ? n - i : kBlock);
    __builtin_memcpy(out + i, fill(buffer, start + (uint64_t)i, m, source, none), sizeof(float) * (size_t)m);
  }
}

}  // namespace

extern const IsaTable kTable = {LLCF_ISA_NAME, &sgld_any, &normal_any};

}  // namespace LLCF_ISA
}  // namespace llcf
