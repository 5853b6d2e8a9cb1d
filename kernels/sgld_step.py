"""The step of all tiles of one storage in one launch: every sampler, noise and mask, with sums if wanted."""

import triton
import triton.language as tl

from .chunks import find_tile
from .memory import as_float
from .partial import step_blocks
from .sums import store_partial
from .table import (
    ALIGNED,
    AUX,
    AUX_STRIDE,
    COLS,
    COLUMNS,
    FLAGS,
    FULL,
    G_STRIDE,
    GLOBAL_STRIDE,
    KEY,
    LO,
    LO_STRIDE,
    MASK,
    MASK_START,
    MASK_STRIDE,
    ROWS,
    SLOT,
    START,
    TENSOR_ID,
    VECTORS_PER_ROW,
    W0,
    W0_STRIDE,
    W_STRIDE,
    XI,
    W,
)
from .whole import step_vectors


@triton.jit
def _scalar(scalars, i):
    return as_float(tl.load(scalars + i))


@triton.jit
def _friction(t, scalars, SAMPLER: tl.constexpr):
    """The tile's own, or else that of the scalars."""
    friction = _scalar(scalars, 11)
    if SAMPLER == "Momentum":
        at = tl.load(t + XI)
        own = tl.load(at.to(tl.pointer_type(tl.float64)), at != 0, 0.0).to(tl.float32)
        friction = tl.where(at != 0, own, friction)
    return friction


@triton.jit(do_not_specialize=["shift"])
def sgld_step(
    table,
    first_chunk,
    buckets,
    grads,
    scalars,
    partials,
    shift,
    STORAGE: tl.constexpr,
    SAMPLER: tl.constexpr,
    KIND: tl.constexpr,
    TERMS: tl.constexpr,
    MASKED: tl.constexpr,
    SUMS: tl.constexpr,
    VECTORS: tl.constexpr,
    PARTIAL: tl.constexpr,
):
    """One chunk of VECTORS vectors of 16 bytes of one tile, in place.

    table: int64 (tiles, 24). first_chunk: int32, the number of each tile's first chunk. buckets: int32, the tile
    of every 2^shift-th chunk, then the last tile. grads: int64, addresses of gradients, 0 for none.
    scalars: int32, sixteen words. partials: fp32 (24, chunks), where the chunks' sums go, if SUMS.
    A row's vectors are counted from the Philox block of its first element, with "sr" from the one that rounds it.
    MASKED: whether some tile has a mask. PARTIAL: Philox blocks that an irregular chunk works on at a time.
    """
    V: tl.constexpr = 4 if STORAGE == "float32" else 8  # elements in a vector
    SIZE: tl.constexpr = 16 // V
    LO_SIZE: tl.constexpr = 4 if STORAGE == "float16" else 2
    PHASE: tl.constexpr = 7 if STORAGE == "sr" else 3
    chunk = tl.program_id(0)
    tile = find_tile(chunk, first_chunk, buckets, shift)
    t = table + tile.to(tl.int64) * COLUMNS
    w = tl.load(t + W)
    w0 = tl.load(t + W0)
    lo = tl.load(t + LO)
    g = tl.load(grads + tile)
    aux = tl.load(t + AUX)
    bit = tl.load(t + MASK_START)
    left = tl.load(t + ROWS)
    start = tl.load(t + START)
    key = tl.load(t + KEY)
    tensor_id = tl.load(t + TENSOR_ID).to(tl.uint32)
    flags = tl.load(t + FLAGS)
    counter = (
        tl.load(scalars).to(tl.uint32, bitcast=True),
        tensor_id,
        key.to(tl.uint32),
        (key >> 32).to(tl.uint32),
    )
    factors = (
        _scalar(scalars, 1),
        _scalar(scalars, 2),
        _scalar(scalars, 3),
        _scalar(scalars, 4),
        _scalar(scalars, 5),
        _scalar(scalars, 6),
        _scalar(scalars, 7),
        _scalar(scalars, 8),
        _scalar(scalars, 9),
        _scalar(scalars, 10),
        _friction(t, scalars, SAMPLER),
        _scalar(scalars, 12),
    )

    number = (chunk - tl.load(first_chunk + tile)).to(tl.int64)
    first = number * VECTORS
    if left > 1:
        per_row = tl.load(t + VECTORS_PER_ROW)
        row = first // per_row
        first -= row * per_row
        left -= row
        start += row * tl.load(t + GLOBAL_STRIDE)
        w += row * tl.load(t + W_STRIDE) * SIZE
        w0 += row * tl.load(t + W0_STRIDE) * SIZE
        lo += row * tl.load(t + LO_STRIDE) * LO_SIZE
        aux += row * tl.load(t + AUX_STRIDE) * 4
        bit += row * tl.load(t + MASK_STRIDE)
        if g != 0:
            g += row * tl.load(t + G_STRIDE) * SIZE
    address = w, w0, lo, g, aux
    mask = tl.load(t + MASK), bit
    rows = t, first, left, start

    col = first * V - (start & PHASE)
    block = ((start - (start & PHASE)) >> 2) + first * (V // 4)
    inside = (col >= 0) & (col + VECTORS * V <= tl.load(t + COLS))
    same_high = (block >> 32) == ((block + (VECTORS * V // 4 - 1)) >> 32)
    at = col * SIZE
    aligned = ((g + at) & 15) == 0
    place = tl.load(t + SLOT) + number
    if ((flags & ALIGNED) != 0) & aligned & inside & same_high & (g != 0):
        sums = step_vectors(
            (w + at, w0 + at, lo + col * LO_SIZE, g + at, aux + col * 4),
            (mask[0], bit + col),
            block,
            counter,
            factors,
            STORAGE,
            SAMPLER,
            KIND,
            TERMS,
            MASKED,
            SUMS,
            VECTORS,
        )
        if SUMS:
            store_partial(partials, place, sums)
    elif ((flags & FULL) != 0) & aligned:
        sums = tl.zeros((32,), tl.float32)
        for part in range(0, VECTORS * V // 4, PARTIAL):
            i = part + tl.arange(0, PARTIAL)
            sums += step_blocks(
                address, mask, rows, i, counter, factors, STORAGE, SAMPLER, KIND, TERMS, MASKED, SUMS, False
            )
        if SUMS:
            store_partial(partials, place, sums)
    else:
        sums = tl.zeros((32,), tl.float32)
        for part in range(0, VECTORS * V // 4, PARTIAL):
            i = part + tl.arange(0, PARTIAL)
            sums += step_blocks(
                address, mask, rows, i, counter, factors, STORAGE, SAMPLER, KIND, TERMS, MASKED, SUMS, True
            )
        if SUMS:
            store_partial(partials, place, sums)
