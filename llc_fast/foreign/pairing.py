"""Losses at w0 of the batches that chains took, as far as what was recorded tells."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..diagnostics import Array
from .records import Ints, mean

PASSES = 2  # over the pool after burn-in, so that what chains have in common is seen at more than one time
VISITS = 4  # of a sequence, so that its mean over them is that of chains which moved on


@dataclass(frozen=True)
class Pairing:
    """Losses at w0 to compare with.

    baseline: of each number in `places`, (chains, steps, samples); None where losses of single sequences at w0 cannot
    be had. at_w0: mean at w0 of each step's sequences, (chains, steps), as inferred from all visits. error: standard
    error, as a loss, of comparing the draws' sequences with others; it is the same for all chains, so that no
    difference between them shows it; NaN where nothing tells. init_loss: mean at w0, of the same sequences if paired.
    """

    baseline: Array | None
    places: Ints | None
    at_w0: Array | None
    init_loss: float
    error: float

    @property
    def paired(self) -> bool:
        return self.baseline is not None


def period(ids: Ints, lengths: Sequence[int], batches: int) -> int | None:
    """After how many batches chains take the first one again, and all others in the same order; None: never seen.

    ids: (chains, steps, samples), `batches` in each step.
    """
    found = set()
    for row, length in zip(ids, lengths, strict=True):
        order = row[:length].reshape(length * batches, ids.shape[2] // batches)
        for k in range(1, len(order)):
            overlap = order[k:].size
            if overlap > 1 and np.array_equal(order[k], order[0]) and np.array_equal(order[k:], order[:-k]):
                found.add(k)
                break
    return found.pop() if len(found) == 1 else None


def start_shares(ids: Ints, batches: int, wanted: int, cycle: int | None) -> Array:
    """Share of each sequence in an init_loss of the first `wanted` batches that a chain takes; see `pair`.

    ids: of the chains that count, (chains, steps, samples), `batches` in each step. A pool of fewer batches, `cycle`,
    is taken over again.
    """
    chains, steps, samples = ids.shape
    order = ids.reshape(chains, steps * batches, samples // batches)
    places = np.arange(wanted) if cycle is None else np.arange(wanted) % cycle
    taken = order[:, places[places < order.shape[1]]]
    shares: Array = np.bincount(taken.ravel(), minlength=int(ids.max()) + 1) / (
        chains * wanted * order.shape[2]
    )
    return shares


def pool_shares(ids: Ints, batches: int, pool: int) -> Array:
    """Share of each sequence in a mean over a pool of so many batches, as far as chains took them; see `pair`."""
    samples = ids.shape[2] // batches
    taken = np.unique(ids.reshape(-1, samples), axis=0)
    shares: Array = np.bincount(taken.ravel(), minlength=int(ids.max()) + 1) / (samples * pool)
    return shares


def pair(
    loss: Array, ids: Ints, init: float, shares: Array, *, burnin: int, passes: float, moved: bool
) -> Pairing:
    """Compare with the same sequences at w0 where their mean over the chains' visits is known well.

    loss, ids: of the chains that count, (chains, steps, samples). shares: of each sequence in init_loss; what they
    lack of 1 is of sequences that chains did not take. passes: how often chains passed over their pool after burn-in.
    moved: whether chains did not begin at w0.

    A sequence's loss is taken for its own loss at w0 plus what chains have gained: its mean over visits, less the
    mean gain, is its baseline, and the mean gain is what the sequences of init_loss have gained over it.
    """
    size, unseen = len(shares), 1 - float(shares.sum())
    taken, late = ids[:, burnin:].ravel(), loss[:, burnin:].ravel()
    visits = np.bincount(taken, minlength=size)
    means = np.bincount(taken, weights=late, minlength=size) / np.maximum(visits, 1)
    used = visits / taken.size
    needed = (used > 0) | (shares > 0)
    spread = float(((used - shares) ** 2).sum())
    if unseen > _NOTHING or passes < PASSES or visits[needed].min() < VISITS:
        spread += max(0.0, unseen) * float(shares[shares > 0].min(initial=1.0))  # in shares of the same size
        every, levels = _levels(ids, loss, size)
        return Pairing(None, None, None, init, _error(levels[every], spread))
    baseline = means - (float((shares * means).sum()) - init)
    at_start, first = _levels(ids[:, :1], loss[:, :1], size)
    start = at_start & (visits > 0)
    # How much more some sequences gain than others, at most as much as their losses differ.
    unlike = means[needed] if moved or start.sum() < VISITS else (means - first)[start]
    at_w0: Array = baseline[ids].mean(axis=2)
    places = ids.copy()
    if not moved:  # before their first update chains are at w0: these losses are known, not inferred
        places[:, 0] += size
        baseline = np.concatenate([baseline, first])
    return Pairing(baseline, places, at_w0, init, _error(unlike, spread))


_NOTHING = 1e-9  # rounding of sums of shares


def _error(levels: Array, spread: float) -> float:
    """Standard error of a difference of weighted means of random ones of these; spread: sum of squares of weights."""
    if spread < _NOTHING**2:
        return 0.0
    return math.sqrt(float(levels.var(ddof=1)) * spread) if len(levels) > 1 else math.nan


def _levels(ids: Ints, loss: Array, size: int) -> tuple[npt.NDArray[np.bool_], Array]:
    """Which sequences were taken, and their mean loss, 0 for others."""
    count = np.bincount(ids.ravel(), minlength=size)
    return count > 0, np.bincount(ids.ravel(), weights=loss.ravel(), minlength=size) / np.maximum(count, 1)


def unnamed(losses: Array, init: float, *, burnin: int, start: int | None) -> Pairing:
    """Where it is not known which sequences a step took: as if init_loss were of others.

    losses: of the chains that count, (chains, steps). start: steps that init_loss is of; None: of the whole pool.
    """
    common = mean(losses[:, burnin:], axis=0)
    return Pairing(None, None, None, init, _error(common, 1 / len(common) + (1 / start if start else 0.0)))
