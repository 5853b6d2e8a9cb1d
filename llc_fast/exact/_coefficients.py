"""Learning coefficients of models that are solved: what an LLC tends to as nbeta grows."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

from llc_fast.errors import ArgumentError
from llc_fast.exact._check import integer


class LearningCoefficient(NamedTuple):
    """The free energy of n samples grows as value log n - (multiplicity - 1) log log n."""

    value: float
    multiplicity: int


def regular(parameters: int) -> LearningCoefficient:
    """Return the coefficient d/2 of a model whose d parameters are identifiable.

    Raises `ArgumentError` for a negative number. Source: Schwarz 1978; Watanabe 2009, Algebraic
    Geometry and Statistical Learning Theory.

    >>> regular(3)
    LearningCoefficient(value=1.5, multiplicity=1)
    """
    return LearningCoefficient(integer("parameters", parameters, 0) / 2, 1)


def linear_regression(rank: int, outputs: int = 1) -> LearningCoefficient:
    """Return the coefficient of linear regression, rank of the design times outputs, over 2.

    Directions that the design does not see are flat and cost nothing. Raises `ArgumentError` for a
    negative rank or no output. Source: `regular` in the directions that are seen.

    >>> linear_regression(rank=3, outputs=2)
    LearningCoefficient(value=3.0, multiplicity=1)
    """
    return regular(integer("rank", rank, 0) * integer("outputs", outputs, 1))


def power_product(exponents: Sequence[int], prior: Sequence[int] | None = None) -> LearningCoefficient:
    """Return the coefficient of K = prod w_i^(2 k_i) at 0: the least (h_i + 1)/(2 k_i), how often attained.

    exponents: k_i >= 1. prior: h_i >= 0 of a prior prod |w_i|^h_i, 0 by default. Raises
    `ArgumentError` for others. Source: Watanabe 2009, the normal crossing form.

    >>> power_product([1, 1])
    LearningCoefficient(value=0.5, multiplicity=2)
    """
    poles = _poles(exponents, prior)
    return LearningCoefficient(float(min(poles)), poles.count(min(poles)))


def power_sum(exponents: Sequence[int], prior: Sequence[int] | None = None) -> LearningCoefficient:
    """Return the coefficient of K = sum w_i^(2 k_i) at 0, the sum of (h_i + 1)/(2 k_i).

    Arguments and errors are those of `power_product`. Source: Watanabe 2009; independent variables add.

    >>> power_sum([2, 1])
    LearningCoefficient(value=0.75, multiplicity=1)
    """
    return LearningCoefficient(float(sum(_poles(exponents, prior))), 1)


def reduced_rank(inputs: int, hidden: int, outputs: int, rank: int) -> LearningCoefficient:
    """Return the coefficient of y = B A x, A (hidden, inputs), B (outputs, hidden), of true rank `rank`.

    It is the least over all true parameters: `reduced_rank_local` has the value at others. Raises
    `ArgumentError` for a width below 1 or a rank above the least. Source: Aoyagi & Watanabe 2005,
    Neural Networks 18(7):924-933, main theorem.

    >>> reduced_rank(2, 2, 2, 0)
    LearningCoefficient(value=1.5, multiplicity=1)
    >>> reduced_rank(35, 6, 18, 1).value
    68.5
    """
    m, h, n = _widths("inputs, hidden, outputs", (inputs, hidden, outputs))
    r = integer("rank", rank, 0, min(m, h, n))
    if m + h < n + r:
        return LearningCoefficient((h * m - h * r + n * r) / 2, 1)
    if n + h < m + r:
        return LearningCoefficient((h * n - h * r + m * r) / 2, 1)
    if m + n < h + r:
        return LearningCoefficient(m * n / 2, 1)
    q = 2 * (h + r) * (m + n) + 2 * m * n - (h + r) ** 2 - m**2 - n**2
    odd = (m + h + n + r) % 2
    return LearningCoefficient((q + odd) / 8, 1 + odd)


def reduced_rank_local(
    inputs: int, hidden: int, outputs: int, rank: int, first_rank: int, second_rank: int
) -> LearningCoefficient:
    """Return the local coefficient of y = B A x at A of rank a and B of rank b with B A of rank r.

    It is least, and equal to `reduced_rank`, where a = b = r. Elsewhere a chain sees the higher value only
    under a localization strong enough to hold it there: a Gaussian prior reaches every true parameter, and
    at a fixed one the least of them wins as nbeta grows. rank, first_rank, second_rank: r, a, b. Raises
    `ArgumentError` where no such matrices exist. Source: in adapted bases d(BA) has rank N a + M b - a b,
    and what is left is a reduced rank regression of rank 0 from the kernel of A to the cokernel of B.

    >>> reduced_rank_local(35, 6, 18, rank=1, first_rank=1, second_rank=6).value
    111.0
    """
    m, h, n = _widths("inputs, hidden, outputs", (inputs, hidden, outputs))
    a = integer("first_rank", first_rank, 0, min(m, h))
    b = integer("second_rank", second_rank, 0, min(n, h))
    r = integer("rank", rank, max(0, a + b - h), min(a, b))
    smooth = (n * a + m * b - a * b) / 2
    rest = (m - a, h - a - b + r, n - b)
    if min(rest) == 0:
        return LearningCoefficient(smooth, 1)
    value, multiplicity = reduced_rank(*rest, 0)
    return LearningCoefficient(smooth + value, multiplicity)


def deep_linear(widths: Sequence[int], rank: int) -> LearningCoefficient:
    """Return the coefficient of a deep linear network whose true product of weights has rank `rank`.

    widths: of the layers from input to output, at least two. It is the least over all true
    parameters, attained where every layer has rank `rank`. Raises `ArgumentError` for a width below 1
    or a rank above the least. Source: Aoyagi 2024, Neural Networks 172:106132, main theorem.

    >>> deep_linear([10, 20, 15, 10], rank=3)
    LearningCoefficient(value=49.5, multiplicity=1)
    """
    sizes = _widths("widths", widths)
    if len(sizes) < 2:
        raise ArgumentError(f"widths={widths!r} has no layer; pass the input width and each output width")
    r = integer("rank", rank, 0, min(sizes))
    excess = sorted(size - r for size in sizes)
    few = _bottleneck(excess)
    layers, total = len(few) - 1, sum(few)
    a = total - (-(-total // layers) - 1) * layers
    value = (
        Fraction(r * (sizes[0] + sizes[-1]) - r * r, 2)
        + Fraction(a * (layers - a), 4 * layers)
        - Fraction((layers - 1) * total**2, 4 * layers)
        + Fraction(sum(x * y for x, y in itertools.combinations(few, 2)), 2)
    )
    return LearningCoefficient(float(value), a * (layers - a) + 1)


def _bottleneck(excess: list[int]) -> list[int]:
    """The narrowest layers of the sorted `excess`, those that decide the coefficient."""
    for layers in range(1, len(excess)):
        few, rest = excess[: layers + 1], excess[layers + 1 :]
        enough = sum(few) >= layers * few[-1]
        if enough and (not rest or (few[-1] < rest[0] and sum(few) < layers * rest[0])):
            return few
    raise AssertionError(f"no set of layers fits {excess}")


def _poles(exponents: Sequence[int], prior: Sequence[int] | None) -> list[Fraction]:
    ks = [integer("exponents", k, 1) for k in exponents]
    hs = [0] * len(ks) if prior is None else [integer("prior", h, 0) for h in prior]
    if not ks or len(hs) != len(ks):
        raise ArgumentError(
            f"exponents and prior have lengths {len(ks)} and {len(hs)}; pass one for each variable"
        )
    return [Fraction(h + 1, 2 * k) for k, h in zip(ks, hs, strict=True)]


def _widths(name: str, widths: Sequence[int]) -> list[int]:
    return [integer(name, width, 1) for width in widths]
