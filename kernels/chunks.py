"""Where a chunk's elements lie: its tile, its rows, and the address of each element."""

import triton
import triton.language as tl

from .memory import pointers
from .table import (
    AUX_STRIDE,
    G_STRIDE,
    GLOBAL_STRIDE,
    LO_STRIDE,
    RECIPROCAL,
    VECTORS_PER_ROW,
    W0_STRIDE,
    W_STRIDE,
)


@triton.jit
def find_tile(chunk, first_chunk, buckets, shift):
    """The tile of a chunk: its bucket bounds it, the prefix sum of chunks decides."""
    low = tl.load(buckets + (chunk >> shift))
    high = tl.load(buckets + (chunk >> shift) + 1) + 1
    while high - low > 1:
        middle = (low + high) // 2
        if tl.load(first_chunk + middle) <= chunk:
            low = middle
        else:
            high = middle
    return low


@triton.jit
def find_blocks(rows, i, STORAGE: tl.constexpr, CUT: tl.constexpr):
    """Of the Philox blocks i of a chunk: whether they are in the tile, row, column and number.

    rows: the tile's row of the geometry table, the chunk's first vector in its first row, the number of rows from
    there, and the element that the row begins with. CUT: a block may begin before its row, at a negative column.
    """
    t, first, left, start = rows
    BLOCKS: tl.constexpr = 1 if STORAGE == "float32" else 2  # in a vector
    PHASE: tl.constexpr = 7 if STORAGE == "sr" else 3
    vector = i // BLOCKS
    per_row = tl.load(t + VECTORS_PER_ROW)
    reciprocal = tl.load(t + RECIPROCAL)
    if reciprocal == 0:  # a chunk ends in the next row at the latest
        wraps = (first + vector >= per_row).to(tl.int32)
    else:
        wraps = (first.to(tl.int32) + vector) * reciprocal.to(tl.int32) >> (reciprocal >> 32).to(tl.int32)
    here = wraps < left
    wraps = wraps.to(tl.int64)
    element = start + wraps * tl.load(t + GLOBAL_STRIDE)
    position = (first + vector - wraps * per_row) * BLOCKS + i % BLOCKS
    block = ((element - (element & PHASE)) >> 2) + position
    col = position * 4
    if CUT:
        col -= element & PHASE
    return here, wraps, col, block


@triton.jit
def find_elements(address, t, row, col, STORAGE: tl.constexpr, CUT: tl.constexpr):
    """Pointers to w, w0, lo, g and aux at these rows and columns; unless CUT, to four adjacent elements each."""
    if STORAGE == "float32":
        TYPE: tl.constexpr = tl.float32
        LO: tl.constexpr = tl.float32  # which it has not
    elif STORAGE == "float16":
        TYPE: tl.constexpr = tl.float16
        LO: tl.constexpr = tl.float32
    else:
        TYPE: tl.constexpr = tl.uint16
        LO: tl.constexpr = tl.int16
    return (
        pointers(address[0], row * tl.load(t + W_STRIDE) + col, TYPE, CUT),
        pointers(address[1], row * tl.load(t + W0_STRIDE) + col, TYPE, CUT),
        pointers(address[2], row * tl.load(t + LO_STRIDE) + col, LO, CUT),
        pointers(address[3], row * tl.load(t + G_STRIDE) + col, TYPE, CUT),
        pointers(address[4], row * tl.load(t + AUX_STRIDE) + col, tl.float32, CUT),
    )
