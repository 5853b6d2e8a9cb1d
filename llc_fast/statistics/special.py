"""Tails and quantiles of Student's t and of F, without SciPy."""

from __future__ import annotations

import math
from collections.abc import Callable


def t_quantile(probability: float, dof: int) -> float:
    """The value that Student's t with `dof` degrees of freedom stays below with this probability."""
    if probability < 0.5:
        return -t_quantile(1 - probability, dof)
    tail = 2 * (1 - probability)
    return root(lambda t: _incomplete_beta(dof / (dof + t * t), dof / 2, 0.5) - tail)


def f_tail(x: float, d1: int, d2: int) -> float:
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


def root(falling: Callable[[float], float]) -> float:
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
