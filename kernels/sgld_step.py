"""The SGLD step of all tiles of one dtype, fp32 or split bf16, in one launch."""

import triton
import triton.language as tl

from .memory import as_float, load_bfloat16, load_int16, store_split, vectors
from .noise import interleave, normals

# Columns of the geometry table; the last three are filled in for these kernels.
W = tl.constexpr(0)
W0 = tl.constexpr(1)
LO = tl.constexpr(2)
ROWS = tl.constexpr(3)
COLS = tl.constexpr(4)
W_STRIDE = tl.constexpr(5)
W0_STRIDE = tl.constexpr(6)
LO_STRIDE = tl.constexpr(7)
G_STRIDE = tl.constexpr(8)
START = tl.constexpr(9)
GLOBAL_STRIDE = tl.constexpr(10)
KEY = tl.constexpr(11)
TENSOR_ID = tl.constexpr(12)
VECTORS_PER_ROW = tl.constexpr(13)
RECIPROCAL = tl.constexpr(
    14
)  # factor | shift << 32, so that i // VECTORS_PER_ROW = i * factor >> shift, or 0
FLAGS = tl.constexpr(15)
COLUMNS = tl.constexpr(16)

ALIGNED = tl.constexpr(1)  # vectors lie at multiples of 16 bytes in every operand but the gradient
FULL = tl.constexpr(2)  # and none is cut by the end of a row

WEIGHT_DECAY = tl.constexpr(1)  # terms
LOCALIZATION = tl.constexpr(2)
NOISE = tl.constexpr(4)
BOX = tl.constexpr(8)


@triton.jit
def _update(w, g, w0, z, scalars, TERMS: tl.constexpr):
    """w' of each element; every product and sum is rounded by itself."""
    nbeta, weight_decay, localization, c1, c2, box = scalars
    a = g * nbeta
    if WEIGHT_DECAY & TERMS:
        a = a + w * weight_decay
    if LOCALIZATION & TERMS:
        a = a + (w - w0) * localization
    u = a * c1
    if NOISE & TERMS:
        u = u + z * c2
    out = w + u
    if BOX & TERMS:  # compare and select: min and max would hide a NaN
        lower = w0 - box
        upper = w0 + box
        out = tl.where(out < lower, lower, out)
        out = tl.where(upper < out, upper, out)
    return out


@triton.jit
def _whole(address, block, counter, scalars, SPLIT: tl.constexpr, TERMS: tl.constexpr, N: tl.constexpr):
    """N full vectors of one row, at aligned addresses, whose Philox blocks share their upper word."""
    ANCHOR: tl.constexpr = ((LOCALIZATION | BOX) & TERMS) != 0
    w_at, w0_at, lo_at, g_at = address
    if SPLIT:
        # The remainder is signed, so that adding it takes back what rounding gave to the upper half.
        w = as_float(load_bfloat16(w_at, N) + load_int16(lo_at, N))
        g = as_float(load_bfloat16(g_at, N))
        w0 = as_float(load_bfloat16(w0_at, N)) if ANCHOR else w
    else:
        w = tl.load(vectors(w_at, tl.float32, N, 4))
        g = tl.load(vectors(g_at, tl.float32, N, 4))
        w0 = tl.load(vectors(w0_at, tl.float32, N, 4)) if ANCHOR else w
    high = (block >> 32).to(tl.uint32)
    if SPLIT:  # joined one by one: a two-dimensional block index would be sent through shared memory
        low = block.to(tl.uint32) + (tl.arange(0, N) * 2).to(tl.uint32)
        n0, n1, n2, n3 = normals(low, high, counter)
        m0, m1, m2, m3 = normals(low + 1, high, counter)
        z = interleave(tl.join(n0, m0), tl.join(n1, m1), tl.join(n2, m2), tl.join(n3, m3))
    else:
        n0, n1, n2, n3 = normals(block.to(tl.uint32) + tl.arange(0, N).to(tl.uint32), high, counter)
        z = interleave(n0, n1, n2, n3)
    z = tl.reshape(z, w.shape)
    out = _update(w, g, w0, z, scalars, TERMS)
    if SPLIT:
        store_split(vectors(w_at, tl.uint16, N, 8), vectors(lo_at, tl.int16, N, 8), out, None)
    else:
        tl.store(vectors(w_at, tl.float32, N, 4), out)


