"""The rest of a step: chunks of several rows, their ends, tiles at odd places, absent gradients."""

import triton
import triton.language as tl

from .chunks import find_blocks, find_elements
from .memory import mask_of_elements
from .noise import halves, interleave, normals
from .samplers import update
from .storage import load_elements, store_elements
from .sums import observe
from .table import BOX, COLS, LOCALIZATION, MASK_STRIDE, NOISE


@triton.jit
def _elements(
    at,
    mask,
    g_mask,
    z,
    h,
    scalars,
    STORAGE: tl.constexpr,
    SAMPLER: tl.constexpr,
    TERMS: tl.constexpr,
    SUMS: tl.constexpr,
):
    """Update the elements that the pointers `at` to w, w0, lo, g and aux name, where the mask allows; their sums."""
    ANCHOR: tl.constexpr = SUMS or ((LOCALIZATION | BOX) & TERMS) != 0
    STATE: tl.constexpr = SAMPLER != "Sgld"
    w, g, w0 = load_elements(at, mask, g_mask, STORAGE, ANCHOR)
    aux = w
    if STATE:
        aux = tl.load(at[4], mask, 0)
    out, after = update(w, g, w0, z, aux, scalars, TERMS, SAMPLER)
    store_elements(at, mask, out, h, STORAGE)
    if STATE:
        tl.store(at[4], after, mask)
    sums = tl.zeros((32,), tl.float32)
    if SUMS:
        sums = observe(w, g, w0, z, after, mask, scalars, TERMS, SAMPLER)
    return sums


@triton.jit
def step_blocks(
    address,
    mask,
    rows,
    i,
    counter,
    scalars,
    STORAGE: tl.constexpr,
    SAMPLER: tl.constexpr,
    KIND: tl.constexpr,
    TERMS: tl.constexpr,
    MASKED: tl.constexpr,
    SUMS: tl.constexpr,
    CUT: tl.constexpr,
):
    """Philox blocks i of a chunk that may hold several rows, or end early, or lack a gradient; their sums.

    address, mask: of its first row; rows: see `find_blocks`. CUT: vectors may also be incomplete or unaligned, so
    that elements are accessed one by one.
    """
    t, _, _, start = rows
    here, row, col, block = find_blocks(rows, i, STORAGE, CUT)
    at = find_elements(address, t, row, col, STORAGE, CUT)
    bit = mask[1] + row * tl.load(t + MASK_STRIDE) + col
    if CUT:
        high = (block >> 32).to(tl.uint32)
    else:
        high = (start >> 34).to(tl.uint32)  # the same in all of such a tile
    zero = tl.zeros(i.shape, tl.float32)
    n = zero, zero, zero, zero
    if NOISE & TERMS:
        n = normals(block.to(tl.uint32), high, counter, KIND)
    h = n
    if STORAGE == "sr":
        a, b = halves(block, high, counter)
        h = a & 0xFFFF, a >> 16, b & 0xFFFF, b >> 16
    has_g = address[3] != 0  # an absent gradient is 0
    sums = tl.zeros((32,), tl.float32)
    if CUT:
        after = tl.load(t + COLS)
        for j in tl.static_range(4):
            keep = here & (col >= -j) & (col < after - j)
            if MASKED:
                keep = mask_of_elements(mask[0], bit + j, keep)
            one = at[0] + j, at[1] + j, at[2] + j, at[3] + j, at[4] + j
            sums += _elements(one, keep, keep & has_g, n[j], h[j], scalars, STORAGE, SAMPLER, TERMS, SUMS)
    else:
        four = tl.arange(0, 4)[None, :]
        keep = here[:, None] & (four >= 0)
        if MASKED:
            keep = mask_of_elements(mask[0], bit[:, None] + four, keep)
        z = tl.reshape(interleave(n[0], n[1], n[2], n[3]), at[0].shape)
        h = tl.reshape(interleave(h[0], h[1], h[2], h[3]), at[0].shape)
        sums = _elements(at, keep, keep & has_g, z, h, scalars, STORAGE, SAMPLER, TERMS, SUMS)
    return sums
