"""Accesses of 16 bytes, and one by one, of what an element holds besides its weight."""

import triton
import triton.language as tl

from .noise import interleave


@triton.jit
def as_float(bits):
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def as_bits(x):
    return x.to(tl.uint32, bitcast=True)


@triton.jit
def vectors(address, TYPE: tl.constexpr, N: tl.constexpr, V: tl.constexpr):
    """Pointers to N consecutive vectors of V elements, at a multiple of 16 bytes."""
    offset = (tl.arange(0, N) * V)[:, None] + tl.arange(0, V)[None, :]
    return tl.multiple_of(address.to(tl.pointer_type(TYPE)), 16) + offset


@triton.jit
def pointers(address, offset, TYPE: tl.constexpr, CUT: tl.constexpr):
    """Pointers to the elements at these offsets; unless CUT, to four adjacent ones each, aligned."""
    base = address.to(tl.pointer_type(TYPE))
    if CUT:
        at = base + offset
    else:
        four = offset[:, None] + tl.arange(0, 4)[None, :]
        at = tl.multiple_of(base, 16) + tl.max_contiguous(tl.multiple_of(four, (1, 4)), (1, 4))
    return at


@triton.jit
def mask_of_vectors(address, bit, N: tl.constexpr, V: tl.constexpr):
    """Which elements of N consecutive vectors the mask selects, from that of number `bit` on; all at address 0.

    Two bytes hold the bits of a vector, wherever they begin.
    """
    first = bit + tl.arange(0, N) * V
    at = address.to(tl.pointer_type(tl.uint8)) + (first >> 3)
    low = tl.load(at, address != 0, 255).to(tl.uint32)
    high = tl.load(at + 1, address != 0, 255).to(tl.uint32)
    x = (low | (high << 8)) >> (first & 7).to(tl.uint32)
    if V == 8:  # the same word for all elements of a vector, spread as their normals are
        x = tl.join(x, x)
    x = tl.reshape(interleave(x, x, x, x), (N, V))
    return ((x >> tl.arange(0, V).to(tl.uint32)[None, :]) & 1) != 0


@triton.jit
def mask_of_elements(address, bit, mask):
    """Which of the elements with these bits the mask in memory selects; all at address 0."""
    at = address.to(tl.pointer_type(tl.uint8)) + (bit >> 3)
    byte = tl.load(at, mask & (address != 0), 255).to(tl.uint32)
    return mask & (((byte >> (bit & 7).to(tl.uint32)) & 1) != 0)