@triton.jit
def _elements(at, mask, g_mask, z, scalars, SPLIT: tl.constexpr, TERMS: tl.constexpr):
    """Update the elements that the pointers `at` to w, w0, lo and g name, where the mask allows."""
    ANCHOR: tl.constexpr = ((LOCALIZATION | BOX) & TERMS) != 0
    w_at, w0_at, lo_at, g_at = at
    w = tl.load(w_at, mask, 0)
    g = tl.load(g_at, g_mask, 0)  # an absent gradient is 0
    w0 = tl.load(w0_at, mask, 0) if ANCHOR else w
    if SPLIT:
        rest = tl.load(lo_at, mask, 0).to(tl.int32).to(tl.uint32, bitcast=True)
        w = as_float((w.to(tl.uint32) << 16) + rest)
        g = as_float(g.to(tl.uint32) << 16)
        w0 = as_float(w0.to(tl.uint32) << 16)
        store_split(w_at, lo_at, _update(w, g, w0, z, scalars, TERMS), mask)
    else:
        tl.store(w_at, _update(w, g, w0, z, scalars, TERMS), mask)


@triton.jit
def _pointers(address, offset, TYPE: tl.constexpr, CUT: tl.constexpr):
    """Pointers to the elements at these offsets; unless CUT, to four adjacent ones each, aligned."""
    base = address.to(tl.pointer_type(TYPE))
    if CUT:
        at = base + offset
    else:
        four = offset[:, None] + tl.arange(0, 4)[None, :]
        at = tl.multiple_of(base, 16) + tl.max_contiguous(tl.multiple_of(four, (1, 4)), (1, 4))
    return at


@triton.jit
def _partial(
    address,
    t,
    first,
    i,
    left,
    start,
    counter,
    scalars,
    SPLIT: tl.constexpr,
    TERMS: tl.constexpr,
    CUT: tl.constexpr,
):
    """Philox blocks i of a chunk that may hold several rows, or end early, or lack a gradient.

    address, start: of its first row; first: its first vector in that row; left: rows from there.
    CUT: vectors may also be incomplete or unaligned, so that elements are accessed one by one.
    """
    BLOCKS: tl.constexpr = 2 if SPLIT else 1  # in a vector
    TYPE: tl.constexpr = tl.uint16 if SPLIT else tl.float32
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
    block = (element >> 2) + position
    col = position * 4
    if CUT:
        col -= element & 3
    w_at = _pointers(address[0], wraps * tl.load(t + W_STRIDE) + col, TYPE, CUT)
    w0_at = _pointers(address[1], wraps * tl.load(t + W0_STRIDE) + col, TYPE, CUT)
    lo_at = _pointers(address[2], wraps * tl.load(t + LO_STRIDE) + col, tl.int16, CUT)
    g_at = _pointers(address[3], wraps * tl.load(t + G_STRIDE) + col, TYPE, CUT)
    low = block.to(tl.uint32)
    if CUT:
        high = (block >> 32).to(tl.uint32)
        n0, n1, n2, n3 = normals(low, high, counter)
        after = tl.load(t + COLS)
        mask = here & (col >= 0) & (col < after)
        _elements((w_at, w0_at, lo_at, g_at), mask, mask & (address[3] != 0), n0, scalars, SPLIT, TERMS)
        mask = here & (col >= -1) & (col < after - 1)
        at = w_at + 1, w0_at + 1, lo_at + 1, g_at + 1
        _elements(at, mask, mask & (address[3] != 0), n1, scalars, SPLIT, TERMS)
        mask = here & (col >= -2) & (col < after - 2)
        at = w_at + 2, w0_at + 2, lo_at + 2, g_at + 2
        _elements(at, mask, mask & (address[3] != 0), n2, scalars, SPLIT, TERMS)
        mask = here & (col >= -3) & (col < after - 3)
        at = w_at + 3, w0_at + 3, lo_at + 3, g_at + 3
        _elements(at, mask, mask & (address[3] != 0), n3, scalars, SPLIT, TERMS)
    else:
        high = (start >> 34).to(tl.uint32)  # the same in all of such a tile
        n0, n1, n2, n3 = normals(low, high, counter)
        z = tl.reshape(interleave(n0, n1, n2, n3), w_at.shape)
        mask = here[:, None] & (tl.arange(0, 4) >= 0)[None, :]
        _elements((w_at, w0_at, lo_at, g_at), mask, mask & (address[3] != 0), z, scalars, SPLIT, TERMS)


