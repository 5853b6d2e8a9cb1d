"""What of a run goes into its tree: the arrays, and the rows that chains add to them as they walk."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .feed import Feed, Observable, moved
from .metrics import Metrics, metrics
from .samplers import find
from .sampling import Order, Schedule, Trace, Walkers
from .sampling.moments import Moments
from .scalars import Scalars
from .store import Spec, Writer

CHECKPOINT_SHARE = 0.05  # of the time that checkpoints may take


def grid(losses: Tensor) -> Tensor:
    """Losses (chains, ...) as (chains, samples, tokens), fp32: what is one a sample or one a batch has sizes of 1."""
    flat = losses.float()
    if flat.dim() < 3:
        return flat.reshape(len(flat), -1, 1)
    return flat.flatten(2)


def specs(
    schedule: Schedule,
    chains: int,
    shape: tuple[int, int],
    feed: Feed,
    observables: Sequence[Observable],
    observed: Mapping[str, tuple[int, int]],
    *,
    traces: bool,
    metrics: bool,
    params: int,
    moments: Moments | None,
    half: bool,
) -> list[Spec]:
    """The arrays of a tree; shape: samples and tokens of a batch's losses, observed: of each observable's."""
    steps, draws, count = schedule.steps, schedule.num_draws, schedule.gradient_accumulation_steps
    samples, tokens = shape
    found = [Spec("init_loss", ("chain", "token_pos"), (chains, tokens), "float32")]
    if traces:
        found += [
            Spec(
                "sampling_loss",
                ("chain", "draw", "batch", "token_pos"),
                (chains, draws, samples, tokens),
                "float32",
            ),
            Spec(
                "sampling_loss_micro",
                ("chain", "step", "batch_sampling", "token_pos"),
                (chains, steps, count * samples, tokens),
                "float32",
            ),
        ]
        if feed.tokens is not None:
            found.append(
                Spec(
                    "sampling_input_ids_micro",
                    ("chain", "step", "batch_sampling", "token"),
                    (chains, steps, count * samples, feed.tokens.shape[2]),
                    "int64",
                )
            )
    for o in observables:
        rows = f"batch_{o.obs_id}"
        if traces:
            found.append(
                Spec(
                    f"loss_{o.obs_id}",
                    ("chain", "draw", rows, "token_pos"),
                    (chains, draws, *observed[o.obs_id]),
                    "float32",
                )
            )
        if o.ids is not None:
            found.append(Spec(f"input_ids_{o.obs_id}", (rows, "token"), tuple(o.ids.shape), "int64"))
    if metrics:
        fields = (*Metrics.NORM_FIELDS, *Metrics.DOT_FIELDS)
        found += [Spec(f"metrics_{name}", ("chain", "step"), (chains, steps), "float32") for name in fields]
    for name, axis, size in (
        *((name, "step", steps) for name in ("loss", "virial")),
        *((name, "draw", draws) for name in ("gain", "distance", "dot", "boxed")),
    ):
        found.append(Spec(f"llc_fast/{name}", ("chain", axis), (chains, size), "float64"))
    found.append(Spec("llc_fast/batch", ("chain", "step", "micro"), (chains, steps, count), "int32", fill=-1))
    found.append(Spec("llc_fast/baseline", ("pool",), (len(feed.batches),), "float64"))
    if params:
        found.append(
            Spec(
                "llc_fast/control",
                ("chain", "step", "tensor", "control"),
                (chains, steps, params, 2),
                "float64",
            )
        )
    if half:
        found += [
            Spec(f"half_pool/{name}", ("half_chain", "draw"), (chains, draws), "float64")
            for name in ("gain", "distance")
        ]
    if moments is not None:
        found += [Spec(f"moments/{name}", *spec) for name, spec in moments.specs().items()]
    return found


class Recording:
    """Writes what the chains of a bundle do; see `sampling.Watch`.

    slots: their places along the tree's `chain`. state: what to put into a checkpoint beside the walk's.
    """

    def __init__(
        self,
        writer: Writer,
        walkers: Walkers,
        order: Order,
        slots: Sequence[int],
        schedule: Schedule,
        feed: Feed,
        observables: Sequence[Observable],
        shape: tuple[int, int],
        *,
        traces: bool,
        moments: Moments | None,
        clock: Clock,
        state: Callable[[dict[str, Any]], dict[str, Any]],
    ) -> None:
        self.writer, self.walkers, self.order, self.slots = writer, walkers, order, slots
        self.schedule, self.feed, self.observables, self.shape = schedule, feed, observables, shape
        self.traces, self.moments, self.clock, self.state = traces, moments, clock, state
        self._parts: list[Tensor] = []
        device = walkers.plan.params[0].device
        self._batches = {o.obs_id: [moved(b, device) for b in o.batches] for o in observables}

    def losses(self, step: int, part: int, losses: Tensor) -> None:
        if not self.traces:
            return
        self._parts.append(padded(grid(losses), self.shape).cpu())
        count = self.schedule.gradient_accumulation_steps
        if part + 1 < count:
            return
        self._put("sampling_loss_micro", step, torch.cat(self._parts, dim=1))
        self._parts = []
        if self.feed.tokens is not None:
            ids = self.feed.tokens[torch.from_numpy(self.order.take(step, count))]
            self._put("sampling_input_ids_micro", step, ids.flatten(1, 2))

    def draw(self, draw: int, losses: Sequence[Tensor]) -> None:
        parts = [padded(grid(part), self.shape) for part in losses]
        if self.traces:
            self._put("sampling_loss", draw, torch.stack(parts).mean(dim=0).cpu())
        seen = {}
        for name, batches in self._batches.items():
            seen[name] = torch.cat([grid(self.walkers.evaluate(b)) for b in batches], dim=1)
            if self.traces:
                self._put(f"loss_{name}", draw, seen[name].cpu())
        if self.moments is not None:
            scalar = torch.stack([part.double().nanmean(dim=(1, 2)) for part in parts]).mean(dim=0)
            self.moments.draw(self.slots, draw, seen, scalar)

    def stepped(self, step: int, state: Callable[[], dict[str, Any]]) -> None:
        if self.clock.interrupted:
            self.writer.checkpoint(self.state(state()))
            where = self.writer.store
            kept = isinstance(where, Path)
            raise KeyboardInterrupt(
                f"stopped after step {step}; {where} holds it, and the same call with resume=True continues"
                if kept
                else f"stopped after step {step}; without output_path nothing is kept"
            )
        if self.clock.due():
            self.writer.checkpoint(self.state(state()))
            self.clock.saved()

    def _put(self, name: str, row: int, data: Tensor) -> None:
        self.writer.put(name, self.slots, row, data)


def padded(losses: Tensor, shape: tuple[int, int]) -> Tensor:
    """Losses (chains, samples, tokens) of a smaller batch, filled up with NaN."""
    if tuple(losses.shape[1:]) == shape:
        return losses
    out = losses.new_full((len(losses), *shape), float("nan"))
    out[:, : losses.shape[1], : losses.shape[2]] = losses
    return out


def write_traces(
    writer: Writer,
    slots: Sequence[int],
    traces: Sequence[Trace],
    baseline: np.ndarray[Any, np.dtype[np.float64]],
    tokens: Tensor,
    scalars: Scalars,
    sampler: str,
) -> None:
    """What the analysis reads of chains that have ended; tokens: losses at w0 by batch and token, (pool, tokens)."""
    for slot, trace in zip(slots, traces, strict=True):
        rows = {
            name: getattr(trace, name) for name in ("loss", "virial", "batch", "distance", "dot", "boxed")
        }
        rows["gain"] = trace.gains(baseline)
        if trace.controls is not None:
            rows["control"] = trace.controls
        for name, values in rows.items():
            writer.write(f"llc_fast/{name}", values, chain=slot)
        visited = trace.batch[trace.batch[:, 0] >= 0].ravel()
        if len(visited):
            counts = torch.bincount(torch.from_numpy(visited).long(), minlength=len(tokens)).double()
            mean = (counts[:, None] * tokens).nansum(dim=0) / (counts[:, None] * ~tokens.isnan()).sum(dim=0)
            writer.write("init_loss", mean.float().numpy(), chain=slot)
        if trace.sums is not None:
            steps = [metrics(torch.from_numpy(row), scalars, find(sampler)) for row in trace.sums]
            for name in (*Metrics.NORM_FIELDS, *Metrics.DOT_FIELDS):
                values = torch.cat([getattr(step, name) for step in steps])
                writer.write(f"metrics_{name}", values.numpy(), chain=slot)


class Clock:
    """When a checkpoint is due, and whether Ctrl-C was pressed.

    every: seconds between checkpoints, more where they take longer than their share of the time. As a context it takes
    Ctrl-C: the first one is noted, a second one raises at once. Only Python's main thread can.
    """

    def __init__(self, every: float) -> None:
        self.every, self.interrupted = every, False
        self._last, self._began, self._cost = time.monotonic(), 0.0, 0.0
        self._old: Any = None

    def due(self) -> bool:
        now = time.monotonic()
        if now - self._last < max(self.every, self._cost / CHECKPOINT_SHARE):
            return False
        self._began = now
        return True

    def saved(self) -> None:
        self._last = time.monotonic()
        self._cost = self._last - self._began

    def __enter__(self) -> Clock:
        import signal

        if threading.current_thread() is threading.main_thread() and (
            signal.getsignal(signal.SIGINT) is signal.default_int_handler
        ):
            self._old = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        import signal

        if self._old is not None:
            signal.signal(signal.SIGINT, self._old)
            self._old = None

    def _note(self, number: int, frame: Any) -> None:
        if self.interrupted:
            raise KeyboardInterrupt
        self.interrupted = True
