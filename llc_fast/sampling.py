"""Chains of SGLD on a model: what they borrow from the caller, the loop, and what a draw records."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from .errors import ArgumentError, ArgumentTypeError
from .noise import chain_key, words
from .ops import Plan
from .reference import chunks, join
from .scalars import Scalars
from .tiles import locate
from .types import Tile

LossFn = Callable[[Any, Any], Tensor]
Progress = Callable[[int, int, int, float], None]

ORDER = 3  # domain of the counter from which batch orders come; the noise has 0 to 2


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


@dataclass(frozen=True)
class Problem:
    """A loss on a pool of batches, as a function of some of a model's weights.

    params: the parameters that hold these weights, none frozen; names, tensor_ids: of each; tiles: the weights
    within them.
    """

    model: nn.Module
    loss_fn: LossFn
    batches: Sequence[Any]
    params: Sequence[Tensor]
    names: Sequence[str]
    tensor_ids: Sequence[int]
    tiles: Sequence[Tile]

    @property
    def numel(self) -> int:
        return sum(tile.numel for tile in self.tiles)

    def loss(self, batch: int) -> Tensor:
        """What loss_fn returns for a batch of the pool, checked."""
        loss = self.loss_fn(self.model, self.batches[batch])
        if not isinstance(loss, Tensor):
            raise ArgumentTypeError(
                f"loss_fn returned a {type(loss).__name__} for batch {batch}: return the loss as a tensor (of a "
                "Hugging Face output its .loss; without .item())"
            )
        if not loss.dtype.is_floating_point:
            raise ArgumentTypeError(f"loss_fn returned {loss.dtype} for batch {batch}: return floating-point losses")
        if loss.numel() == 0:
            raise ArgumentError(f"loss_fn returned no losses (shape {tuple(loss.shape)}) for batch {batch}")
        return loss

    def gradients(self, loss: Tensor) -> list[Tensor | None]:
        """Gradients of the mean loss, None for a parameter that it does not depend on; no .grad is written."""
        if not loss.requires_grad:
            return [None] * len(self.params)
        grads = torch.autograd.grad(mean(loss), self.params, allow_unused=True)
        return [g if g is None or g.layout == torch.strided else g.to_dense() for g in grads]


def mean(loss: Tensor) -> Tensor:
    """The loss of a batch, in float64 where the device has it."""
    return loss.mean(dtype=torch.float32 if loss.device.type == "mps" else torch.float64)


@contextmanager
def kept_rng() -> Iterator[None]:
    """Gives PyTorch's global random states back as they were."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=devices):
        yield


@contextmanager
def borrowed(model: nn.Module, params: Sequence[Tensor], *, eval_mode: bool) -> Iterator[list[Tensor]]:
    """Lends a model to chains that change `params` alone, and gives it back as it was, whatever happens.

    Yields copies of params. Within, gradients go to params only, and the model is in eval mode unless asked
    otherwise; then its buffers are kept too.
    """
    anchors = [p.detach().clone(memory_format=torch.contiguous_format) for p in params]
    buffers = [] if eval_mode else [(b, b.detach().clone()) for b in model.buffers()]
    flags = [(p, p.requires_grad) for p in model.parameters()]
    modes = [(module, module.training) for module in model.modules()]
    chosen = {id(p) for p in params}
    try:
        for p, _ in flags:
            p.requires_grad_(id(p) in chosen)
        if eval_mode:
            model.eval()
        with torch.inference_mode(False), torch.enable_grad():
            yield anchors
    finally:
        with torch.no_grad():
            for t, kept in [*zip(params, anchors, strict=True), *buffers]:
                t.copy_(kept)
        for p, flag in flags:
            p.requires_grad_(flag)
        for module, training in modes:
            module.training = training


