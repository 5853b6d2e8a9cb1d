"""R-hat and effective sample size of ranks."""

from __future__ import annotations

import math

import numpy as np
import torch

from .blocks import Array
from .special import f_tail, root

MIN_ESS_DRAWS = 10  # with fewer, the estimate of `ess` ends before its first lag and is a constant


def r_hat(values: Array) -> float:
    """Rank-normalised split R-hat: the larger one of the values and of their distances from the median.

    values: (chains, draws). NaN for fewer than 4 draws and where all values are equal or one is not finite;
    infinite where no chain moves but they differ.
    Source: Vehtari, Gelman, Simpson, Carpenter & Bürkner 2021, Bayesian Analysis 16:667.
    """
    if values.shape[1] < 4 or not np.isfinite(values).all() or np.ptp(values) == 0:
        return math.nan
    split = _split(values)
    folded = np.abs(split - np.median(split))
    n = split.shape[1]
    ratios = [_f_ratio(_normal_scores(x)) for x in (split, folded)]
    return max((math.sqrt((f + n - 1) / n) for f in ratios if not math.isnan(f)), default=math.nan)


def r_hat_chance(chains: int, draws: int, level: float = 0.99) -> float:
    """What `r_hat` of independent draws stays below with probability about `level`, however well chains mix.

    chains, draws: shape of its argument. Source: the F distribution of the ratio of mean squares within R-hat;
    each of its two versions is given half of 1 - level.
    """
    groups, n = 2 * chains, draws // 2
    between, within = groups - 1, groups * (n - 1)
    f = root(lambda x: f_tail(x, between, within) - (1 - level) / 2)
    return math.sqrt((f + n - 1) / n)


def ess(values: Array) -> float:
    """Bulk effective sample size: how many independent values would tell as much about the mean.

    values: (chains, draws). NaN for fewer than 10 draws and where all values are equal or one is not finite.
    With few draws it looks at few lags, and so cannot fall far: at 10 to 13 draws not below a quarter of all.
    Source: Vehtari et al. 2021, on rank-normalised split chains, with Geyer's initial monotone
    sequence.
    """
    if values.shape[1] < MIN_ESS_DRAWS or not np.isfinite(values).all() or np.ptp(values) == 0:
        return math.nan
    x = _normal_scores(_split(values))
    chains, n = x.shape
    covariance = autocovariance(x).mean(axis=0)
    within = covariance[0] * n / (n - 1)
    total = covariance[0] + x.mean(axis=1).var(ddof=1)
    rho = 1 - (within - covariance) / total
    rho[0] = 1.0
    pairs = [rho[0] + rho[1]]
    t = 1
    last = rho[0]  # the even lag after the pairs that are kept
    while t < n - 3 and pairs[-1] > 0:
        last = rho[t + 1]
        pairs.append(rho[t + 1] + rho[t + 2])
        t += 2
    if last < 0 and pairs[-1] < 0:
        last = 0.0
    # Of the pair at which the sequence ends, the even lag alone counts, once.
    kept = np.minimum.accumulate([2.0, *pairs[:-1]])[1:]  # a pair is at most 2
    tau = -1 + 2 * float(kept.sum()) + float(last)
    size = chains * n
    return float(size / max(tau, 1 / math.log10(size)))


def _split(values: Array) -> Array:
    """First and last halves of chains as chains of their own; an odd draw in the middle is left out."""
    half = values.shape[1] // 2
    return np.concatenate([values[:, :half], values[:, -half:]])


def _normal_scores(x: Array) -> Array:
    """Each value replaced by the normal quantile of its rank; equal ones share their mean rank."""
    _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    rank = np.cumsum(counts) - (counts - 1) / 2
    p = torch.from_numpy((rank - 0.375) / (x.size + 0.25))
    scores: Array = torch.special.ndtri(p).numpy()[inverse.reshape(x.shape)]
    return scores


def _f_ratio(x: Array) -> float:
    """Mean square between chains over mean square within them; NaN where all values are equal."""
    if np.ptp(x) == 0:
        return math.nan
    if (np.ptp(x, axis=1) == 0).all():
        return math.inf
    within = float(x.var(axis=1, ddof=1).mean())
    return float(x.shape[1] * x.mean(axis=1).var(ddof=1)) / within


def autocovariance(x: Array) -> Array:
    """Autocovariance of each row at every lag, divided by the row's length."""
    n = x.shape[1]
    spectrum = np.fft.rfft(x - x.mean(axis=1, keepdims=True), n=2 * n, axis=1)
    covariance: Array = np.fft.irfft(np.abs(spectrum) ** 2, n=2 * n, axis=1)[:, :n] / n
    return covariance
