"""Whether chains are as warm and as far from w0 as a sampler at equilibrium is."""

from __future__ import annotations

import math

import numpy as np

from .blocks import Array
from .error import mcse

COLD, HOT = 0.9, 1.1
FAR = 1.1


def temperature(virial: Array) -> tuple[float, float]:
    """Mean of d.a over weights and draws, and its standard error.

    virial: (w - w0).a over the number of weights, (chains, draws); a is the drift, nbeta g + localization (w - w0).
    At equilibrium it is 1 as lr goes to 0, and at step lr the mean over weights of 1/(1 - lr a_i/4), a_i the
    curvatures of a. Below 1, `COLD`, chains have not reached it yet: give more burn-in. Above, `HOT`, steps are too
    large for the curvature, or the noise of batches heats. Source: the virial theorem, E[x_i dU/dx_i] = 1 for the
    density exp(-U).
    """
    if not virial.size or not np.isfinite(virial).all():
        return math.nan, math.nan
    return float(virial.mean()), mcse(virial)[0]


def distance_ratio(
    distance: Array, *, weights: int, localization: float, lr: float = 0.0, noise_level: float = 1.0
) -> tuple[float, float]:
    """Root mean square of |w - w0| over that of chains without a loss, sqrt(d/localization), and its error.

    distance: |w - w0|^2 of draws, (chains, draws). A loss with its minimum at w0 can only hold weights closer: 1 is
    reached where it pins none, and below it early, because that takes 1/(lr localization) steps. Above `FAR` chains
    diverge, or slide from w0 to lower losses. The step's own factor 1/(1 - lr localization/4) is taken out. NaN
    without localization, and where that makes the walk unstable. Source: the stationary law of the walk.
    """
    slack = 1 - lr * localization / 4
    if localization <= 0 or slack <= 0 or noise_level == 0 or not np.isfinite(distance).all():
        return math.nan, math.nan
    ratio = distance * (localization * slack / (weights * noise_level**2))
    root = math.sqrt(float(ratio.mean()))
    return root, mcse(ratio)[0] / (2 * root) if root else math.nan
