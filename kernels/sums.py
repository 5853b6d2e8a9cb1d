"""Sums over the elements of a step: of each chunk in fp32, and then of each slot in fp64."""

import triton
import triton.language as tl

from .noise import interleave
from .samplers import preconditioner
from .table import SUMS, WEIGHT_DECAY


@triton.jit
def _octet(c0, c1, c2, c3, c4, c5, c6, c7):
    """The totals of eight columns: what a thread has of them, then all threads at once."""
    x = interleave(tl.join(c0, c4), tl.join(c1, c5), tl.join(c2, c6), tl.join(c3, c7))
    return tl.sum(tl.reshape(x, (c0.shape[0], 8)), axis=0)


@triton.jit
def _lanes(x):
    """The sum over the elements of each vector."""
    if len(x.shape) == 2:
        x = tl.sum(x, axis=1)
    return x


@triton.jit
def observe(w, g, w0, z, aux, keep, scalars, TERMS: tl.constexpr, SAMPLER: tl.constexpr):
    """The totals of all columns, of those elements that `keep` selects; aux: after the step.

    Of 32 numbers, the one at 4 i + j belongs to column 8 j + i. What is not selected adds nothing, not even an
    infinity.
    """
    d = tl.where(keep, w - w0, 0.0)
    w = tl.where(keep, w, 0.0)
    g = tl.where(keep, g, 0.0)
    z = tl.where(keep, z, 0.0)
    DECAY: tl.constexpr = (WEIGHT_DECAY & TERMS) != 0
    n = _lanes(tl.where(keep, 1.0, 0.0))
    none = tl.zeros(n.shape, tl.float32)
    w2, gw, wz, dw = none, none, none, none
    if DECAY:
        w2, gw, wz, dw = _lanes(w * w), _lanes(g * w), _lanes(w * z), _lanes(d * w)
    a = _octet(
        n, _lanes(g * g), _lanes(d * d), _lanes(z * z), _lanes(g * d), _lanes(g * z), _lanes(d * z), w2
    )
    b = tl.zeros((8,), tl.float32)
    c = b
    if SAMPLER == "Rmsprop":
        G = tl.where(keep, preconditioner(aux, scalars), 0.0)
        y = tl.sqrt_rn(G) * z
        Gg, Gd, Gw = G * g, G * d, G * w
        w2, Gw_g, Gw_y = none, none, none
        if DECAY:
            w2, Gw_g, Gw_y = _lanes(Gw * Gw), _lanes(Gg * Gw), _lanes(Gw * y)
        b = _octet(gw, wz, dw, none, _lanes(G), _lanes(Gg * Gg), _lanes(Gd * Gd), _lanes(Gg * Gd))
        c = _octet(_lanes(y * y), _lanes(Gg * y), _lanes(Gd * y), w2, Gw_g, Gw_y, _lanes(d * y), none)
    elif SAMPLER == "Momentum":
        v = tl.where(keep, aux, 0.0)
        b = _octet(gw, wz, dw, _lanes(v * v), none, none, none, none)
    elif DECAY:
        b = _octet(gw, wz, dw, none, none, none, none, none)
    return tl.reshape(interleave(a, b, c, tl.zeros((8,), tl.float32)), (32,))


@triton.jit
def store_partial(partials, at, sums):
    """What `observe` has found in a chunk, in a table of columns; at: the chunk's place in each."""
    i = tl.arange(0, 32)
    column = (i & 3) * 8 + (i >> 2)
    tl.store(partials + column.to(tl.int64) * tl.num_programs(0) + at, sums, column < SUMS)


@triton.jit(do_not_specialize=["chunks"])
def totals(partials, bounds, sums, chunks, WIDTH: tl.constexpr, CHUNKS: tl.constexpr):
    """Add the partial sums of a slot's chunks to its row of `sums`, in fp64: in one order, so with the same bits.

    partials: fp32 (24, chunks). bounds: int64, where each slot's chunks begin, and the last's end. sums: fp64
    (slots, 24). WIDTH: columns of a program; CHUNKS: those that it adds up at a time.
    """
    slot = tl.program_id(0)
    column = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    there = column < SUMS
    first = tl.load(bounds + slot)
    last = tl.load(bounds + slot + 1)
    total = tl.zeros((WIDTH, CHUNKS), tl.float64)
    row = partials + column.to(tl.int64) * chunks
    while first < last:
        i = first + tl.arange(0, CHUNKS)
        mask = there[:, None] & (i < last)[None, :]
        total += tl.load(row[:, None] + i[None, :], mask, 0.0).to(tl.float64)
        first += CHUNKS
    at = sums + slot * SUMS + column
    tl.store(at, tl.load(at, there, 0.0) + tl.sum(total, axis=1), there)
