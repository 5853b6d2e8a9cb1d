"""Draws and chains that are not like the others."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .blocks import Array
from .error import mcse

SPIKE = 8.0  # robust standard deviations of the square root
LEVEL = 8.0  # robust standard deviations between chains, or standard errors
NEAR_BOX = 0.01
_MIN_DRAWS = 20
_MAD = 1.4826  # of a normal distribution, standard deviation over median absolute deviation


@dataclass(frozen=True)
class Spikes:
    """count: draws far above the rest of their chain; first: place of the first one, None if there is none."""

    count: int
    first: int | None


def spikes(values: Array) -> list[Spikes]:
    """Spikes of each chain, by the robust z-score (median, MAD) of the square root of paired losses.

    values: (chains, draws). The square root, of what is above the chain's first percentile, because losses near
    a minimum are sums of squares, whose tails are long: of 10^7 draws from one squared normal, the longest, one
    passes. Chains of fewer than 20 draws have none. Source: Iglewicz & Hoaglin 1993.
    """
    found = []
    for x in values:
        if x.size < _MIN_DRAWS or not np.isfinite(x).all():
            found.append(Spikes(0, None))
            continue
        root = _root(x)
        middle = float(np.median(root))
        spread = _MAD * float(np.median(np.abs(root - middle)))
        high = np.flatnonzero(root - middle > SPIKE * spread) if spread else np.empty(0, dtype=np.int64)
        found.append(Spikes(high.size, int(high[0]) if high.size else None))
    return found


def odd_chains(values: Array, boxed: Array | None = None) -> dict[int, str]:
    """Chains that live but are not like the others, and why: half-dead ones.

    values: paired losses at draws, (chains, draws); boxed: share of weights at the box. A chain is odd that has
    spikes, more than 1 % of its weights at the box on average, or whose first or last half is at another level than
    the halves of all chains, of which there must be three: by eight robust standard deviations, and standard errors,
    of the square root again.
    """
    reasons: dict[int, list[str]] = {}
    for chain, found in enumerate(spikes(values)):
        if found.count:
            what = f"{found.count} spike{'s' if found.count > 1 else ''} of the loss, the first at draw {found.first}"
            reasons.setdefault(chain, []).append(what)
    if boxed is not None:
        for chain, share in enumerate(boxed.mean(axis=1)):
            if share > NEAR_BOX:
                reasons.setdefault(chain, []).append(f"{share:.1%} of its weights at the box")
    for chain, what in _levels(values).items():
        reasons.setdefault(chain, []).append(what)
    return {chain: "; ".join(reasons[chain]) for chain in sorted(reasons)}


def _levels(values: Array) -> dict[int, str]:
    """Chains with a half at another level than most halves."""
    chains, draws = values.shape
    if chains < 3 or draws < _MIN_DRAWS:
        return {}
    half = draws // 2
    values = _root(values)
    parts = np.stack([values[:, :half], values[:, -half:]], axis=1)
    means = parts.mean(axis=2)
    middle = float(np.median(means))
    spread = _MAD * float(np.median(np.abs(means - middle)))
    errors = [mcse(part[None])[0] for part in parts.reshape(2 * chains, half)]
    scale = max(spread, float(np.median(errors)))
    if not scale or math.isnan(scale):
        return {}
    apart = np.abs(means - middle) > LEVEL * scale
    names = {(True, True): "at another level than the others", (False, True): "jumped to another level"}
    names[True, False] = "its first half is at another level"
    return {c: names[bool(a), bool(b)] for c, (a, b) in enumerate(apart) if a or b}


def _root(x: Array) -> Array:
    """Square roots of what is above the first percentile."""
    root: Array = np.sqrt(np.maximum(x - np.quantile(x, 0.01), 0))
    return root
