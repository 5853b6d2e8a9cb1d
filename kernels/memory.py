"""Accesses of 16 bytes, and bf16 in halves: bf16 is never computed, only cut from the bits of fp32."""

import triton
import triton.language as tl


@triton.jit
def as_float(bits):
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def store_split(hi_at, lo_at, x, mask):
    """Store fp32 as a rounded bf16 and a signed remainder, by integer operations; a NaN becomes 0x7fc0 and 0."""
    u = tl.where(x != x, 0x7FC00000, x.to(tl.uint32, bitcast=True))
    tl.store(hi_at, ((u + 0x8000) >> 16).to(tl.uint16), mask)
    tl.store(lo_at, u.to(tl.int16), mask)


@triton.jit
def vectors(address, TYPE: tl.constexpr, N: tl.constexpr, V: tl.constexpr):
    """Pointers to N consecutive vectors of 16 bytes."""
    offset = (tl.arange(0, N) * V)[:, None] + tl.arange(0, V)[None, :]
    return tl.multiple_of(address.to(tl.pointer_type(TYPE)), 16) + offset


@triton.jit
def load_bfloat16(address, N: tl.constexpr):
    """Eight bf16 a vector, as the bits of fp32: taken in pairs, which costs one operation each instead of two."""
    x = tl.load(vectors(address, tl.uint32, N, 4))
    return tl.reshape(tl.join(x << 16, x & 0xFFFF0000), (N, 8))


@triton.jit
def load_int16(address, N: tl.constexpr):
    """Eight int16 a vector, widened."""
    x = tl.load(vectors(address, tl.int32, N, 4))
    return tl.reshape(tl.join((x << 16) >> 16, x >> 16), (N, 8)).to(tl.uint32, bitcast=True)
