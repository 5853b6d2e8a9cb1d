"""Bayesian linear regression: what the observables of a posterior are, loss by loss.

Weights are Gaussian around w with covariance S, losses are l_i = (y_i - x_i.w)^2 / 2, and
c = X S X' is the covariance of the predictions.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from llc_fast.errors import ArgumentError
from llc_fast.exact._check import Array, array, fitting, symmetric


def loss_kernel(design: ArrayLike, residuals: ArrayLike, covariance: ArrayLike) -> Array:
    """Return the covariance of the losses under the posterior, c_ij^2 / 2 + e_i e_j c_ij.

    design: X, (n, d). residuals: e = y - X w at the posterior mean, (n,). covariance: S, (d, d), as
    `quadratic_covariance` gives it. Raises `ArgumentError` where shapes differ. Source: fourth moments
    of a Gaussian (Isserlis 1918).

    >>> loss_kernel([[1.0], [2.0]], [0.0, 1.0], [[1.0]])
    array([[ 0.5,  2. ],
           [ 2. , 12. ]])
    """
    x = array("design", design, ndim=2)
    e = fitting("residuals", residuals, "design's first axis", x.shape[:1])
    s = symmetric("covariance", covariance, x.shape[1])
    if np.linalg.eigvalsh(s)[0] < -1e-9 * np.abs(s).max():
        raise ArgumentError("covariance has a negative eigenvalue; pass a positive semi-definite matrix")
    c = x @ s @ x.T
    return np.asarray(c**2 / 2 + np.outer(e, e) * c)


def bayesian_influence(design: ArrayLike, residuals: ArrayLike, covariance: ArrayLike) -> Array:
    """Return the Bayesian influence of loss j on loss i, minus their covariance.

    It is the derivative of E[l_i] when the weight of l_j in the posterior grows. Arguments and errors
    are those of `loss_kernel`. Source: Giordano & Broderick 2023, arXiv 2305.06466; Kreer et al. 2025,
    arXiv 2509.26544.

    >>> bayesian_influence([[1.0]], [0.0], [[1.0]])
    array([[-0.5]])
    """
    return -loss_kernel(design, residuals, covariance)


def functional_variance(design: ArrayLike, residuals: ArrayLike, covariance: ArrayLike) -> float:
    """Return the functional variance of the posterior, the sum of the losses' variances.

    Arguments and errors are those of `loss_kernel`. Source: Watanabe 2010, JMLR 11:3571, of WAIC.

    >>> functional_variance([[1.0], [2.0]], [0.0, 1.0], [[1.0]])
    12.5
    """
    return float(np.trace(loss_kernel(design, residuals, covariance)))
