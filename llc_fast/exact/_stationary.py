"""Langevin dynamics on a quadratic loss: what a chain does once it has forgotten its start.

The loss is L(w0 + u) = L(w0) + g.u + u.H u/2. One step of the chain is

    u  <-  u - (lr/2) (nbeta dL(u) + weight_decay (w0 + u) + localization u) + sqrt(lr) noise_level z

with z standard normal, so that an eigendirection of H with eigenvalue h is an autoregression with
coefficient rho = 1 - lr a/2, a = nbeta h + localization + weight_decay its `precision`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from llc_fast.errors import ArgumentError
from llc_fast.exact._check import Array, array, fitting, non_negative, positive, symmetric


def precision(
    hessian: ArrayLike, *, nbeta: float, localization: float = 0.0, weight_decay: float = 0.0
) -> Array:
    """Return nbeta H + localization + weight_decay, the inverse covariance that a chain samples at lr = 0.

    hessian: eigenvalues (d,), or the matrix (d, d), to whose diagonal the rest is added. Raises
    `ArgumentError` for a nbeta that is not positive. Source: Lau et al. 2023, arXiv 2308.12108, the
    localized posterior.

    >>> precision([1.0, 0.0], nbeta=30.0, localization=2.0)
    array([32.,  2.])
    """
    h = array("hessian", hessian)
    prior = non_negative("localization", localization) + non_negative("weight_decay", weight_decay)
    identity = np.eye(len(symmetric("hessian", h))) if h.ndim == 2 else 1.0
    return np.asarray(positive("nbeta", nbeta) * h + prior * identity)


def stability_limit(precision: ArrayLike) -> float:
    """Return the lr at and above which the chain diverges, 4 / max(precision).

    precision: a > 0 for each eigendirection, (d,). Raises `ArgumentError` if none is positive.
    Source: |1 - lr a/2| < 1.

    >>> stability_limit([10.0, 40.0])
    0.1
    """
    largest = float(array("precision", precision).max())
    if largest <= 0:
        raise ArgumentError(f"precision is at most {largest:g}; pass at least one positive value")
    return 4 / largest


def quadratic_variance(
    precision: ArrayLike, lr: float = 0.0, *, noise_level: float = 1.0, drift_variance: ArrayLike = 0.0
) -> Array:
    """Return the stationary variance of SGLD in each eigendirection, 1 / (a (1 - lr a/4)).

    precision: a, (d,). drift_variance: nbeta^2 times the variance of the minibatch gradient in each
    direction, one number or (d,); it adds lr/4 of itself to noise_level^2. Raises `ArgumentError`
    where a <= 0 or lr a >= 4, where nothing is stationary. Source: the variance of a first-order
    autoregression; Mandt, Hoffman & Blei 2017, JMLR 18(134), for the minibatch term.

    >>> quadratic_variance([1.0, 1.0, 1.0], lr=2.0)
    array([2., 2., 2.])
    """
    a = stationary(precision, non_negative("lr", lr))
    drift = fitting("drift_variance", drift_variance, "precision", a.shape, least=0.0)
    innovation = non_negative("noise_level", noise_level) ** 2 + lr * drift / 4
    return np.asarray(innovation / (a * (1 - lr * a / 4)))


def innovation_covariance(
    lr: float,
    drift_covariance: ArrayLike,
    *,
    noise_level: float = 1.0,
    preconditioner: ArrayLike = 1.0,
) -> Array:
    """Return the covariance of what one step of SGLD adds at random, lr s^2 P + lr^2 P D P / 4.

    drift_covariance: D = nbeta^2 C, C (d, d) the covariance of the minibatch gradient, the same at
    every w. noise_level: s. preconditioner: the diagonal of P, one number or (d,). Raises
    `ArgumentError` for an asymmetric D or a P that is not positive. Source: Mandt et al. 2017.

    >>> innovation_covariance(0.1, [[4.0]])
    array([[0.11]])
    """
    drift = symmetric("drift_covariance", drift_covariance)
    p = _preconditioner(preconditioner, len(drift))
    step = non_negative("lr", lr)
    noise = step * non_negative("noise_level", noise_level) ** 2
    return noise * np.diag(p) + step**2 * p[:, None] * drift * p / 4


def quadratic_covariance(
    precision: ArrayLike,
    lr: float = 0.0,
    *,
    noise_level: float = 1.0,
    preconditioner: ArrayLike = 1.0,
    drift_covariance: ArrayLike | None = None,
) -> Array:
    """Return the stationary covariance of SGLD with a fixed preconditioner and minibatch noise.

    precision: A, (d, d), symmetric, positive definite. preconditioner: the diagonal of P, one number
    or (d,): the step is lr P. drift_covariance: nbeta^2 C, (d, d), C the covariance of the minibatch
    gradient. Raises `ArgumentError` where A is not positive definite or lr P^.5 A P^.5 reaches 4.
    Source: the discrete Lyapunov equation S = R S R' + Q, R = 1 - lr P A/2, Q the
    `innovation_covariance`; at lr = 0 it is A^-1 whatever P.

    >>> quadratic_covariance([[1.0, 0.0], [0.0, 1.0]], lr=1.0, preconditioner=[1.0, 2.0]).diagonal()
    array([1.33333333, 2.        ])
    """
    matrix = symmetric("precision", precision)
    d = len(matrix)
    p = _preconditioner(preconditioner, d)
    drift = symmetric(
        "drift_covariance", np.zeros((d, d)) if drift_covariance is None else drift_covariance, d
    )
    # In coordinates P^-.5 u the step is symmetric, so one eigendecomposition solves the equation.
    root = np.sqrt(p)
    a, vectors = np.linalg.eigh(root[:, None] * matrix * root)
    stationary(a, non_negative("lr", lr))
    whitened = vectors.T @ (root[:, None] * drift * root) @ vectors
    innovation = non_negative("noise_level", noise_level) ** 2 * np.eye(d) + lr * whitened / 4
    # 1 - rho_i rho_j, divided by lr
    gap = (a[:, None] + a) / 2 - lr * a[:, None] * a / 4
    basis = root[:, None] * vectors
    return np.asarray(basis @ (innovation / gap) @ basis.T)


def virial(precision: ArrayLike, lr: float = 0.0) -> float:
    """Return the stationary mean of (w - w0).drift / d of SGLD, the mean of 1 / (1 - lr a/4): 1 at lr = 0.

    precision: a, (d,). It is the same where w0 is no minimum. Raises `ArgumentError` as
    `quadratic_variance` does. Source: the virial theorem, at a finite step.

    >>> virial([1.0, 3.0], lr=1.0)
    2.6666666666666665
    """
    a = array("precision", precision)
    return float((a * quadratic_variance(a, lr)).mean())


def stationary(precision: ArrayLike, lr: float) -> Array:
    """The positive precisions of a chain that is stable at this lr."""
    a = array("precision", precision)
    if a.min() <= 0:
        raise ArgumentError(
            f"precision goes down to {a.min():g}, so nothing is stationary; raise localization above that"
        )
    if lr * a.max() >= 4:
        limit = 4 / a.max()
        raise ArgumentError(f"lr={lr:g} is unstable at precision {a.max():g}; pass an lr below {limit:g}")
    return a


def _preconditioner(preconditioner: ArrayLike, d: int) -> Array:
    p = fitting("preconditioner", preconditioner, "the matrix's diagonal", (d,))
    if p.min() <= 0:
        raise ArgumentError(f"preconditioner goes down to {p.min():g}; pass positive numbers")
    return p
