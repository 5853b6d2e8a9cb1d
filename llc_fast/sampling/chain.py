"""One chain of a sampler: the order of its batches, its steps and draws, and its death."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from ..errors import WeightOverflowError
from ..noise import BATCH_ORDER, chain_key, words
from ..plan import Plan
from ..scalars import Scalars
from .displacement import Displacement
from .problem import Problem

Progress = Callable[[int, int, int, float], None]

MAX_BOXED = 0.05  # a chain with more of its weights at the box is dead


@dataclass(frozen=True)
class Schedule:
    """Which steps of a chain are draws."""

    num_draws: int
    num_burnin_steps: int
    num_steps_bw_draws: int

    @property
    def steps(self) -> int:
        return self.num_burnin_steps + self.num_draws * self.num_steps_bw_draws

    @property
    def draw_steps(self) -> npt.NDArray[np.int64]:
        """The step before whose update each draw is taken."""
        return self.num_burnin_steps + self.num_steps_bw_draws * np.arange(self.num_draws, dtype=np.int64)


@dataclass
class Trace:
    """What a chain leaves behind: one entry a step, or one a draw; NaN from its death on.

    loss: before the update; batch: which of the pool gave it, -1 after death. distance, dot, boxed: see
    `Displacement.measure`. death: why the chain ended early, or None.
    """

    steps: int
    draws: int
    death: str | None = None
    loss: npt.NDArray[np.float64] = field(init=False)
    batch: npt.NDArray[np.int64] = field(init=False)
    distance: npt.NDArray[np.float64] = field(init=False)
    dot: npt.NDArray[np.float64] = field(init=False)
    boxed: npt.NDArray[np.float64] = field(init=False)

    def __post_init__(self) -> None:
        self.loss, self.batch = np.full(self.steps, math.nan), np.full(self.steps, -1)
        self.distance, self.dot, self.boxed = (np.full(self.draws, math.nan) for _ in range(3))

    @property
    def verdict(self) -> str | None:
        """Why the chain is not to be counted, or None."""
        if self.death is None and (boxed := float(self.boxed.mean())) > MAX_BOXED:
            return f"{boxed:.1%} of its weights at the box, on average over its draws"
        return self.death


def run_chain(
    problem: Problem,
    plan: Plan,
    displacement: Displacement,
    scalars: Scalars,
    schedule: Schedule,
    *,
    progress: Progress | None = None,
) -> Trace:
    """One chain from the anchor: at every step the loss, then a draw if one is due, then the update.

    plan: of this chain's stream. The loss is that of the weights before the update, on the batch that gives
    its gradient. Each epoch passes over the pool once, in an order of its own.
    """
    trace = Trace(schedule.steps, schedule.num_draws)
    draws = {int(step): i for i, step in enumerate(schedule.draw_steps)}
    _start(plan, scalars)
    pool = len(problem.batches)
    for step in range(schedule.steps):
        epoch, position = divmod(step, pool)
        if position == 0:
            order = batch_order(plan.seed, plan.chain, epoch, pool)
        trace.batch[step] = order[position]
        loss = problem.loss(order[position])
        value = trace.loss[step] = problem.value(loss)
        if progress is not None:
            progress(plan.chain, step, schedule.steps, value)
        if not math.isfinite(value):
            trace.death = f"loss {value} at step {step}"
            return trace
        if step in draws:
            i = draws[step]
            trace.distance[i], trace.dot[i], trace.boxed[i] = displacement.measure()
            if not math.isfinite(trace.distance[i]):
                trace.death = f"|w - w0|^2 is {trace.distance[i]} at step {step}"
                return trace
        if step + 1 < schedule.steps:  # nobody would see the last update
            try:
                plan.step(problem.gradients(loss), scalars, step)
            except WeightOverflowError as e:
                trace.death = f"{e} (step {step})"
                return trace
    return trace


def batch_order(seed: int, chain: int, epoch: int, size: int) -> list[int]:
    """The order in which a chain takes the batches of its pool in an epoch, the same on every machine.

    Batches are sorted by 63 random bits: words 0 and 1 of their own block of the chain's Philox stream.
    """
    if size == 1:
        return [0]
    x0, x1, _, _ = words(torch.arange(size), chain_key(seed, chain), epoch, 0, BATCH_ORDER)
    order: list[int] = torch.argsort((x0 << 31) | (x1 >> 1), stable=True).tolist()
    return order


@torch.no_grad()
def _start(plan: Plan, scalars: Scalars) -> None:
    """Weights back to the anchor, what is kept beside them too, and random losses on a stream of the chain's own."""
    assert plan.anchors is not None
    for p, anchor, rest in zip(plan.params, plan.anchors, plan.remainders, strict=True):
        p.copy_(anchor)
        if rest is not None and p.dtype == torch.float16:
            rest.copy_(anchor)
        elif rest is not None:
            rest.zero_()
    for buffer in plan.buffers:
        if buffer is not None:
            buffer.zero_()
    if plan.thermostat is not None:
        plan.thermostat.fill_(scalars.friction or 0.0)
    seed_losses(plan.seed, plan.chain)


def seed_losses(seed: int, chain: int) -> None:
    """Seed PyTorch's global generators, which dropout and losses with randomness use, from the chain's key."""
    low, high = chain_key(seed, chain)
    torch.default_generator.manual_seed(low | high << 32)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(low | high << 32)
