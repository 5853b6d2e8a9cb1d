"""What is known to separate an estimate from the answer at step size 0, or for other data."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt


def order_bias(
    noise: float,
    positions: npt.NDArray[np.int64],
    *,
    nbeta: float,
    lr: float,
    sampler: str,
    friction: float | None,
    epoch: int | None,
    pool: int | None,
    per_step: int,
) -> float:
    """What taking losses on the gradients' own batches adds; NaN where it is not known.

    noise: trace of the covariance over the pool of single batches' gradients at w0. positions: place of each draw's
    step in its epoch, of `epoch` steps, each of which takes `per_step` of the pool's batches. A step's batches are a
    random part of the pool: they have its covariance, less what parts of a finite pool share.
    """
    if epoch == 1 or lr == 0 or nbeta == 0:
        return 0.0
    if epoch is None or pool is None or sampler == "rmsprop_sgld":  # whose preconditioner is not known here
        return math.nan
    of_step = noise * (pool - per_step) / ((pool - 1) * per_step)
    return nbeta**2 * of_step * _echo(positions, epoch, lr, friction)


def _echo(positions: npt.NDArray[np.int64], size: int, lr: float, friction: float | None) -> float:
    """How far the gradient of a batch has moved the weights by the time its loss is taken again, per unit of it.

    A batch seen k steps ago in the epoch has moved them by lr/2, with friction A by lr (1 - (1 - A)^k)/A; each has
    -1/(size - 1) of the covariance with those after it.
    """
    if friction is None:
        return float(lr / 2 * positions.mean() / (size - 1))
    k = np.arange(1, size)
    moved = lr * (k if friction < 1e-9 else (1 - (1 - friction) ** k) / friction)
    return float(np.concatenate(([0.0], np.cumsum(moved)))[positions].mean() / (size - 1))
