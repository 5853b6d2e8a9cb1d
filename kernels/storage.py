"""Weights in each storage: fp32 from what memory holds, and back.

"float32"; "split": bf16 and the int16 that completes it; "sr": bf16 by stochastic rounding; "float16": fp16 and its
fp32 master. bf16 is never computed, only cut from the bits of fp32. An address or pointer of an element is that of
w, w0, lo (what completes w), g and aux (the sampler's own fp32).
"""

import triton
import triton.language as tl

from .memory import as_bits, as_float, vectors


@triton.jit
def split_bits(x):
    """fp32 as a rounded bf16 and a signed remainder; a NaN becomes 0x7fc0 and 0."""
    u = tl.where(x != x, 0x7FC00000, as_bits(x))
    return ((u + 0x8000) >> 16).to(tl.uint16), u.to(tl.int16)


@triton.jit
def rounded_bits(x, h):
    """bf16 of fp32, rounded up with the probability of its lower half; h: sixteen random bits."""
    u = tl.where(x != x, 0x7FC00000, as_bits(x))
    return ((u + h) >> 16).to(tl.uint16)


# --- full vectors ---


@triton.jit
def _load_bfloat16(address, N: tl.constexpr):
    """Eight bf16 a vector, as the bits of fp32: taken in pairs, which costs one operation each instead of two."""
    x = tl.load(vectors(address, tl.uint32, N, 4))
    return tl.reshape(tl.join(x << 16, x & 0xFFFF0000), (N, 8))


@triton.jit
def _load_int16(address, N: tl.constexpr):
    """Eight int16 a vector, widened."""
    x = tl.load(vectors(address, tl.int32, N, 4))
    return tl.reshape(tl.join((x << 16) >> 16, x >> 16), (N, 8)).to(tl.uint32, bitcast=True)


@triton.jit
def load_vectors(address, STORAGE: tl.constexpr, ANCHOR: tl.constexpr, N: tl.constexpr):
    """w, g and w0 of N vectors as fp32, and the bits of w and lo in memory; without ANCHOR, w0 is w."""
    w_at, w0_at, lo_at, g_at, _ = address
    if STORAGE == "float32":
        w = tl.load(vectors(w_at, tl.float32, N, 4))
        g = tl.load(vectors(g_at, tl.float32, N, 4))
        w0 = tl.load(vectors(w0_at, tl.float32, N, 4)) if ANCHOR else w
        hi, lo = w, w
    elif STORAGE == "float16":
        hi = tl.load(vectors(w_at, tl.float16, N, 8))
        w = tl.load(vectors(lo_at, tl.float32, N, 8))
        g = tl.load(vectors(g_at, tl.float16, N, 8)).to(tl.float32)
        w0 = tl.load(vectors(w0_at, tl.float16, N, 8)).to(tl.float32) if ANCHOR else w
        lo = w
    else:
        hi = _load_bfloat16(w_at, N)
        lo = hi
        if STORAGE == "split":
            # The remainder is signed, so that adding it takes back what rounding gave to the upper half.
            lo = _load_int16(lo_at, N)
            w = as_float(hi + lo)
        else:
            w = as_float(hi)
        g = as_float(_load_bfloat16(g_at, N))
        w0 = as_float(_load_bfloat16(w0_at, N)) if ANCHOR else w
    return w, g, w0, hi, lo


@triton.jit
def store_vectors(
    address, out, h, keep, w, hi, lo, STORAGE: tl.constexpr, MASKED: tl.constexpr, N: tl.constexpr
):
    """Store fp32 w' of N vectors; what the mask does not select keeps its bits, also those that no step leaves."""
    w_at, _, lo_at, _, _ = address
    if MASKED:
        out = tl.where(keep, out, w)
    if STORAGE == "float32":
        tl.store(vectors(w_at, tl.float32, N, 4), out)
    elif STORAGE == "float16":
        half = out.to(tl.float16)
        if MASKED:
            half = tl.where(keep, half, hi)
        tl.store(vectors(w_at, tl.float16, N, 8), half)
        tl.store(vectors(lo_at, tl.float32, N, 8), out)
    elif STORAGE == "split":
        high, low = split_bits(out)
        if MASKED:
            high = tl.where(keep, high, (hi >> 16).to(tl.uint16))
            low = tl.where(keep, low, lo.to(tl.int16))
        tl.store(vectors(w_at, tl.uint16, N, 8), high)
        tl.store(vectors(lo_at, tl.int16, N, 8), low)
    else:
        high = rounded_bits(out, h)
        if MASKED:
            high = tl.where(keep, high, (hi >> 16).to(tl.uint16))
        tl.store(vectors(w_at, tl.uint16, N, 8), high)


# --- elements one by one ---


@triton.jit
def load_elements(at, mask, g_mask, STORAGE: tl.constexpr, ANCHOR: tl.constexpr):
    """w, g and w0 as fp32, +0 where a mask does not allow them."""
    w_at, w0_at, lo_at, g_at, _ = at
    g = tl.load(g_at, g_mask, 0)
    if STORAGE == "float32":
        w = tl.load(w_at, mask, 0)
        w0 = tl.load(w0_at, mask, 0) if ANCHOR else w
    elif STORAGE == "float16":
        w = tl.load(lo_at, mask, 0)
        g = g.to(tl.float32)
        w0 = tl.load(w0_at, mask, 0).to(tl.float32) if ANCHOR else w
    else:
        w = tl.load(w_at, mask, 0).to(tl.uint32) << 16
        if STORAGE == "split":
            w += tl.load(lo_at, mask, 0).to(tl.int32).to(tl.uint32, bitcast=True)
        w = as_float(w)
        g = as_float(g.to(tl.uint32) << 16)
        w0 = as_float(tl.load(w0_at, mask, 0).to(tl.uint32) << 16) if ANCHOR else w
    return w, g, w0


@triton.jit
def store_elements(at, mask, out, h, STORAGE: tl.constexpr):
    w_at, _, lo_at, _, _ = at
    if STORAGE == "float32":
        tl.store(w_at, out, mask)
    elif STORAGE == "float16":
        tl.store(w_at, out.to(tl.float16), mask)
        tl.store(lo_at, out, mask)
    elif STORAGE == "split":
        high, low = split_bits(out)
        tl.store(w_at, high, mask)
        tl.store(lo_at, low, mask)
    else:
        tl.store(w_at, rounded_bits(out, h), mask)
