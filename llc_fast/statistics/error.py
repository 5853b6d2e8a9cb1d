"""The standard error of a mean over chains, with autocorrelation counted."""

from __future__ import annotations

import math

import numpy as np

from .blocks import Array
from .rank import autocovariance

TIMES = 10  # a batch is as many autocorrelation times long, if chains are long enough
MOST = 32  # batches in all: more do not make an interval shorter
LEAST = 8  # below it four chains or more are compared with each other
FEWEST = 4  # batches of fewer chains
MIN_BATCH = 4
_KNOWN = 1000  # degrees of freedom that are as good as any more


def mcse(values: Array, *, epoch: int = 1, skip: int = 0, time: float | None = None) -> tuple[float, int]:
    """Standard error of the mean of all values, and the degrees of freedom of its t distribution.

    values: (chains, draws), autocorrelated along a chain. Chains are cut into equal batches of at least ten
    autocorrelation times (and ten times as long as correlations reach), at most 32 in all, whose means are taken
    as independent but for what neighbours still share. Where that makes fewer than 8 in all, four chains or more
    are compared with each other, which no autocorrelation spoils; of fewer chains 4 shorter batches are made.
    epoch: draws in which noise of batches cancels, the first such stretch beginning at draw `skip`; batches are
    whole epochs where there are 8. time: autocorrelation time in draws, where it is not to be taken from the
    values.
    (NaN, 0) where there are fewer than 2 batches. It does not see what all chains have in common: the
    transient after their common start, and the bias of a finite step.
    Source: Argon & Andradóttir 2006, Naval Research Logistics 53:508 (replicated batch means).
    """
    chains, draws = values.shape
    loose = 0.0
    if epoch > 1 and chains and (draws - skip) // epoch >= LEAST:
        loose = _loose_ends(values, epoch, skip)
        count = (draws - skip) // epoch
        values = values[:, skip : skip + count * epoch].reshape(chains, count, epoch).mean(axis=2)
        draws = count
    else:
        epoch = 1
    shortest = -(-MIN_BATCH // epoch)
    if time is None:
        time, reach = _times(values)
    else:
        time = reach = max(1.0, time / epoch)
    count = int(min(draws / (TIMES * max(time, reach)), MOST / max(chains, 1), draws // shortest))
    if chains * count < LEAST:
        count = 1 if chains >= 4 else min(max(count, -(-FEWEST // max(chains, 1))), draws // shortest)
    count = max(1, count)
    if chains * count < 2:
        return math.nan, 0
    length = draws // count
    kept = values if count == 1 else values[:, draws - count * length :]
    means = kept.reshape(chains * count, -1).mean(axis=1)
    variance = float(means.var(ddof=1)) / means.size / _apart(reach, length, count)
    dof = means.size - 1
    if loose and variance:  # of which much more is known: degrees of freedom as Satterthwaite 1946
        dof = min(int((variance + loose) ** 2 / (variance**2 / dof)), _KNOWN)
    return math.sqrt(variance + loose), dof


def autocorrelation_time(values: Array) -> float:
    """How many draws tell as much about the mean as one independent value would, at least 1.

    values: (chains, draws). Chains that stay apart count as correlated over their length. Source: Geyer 1992,
    Statistical Science 7:473 (initial monotone sequence); chains together as in Vehtari et al. 2021.
    """
    return _times(values)[0]


def _times(values: Array) -> tuple[float, float]:
    """The autocorrelation time, and how far correlations reach: twice their mean lag, equal for a first-order process.

    Where a slow part hides in fast noise, the noise shortens the former and not the latter.
    """
    chains, draws = values.shape
    if draws < 4 or not np.isfinite(values).all() or np.ptp(values) == 0:
        return 1.0, 1.0
    covariance = autocovariance(values).mean(axis=0)
    between = float(values.mean(axis=1).var(ddof=1)) if chains > 1 else 0.0
    # Chains' own means take covariance[0]/(draws - 1) from each lag, which only their spread can give back.
    within = covariance[0] * draws / (draws - 1) if chains > 1 else covariance[0]
    rho = 1 - (within - covariance) / (covariance[0] + between)
    rho[0] = 1.0
    even = draws - draws % 2
    pairs = rho[:even:2] + rho[1:even:2]
    negative = np.flatnonzero(pairs <= 0)
    kept = np.minimum.accumulate(pairs[: negative[0] if negative.size else None])
    time = max(1.0, 2 * float(kept.sum()) - 1)
    lags = 2 * np.arange(kept.size) + 0.5
    return time, max(1.0, 4 * float((lags * kept).sum()) / time)


def _apart(reach: float, length: int, count: int) -> float:
    """By how much neighbours' correlation lowers the variance between batches."""
    return max(0.25, 1 - (reach - 1) / (2 * length) * (1 - 1 / count))


def _loose_ends(values: Array, epoch: int, skip: int) -> float:
    """Variance that draws outside whole epochs give the mean: parts of epochs, in which the noise does not cancel."""
    chains, draws = values.shape
    count = (draws - skip) // epoch
    whole = values[:, skip : skip + count * epoch].reshape(chains, count, epoch)
    parts = (skip, draws - skip - count * epoch)
    shares = sum(part * (1 - part / epoch) for part in parts)
    return float(whole.var(axis=2, ddof=1).mean() * shares / (draws**2 * chains))
