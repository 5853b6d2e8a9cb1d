"""Langevin dynamics on a quadratic loss: chains of finite length that start at w0."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from llc_fast.exact._check import Array, array, fitting, integer, non_negative, positive
from llc_fast.exact._quadratic import quadratic_centre
from llc_fast.exact._stationary import precision, quadratic_variance


def chain_variance(
    precision: ArrayLike,
    lr: float,
    step: ArrayLike,
    *,
    noise_level: float = 1.0,
    drift_variance: ArrayLike = 0.0,
) -> Array:
    """Return the variance of SGLD after a number of steps from w0, Var (1 - rho^(2 step)).

    precision: a, any sign, stable or not. step: updates made so far, at least 0, of a shape that
    broadcasts with a. drift_variance: nbeta^2 times the variance of the minibatch gradient, likewise.
    Raises `ArgumentError` for a negative lr or step. Source: a geometric sum, rho = 1 - lr a/2.

    >>> chain_variance(1.0, 1.0, [0, 1, 2]).round(4)
    array([0.  , 1.  , 1.25])
    """
    a = array("precision", precision)
    rate = non_negative("lr", lr) * a
    drift = array("drift_variance", drift_variance, least=0.0)
    innovation = lr * non_negative("noise_level", noise_level) ** 2 + lr**2 * drift / 4
    return innovation * _geometric_sum(rate * (1 - rate / 4), array("step", step, least=0.0))


def chain_loss(
    eigenvalues: ArrayLike,
    step: ArrayLike,
    *,
    nbeta: float,
    lr: float,
    localization: float = 0.0,
    weight_decay: float = 0.0,
    noise_level: float = 1.0,
    gradient: ArrayLike = 0.0,
    anchor: ArrayLike = 0.0,
    gradient_variance: ArrayLike = 0.0,
) -> Array:
    """Return E L(w_step) - L(w0) for SGLD started at w0, one value for each entry of `step`.

    step: updates made so far, (t,). The rest is as in `quadratic_llc`, except that unstable and
    negative directions are allowed: their loss is finite at a finite step. Raises `ArgumentError`
    for a negative step. Source: mean and variance of a first-order autoregression.

    >>> chain_loss([1.0], [0, 1, 1000], nbeta=1.0, lr=1.0).round(4)
    array([0.    , 0.5   , 0.6667])
    """
    h = array("eigenvalues", eigenvalues, ndim=1)
    lr = non_negative("lr", lr)
    t = array("step", step, ndim=1, least=0.0)
    a = precision(h, nbeta=nbeta, localization=localization, weight_decay=weight_decay)
    g = fitting("gradient", gradient, "eigenvalues", h.shape)
    force = nbeta * g + weight_decay * fitting("anchor", anchor, "eigenvalues", h.shape)
    drift = nbeta**2 * fitting("gradient_variance", gradient_variance, "eigenvalues", h.shape, least=0.0)
    loss = np.zeros_like(t)
    for i in range(len(h)):
        mean = -lr / 2 * force[i] * _geometric_sum(np.asarray(lr * a[i] / 2), t)
        variance = chain_variance(a[i], lr, t, noise_level=noise_level, drift_variance=drift[i])
        loss += h[i] / 2 * (variance + mean**2) + g[i] * mean
    return loss


def chain_llc(
    eigenvalues: ArrayLike,
    *,
    nbeta: float,
    lr: float,
    num_draws: int,
    num_burnin_steps: int = 0,
    num_steps_bw_draws: int = 1,
    localization: float = 0.0,
    weight_decay: float = 0.0,
    noise_level: float = 1.0,
    gradient: ArrayLike = 0.0,
    anchor: ArrayLike = 0.0,
    gradient_variance: ArrayLike = 0.0,
) -> float:
    """Return the mean LLC estimate of a chain that starts at w0 and records losses before its updates.

    Draw j is the state after num_burnin_steps + j num_steps_bw_draws updates, j = 0 ... num_draws - 1,
    so that without burn-in the first draw is w0 itself. The rest is as in `chain_loss`. Raises
    `ArgumentError` for counts out of range. Source: Lau et al. 2023.

    >>> chain_llc([1.0], nbeta=1.0, lr=1.0, num_draws=3)
    0.375
    """
    draws = integer("num_draws", num_draws, 1)
    start = integer("num_burnin_steps", num_burnin_steps, 0)
    stride = integer("num_steps_bw_draws", num_steps_bw_draws, 1)
    losses = chain_loss(
        eigenvalues,
        start + stride * np.arange(draws),
        nbeta=nbeta,
        lr=lr,
        localization=localization,
        weight_decay=weight_decay,
        noise_level=noise_level,
        gradient=gradient,
        anchor=anchor,
        gradient_variance=gradient_variance,
    )
    return nbeta * float(losses.mean())


def estimate_std(
    eigenvalues: ArrayLike,
    *,
    nbeta: float,
    lr: float,
    num_draws: int,
    num_steps_bw_draws: int = 1,
    num_chains: int = 1,
    localization: float = 0.0,
    weight_decay: float = 0.0,
    noise_level: float = 1.0,
    gradient: ArrayLike = 0.0,
    anchor: ArrayLike = 0.0,
    gradient_variance: ArrayLike = 0.0,
) -> float:
    """Return the standard deviation of the LLC estimated from stationary draws of the full loss.

    num_chains: independent chains of num_draws each. The rest is as in `quadratic_llc`; minibatch
    noise is taken to be Gaussian. Raises `ArgumentError` where a chain has no stationary state or
    lr = 0. Source: for Gaussian u, Cov(u_s^2, u_t^2) = 2 Cov(u_s, u_t)^2, so that u^2 has correlation
    rho^(2 lag) and, over many draws, the integrated autocorrelation time (1 + rho^2)/(1 - rho^2).

    >>> round(estimate_std([1.0], nbeta=1.0, lr=2.0, num_draws=8), 6)  # lr a = 2: independent draws
    0.5
    """
    h = array("eigenvalues", eigenvalues, ndim=1)
    a = precision(h, nbeta=nbeta, localization=localization, weight_decay=weight_decay)
    drift = nbeta**2 * fitting("gradient_variance", gradient_variance, "eigenvalues", h.shape, least=0.0)
    variance = quadratic_variance(a, positive("lr", lr), noise_level=noise_level, drift_variance=drift)
    centre = quadratic_centre(
        h,
        nbeta=nbeta,
        localization=localization,
        weight_decay=weight_decay,
        gradient=gradient,
        anchor=anchor,
    )
    slope = h * centre + fitting("gradient", gradient, "eigenvalues", h.shape)
    n = integer("num_draws", num_draws, 1)
    stride = integer("num_steps_bw_draws", num_steps_bw_draws, 1)
    chains = integer("num_chains", num_chains, 1)
    lag = np.arange(1, n)
    weights = 2 * (1 - lag / n)
    total = 0.0
    for i in range(len(h)):
        powers = (1 - lr * a[i] / 2) ** (stride * lag)
        total += (h[i] * variance[i]) ** 2 / 2 * (1 + float(weights @ powers**2))
        total += slope[i] ** 2 * variance[i] * (1 + float(weights @ powers))
    return nbeta * math.sqrt(total / (n * chains))


def _geometric_sum(gap: Array, count: Array) -> Array:
    """Sum of (1 - gap)^j over 0 <= j < count, accurate where gap is tiny."""
    gap, count = np.broadcast_arrays(gap, count)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        small = -np.expm1(count * np.log1p(-np.minimum(gap, 0.5)))
        power = np.where(gap <= 0.5, small, 1 - (1 - gap) ** count)
        return np.where(gap == 0, count, power / gap)
