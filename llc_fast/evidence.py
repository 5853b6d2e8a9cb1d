"""What chains leave behind, wherever it comes from, and the one analysis of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from . import diagnostics
from .biases import order_bias, pool_bias, target
from .controls import controlled
from .diagnostics import Array
from .errors import ChainError
from .judgement import Facts, judge, remarks
from .results import LLCResult

_MANY = 20  # epochs


@dataclass(frozen=True, kw_only=True, eq=False)
class Evidence:
    """All that an analysis needs of some chains; None or NaN where a source does not have it.

    Rows of arrays are all chains that were started; those of dead ones are NaN from their death on, or throughout.

    loss: of each step before its update, (chains, steps). gains: L_b(w) - L_b(w0) of each draw, (chains, draws);
    paired: whether L_b(w0) is that of the draw's own batches, not a mean. init_loss: mean loss at w0.
    distance, dot, boxed: |w - w0|^2, g0.(w - w0), share of weights at the box, (chains, draws). virial: mean of d.a
    over the weights, (chains, steps). controls: of mean zero, z.(w + drift - w0) and z.g of each tensor one after
    another, (chains, steps, 2 tensors).
    batch: which of the pool each step took, (chains, steps) or (chains, steps, micro-batches), -1 after death;
    baseline: the loss of each at w0, (pool,).
    epoch: steps in which a chain passes over its pool once, or oftener, None where it does not. batches_per_step: of
    the pool.
    fresh_batches: whether draws were taken on batches apart from those of the gradients, in epochs of draws; cut_draws:
    how many draws were left out before these.
    shared_order: whether all chains took them in one order. disjoint_pools: whether each chain has a pool of its own.
    dead: row -> why the chain is not counted. weights: how many the chains move. pool_samples: in the pool.
    gradient_noise: trace of the covariance over the pool of single batches' gradients at w0; gradient_batches: from
    how many it and g0 are. half_gains: gains of chains on random halves of the pool, (half_chains, draws),
    rows 2k and 2k + 1 on the two halves of one cut.
    common_error: standard error of a loss at w0 that all gains are against, NaN where it is not known.
    loss_eps: relative rounding of losses. unequal: least and greatest number of samples of a batch, where they
    differ. without_gradient: parameters that the loss does not depend on. friction: where the sampler ended.
    settings: what made the chains, for the result. remarks: for its reader.

    >>> gains = np.random.default_rng(0).normal(0.1, 0.02, (4, 200))
    >>> result = assess(Evidence(nbeta=30.0, lr=1e-3, localization=10.0, num_burnin_steps=0, num_steps_bw_draws=1,
    ...                          loss=2.0 + gains, gains=gains, paired=False, init_loss=2.0))
    >>> bool(abs(result.llc_mean - 3.0) < 4 * result.mcse)
    True
    """

    nbeta: float
    lr: float
    localization: float
    num_burnin_steps: int
    num_steps_bw_draws: int
    loss: Array
    gains: Array
    paired: bool
    init_loss: float
    sampler: str = "sgld"
    friction: float | None = None
    weight_decay: float = 0.0
    noise_level: float = 1.0
    init_noise: float = 0.0
    batch: npt.NDArray[np.integer[Any]] | None = None
    baseline: Array | None = None
    distance: Array | None = None
    dot: Array | None = None
    boxed: Array | None = None
    virial: Array | None = None
    controls: Array | None = None
    epoch: int | None = None
    batches_per_step: int = 1
    fresh_batches: bool = False
    cut_draws: int = 0
    shared_order: bool = False
    disjoint_pools: bool = False
    dead: Mapping[int, str] = field(default_factory=dict)
    weights: int | None = None
    pool_batches: int | None = None
    pool_samples: int | None = None
    gradient_noise: float = math.nan
    gradient_batches: int | None = None
    half_gains: Array | None = None
    common_error: float = 0.0
    loss_eps: float = math.nan
    unequal: tuple[int, int] | None = None
    without_gradient: Sequence[str] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    remarks: Sequence[str] = ()

    @property
    def live(self) -> list[int]:
        return [row for row in range(len(self.gains)) if row not in self.dead]

    @property
    def rhythm(self) -> tuple[int, int]:
        """How many draws make an epoch, and which one begins the first; (1, 0) where draws leave gaps in epochs."""
        if self.epoch is None or self.epoch == 1:
            return 1, 0
        if self.fresh_batches:
            return self.epoch, -self.cut_draws % self.epoch
        return (self.epoch, -self.num_burnin_steps % self.epoch) if self.num_steps_bw_draws == 1 else (1, 0)

    @property
    def paired_trace(self) -> Array:
        """L_b(w) - L_b(w0) of every step, (chains, steps); against the mean at w0 where batches are not known."""
        if self.batch is None or self.baseline is None:
            return self.loss - self.init_loss
        return self.loss - _of_batches(self.baseline, self.batch)


def assess(e: Evidence) -> LLCResult:
    """The estimate that some chains give, its error, and every check of it.

    Raises ChainError where every chain died.
    """
    live = e.live
    if not live:
        reasons = "; ".join(f"chain {chain}: {reason}" for chain, reason in list(e.dead.items())[:8])
        raise ChainError(f"every chain died ({reasons}): lower lr, or raise localization")
    nbeta, gains = e.nbeta, e.gains[live]
    per_chain = np.full(len(e.gains), math.nan)
    per_chain[live] = nbeta * gains.mean(axis=1)
    mean = float(np.nanmean(per_chain))
    blocks, basis = _blocks(e, gains)
    distance = None if e.distance is None else e.distance[live]
    error, dof = _mcse(e, gains)
    pull = math.nan if e.dot is None else nbeta * float(e.dot[live].mean())
    half, half_error, pairs = pool_bias(
        e.half_gains, float(gains.mean()), error, nbeta=nbeta, pool=e.pool_batches
    )
    virial = None if e.virial is None else e.virial[live, e.num_burnin_steps :]
    warmth, warmth_error = (math.nan, math.nan) if virial is None else diagnostics.temperature(virial)
    better = None
    if e.controls is not None:
        drawn = e.controls[live].reshape(len(live), e.controls.shape[1], -1, 2)
        better = controlled(gains, drawn, burnin=e.num_burnin_steps, thinning=e.num_steps_bw_draws)
    odd = diagnostics.odd_chains(gains, None if e.boxed is None else e.boxed[live])
    result = LLCResult(
        llc_mean=mean,
        llc_std=float(np.nanstd(per_chain)),
        llc_per_chain=per_chain,
        target=target(e.lr, e.pool_batches, e.pool_samples, disjoint=e.disjoint_pools),
        mcse=nbeta * error,
        dof=dof,
        r_hat=diagnostics.r_hat(blocks),
        r_hat_distance=math.nan if distance is None else diagnostics.r_hat(_blocks(e, distance)[0]),
        ess=diagnostics.ess(blocks),
        basis=basis,
        order_bias=_order_bias(e),
        pool_bias=half,
        pool_bias_error=half_error,
        gradient_term=pull,
        llc_without_gradient=mean - pull,
        llc_scalar=nbeta * (float(e.loss[live].mean()) - e.init_loss),
        controlled=None if better is None else nbeta * better.mean,
        controlled_mcse=None if better is None else nbeta * better.error,
        controlled_dof=None if better is None else better.dof,
        temperature=warmth,
        burnin_suggested=_burnin(e),
        half_dead={live[chain]: reason for chain, reason in odd.items()},
        init_loss=e.init_loss,
        loss_trace=e.loss,
        dead_chains=dict(e.dead),
        settings=_settings(e),
    )
    far, far_error = (math.nan, math.nan) if distance is None else _distance_ratio(e, distance)
    scale = math.nan if e.baseline is None else float(np.abs(e.baseline).mean())
    facts = Facts(
        r_hat_chance=diagnostics.r_hat_chance(*blocks.shape) if blocks.size else math.nan,
        drift=diagnostics.drift_test(_tested(e, _smooth(e, gains))),
        drift_distance=None if distance is None else diagnostics.drift_test(distance),
        temperature_error=warmth_error,
        distance_ratio=far,
        distance_ratio_error=far_error,
        gradient_term_error=math.nan if e.dot is None else nbeta * _mcse(e, e.dot[live])[0],
        unequal=e.unequal,
        resolution=nbeta * e.loss_eps / 2 * scale,
        irreproducible=nbeta * _repetition(e),
        without_gradient=e.without_gradient,
        paired=e.paired,
        shared_order=e.shared_order,
        half_pairs=pairs,
    )
    verdict = judge(result, facts)
    return replace(result, verdict=verdict, remarks=(*remarks(result, verdict, facts), *e.remarks))


def _settings(e: Evidence) -> dict[str, Any]:
    """What made the chains, with what checks read of it."""
    names = ("lr", "nbeta", "localization", "weight_decay", "noise_level", "sampler", "num_burnin_steps")
    known = {name: getattr(e, name) for name in (*names, "num_steps_bw_draws", "weights")}
    known |= {"num_draws": e.gains.shape[1], "num_chains": len(e.gains)}
    pool = {name: getattr(e, name) for name in ("pool_batches", "pool_samples", "gradient_batches")}
    return dict(e.settings) | known | pool


def _repetition(e: Evidence) -> float:
    """How far losses at step 0, where chains are at w0, are from those taken of the same batches before."""
    if e.batch is None or e.baseline is None or e.init_noise:
        return math.nan
    return float(np.abs(e.loss[:, 0] - _of_batches(e.baseline, e.batch[:, :1])[:, 0]).max())


def _of_batches(baseline: Array, batch: npt.NDArray[np.integer[Any]]) -> Array:
    """Mean loss at w0 of each step's batches; of no meaning where these are -1."""
    found: Array = baseline[batch.reshape(*batch.shape[:2], -1)].mean(axis=2)
    return found


