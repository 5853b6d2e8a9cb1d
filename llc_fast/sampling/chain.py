"""Chains of a sampler that walk at once: their steps and draws, their death, and how they are stopped and continued."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..errors import ArgumentError, WeightOverflowError
from ..metrics import control, virial
from ..noise import chain_key
from ..plan import Plan
from ..scalars import MAX_STEP, Scalars, check_integer
from ..sums import COLUMNS, INDEX
from .order import Order

Progress = Callable[[int, int, int, float], None]

MAX_BOXED = 0.05  # a chain with more of its weights at the box is dead


@dataclass(frozen=True)
class Schedule:
    """Which steps of a chain are draws, and how many batches a step takes."""

    num_draws: int
    num_burnin_steps: int
    num_steps_bw_draws: int
    gradient_accumulation_steps: int = 1

    @classmethod
    def check(cls, **given: object) -> Schedule:
        """A schedule of checked numbers; raises ArgumentError or ArgumentTypeError naming the one at fault."""
        least = {"num_burnin_steps": 0}
        made = cls(
            **{name: check_integer(name, value, minimum=least.get(name, 1)) for name, value in given.items()}
        )
        if made.steps > MAX_STEP + 1:
            raise ArgumentError(f"{made.steps} steps a chain are too many: a chain's noise ends after 2^32")
        return made

    @property
    def steps(self) -> int:
        return self.num_burnin_steps + self.num_draws * self.num_steps_bw_draws

    @property
    def draw_steps(self) -> npt.NDArray[np.int64]:
        """The step before whose update each draw is taken."""
        return self.num_burnin_steps + self.num_steps_bw_draws * np.arange(self.num_draws, dtype=np.int64)


class Trace:
    """What a chain leaves behind: one entry a step, or one a draw; NaN from its death on.

    loss: before the update, batch: which of the pool gave it, -1 after death, (steps, batches of a step). virial:
    mean of d.a over the weights, before the update. drawn, drawn_batch: loss and batches of draws, which may be
    taken on batches of their own. distance, dot, boxed: see `Displacement.measure`. controls: of each step and
    parameter z.(w + drift - w0) and z.g, sums: see `sums.NAMES`, if asked for. death: why the chain ended, or None.
    """

    def __init__(self, records: Mapping[str, npt.NDArray[Any]]) -> None:
        self.death: str | None = None
        self.loss, self.batch, self.virial = records["loss"], records["batch"], records["virial"]
        self.drawn, self.drawn_batch = records["drawn"], records["drawn_batch"]
        self.distance, self.dot, self.boxed = records["distance"], records["dot"], records["boxed"]
        self.controls, self.sums = records.get("controls"), records.get("sums")

    @property
    def verdict(self) -> str | None:
        """Why the chain is not to be counted, or None."""
        if self.death is None and (boxed := float(self.boxed.mean())) > MAX_BOXED:
            return f"{boxed:.1%} of its weights at the box, on average over its draws"
        return self.death

    def gains(self, baseline: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """The loss of each draw less that of the same batches at w0, of which `baseline` has one for each batch."""
        gains: npt.NDArray[np.float64] = self.drawn - baseline[self.drawn_batch].mean(axis=1)
        return gains


def empty_records(
    chains: int, schedule: Schedule, *, params: int = 0, sums: bool = False
) -> dict[str, npt.NDArray[Any]]:
    """The arrays of `Trace`, chains first; params: how many have controls."""
    steps, draws, batches = schedule.steps, schedule.num_draws, schedule.gradient_accumulation_steps
    shapes: dict[str, tuple[int, ...]] = {"loss": (steps,), "virial": (steps,)}
    shapes |= dict.fromkeys(("drawn", "distance", "dot", "boxed"), (draws,))
    if params:
        shapes["controls"] = (steps, params, 2)
    if sums:
        shapes["sums"] = (steps, COLUMNS)
    records: dict[str, npt.NDArray[Any]] = {
        name: np.full((chains, *shape), math.nan) for name, shape in shapes.items()
    }
    records["batch"] = np.full((chains, steps, batches), -1, dtype=np.int32)
    records["drawn_batch"] = np.full((chains, draws, batches), -1, dtype=np.int32)
    return records


class Walkers(Protocol):
    """Chains that take their steps at once, each with weights of its own."""

    chains: Sequence[int]
    plan: Plan

    def start(self, scalars: Scalars) -> None:
        """Weights to where chains start, and what is kept beside them."""

    def losses(self, batches: Sequence[int]) -> Tensor:
        """What loss_fn returns for one batch of the pool a chain, (chains, ...)."""

    def evaluate(self, batch: Any) -> Tensor:
        """What loss_fn returns for a batch that all chains share, without a graph, (chains, ...)."""

    def values(self, losses: Tensor) -> npt.NDArray[np.float64]:
        """The mean loss of each chain, over all ranks."""

    def gradients(self, losses: Tensor) -> list[Tensor | None]:
        """Gradients of each chain's mean loss with respect to its weights."""

    def measure(self) -> npt.NDArray[np.float64]:
        """See `Displacement.measure`, (chains, 3)."""

    def state(self) -> dict[str, Any]:
        """All that a chain's next steps depend on."""

    def load(self, state: dict[str, Any]) -> None:
        """Take up a state."""


class Watch(Protocol):
    """Who is told what chains do."""

    def losses(self, step: int, part: int, losses: Tensor) -> None:
        """The losses of one of a step's batches, (chains, ...), before its update."""

    def draw(self, draw: int, losses: Sequence[Tensor]) -> None:
        """A draw, before its step's update; losses: of its batches, each (chains, ...)."""

    def stepped(self, step: int, state: Callable[[], dict[str, Any]]) -> None:
        """A step was made; state: what `walk` continues from. An exception ends the walk."""


