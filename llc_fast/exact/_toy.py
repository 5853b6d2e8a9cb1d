"""The toy model of superposition with two hidden units: critical points whose coefficients are known.

x = t e_i with i uniform over c features and t uniform in [0, 1]; the output is relu(W W' x + b) with
W (c, 2) and b (c,); the loss is E |x - output|^2. At the points listed here it is smooth, and every
flat direction is an exact symmetry, so that the learning coefficient is half the Hessian's rank.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from llc_fast.errors import ArgumentError
from llc_fast.exact._check import Array, array, integer
from llc_fast.exact._coefficients import LearningCoefficient


class ToyModel(NamedTuple):
    """Weights (features, 2) and bias (features,) of a critical point, its loss and coefficient."""

    weights: Array
    bias: Array
    loss: float
    coefficient: LearningCoefficient


# Radius and bias that minimise the loss of a regular polygon.
_POLYGONS = {5: (1.170459639097829, -0.2822972831267717), 6: (1.3205263307799664, -0.618135131868214)}
# The best constant output for a feature that is not represented is its mean.
_MEAN_BIAS = 1 / 12
_DEAD_BIAS = -0.5

# (features, name) -> corners, bias of the feature that is left, twice the coefficient
_POINTS = {
    (5, "5-gon"): (5, 0.0, 14),
    (6, "5-gon"): (5, _DEAD_BIAS, 14),
    (6, "5+-gon"): (5, _MEAN_BIAS, 17),
    (6, "6-gon"): (6, 0.0, 17),
}


def toy_model(name: str, features: int) -> ToyModel:
    """Return a critical point of the toy model of superposition with its loss and coefficient.

    name: "5-gon" or "6-gon"; with 6 features also "5+-gon"; the sixth feature of a "5-gon" is dead,
    that of a "5+-gon" outputs its mean. Raises `ArgumentError` for others: polygons of fewer corners
    sit on kinks of the ReLU, where no exact value is known. The 6-gon's smallest curvature is .0206, so
    that an LLC near its coefficient needs nbeta / localization of thousands. Source: Chen et al. 2023,
    arXiv 2310.06301.

    >>> point = toy_model("6-gon", features=6)
    >>> round(point.loss, 6), point.coefficient.value
    (0.048192, 8.5)
    """
    key = (integer("features", features, 1), name)
    if key not in _POINTS:
        known = ", ".join(f"{n!r} with {c} features" for c, n in _POINTS)
        raise ArgumentError(f"name={name!r} with features={features} is not known; pass {known}")
    corners, other_bias, rank = _POINTS[key]
    radius, polygon_bias = _POLYGONS[corners]
    angle = 2 * np.pi * np.arange(corners) / corners
    weights = np.zeros((features, 2))
    weights[:corners] = radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    bias = np.full(features, other_bias)
    bias[:corners] = polygon_bias
    return ToyModel(weights, bias, toy_model_loss(weights, bias), LearningCoefficient(rank / 2, 1))


def toy_model_loss(weights: ArrayLike, bias: ArrayLike) -> float:
    """Return the population loss of the toy model of superposition, E |x - relu(W W' x + b)|^2.

    weights: (features, hidden). bias: (features,). Raises `ArgumentError` where shapes differ. Source:
    Chen et al. 2023, arXiv 2310.06301; integrals of quadratics between the kinks.

    >>> round(toy_model_loss([[0.0, 0.0]], [0.5]), 6)  # the variance of a uniform variable
    0.083333
    """
    w = array("weights", weights, ndim=2)
    b = array("bias", bias, ndim=1)
    if len(b) != len(w):
        raise ArgumentError(f"bias has {len(b)} entries where weights has {len(w)} rows; pass one for each")
    slope = w @ w.T  # of output i in t, when x = t e_j
    offset = np.broadcast_to(b[:, None], slope.shape)
    with np.errstate(divide="ignore", invalid="ignore"):
        kink = np.clip(np.nan_to_num(-offset / slope), 0.0, 1.0)
    # the part of [0, 1] where the unit is on
    low = np.where(slope > 0, kink, 0.0)
    high = np.where(slope < 0, kink, np.where((slope > 0) | (offset > 0), 1.0, 0.0))
    one, t, tt = (high**k / k - low**k / k for k in (1, 2, 3))
    squared = slope**2 * tt + 2 * slope * offset * t + offset**2 * one
    product = np.diag(slope * tt + offset * t)
    return float(squared.sum() - 2 * product.sum() + len(b) / 3) / len(b)
