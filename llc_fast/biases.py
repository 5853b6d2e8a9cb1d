"""What is known to separate an estimate from the answer at step size 0, or for other data."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from .diagnostics import Array


def target(lr: float, batches: int | None, samples: int | None, *, disjoint: bool) -> str:
    """What an estimate is of, in words."""
    counts = ((batches, "batches"), (samples, "samples"))
    held = ", ".join(f"{count} {what}" for count, what in counts if count is not None)
    loss = "the data that the chains' disjoint pools come from" if disjoint else "the pool itself"
    beside = "" if disjoint else "; for the data that the pool comes from, pool bias"
    return (
        f"nbeta (E[L(w)] - L(w0)) for the loss of {loss}{f' ({held})' if held else ''}, at the lr used, {lr:g}; "
        f"order bias and the bias of the step stand beside it{beside}"
    )


def order_bias(
    noise: float,
    steps: npt.NDArray[np.int64],
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

    noise: trace of the covariance over the pool of single batches' gradients at w0. steps: of the draws, each of
    which takes the next `per_step` batches of the pool, shuffled anew for every pass. epoch: steps of a pass, None
    where passes end within steps; and, where they need not, for chains that make no passes.
    """
    if epoch == 1 or (pool and per_step % pool == 0) or lr == 0 or nbeta == 0:
        return 0.0
    if pool is None or (epoch is None and pool % per_step == 0):
        return math.nan
    if sampler == "rmsprop_sgld":  # whose preconditioner is not known here
        return math.nan
    return nbeta**2 * noise / ((pool - 1) * per_step**2) * _echo(steps, pool, per_step, lr, friction)


def _echo(steps: npt.NDArray[np.int64], pool: int, per_step: int, lr: float, friction: float | None) -> float:
    """How far the batches before a step have moved the weights, per unit of gradient, summed over the step's batches.

    A batch taken k steps ago has moved them by lr/2, with friction A by lr (1 - (1 - A)^k)/A. It has -1/(pool - 1)
    of the covariance with others of its pass, and none with those of other passes: of a step only the batches that
    go on with the pass before it count.
    """
    before = steps * per_step % pool  # of the same pass
    going_on = np.minimum(per_step, pool - before)
    whole, rest = np.divmod(before, per_step)  # the earliest of them share a step with the pass before
    k = np.arange(1, pool // per_step + 2)
    if friction is None:
        moved = np.full(k.size, lr / 2)
    else:
        moved = lr * (k if friction < 1e-9 else (1 - (1 - friction) ** k) / friction)
    summed = np.concatenate(([0.0], np.cumsum(moved)))
    return float((going_on * (per_step * summed[whole] + rest * moved[whole])).mean())


def pool_bias(
    half: Array | None, gain: float, error: float, *, nbeta: float, pool: int | None
) -> tuple[float, float, int | None]:
    """What an estimate reads low for the data that its pool comes from, its standard error, and from how many pairs.

    half: gains of chains on halves of the pool, (half_chains, draws); rows 2k and 2k + 1 are the two halves of one
    random cut, and those of dead chains are NaN. Only whole pairs count: the halves of a cut lean to opposite sides,
    and cuts differ by more than chains on them do. gain: the mean on the whole pool, and its error. The bias goes
    with 1/batches: of the difference between h batches and `pool` it is h/(pool - h).
    None pairs where no chains walked on halves; NaN for the error of fewer than two, NaN for the value of none.
    """
    if half is None or pool is None:
        return math.nan, math.nan, None
    means = half[: len(half) // 2 * 2].mean(axis=1).reshape(-1, 2).mean(axis=1)
    means = means[np.isfinite(means)]
    if not means.size:
        return math.nan, math.nan, 0
    size = pool // 2
    scale = nbeta * size / (pool - size)
    value = scale * (gain - float(means.mean()))
    if means.size < 2:
        return value, math.nan, 1
    return value, scale * math.hypot(error, float(means.std(ddof=1)) / math.sqrt(means.size)), means.size