def _order_bias(e: Evidence) -> float:
    if e.fresh_batches:
        return 0.0
    steps = e.num_burnin_steps + e.num_steps_bw_draws * np.arange(e.gains.shape[1], dtype=np.int64)
    return order_bias(
        e.gradient_noise,
        steps,
        nbeta=e.nbeta,
        lr=e.lr,
        sampler=e.sampler,
        friction=e.friction,
        epoch=e.epoch,
        pool=e.pool_batches,
        per_step=e.batches_per_step,
    )


def _blocks(e: Evidence, values: Array) -> tuple[Array, str]:
    """Means over whole epochs where draws make such, else over equal blocks."""
    size, skip = e.rhythm
    if e.epoch != 1 and size == 1:  # no epoch in which the noise of batches cancels
        return diagnostics.block_means(values, pool=values.shape[1] + 1, burnin=0, thinning=1)
    return diagnostics.block_means(values, pool=size, burnin=-skip % size, thinning=1)


def _mcse(e: Evidence, values: Array) -> tuple[float, int]:
    """Of the mean of gains; with an error that all share, the degrees of freedom are Welch and Satterthwaite's."""
    size, skip = e.rhythm
    error, dof = diagnostics.mcse(values, epoch=size, skip=skip)
    common = e.common_error
    if common == 0.0 or math.isnan(error):
        return error, dof
    if math.isnan(common):
        return math.nan, 0
    return math.hypot(error, common), int(min(1e6, dof * (1 + (common / error) ** 2) ** 2)) if error else dof