class Displacement:
    """How far the selected weights are from their anchors, and the pool's gradient there."""

    def __init__(
        self, problem: Problem, anchors: Sequence[Tensor], remainders: Sequence[Tensor | None], scalars: Scalars
    ) -> None:
        self.problem, self.anchors, self.remainders = problem, anchors, remainders
        self.box = scalars.box
        size = 1 << 16 if all(p.device.type == "cpu" for p in problem.params) else 1 << 22
        self.pieces = [piece for tile in problem.tiles for piece in chunks(tile, size)]
        self.gradient = [
            torch.zeros(piece.rows, piece.cols, device=problem.params[piece.tensor].device) for piece in self.pieces
        ]
        self.count = 0
        self.squares = 0.0

    @torch.no_grad()
    def add_gradient(self, grads: Sequence[Tensor | None]) -> None:
        """Count the gradient of one batch at the anchor."""
        squares = []
        for piece, total in zip(self.pieces, self.gradient, strict=True):
            if (g := grads[piece.tensor]) is not None:
                part = view(g.contiguous(), piece)
                total += part
                squares.append((part.double() ** 2).sum())
        self.squares += _sum(squares)
        self.count += 1

    def gradient_noise(self, pool: int) -> float:
        """Trace of the covariance, over a pool of batches, of the gradients counted so far; needs 2, or all."""
        if pool == 1:
            return 0.0
        square_of_sum = _sum([(total.double() ** 2).sum() for total in self.gradient])
        spread = max(0.0, self.squares - square_of_sum / self.count)
        return spread / (self.count - 1) * (pool - 1) / pool

    @torch.no_grad()
    def measure(self) -> tuple[float, float, float]:
        """|w - w0|^2, g0.(w - w0) with g0 the mean gradient counted, and the fraction of weights at the box."""
        distance, dot, boxed = [], [], []
        for piece, total in zip(self.pieces, self.gradient, strict=True):
            w, w0 = (view(x[piece.tensor], piece) for x in (self.problem.params, self.anchors))
            if (lo := self.remainders[piece.tensor]) is not None:
                w, w0 = join(w, view(lo, piece)), w0.float()
            if self.box is not None:
                boxed.append(((w <= w0 - self.box) | (w >= w0 + self.box)).sum())
            d = w.double() - w0.double()
            distance.append((d * d).sum())
            dot.append((d * total).sum())
        return _sum(distance), _sum(dot) / max(self.count, 1), _sum(boxed) / self.problem.numel


def _sum(parts: Sequence[Tensor]) -> float:
    """Sum in float64, with one synchronisation for each device."""
    total = 0.0
    for device in {part.device for part in parts}:
        total += float(torch.stack([p.double() for p in parts if p.device == device]).sum())
    return total


def view(t: Tensor, tile: Tile) -> Tensor:
    """The (rows, cols) part of a tensor that a tile names."""
    place = locate(t, tile)
    assert place is not None  # Plan has checked it
    t = t.detach()
    return t.as_strided((tile.rows, tile.cols), (place[1], 1), t.storage_offset() + place[0])


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
    _start(plan, displacement)
    pool = len(problem.batches)
    for step in range(schedule.steps):
        epoch, position = divmod(step, pool)
        if position == 0:
            order = batch_order(plan.seed, plan.chain, epoch, pool)
        trace.batch[step] = order[position]
        loss = problem.loss(order[position])
        value = trace.loss[step] = float(mean(loss.detach()))
        if progress is not None:
            progress(plan.chain, step, schedule.steps, value)
        if not math.isfinite(value):
            trace.death = f"loss {value} at step {step}"
            return trace
        if step in draws:
            i = draws[step]
            trace.distance[i], trace.dot[i], trace.boxed[i] = displacement.measure()
            if not math.isfinite(trace.distance[i]):
                trace.death = f"weights not finite at step {step}"
                return trace
        if step + 1 < schedule.steps:  # nobody would see the last update
            plan.step(problem.gradients(loss), scalars, step)
    return trace


def batch_order(seed: int, chain: int, epoch: int, size: int) -> list[int]:
    """The order in which a chain takes the batches of its pool in an epoch, the same on every machine.

    Batches are sorted by 63 random bits: words 0 and 1 of their own block of the chain's Philox stream.
    """
    x0, x1, _, _ = words(torch.arange(size), chain_key(seed, chain), epoch, 0, ORDER)
    order: list[int] = torch.argsort((x0 << 31) | (x1 >> 1), stable=True).tolist()
    return order


@torch.no_grad()
def _start(plan: Plan, displacement: Displacement) -> None:
    """Weights back to the anchor, remainders to 0, and random losses on a stream of the chain's own."""
    for p, anchor in zip(plan.params, displacement.anchors, strict=True):
        p.copy_(anchor)
    for lo in displacement.remainders:
        if lo is not None:
            lo.zero_()
    seed_losses(plan.seed, plan.chain)


def seed_losses(seed: int, chain: int) -> None:
    """Seed PyTorch's global generators, which dropout and losses with randomness use, from the chain's key."""
    low, high = chain_key(seed, chain)
    torch.default_generator.manual_seed(low | high << 32)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(low | high << 32)
