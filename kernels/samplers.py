"""The samplers: how one element moves; every product and sum is rounded by itself.

A sampler is named as in `llcf_samplers.h`, whose arithmetic it repeats. To add one: a function, a line in `update`
and a name in `TWINS`; until then this backend says that it has none.
"""

import triton
import triton.language as tl

from .memory import as_bits, as_float
from .table import BOX, LOCALIZATION, NOISE, WEIGHT_DECAY

TWINS = ("Sgld", "Rmsprop", "Momentum")
TAKES_ROOTS = ("Rmsprop",)  # of numbers that may be subnormal

# A step's scalars: words 1 to 12 of what a launch is given, with the tile's own friction as xi.
_NBETA = tl.constexpr(0)
_DECAY = tl.constexpr(1)
_PULL = tl.constexpr(2)
_C1 = tl.constexpr(3)
_C2 = tl.constexpr(4)
_ALPHA = tl.constexpr(5)
_BETA = tl.constexpr(6)
_EPS = tl.constexpr(7)
_WIDTH = tl.constexpr(8)
_LR = tl.constexpr(9)
_XI = tl.constexpr(10)
_C3 = tl.constexpr(11)


@triton.jit
def _drift(w, g, w0, scalars, TERMS: tl.constexpr):
    a = g * scalars[_NBETA]
    if WEIGHT_DECAY & TERMS:
        a = a + w * scalars[_DECAY]
    if LOCALIZATION & TERMS:
        a = a + (w - w0) * scalars[_PULL]
    return a


@triton.jit
def _boxed(out, w0, scalars, TERMS: tl.constexpr):
    if BOX & TERMS:  # compare and select: min and max would hide a NaN
        lower = w0 - scalars[_WIDTH]
        upper = w0 + scalars[_WIDTH]
        out = tl.where(out < lower, lower, out)
        out = tl.where(upper < out, upper, out)
    return out


@triton.jit
def preconditioner(V, scalars):
    """G = 1/(sqrt(V) + eps)."""
    root = tl.sqrt_rn(V) + scalars[_EPS]
    return tl.div_rn(tl.full(root.shape, 1.0, tl.float32), root)


@triton.jit
def _sgld(w, g, w0, z, scalars, TERMS: tl.constexpr):
    u = _drift(w, g, w0, scalars, TERMS) * scalars[_C1]
    if NOISE & TERMS:
        u = u + z * scalars[_C2]
    return _boxed(w + u, w0, scalars, TERMS)


@triton.jit
def _rmsprop(w, g, w0, z, V, scalars, TERMS: tl.constexpr):
    a = _drift(w, g, w0, scalars, TERMS)
    V = V * scalars[_ALPHA] + (g * g) * scalars[_BETA]
    G = preconditioner(V, scalars)
    u = (a * G) * scalars[_C1]
    if NOISE & TERMS:
        u = u + (z * tl.sqrt_rn(G)) * scalars[_C2]
    return _boxed(w + u, w0, scalars, TERMS), V


@triton.jit
def _momentum(w, g, w0, z, v, scalars, TERMS: tl.constexpr):
    a = _drift(w, g, w0, scalars, TERMS)
    v = v - (a * scalars[_LR] + v * scalars[_XI])
    if NOISE & TERMS:
        v = v + z * scalars[_C3]
    out = w + v
    if BOX & TERMS:  # a minus would be 0 - v, which makes +0 of +0
        outside = (out < w0 - scalars[_WIDTH]) | (w0 + scalars[_WIDTH] < out)
        v = tl.where(outside, as_float(as_bits(v) ^ 0x80000000), v)
    return _boxed(out, w0, scalars, TERMS), v


@triton.jit
def update(w, g, w0, z, aux, scalars, TERMS: tl.constexpr, SAMPLER: tl.constexpr):
    """w' and aux' of each element."""
    if SAMPLER == "Rmsprop":
        out, aux = _rmsprop(w, g, w0, z, aux, scalars, TERMS)
    elif SAMPLER == "Momentum":
        out, aux = _momentum(w, g, w0, z, aux, scalars, TERMS)
    else:
        out = _sgld(w, g, w0, z, scalars, TERMS)
    return out, aux
