"""The exact posterior of a deep linear network, sampled layer by layer: no step size, no bias."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from llc_fast.errors import ArgumentError
from llc_fast.exact._check import Array, array, integer, positive


class GibbsEstimate(NamedTuple):
    """A mean over Gibbs sweeps and its standard error."""

    value: float
    standard_error: float


def deep_linear_llc(
    layers: Sequence[ArrayLike],
    *,
    nbeta: float,
    localization: float,
    num_sweeps: int = 1000,
    num_burnin_sweeps: int = 100,
    num_chains: int = 16,
    seed: int = 0,
) -> GibbsEstimate:
    """Return nbeta E[K] of a deep linear network around w0, K = |W_L...W_1 - product at w0|^2 / 2.

    layers: W_1 ... W_L at w0, each (outputs, inputs); K is the population loss for inputs of unit
    covariance. The density is exp(-nbeta K - localization |w - w0|^2 / 2). num_sweeps: kept in each of
    num_chains >= 2 independent chains, after num_burnin_sweeps. The standard error is that of the
    chains' means, so that autocorrelation within a chain does not enter; chains that all stay where
    they started would hide from it. Raises `ArgumentError` for layers that do not fit one another and
    for counts or numbers out of range. Source: each layer is Gaussian given the others; averages are
    taken over that conditional (Gelfand & Smith 1990, JASA 85:398, on such estimates).

    >>> exact, error = deep_linear_llc([[[1.0]]], nbeta=9.0, localization=1.0, num_sweeps=1)
    >>> round(exact, 6)  # one layer: a quadratic
    0.45
    """
    anchor = _layers(layers)
    beta, gamma = positive("nbeta", nbeta), positive("localization", localization)
    chains = integer("num_chains", num_chains, 2)
    burnin, sweeps = integer("num_burnin_sweeps", num_burnin_sweeps, 0), integer("num_sweeps", num_sweeps, 1)
    rng = np.random.default_rng(integer("seed", seed, 0))
    inputs, outputs = anchor[0].shape[1], anchor[-1].shape[0]
    target = np.eye(inputs)
    for w in anchor:
        target = w @ target
    weights = [np.repeat(w[None], chains, axis=0) for w in anchor]
    total = np.zeros(chains)
    for sweep in range(burnin + sweeps):
        above = [np.broadcast_to(np.eye(outputs), (chains, outputs, outputs))]
        for w in reversed(weights[1:]):
            above.insert(0, above[0] @ w)
        below = np.broadcast_to(np.eye(inputs), (chains, inputs, inputs))
        for i, w0 in enumerate(anchor):
            weights[i], loss = _draw_layer(rng, above[i], below, w0, target, beta, gamma)
            if sweep >= burnin:
                total += loss
            below = weights[i] @ below
    means = beta * total / (sweeps * len(anchor))
    return GibbsEstimate(float(means.mean()), float(means.std(ddof=1)) / math.sqrt(chains))


def _draw_layer(
    rng: np.random.Generator,
    above: Array,
    below: Array,
    anchor: Array,
    target: Array,
    nbeta: float,
    localization: float,
) -> tuple[Array, Array]:
    """A draw of W given target ~ above W below, and the mean loss over such draws, for each chain."""
    left, u = np.linalg.eigh(_transpose(above) @ above)
    right, v = np.linalg.eigh(below @ _transpose(below))
    # In the eigenbases of both sides the elements of W are independent.
    curvature = np.maximum(left, 0.0)[:, :, None] * np.maximum(right, 0.0)[:, None, :]
    inverse = 1 / (nbeta * curvature + localization)
    # Solving for the distance from the anchor keeps small distances exact.
    residual = target - above @ anchor @ below
    pull = nbeta * _transpose(u) @ (_transpose(above) @ residual @ _transpose(below)) @ v
    mean = pull * inverse
    left_over = residual - above @ (u @ mean @ _transpose(v)) @ below
    loss = ((left_over**2).sum((1, 2)) + (curvature * inverse).sum((1, 2))) / 2
    draw = mean + np.sqrt(inverse) * rng.standard_normal(mean.shape)
    return anchor + u @ draw @ _transpose(v), loss


def _layers(layers: Sequence[ArrayLike]) -> list[Array]:
    matrices = [array("layers", w, ndim=2) for w in layers]
    if not matrices:
        raise ArgumentError("layers is empty; pass at least one weight matrix")
    for lower, upper in itertools.pairwise(matrices):
        if upper.shape[1] != lower.shape[0]:
            raise ArgumentError(
                f"layers of shape {lower.shape} and {upper.shape} do not fit; pass (outputs, inputs) each"
            )
    return matrices


def _transpose(x: Array) -> Array:
    return np.swapaxes(x, -1, -2)
