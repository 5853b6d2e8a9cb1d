"""Samplers with a velocity, SGHMC and SGNHT, on a quadratic loss: stationary variances at a finite step.

One step is v <- v - lr drift - xi v + sqrt(2 A lr) noise_level z, then u <- u + v, with the drift of
SGLD. SGHMC keeps xi = A; SGNHT then moves xi by mean(v^2) - lr. lr is the square of the leapfrog step
of the papers: SGHMC with A = 1 is SGLD at twice this lr.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from llc_fast.errors import ArgumentError
from llc_fast.exact._check import Array, array, fitting, non_negative, positive


def sghmc_variance(
    precision: ArrayLike,
    lr: float,
    friction: float,
    *,
    noise_level: float = 1.0,
    drift_variance: ArrayLike = 0.0,
) -> Array:
    """Return the stationary variance of SGHMC, 1 / (a (1 - lr a/(4 - 2A))) in each eigendirection.

    precision: a, (d,). friction: A, between 0 and 2. drift_variance: nbeta^2 times the variance of
    the minibatch gradient, one number or (d,). Raises `ArgumentError` where a <= 0 or
    lr a >= 4 - 2A, where nothing is stationary. Source: the covariance of the linear recursion;
    the sampler is Chen, Fox & Guestrin 2014, arXiv 1402.4102.

    >>> sghmc_variance([1.0], lr=1.0, friction=1.0)
    array([2.])
    """
    a = _stationary(precision, lr, friction)
    drift = fitting("drift_variance", drift_variance, "precision", a.shape, least=0.0)
    heat = non_negative("noise_level", noise_level) ** 2 + lr * drift / (2 * friction)
    return np.asarray(heat / (a * (1 - lr * a / (4 - 2 * friction))))


def sghmc_velocity_variance(
    precision: ArrayLike,
    lr: float,
    friction: float,
    *,
    noise_level: float = 1.0,
    drift_variance: ArrayLike = 0.0,
) -> Array:
    """Return the stationary E v^2 of SGHMC, lr a Var / (1 - A/2); lr as lr and A go to 0.

    Arguments, errors and source are those of `sghmc_variance`.

    >>> sghmc_velocity_variance([1.0], lr=1.0, friction=1.0)
    array([4.])
    """
    variance = sghmc_variance(precision, lr, friction, noise_level=noise_level, drift_variance=drift_variance)
    return lr * array("precision", precision) * variance / (1 - friction / 2)


def sgnht_friction(
    precision: ArrayLike,
    lr: float,
    diffusion_factor: float,
    *,
    noise_level: float = 1.0,
    drift_variance: ArrayLike = 0.0,
) -> float:
    """Return the xi at which the thermostat of SGNHT settles when it averages over many directions.

    diffusion_factor: A, which sets the noise. Equal directions give the smaller root of
    xi (4 - 2 xi - lr a) = 4A; unequal ones that of mean 4A / (xi (4 - 2 xi - lr a)) = 1, where
    drift_variance adds lr/2 of itself to A. Raises `ArgumentError` where there is no root: the
    thermostat cannot take out as much heat as comes in. Source: mean(v^2) = lr at rest; the sampler
    is Ding et al. 2014, Bayesian sampling using stochastic gradient thermostats (NeurIPS 27).

    >>> sgnht_friction([1.0], lr=1.0, diffusion_factor=0.25)
    0.5
    """
    a = array("precision", precision)
    if a.min() <= 0:
        raise ArgumentError(f"precision goes down to {a.min():g}; raise localization until it is positive")
    source = _source(a, positive("lr", lr), diffusion_factor, noise_level, drift_variance)

    def excess(xi: float) -> float:
        return float((4 * source / (xi * (4 - 2 * xi - lr * a))).mean()) - 1

    def slope(xi: float) -> float:
        room = 4 - 2 * xi - lr * a
        return float((source * (2 * xi - room) / (xi * room) ** 2).mean())

    # excess is convex between its two poles, so its left branch ends where its slope changes sign.
    lowest = _bisect(lambda xi: -slope(xi), 0.0, 2 - lr * float(a.max()) / 2)
    if lr * a.max() >= 4 or excess(lowest) > 0:
        raise ArgumentError(
            f"lr={lr:g} and diffusion_factor={diffusion_factor:g} leave the thermostat no resting point at "
            f"precision {a.max():g}; lower either"
        )
    return _bisect(excess, 0.0, lowest)


def sgnht_variance(
    precision: ArrayLike,
    lr: float,
    diffusion_factor: float,
    *,
    noise_level: float = 1.0,
    drift_variance: ArrayLike = 0.0,
) -> Array:
    """Return the stationary variance of SGNHT over many directions; equal ones give (1 - xi/2) / a.

    Arguments, errors and source are those of `sgnht_friction`; E v^2, averaged over the directions,
    is lr. Direction i has the variance of SGHMC at friction xi and noise A/xi.

    >>> sgnht_variance([1.0], lr=1.0, diffusion_factor=0.25)
    array([0.75])
    """
    xi = sgnht_friction(
        precision, lr, diffusion_factor, noise_level=noise_level, drift_variance=drift_variance
    )
    a = array("precision", precision)
    source = _source(a, lr, diffusion_factor, noise_level, drift_variance)
    return np.asarray(source / xi / (a * (1 - lr * a / (4 - 2 * xi))))


def _stationary(precision: ArrayLike, lr: float, friction: float) -> Array:
    a = array("precision", precision)
    if a.min() <= 0:
        raise ArgumentError(f"precision goes down to {a.min():g}; raise localization until it is positive")
    if not 0 < positive("friction", friction) < 2:
        raise ArgumentError(f"friction={friction:g} is unstable; pass a number between 0 and 2")
    if positive("lr", lr) * a.max() >= 4 - 2 * friction:
        limit = (4 - 2 * friction) / a.max()
        raise ArgumentError(f"lr={lr:g} is unstable at precision {a.max():g}; pass an lr below {limit:g}")
    return a


def _source(a: Array, lr: float, factor: float, noise_level: float, drift_variance: ArrayLike) -> Array:
    """Variance of what a step adds to v, over 2 lr."""
    drift = fitting("drift_variance", drift_variance, "precision", a.shape, least=0.0)
    noise = positive("diffusion_factor", factor) * positive("noise_level", noise_level) ** 2
    return np.asarray(noise + lr * drift / 2)


def _bisect(function: Callable[[float], float], low: float, high: float) -> float:
    """The root between a positive value at `low` and a negative one at `high`, neither evaluated."""
    while low < (middle := (low + high) / 2) < high:
        if function(middle) > 0:
            low = middle
        else:
            high = middle
    return high