def walk(
    walkers: Walkers,
    order: Order,
    scalars: Scalars,
    schedule: Schedule,
    *,
    record: Order | None = None,
    controls: bool = False,
    sums: bool = False,
    watch: Watch | None = None,
    progress: Progress | None = None,
    state: dict[str, Any] | None = None,
) -> list[Trace]:
    """Chains from the anchor: at every step the loss, then a draw if one is due, then the update.

    A loss is that of the weights before the update, on the batches that give its gradient. record: the batches on
    which draws are taken instead. controls, sums: whether traces have them. state: where a walk was left.
    """
    count, chains = schedule.gradient_accumulation_steps, len(walkers.chains)
    params = len(walkers.plan.params) if controls else 0
    records = empty_records(chains, schedule, params=params, sums=sums)
    deaths: dict[int, str] = {}
    draws = {int(step): i for i, step in enumerate(schedule.draw_steps)}
    first = 0
    if state is None:
        walkers.start(scalars)
    else:
        first, records, deaths = state["step"], state["records"], state["deaths"]
        walkers.load(state["walkers"])

    def left(step: int) -> dict[str, Any]:
        return {"step": step, "walkers": walkers.state(), "records": records, "deaths": deaths}

    for step in range(first, schedule.steps):
        if len(deaths) == chains:
            break
        batches = order.take(step, count)
        means = np.zeros(chains)
        grads: list[Tensor | None] = []
        parts = []
        for part in range(count):
            loss = walkers.losses(batches[:, part].tolist())
            means += walkers.values(loss) / count
            if watch is not None:
                watch.losses(step, part, loss.detach())
            own = walkers.gradients(loss if count == 1 else loss / count)
            grads = own if part == 0 else [_plus(a, b) for a, b in zip(grads, own, strict=True)]
            parts.append(loss.detach())
            del loss
        living = _living(chains, deaths)
        records["loss"][living, step], records["batch"][living, step] = means[living], batches[living]
        for i in living[~np.isfinite(means[living])]:
            deaths[int(i)] = f"loss {means[i]} at step {step}"
        if progress is not None:
            for i in living:
                progress(walkers.chains[i], step, schedule.steps, float(means[i]))
        if step in draws and len(deaths) < chains:
            draw = draws[step]
            if record is not None:
                batches = record.take(draw, count)
                means, parts = _recorded(walkers, batches)
            _draw(walkers, records, deaths, draw, batches, means, step)
            if watch is not None and len(deaths) < chains:
                watch.draw(draw, parts)
        if len(deaths) == chains:
            break
        try:
            walkers.plan.step(grads, scalars, step)
        except WeightOverflowError as e:  # a lone chain's: those that walk together have no such dtype
            deaths[0] = f"{e} (step {step})"
            break
        _sum_up(walkers.plan, scalars, records, _living(chains, deaths), step)
        if watch is not None:
            watch.stepped(step, partial(left, step + 1))
    traces = []
    for i in range(chains):
        traces.append(Trace({name: values[i] for name, values in records.items()}))
        traces[-1].death = deaths.get(i)
    return traces


def _living(chains: int, deaths: Mapping[int, str]) -> npt.NDArray[np.int64]:
    return np.array(
        [i for i in range(chains) if i not in deaths] if deaths else range(chains), dtype=np.int64
    )


def _recorded(
    walkers: Walkers, batches: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.float64], list[Tensor]]:
    """Mean losses on batches (chains, count) that give no gradient, and the losses of each."""
    means, parts, count = np.zeros(len(batches)), [], batches.shape[1]
    for part in range(count):
        with torch.no_grad():
            parts.append(walkers.losses(batches[:, part].tolist()))
        means += walkers.values(parts[-1]) / count
    return means, parts


def _draw(
    walkers: Walkers,
    records: Mapping[str, npt.NDArray[Any]],
    deaths: dict[int, str],
    draw: int,
    batches: npt.NDArray[np.int64],
    means: npt.NDArray[np.float64],
    step: int,
) -> None:
    living = _living(len(means), deaths)
    measured = walkers.measure()
    records["drawn"][living, draw], records["drawn_batch"][living, draw] = means[living], batches[living]
    for name, values in zip(("distance", "dot", "boxed"), measured.T, strict=True):
        records[name][living, draw] = values[living]
    for i in living:
        if not math.isfinite(means[i]):
            deaths[int(i)] = f"loss {means[i]} at step {step}"
        elif not math.isfinite(measured[i, 0]):
            deaths[int(i)] = f"|w - w0|^2 is {measured[i, 0]} at step {step}"


def _sum_up(
    plan: Plan,
    scalars: Scalars,
    records: Mapping[str, npt.NDArray[Any]],
    living: npt.NDArray[np.int64],
    step: int,
) -> None:
    """Note the sums of the step that was just made."""
    table = plan.chain_totals()
    totals = table.sum(dim=1)
    records["virial"][living, step] = virial(totals, scalars).cpu().numpy()[living]
    if "sums" in records:
        records["sums"][living, step] = totals.cpu().numpy()[living]
    if "controls" in records:
        pairs = torch.stack((control(table, scalars), table[..., INDEX["gz"]]), dim=-1)
        records["controls"][living, step] = pairs.cpu().numpy()[living]


def _plus(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b


def seed_losses(seed: int, chain: int) -> None:
    """Seed PyTorch's global generators, which dropout and losses with randomness use, from the chain's key."""
    low, high = chain_key(seed, chain)
    torch.default_generator.manual_seed(low | high << 32)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(low | high << 32)
