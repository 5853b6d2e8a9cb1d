"""The LLC that stationary Langevin dynamics gives on a quadratic loss, also where w0 is no minimum."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from llc_fast.errors import ArgumentError
from llc_fast.exact._check import Array, array, fitting, positive, symmetric
from llc_fast.exact._stationary import precision, quadratic_variance, stationary


def gaussian_llc(hessian: ArrayLike, covariance: ArrayLike, *, nbeta: float) -> float:
    """Return nbeta tr(H S) / 2, the LLC that draws of covariance S centred at w0 give.

    hessian, covariance: eigenvalues and variances (d,), or matrices (d, d). Raises `ArgumentError`
    where the shapes differ. Source: Lau et al. 2023, definition of the estimator.

    >>> gaussian_llc([2.0, 1.0], [0.5, 1.0], nbeta=3.0)
    3.0
    """
    h = array("hessian", hessian)
    s = array("covariance", covariance)
    if h.shape != s.shape:
        raise ArgumentError(f"covariance has shape {s.shape} where hessian has {h.shape}; pass two alike")
    return positive("nbeta", nbeta) / 2 * float((h * s).sum())


def quadratic_centre(
    eigenvalues: ArrayLike,
    *,
    nbeta: float,
    localization: float = 0.0,
    weight_decay: float = 0.0,
    gradient: ArrayLike = 0.0,
    anchor: ArrayLike = 0.0,
) -> Array:
    """Return where the chain settles relative to w0, -(nbeta g + weight_decay w0) / a, in eigendirections.

    gradient: g, the gradient of the loss at w0, one number or (d,). anchor: w0, of which weight decay
    alone takes notice. Raises `ArgumentError` where a <= 0. Source: the drift vanishes there.

    >>> quadratic_centre([1.0], nbeta=3.0, localization=1.0, gradient=4.0)
    array([-3.])
    """
    h = array("eigenvalues", eigenvalues, ndim=1)
    a = precision(h, nbeta=nbeta, localization=localization, weight_decay=weight_decay)
    stationary(a, 0.0)
    g = fitting("gradient", gradient, "eigenvalues", h.shape)
    return -(nbeta * g + weight_decay * fitting("anchor", anchor, "eigenvalues", h.shape)) / a


def quadratic_shift(
    eigenvalues: ArrayLike,
    *,
    nbeta: float,
    localization: float = 0.0,
    weight_decay: float = 0.0,
    gradient: ArrayLike = 0.0,
    anchor: ArrayLike = 0.0,
) -> float:
    """Return what the LLC gains where w0 is no minimum: with a gradient g, -(nbeta g)^2/a (1 - nbeta h/(2a)).

    Arguments and errors are those of `quadratic_centre`; the sum over eigendirections is returned.
    Without weight decay it is never positive where h > 0: this is where negative estimates come from.

    >>> quadratic_shift([1.0], nbeta=3.0, localization=1.0, gradient=4.0)
    -22.5
    """
    centre = quadratic_centre(
        eigenvalues,
        nbeta=nbeta,
        localization=localization,
        weight_decay=weight_decay,
        gradient=gradient,
        anchor=anchor,
    )
    h = np.asarray(eigenvalues, dtype=np.float64)
    return nbeta * float((h * centre**2 / 2 + np.asarray(gradient) * centre).sum())


def quadratic_llc(
    eigenvalues: ArrayLike,
    *,
    nbeta: float,
    lr: float = 0.0,
    localization: float = 0.0,
    weight_decay: float = 0.0,
    noise_level: float = 1.0,
    gradient: ArrayLike = 0.0,
    anchor: ArrayLike = 0.0,
    gradient_variance: ArrayLike = 0.0,
) -> float:
    """Return the LLC that stationary SGLD gives at this lr; at lr = 0 and a minimum, sum nbeta h/(2a).

    eigenvalues: h, (d,), of the Hessian of the loss at w0. gradient: its gradient at w0. anchor: w0.
    gradient_variance: variance of the minibatch gradient. The last three in eigendirections, one
    number or (d,). Raises `ArgumentError` where a chain has no stationary state. Source: Lau et al.
    2023 for the estimator; `quadratic_variance` and `quadratic_shift` for its two parts.

    >>> quadratic_llc([1.0, 1.0], nbeta=100.0)
    1.0
    >>> round(quadratic_llc([1.0, 1.0], nbeta=99.0, localization=1.0, lr=4e-4), 6)
    1.0
    """
    h = array("eigenvalues", eigenvalues, ndim=1)
    a = precision(h, nbeta=nbeta, localization=localization, weight_decay=weight_decay)
    drift = nbeta**2 * fitting("gradient_variance", gradient_variance, "eigenvalues", h.shape, least=0.0)
    variance = quadratic_variance(a, lr, noise_level=noise_level, drift_variance=drift)
    return gaussian_llc(eigenvalues, variance, nbeta=nbeta) + quadratic_shift(
        eigenvalues,
        nbeta=nbeta,
        localization=localization,
        weight_decay=weight_decay,
        gradient=gradient,
        anchor=anchor,
    )


def restricted_llc(
    hessian: ArrayLike,
    coordinates: Sequence[int],
    *,
    nbeta: float,
    lr: float = 0.0,
    localization: float = 0.0,
    weight_decay: float = 0.0,
) -> float:
    """Return the LLC of a chain that moves some coordinates only: that of the Hessian's principal block.

    hessian: (d, d), symmetric. coordinates: distinct indices in [0, d). Raises `ArgumentError` for
    others. Over a partition of the coordinates, at lr = 0, these sum to at least the full LLC: h/(h + c)
    is concave and the full eigenvalues majorize the blocks'. Source: Wang et al. 2024,
    arXiv 2410.02984, for the restricted LLC; Marshall, Olkin & Arnold 2011,
    Inequalities, for the majorization.

    >>> restricted_llc([[1.0, 0.5], [0.5, 1.0]], [1], nbeta=9.0, localization=1.0)
    0.45
    """
    h = symmetric("hessian", hessian)
    index = np.asarray(coordinates)
    ok = index.ndim == 1 and index.size > 0 and np.issubdtype(index.dtype, np.integer)
    if not ok or index.min() < 0 or index.max() >= len(h) or len(np.unique(index)) < len(index):
        raise ArgumentError(
            f"coordinates={coordinates!r} are not distinct indices below {len(h)}; pass a list of such ints"
        )
    eigenvalues = np.linalg.eigvalsh(h[np.ix_(index, index)])
    return quadratic_llc(
        eigenvalues, nbeta=nbeta, lr=lr, localization=localization, weight_decay=weight_decay
    )
