// Split bf16: an fp32 as a bf16 high half and a 16-bit remainder, exactly.
#pragma once

#include "llcf_lane.h"

namespace llcf {

//   fp32 bits    s eeeeeeee mmmmmmm | rrrrrrrrrrrrrrrr
//   hi           the upper half, rounded to nearest (ties away from zero): the model's bf16
//   lo           the lower half as a signed number: what completes hi
LLCF_FN uint16_t split_hi(uint32_t u) {
  return (u & 0x7fffffffu) > 0x7f800000u ? (uint16_t)0x7fc0 : (uint16_t)((u + 0x8000u) >> 16);
}

LLCF_FN int16_t split_lo(uint32_t u) {
  return (u & 0x7fffffffu) > 0x7f800000u ? (int16_t)0 : (int16_t)(u & 0xffffu);
}

// hi << 16 plus the signed remainder: a negative one borrows from hi, modulo 2^32.
LLCF_FN uint32_t join(uint16_t hi, int16_t lo) { return ((uint32_t)hi << 16) + (uint32_t)(int32_t)lo; }

LLCF_FN float bf16_to_float(uint16_t h) { return Lane1::bits_to_float((uint32_t)h << 16); }

}  // namespace llcf