@triton.jit
def _find_tile(chunk, first_chunk, buckets, shift):
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
def _scalar(scalars, i):
    return as_float(tl.load(scalars + i))


@triton.jit(do_not_specialize=["shift"])
def sgld_step(
    table,
    first_chunk,
    buckets,
    grads,
    scalars,
    shift,
    TERMS: tl.constexpr,
    SPLIT: tl.constexpr,
    VECTORS: tl.constexpr,
    PARTIAL: tl.constexpr,
):
    """One chunk of VECTORS vectors of 16 bytes of one tile, in place.

    table: int64 (tiles, 16). first_chunk: int32, the number of each tile's first chunk. buckets: int32, the tile
    of every 2^shift-th chunk, then the last tile. grads: int64, addresses of gradients, 0 for none.
    scalars: int32, sixteen words. A row's vectors are counted from the Philox block of its first element.
    PARTIAL: Philox blocks that an irregular chunk works on at a time.
    """
    V: tl.constexpr = 8 if SPLIT else 4  # elements in a vector
    SIZE: tl.constexpr = 16 // V
    chunk = tl.program_id(0)
    tile = _find_tile(chunk, first_chunk, buckets, shift)
    t = table + tile.to(tl.int64) * COLUMNS
    w = tl.load(t + W)
    w0 = tl.load(t + W0)
    lo = tl.load(t + LO)
    g = tl.load(grads + tile)
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
        _scalar(scalars, 9),
    )

    first = (chunk - tl.load(first_chunk + tile)).to(tl.int64) * VECTORS
    if left > 1:
        per_row = tl.load(t + VECTORS_PER_ROW)
        row = first // per_row
        first -= row * per_row
        left -= row
        start += row * tl.load(t + GLOBAL_STRIDE)
        w += row * tl.load(t + W_STRIDE) * SIZE
        w0 += row * tl.load(t + W0_STRIDE) * SIZE
        lo += row * tl.load(t + LO_STRIDE) * 2
        if g != 0:
            g += row * tl.load(t + G_STRIDE) * SIZE

    col = first * V - (start & 3)
    block = (start >> 2) + first * (V // 4)
    inside = (col >= 0) & (col + VECTORS * V <= tl.load(t + COLS))
    same_high = (block >> 32) == ((block + (VECTORS * V // 4 - 1)) >> 32)
    at = col * SIZE
    aligned = ((g + at) & 15) == 0
    if ((flags & ALIGNED) != 0) & aligned & inside & same_high & (g != 0):
        _whole((w + at, w0 + at, lo + at, g + at), block, counter, factors, SPLIT, TERMS, VECTORS)
    elif ((flags & FULL) != 0) & aligned:
        for part in range(0, VECTORS * V // 4, PARTIAL):
            i = part + tl.arange(0, PARTIAL)
            _partial((w, w0, lo, g), t, first, i, left, start, counter, factors, SPLIT, TERMS, False)
    else:
        for part in range(0, VECTORS * V // 4, PARTIAL):
            i = part + tl.arange(0, PARTIAL)
            _partial((w, w0, lo, g), t, first, i, left, start, counter, factors, SPLIT, TERMS, True)