def _smooth(e: Evidence, values: Array) -> Array:
    """Epoch means where there are many, else the values."""
    size, skip = e.rhythm
    count = (values.shape[1] - skip) // size
    if size == 1 or count < _MANY:
        return values
    means: Array = values[:, skip : skip + count * size].reshape(len(values), count, size).mean(axis=2)
    return means


def _tested(e: Evidence, values: Array) -> Array:
    """What to test for drift: the chains' mean where the noise of batches that they share would pass for one."""
    return values.mean(axis=0, keepdims=True) if e.shared_order and not e.paired else values


def _distance_ratio(e: Evidence, distance: Array) -> tuple[float, float]:
    if not e.weights or not e.lr:
        return math.nan, math.nan
    return diagnostics.distance_ratio(
        distance, weights=e.weights, localization=e.localization, lr=e.lr, noise_level=e.noise_level
    )


def _burnin(e: Evidence) -> int | None:
    """Steps after which neither the losses nor the distances of chains drift, as far as is known."""
    trace = _tested(e, e.paired_trace[e.live])
    steps = int(trace.shape[1])
    length = max(1, steps // 200)
    if e.epoch is not None and e.epoch <= steps // _MANY:
        length = -(-length // e.epoch) * e.epoch
    count = steps // length
    cut = diagnostics.burnin(trace[:, : count * length].reshape(len(trace), count, length).mean(axis=2))
    if cut is None or e.distance is None:
        return None if cut is None else cut * length
    far = diagnostics.burnin(e.distance[e.live])
    if far is None:
        return None
    return max(cut * length, e.num_burnin_steps + far * e.num_steps_bw_draws if far else 0)
