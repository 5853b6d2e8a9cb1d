"""The samplers in plain PyTorch: what one element's update is, in fp32 or fp64, rounded operation by operation.

A sampler here and its namesake in `llcf_samplers.h` have equal bits. To add one: a function and an entry of
`SAMPLERS` here, a struct and an entry of `LLCF_SAMPLERS` there, and a test of its law.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .errors import ArgumentError
from .noise import sqrt
from .scalars import BOX, LOCALIZATION, NOISE, WEIGHT_DECAY, Scalars, to_float32


@dataclass
class Element:
    """Operands of an update, all of one dtype and shape.

    w0 is None without localization and box, z without noise; buffer: the sampler's own state, None if it has none.
    xi: the friction.
    """

    w: Tensor
    g: Tensor
    w0: Tensor | None
    z: Tensor | None
    buffer: Tensor | None
    xi: float = 0.0


@dataclass(frozen=True, eq=False)
class Sampler:
    """A sampler: how an element moves, and what is kept for it.

    update: (element, scalars) -> new w and buffer. kernel: its name in `llcf_samplers.h`. buffer: the name of its
    fp32 state, shaped as the parameter and starting at 0, None if it has none. defaults: its own settings among the
    scalars. preconditioner: G of its state, if it has one. thermostat: whether its friction moves, to
    xi + mean(v^2) - lr after each step.
    """

    name: str
    update: Callable[[Element, Scalars], tuple[Tensor, Tensor | None]]
    kernel: str
    buffer: str | None = None
    defaults: Mapping[str, float] = field(default_factory=dict)
    preconditioner: Callable[[Tensor, Scalars], Tensor] | None = None
    thermostat: bool = False

    @property
    def settings(self) -> tuple[str, ...]:
        """Names of the scalars that it alone has."""
        return tuple(self.defaults)


def rounding(w: Tensor) -> Callable[[float], float]:
    """What a scalar is rounded by before it meets tensors like w."""
    return to_float32 if w.dtype == torch.float32 else float


def drift(e: Element, s: Scalars) -> Tensor:
    """nbeta g + weight_decay w + localization (w - w0); every product and sum is rounded by itself."""
    scalar = rounding(e.w)
    a = scalar(s.nbeta) * e.g
    if s.terms & WEIGHT_DECAY:
        a = a + scalar(s.weight_decay) * e.w
    if s.terms & LOCALIZATION:
        assert e.w0 is not None
        a = a + scalar(s.localization) * (e.w - e.w0)
    return a


def _bounds(e: Element, s: Scalars) -> tuple[Tensor, Tensor]:
    assert e.w0 is not None
    assert s.box is not None
    box = rounding(e.w)(s.box)
    return e.w0 - box, e.w0 + box


def _boxed(out: Tensor, e: Element, s: Scalars) -> Tensor:
    if not s.terms & BOX:
        return out
    lo, hi = _bounds(e, s)
    out = torch.where(out < lo, lo, out)
    return torch.where(out > hi, hi, out)


def sgld(e: Element, s: Scalars) -> tuple[Tensor, Tensor | None]:
    """w - lr/2 a + sqrt(lr) noise_level z, then the box (Welling & Teh 2011; Lau et al. 2023, arXiv 2308.12108)."""
    scalar = rounding(e.w)
    u = scalar(s.c1) * drift(e, s)
    if s.terms & NOISE:
        assert e.z is not None
        u = u + scalar(s.c2) * e.z
    return _boxed(e.w + u, e, s), None


def rmsprop(V: Tensor, s: Scalars) -> Tensor:
    """The preconditioner G = 1/(sqrt(V) + eps)."""
    return torch.ones_like(V) / (sqrt(V) + rounding(V)(s.eps))


def rmsprop_sgld(e: Element, s: Scalars) -> tuple[Tensor, Tensor | None]:
    """SGLD whose drift is scaled by G = 1/(sqrt(V) + eps) and noise by sqrt(G); V <- alpha V + (1 - alpha) g^2.

    Li et al. 2016 (arXiv 1512.07666), without the term of G's derivative; V is of the loss gradient alone
    (Hitchcock & Hoogland 2025, arXiv 2507.21449).
    """
    scalar = rounding(e.w)
    assert e.buffer is not None
    V = (scalar(s.alpha) * e.buffer) + (scalar(s.beta) * (e.g * e.g))
    G = rmsprop(V, s)
    u = scalar(s.c1) * (drift(e, s) * G)
    if s.terms & NOISE:
        assert e.z is not None
        u = u + scalar(s.c2) * (e.z * sqrt(G))
    return _boxed(e.w + u, e, s), V


def momentum(e: Element, s: Scalars) -> tuple[Tensor, Tensor | None]:
    """v <- v - (lr a + xi v) + sqrt(2 friction lr) z, w <- w + v; at the box w is clamped and v turned round.

    SGHMC where xi is the friction (Chen et al. 2014, arXiv 1402.4102), SGNHT where it is a thermostat (Ding et
    al. 2014). lr is the square of those papers' step.
    """
    scalar = rounding(e.w)
    assert e.buffer is not None
    v = e.buffer - ((scalar(s.lr) * drift(e, s)) + (scalar(e.xi) * e.buffer))
    if s.terms & NOISE:
        assert e.z is not None
        v = v + scalar(s.c3) * e.z
    out = e.w + v
    if s.terms & BOX:
        lo, hi = _bounds(e, s)
        v = torch.where((out < lo) | (out > hi), -v, v)
    return _boxed(out, e, s), v


SAMPLERS = {
    s.name: s
    for s in (
        Sampler("sgld", sgld, "Sgld"),
        Sampler("rmsprop_sgld", rmsprop_sgld, "Rmsprop", "square_avg", {"alpha": 0.99, "eps": 0.1}, rmsprop),
        Sampler("sghmc", momentum, "Momentum", "velocity", {"friction": 0.1}),
        Sampler("sgnht", momentum, "Momentum", "velocity", {"friction": 0.01}, thermostat=True),
    )
}


def find(name: object) -> Sampler:
    """The sampler of a name, or an error that lists them."""
    if not isinstance(name, str) or name not in SAMPLERS:
        raise ArgumentError(f"sampler is {name!r}: use one of {', '.join(SAMPLERS)}")
    return SAMPLERS[name]


def own_settings(name: str, **given: float | None) -> dict[str, Any]:
    """The settings that a sampler alone has, defaults where None is given; raises for those of another sampler."""
    defaults = find(name).defaults
    for setting, value in given.items():
        if value is not None and setting not in defaults:
            raise ArgumentError(f"{setting} is given, but {name} has none: leave it out")
    return {
        setting: value if (value := given.get(setting)) is not None else default
        for setting, default in defaults.items()
    }
