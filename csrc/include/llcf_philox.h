// Philox4x32-10 (Salmon et al. 2011), and the counter layout of noise "v1".
#pragma once

#include "llcf_lane.h"

namespace llcf {

constexpr uint32_t kPhiloxM0 = 0xD2511F53u, kPhiloxM1 = 0xCD9E8D57u;
constexpr uint32_t kPhiloxW0 = 0x9E3779B9u, kPhiloxW1 = 0xBB67AE85u;
constexpr int kPhiloxRounds = 10;
constexpr uint32_t kKeyDomain = 0x4C4C4346u;  // "LLCF"

enum Domain : uint32_t { kStepNoise = 0, kRounding = 1, kInitialNoise = 2 };

struct Words {
  uint32_t x[4];
};

LLCF_FN uint32_t mul_hi(uint32_t a, uint32_t b) {
#if defined(__CUDA_ARCH__)
  return __umulhi(a, b);
#else
  return (uint32_t)(((uint64_t)a * b) >> 32);
#endif
}

LLCF_FN Words philox(Words c, uint32_t k0, uint32_t k1) {
#if defined(__CUDA_ARCH__)
#pragma unroll
#endif
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const uint32_t hi0 = mul_hi(kPhiloxM0, c.x[0]), lo0 = kPhiloxM0 * c.x[0];
    const uint32_t hi1 = mul_hi(kPhiloxM1, c.x[2]), lo1 = kPhiloxM1 * c.x[2];
    c = Words{{hi1 ^ c.x[1] ^ k0, lo1, hi0 ^ c.x[3] ^ k1, lo0}};
    k0 += kPhiloxW0;
    k1 += kPhiloxW1;
  }
  return c;
}

// The second counter word: the high part of a block index, and the domain.
LLCF_FN uint32_t counter_high(uint64_t block, uint32_t domain) {
  return (uint32_t)(block >> 32) | (domain << 24);
}

// The random words of one block of four elements.
LLCF_FN Words block_words(uint64_t block, uint32_t domain, uint32_t step, uint32_t tensor_id, uint32_t k0,
                          uint32_t k1) {
  return philox(Words{{(uint32_t)block, counter_high(block, domain), step, tensor_id}}, k0, k1);
}

// The Philox key of a chain, packed as k0 | k1 << 32.
LLCF_FN uint64_t chain_key(uint64_t seed, uint64_t chain) {
  const Words w = philox(Words{{(uint32_t)chain, (uint32_t)(chain >> 32), 0u, kKeyDomain}}, (uint32_t)seed,
                         (uint32_t)(seed >> 32));
  return (uint64_t)w.x[0] | ((uint64_t)w.x[1] << 32);
}

}  // namespace llcf
