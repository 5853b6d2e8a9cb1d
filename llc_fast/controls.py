"""Control variates: what the noise of each step already says about the error of an estimate.

With d = w - w0 and an update d' = u + sqrt(lr) z, u = d - (lr/2) a, squares add up over T steps to

    mean d.a = n + (2/sqrt(lr)) mean z.u + mean (|z|^2 - n) + (lr/4) mean |a|^2 - (|d_T|^2 - |d_0|^2) / (lr T).

For a quadratic loss nbeta (L(w) - L(w0)) is (d.a - localization |d|^2) / 2, so that z.u, whose mean is 0
because z is drawn after u, explains the estimate's error up to the last term, of order 1/T, and to what
|d|^2 does on its own: all where every direction mixes, little where many are flat. z.g leaves flat directions out.
How much of either to subtract is fitted, on other chains than the one it is subtracted from: a fit on the same draws
would be biased.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .diagnostics import Array, autocorrelation_time, mcse

BLOCKS = 8  # of a chain, whose means are fitted
POINTS = 10  # for each coefficient
RIDGE = 0.01  # of the variance of each control, added to it
GAIN = 0.9  # a correction that leaves more of the error, or of the spread of blocks, is not reported


@dataclass(frozen=True)
class Controlled:
    """A corrected mean. per_chain: of each chain, (chains,); mean: theirs; error, dof: standard error of `mean` and
    its degrees of freedom; ratio: variance without the correction over that with it."""

    per_chain: Array
    mean: float
    error: float
    dof: int
    ratio: float


def controlled(gains: Array, controls: Array, *, burnin: int, thinning: int) -> Controlled | None:
    """The mean of gains, corrected; None where that does not lower its error, or nothing can be fitted.

    gains: (chains, draws), taken every `thinning` steps from step `burnin`; controls: of mean zero, (chains, steps,
    k) or (chains, steps, tensors, k). Two chains or more. Coefficients of chain c are fitted to block means of the
    others, of the sums over tensors, or of each tensor's where blocks are ten for each coefficient and it helps.
    """
    chains, draws = gains.shape
    if chains < 2 or draws < BLOCKS:
        return None
    window = controls[:, burnin : burnin + draws * thinning]
    window = window.reshape(chains, draws, thinning, *controls.shape[2:]).mean(axis=2)
    choices = [window]
    if window.ndim == 4:
        choices = [window.sum(axis=2)]
        if window.shape[2] > 1:
            choices.append(window.reshape(chains, draws, -1))
    time = autocorrelation_time(
        gains
    )  # controls are white: under them slow parts of the rest could not be seen
    plain = mcse(gains, time=time)[0]
    best = None
    for columns in choices:
        if (chains - 1) * BLOCKS < POINTS * columns.shape[2] or not np.isfinite(columns).all():
            continue
        corrected = gains - _predicted(gains, columns)
        error, dof = mcse(corrected, time=time)
        helps = error < GAIN * plain and _blocks(corrected).std() < GAIN * _blocks(gains).std()
        if helps and (best is None or error < best.error):
            per_chain = corrected.mean(axis=1)
            ratio = (plain / error) ** 2 if error else math.inf
            best = Controlled(per_chain, float(per_chain.mean()), error, dof, ratio)
    return best


def _predicted(gains: Array, columns: Array) -> Array:
    """What controls say of each draw's error, (chains, draws), with coefficients from the other chains."""
    chains, _, k = columns.shape
    y, x = _blocks(gains), _blocks(columns)
    scale = np.sqrt((x**2).mean(axis=(0, 1)))
    x = x / np.where(scale > 0, scale, 1.0)
    out = np.empty_like(gains)
    for chain in range(chains):
        others = np.arange(chains) != chain
        a = np.column_stack([np.ones(others.sum() * BLOCKS), x[others].reshape(-1, k)])
        penalty = RIDGE * len(a) * np.diag([0.0] + [1.0] * k)
        slopes = np.linalg.solve(a.T @ a + penalty, a.T @ y[others].ravel())[1:]
        out[chain] = columns[chain] @ (slopes / np.where(scale > 0, scale, 1.0))
    return out


def _blocks(values: Array) -> Array:
    """Means over the blocks of each chain, (chains, blocks, ...)."""
    chains, draws = values.shape[:2]
    length = draws // BLOCKS
    means: Array = (
        values[:, : BLOCKS * length].reshape(chains, BLOCKS, length, *values.shape[2:]).mean(axis=2)
    )
    return means
