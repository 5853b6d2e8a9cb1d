"""The LLC of singular losses at a finite nbeta, by quadrature.

The anchor is 0 and the density exp(-nbeta K(w) - localization |w|^2 / 2): the limit of small lr. Such
values reach the learning coefficient only like 1 / log nbeta where its multiplicity is 2. Integrands
are analytic and vanish at both ends of a logarithmic grid, where the trapezoidal rule gains digits
exponentially with the number of points.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from llc_fast.errors import ArgumentError
from llc_fast.exact._check import Array, integer, positive
from llc_fast.exact._coefficients import power_product

_STEP = 0.1
_TAIL = 40.0  # exp(-40) is below the rounding of a float64


def power_product_llc(exponents: Sequence[int], *, nbeta: float, localization: float) -> float:
    """Return nbeta E[K] for K = prod w_i^(2 k_i), which tends to `power_product`.

    exponents: k_i >= 1. Raises `ArgumentError` for others, or a nbeta or localization that is not
    positive. Source: log K is a sum of independent variables, whose densities are convolved.

    >>> round(power_product_llc([1, 1], nbeta=100.0, localization=1.0), 4)
    0.3542
    >>> round(power_product_llc([2], nbeta=100.0, localization=1.0), 4)
    0.2417
    """
    tilt = power_product(exponents).value
    # nbeta in the units of w that make localization 1
    gamma = positive("localization", localization)
    log_scale = math.log(positive("nbeta", nbeta)) - sum(exponents) * math.log(gamma)
    highest = [k * math.log(40 * _TAIL) for k in exponents]
    lowest = -abs(log_scale) - sum(highest) - _TAIL / tilt
    start, density = 0.0, np.ones(1)
    for k, high in zip(exponents, highest, strict=True):
        s = np.arange(lowest, high + _STEP, _STEP)
        # |w|^2 = exp(s/k), tilted so that the least exponent stays flat and nothing underflows
        log_density = s / (2 * k) - np.exp(s / k) / 2 - tilt * s
        start += lowest
        density = np.convolve(density, np.exp(log_density - log_density.max()))
        density /= density.max()
    log_k = start + _STEP * np.arange(len(density))
    energy = np.exp(np.minimum(log_k + log_scale, 700.0))
    weight = density * np.exp(_normalised(tilt * log_k - energy))
    return float((weight * np.where(weight > 0, energy, 0.0)).sum() / weight.sum())


def power_sum_llc(exponents: Sequence[int], *, nbeta: float, localization: float) -> float:
    """Return nbeta E[K] for K = sum w_i^(2 k_i), which tends to `power_sum`.

    Arguments and errors are those of `power_product_llc`. Source: independent variables add.

    >>> round(power_sum_llc([1, 1], nbeta=99.0, localization=2.0), 6)
    0.99
    """
    if len(exponents) == 0:
        raise ArgumentError("exponents is empty; pass one for each variable")
    return sum(power_product_llc([k], nbeta=nbeta, localization=localization) for k in exponents)


def reduced_rank_llc(inputs: int, hidden: int, outputs: int, *, nbeta: float, localization: float) -> float:
    """Return nbeta E[K] for K = |B A|^2 / 2, A (hidden, inputs), B (outputs, hidden); see `reduced_rank`.

    One width must be 1 or 2. Raises `ArgumentError` where none is, for a width below 1, and for a
    nbeta or localization that is not positive. Source: B is Gaussian given A, and the singular values
    s of A have density prod s^|H-M| prod |s_i^2 - s_j^2| exp(-localization sum s^2 / 2) (James 1964,
    Annals of Mathematical Statistics 35:475).

    >>> round(reduced_rank_llc(2, 2, 2, nbeta=100.0, localization=1.0), 4)
    1.3563
    """
    m, h, n = integer("inputs", inputs, 1), integer("hidden", hidden, 1), integer("outputs", outputs, 1)
    if min(m, h) > 2:
        m, n = n, m  # K does not change under transposition
    if min(m, h) > 2:
        raise ArgumentError(f"widths {(inputs, hidden, outputs)} are all above 2; use deep_linear_llc")
    log_scale = math.log(positive("nbeta", nbeta)) - 2 * math.log(positive("localization", localization))
    log_s = np.arange(-abs(log_scale) / 2 - _TAIL, math.log(40 * _TAIL) / 2, _STEP)
    power = abs(h - m) + 1  # of s in s^|H-M| ds = s^power d(log s)
    if min(m, h) == 1:
        log_weight, energy = _singular_value(log_s, power, n, log_scale)
    else:
        # log(s1/s2) = log(1 + exp(y)) keeps s2 below s1, and steps evenly where they are far apart
        y = np.arange(-_TAIL / 2, log_s[-1] - log_s[0] + _TAIL, _STEP)
        log_s, y = log_s[:, None], y[None, :]
        gap = np.logaddexp(0.0, y)
        first, first_energy = _singular_value(log_s, power, n, log_scale)
        second, second_energy = _singular_value(log_s - gap, power, n, log_scale)
        log_weight = first + second + 2 * log_s + np.log(-np.expm1(-2 * gap)) + y - gap
        energy = first_energy + second_energy
    weight = np.exp(_normalised(log_weight))
    return float((weight * energy).sum() / weight.sum())


def _singular_value(log_s: Array, power: int, outputs: int, log_scale: float) -> tuple[Array, Array]:
    """Log density and nbeta E[K | s] of a singular value, B integrated out."""
    log_x = log_scale + 2 * log_s
    log_weight = power * log_s - np.exp(2 * log_s) / 2 - outputs / 2 * np.logaddexp(0.0, log_x)
    return log_weight, outputs / 2 * np.exp(log_x - np.logaddexp(0.0, log_x))


def _normalised(log_weight: Array) -> Array:
    return np.asarray(log_weight - log_weight.max())
