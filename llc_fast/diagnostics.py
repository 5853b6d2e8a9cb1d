"""What can be said of chains from their draws: R-hat, effective sample size, standard error, quantiles."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

Array = npt.NDArray[np.float64]

MIN_DRAWS = 8  # below this no R-hat
MIN_ESS_DRAWS = 10  # with fewer, the estimate of `ess` ends before its first lag and is a constant
_BATCHES = 8
_MIN_BATCH = 4


def block_means(values: Array, *, pool: int, burnin: int, thinning: int) -> tuple[Array, str]:
    """Means of draws over stretches in which batch noise averages out, and what the stretches are.

    values: one for each draw, (chains, draws), of a chain that passes over `pool` batches in whole epochs
    from its step 0 and takes its draws every `thinning` steps after `burnin` steps. Whole epochs where every
    step is a draw and there are at least 8, else 16 equal blocks, or 8 where draws are below 64. Fewer than 8
    draws give (chains, 0). Draws before the first stretch are left out.
    """
    chains, draws = values.shape
    if thinning == 1 or pool == 1:
        skip = 0 if pool == 1 else -burnin % pool
        epochs = max(0, draws - skip) // pool
        if epochs >= MIN_DRAWS:
            kept = values[:, skip : skip + epochs * pool].reshape(chains, epochs, pool)
            return kept.mean(axis=2), f"{epochs} whole epochs of {pool} draw{'s' if pool > 1 else ''}"
    if draws < MIN_DRAWS:
        return np.empty((chains, 0)), f"none: {draws} draws are fewer than {MIN_DRAWS}"
    count = 16 if draws >= 64 else MIN_DRAWS
    length = draws // count
    kept = values[:, draws - count * length :].reshape(chains, count, length)
    return kept.mean(axis=2), f"{count} blocks of {length} draw{'s' if length > 1 else ''}"


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
    f = _root(lambda x: _f_tail(x, between, within) - (1 - level) / 2)
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
    covariance = _autocovariance(x).mean(axis=0)
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


def mcse(values: Array) -> tuple[float, int]:
    """Standard error of the mean of all values, and the degrees of freedom of its t distribution.

    values: (chains, draws), autocorrelated along a chain. Chains are cut into equal batches of at least 4
    draws, as few as make 8 batches in all, and the batch means are taken as independent; with 4 chains or more,
    the standard error between chains, which no autocorrelation spoils, is taken where it is larger.
    (NaN, 0) where there are fewer than 2 batches. It does not see what all chains have in common: the
    transient after their common start, and the bias of a finite step.
    Source: Argon & Andradóttir 2006, Naval Research Logistics 53:508 (replicated batch means).
    """
    chains, draws = values.shape
    count = max(1, min(-(-_BATCHES // chains), draws // _MIN_BATCH)) if chains else 1
    if chains * count < 2:
        return math.nan, 0
    length = draws // count
    means = values[:, draws - count * length :].reshape(chains * count, length).mean(axis=1)
    batch = float(means.std(ddof=1)) / math.sqrt(means.size)
    if chains >= 4:
        between = float(values.mean(axis=1).std(ddof=1)) / math.sqrt(chains)
        if between > batch:
            return between, chains - 1
    return batch, means.size - 1


def t_quantile(probability: float, dof: int) -> float:
    """The value that Student's t with `dof` degrees of freedom stays below with this probability."""
    if probability < 0.5:
        return -t_quantile(1 - probability, dof)
    tail = 2 * (1 - probability)
    return _root(lambda t: _incomplete_beta(dof / (dof + t * t), dof / 2, 0.5) - tail)


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


def _autocovariance(x: Array) -> Array:
    """Autocovariance of each row at every lag, divided by the row's length."""
    n = x.shape[1]
    spectrum = np.fft.rfft(x - x.mean(axis=1, keepdims=True), n=2 * n, axis=1)
    covariance: Array = np.fft.irfft(np.abs(spectrum) ** 2, n=2 * n, axis=1)[:, :n] / n
    return covariance


def _f_tail(x: float, d1: int, d2: int) -> float:
    """Probability that an F(d1, d2) variable exceeds x."""
    return _incomplete_beta(d2 / (d2 + d1 * x), d2 / 2, d1 / 2)


def _incomplete_beta(x: float, a: float, b: float) -> float:
    """Regularised incomplete beta function I_x(a, b), by its continued fraction (DLMF 8.17.22)."""
    if x <= 0 or x >= 1:
        return 0.0 if x <= 0 else 1.0
    if x > (a + 1) / (a + b + 2):  # where the fraction converges slowly
        return 1 - _incomplete_beta(1 - x, b, a)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    numerator, denominator, fraction = 1.0, 0.0, 1.0
    for i in range(1, 10_000):  # modified Lentz
        m = i // 2
        if i % 2:
            d = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            d = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        denominator = 1 / _apart(1 + d * denominator)
        numerator = _apart(1 + d / numerator)
        fraction *= numerator * denominator
        if abs(numerator * denominator - 1) < 1e-15:
            break
    return math.exp(log_front) / (a * fraction)


def _apart(x: float) -> float:
    """x, kept away from 0, by which it divides."""
    return x if abs(x) > 1e-300 else 1e-300


def _root(falling: Callable[[float], float]) -> float:
    """The positive zero of a falling function, by bisection to the last bit."""
    high = 1.0
    while falling(high) > 0:
        high *= 2
    low = 0.0 if high == 1.0 else high / 2
    while True:
        middle = (low + high) / 2
        if middle in (low, high):
            return middle
        if falling(middle) > 0:
            low = middle
        else:
            high = middle
