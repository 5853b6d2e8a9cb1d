"""How long is a step of a whole LLC chain, forward, backward, sampler and bookkeeping, and who takes how much of it?

Untrained models and random tokens; `estimate_llc` beside devinterp's `llc()` and posteriors, whole models and one head.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from . import _chains, _models
from ._chain_passes import Passes, counted
from ._chain_peak import peak_bytes
from ._chain_samplers import samplers
from ._chain_slope import Rounds, Slope, slopes, wall
from ._chains import Chain, Walk
from ._table import Column, Plot, Table
from ._timing import Call, interleave, reason
from ._work import Setting, release

HEAD = "l1h0"
POOL = 2  # batches; runs are whole epochs, so that a paired and a separate baseline come to the same
FLOOR, DEVINTERP, POSTERIORS = "passes alone (floor)", "devinterp llc()", "posteriors sgld"
FP32, BF16 = torch.float32, torch.bfloat16
NO_TIME = "no time left"


@dataclass(frozen=True)
class Case:
    """A model, how long its short and its long chain are, and how many rounds of them there are at least."""

    model: str
    dtype: torch.dtype = FP32
    lengths: tuple[int, int] = (POOL, 3 * POOL)
    rounds: int = 3

    @property
    def title(self) -> str:
        return _models.MODELS[self.model].title + ("" if self.dtype is FP32 else " bf16")


@dataclass
class Contender:
    """A chain that is timed, and what was seen of it: passes by number of draws, its last LLC, its peak memory."""

    name: str
    role: str
    chain: Chain
    passes: Passes
    seen: dict[int, tuple[int, int]] = field(default_factory=dict)
    llc: float | None = None
    peak: int | None = None

    def __call__(self, draws: int) -> None:
        forward, backward = self.passes.forward, self.passes.backward
        self.llc = self.chain(draws)
        if self.llc is not None and not math.isfinite(self.llc):
            raise ArithmeticError(f"its LLC is {self.llc}")
        self.seen[draws] = self.passes.forward - forward, self.passes.backward - backward

    def each(self, lengths: tuple[int, int]) -> tuple[float, float]:
        """Passes of one more step, forward and backward."""
        (a, b), (c, d) = (self.seen[n] for n in lengths)
        steps = lengths[1] - lengths[0]
        return (c - a) / steps, (d - b) / steps


COLUMNS = [
    Column("step", "ms a step", ",.1f", scale=1e3),
    Column("low", "from", ",.1f", scale=1e3),
    Column("high", "to", ",.1f", scale=1e3),
    Column("floors", "x floor", ".2f"),
    Column("gain", "ours is faster by", ".2f", "x"),
    Column("once", "s once", ".2f"),
    Column("forward", "forward", "g"),
    Column("backward", "backward", "g"),
    Column("peak", "peak GB", ".3g", scale=1e-9),
    Column("times", "x weights", ".1f"),
    Column("llc", "LLC", ".2f"),
]
READING = (
    f"full: all weights move; {HEAD}: those of one attention head. ms a step: what one more step adds to a run, from a "
    "short and a long run made one after the other; contenders in turn, medians, with the middle half from .. to. The "
    "floor makes the same passes through the model in a bare loop. s once: the rest of a run, whatever its length "
    "(copies, losses and gradients at the start, checks, files). forward, backward: passes a step, counted. peak: the "
    "most memory, weights of the model included, without the program; x weights: over the bytes of the weights. All "
    "have the same weights, batches, loss (cross-entropy) and settings; one chain, every step a draw, no observables "
    "in devinterp, which is the least it takes. An untrained model on random tokens is no minimum, so its LLC means "
    "nothing: it shows that all estimate the same quantity, each with noise of its own."
)
BF16_READING = (
    " In bf16 ours keeps what rounding would drop; devinterp and posteriors are taken as they are and round every step "
    "to bf16 (docs/design.md, section 3): there compare times, not LLCs."
)
PARTS = [
    Column("step", "ms a step", ",.1f", scale=1e3),
    Column("model", "passes", ",.1f", scale=1e3),
    Column("sampler", "sampler", ",.2f", scale=1e3),
    Column("rest", "rest", ",.2f", scale=1e3),
    Column("share", "sampler's share", ".1%"),
]
PARTS_READING = (
    "Milliseconds, medians. passes: one forward and one backward in a bare loop. sampler: its step alone, on the same "
    "weights and gradients. rest: what remains of the chain's step; a difference of medians, so one near 0 may come "
    "out below it. The loop by hand is not run: its step is the sum of the two parts. Passes grow with the tokens of a "
    "step, the sampler does not: with more tokens its share is smaller."
)


class Spare:
    """What is left of the time, as a case sees it: it begins nothing when that is less than it has taken so far."""

    def __init__(self, setting: Setting) -> None:
        self._left, self._began = setting.left, time.monotonic()

    def gone(self) -> bool:
        return self._left() <= time.monotonic() - self._began


def tables(setting: Setting) -> Iterator[Table]:
    """Two tables a model; whose time is limited gets them after each component, with the rows so far."""
    cases, (size, length) = questions(setting)
    limited = math.isfinite(setting.left())
    for case in cases:
        setting.say(f"chains on {case.title}")
        steps, shares = empty(case, f"{case.title}, {size} x {length} tokens a step")
        spare = Spare(setting)
        why = NO_TIME if spare.gone() else ""
        try:
            if not why:
                model = _models.build(case.model, setting.device, case.dtype)
                pool = _models.token_batches(case.model, POOL, size, length, setting.device)
        except Exception as e:
            why = reason(e)
        if why:
            for table in (steps, shares):
                table.add(case.title, "ours", why)
        else:
            for component in ("full", HEAD):
                measure(setting, case, Walk(model, component, pool), steps, shares, spare)
                if limited and component != HEAD:
                    for table in (steps, shares):
                        yield replace(table, rows=list(table.rows))
            del model, pool
        release(setting)
        yield steps
        yield shares


def empty(case: Case, what: str) -> tuple[Table, Table]:
    """The tables of a model: steps of its chains, and what they consist of."""
    steps = Table(
        f"chain-{case.model}",
        f"A step of a whole LLC chain: {what}",
        COLUMNS,
        READING + (BF16_READING if case.dtype is BF16 else ""),
        plot=Plot("bars", "step", "milliseconds a step", scale=1e3),
    )
    parts = f"What a step of a chain consists of: {what}"
    return steps, Table(f"chain-parts-{case.model}", parts, PARTS, PARTS_READING)


def questions(setting: Setting) -> tuple[list[Case], tuple[int, int]]:
    """The models, and the size and length of a batch."""
    tiny = [Case("gpt2-tiny"), Case("llama-tiny", BF16)]
    if setting.cuda:
        full = [Case("gpt2-124m"), Case("llama-1.5b", BF16), Case("llama-7b", BF16, (POOL, 2 * POOL), 2)]
        return setting.pick(full, full[:2], tiny), setting.pick((8, 256), (8, 256), (2, 8))
    small = [Case("gpt2-3m", lengths=(POOL, 16 * POOL)), Case("neox-20m", lengths=(POOL, 4 * POOL))]
    full = [*small, Case("gpt2-124m", lengths=(POOL, 2 * POOL))]
    return setting.pick(full, small, tiny), setting.pick((2, 64), (2, 64), (2, 8))


def contenders(setting: Setting) -> list[tuple[str, str, Callable[[Walk], Chain]]]:
    """Names, roles and builders; the second is ours, with which peers are compared."""
    return [
        (FLOOR, "floor", _chains.bare),
        *((setting.named("llc_fast", b), "ours", partial(_chains.ours, backend=b)) for b in setting.backends),
        (DEVINTERP, "peer", _chains.devinterp),
        (POSTERIORS, "peer", _chains.posteriors),
    ]


def measure(
    setting: Setting, case: Case, walk: Walk, steps: Table, shares: Table, spare: Spare | None = None
) -> None:
    """Rows of both tables for one component of a model."""
    spare = spare or Spare(setting)
    with counted(walk.model) as passes:
        ready, absent = warm_up(setting, walk, passes, spare)
        setting.say(f"chains on {case.title}, {walk.component}: {', '.join(ready)}")
        rounds = Rounds(
            3 * setting.pace.budget, min(case.rounds, setting.pace.least), min(15, setting.pace.most)
        )
        times, failed = slopes(ready, case.lengths, rounds, wall(setting.device))
    absent |= failed
    release(setting)
    weights = _models.weight_bytes(walk.model)
    for name, role, _ in contenders(setting):
        if name in times:
            steps.add(f"{walk.component}: {name}", role, **values(ready[name], times, weights, case.lengths))
        else:
            steps.add(f"{walk.component}: {name}", role, absent[name])
    share(setting, walk, times, absent, shares, spare)


def warm_up(
    setting: Setting, walk: Walk, passes: Passes, spare: Spare
) -> tuple[dict[str, Contender], dict[str, str]]:
    """Each contender after a run of one draw and a short one, whose memory is watched; and why one cannot run."""
    ready: dict[str, Contender] = {}
    absent: dict[str, str] = {}
    for name, role, build in contenders(setting):
        if name == POSTERIORS and walk.component != "full":
            absent[name] = "it moves whole tensors, not a head"
            continue
        if spare.gone():
            absent[name] = NO_TIME
            continue
        try:
            contender = Contender(name, role, build(walk), passes)
            contender(1)
            contender.peak = peak_bytes(partial(contender, POOL), setting.device)
            ready[name] = contender
        except Exception as e:
            absent[name] = reason(e)
        release(setting)
    return ready, absent


def values(
    contender: Contender, times: dict[str, Slope], weights: int, lengths: tuple[int, int]
) -> dict[str, Any]:
    """What the row of a contender says; weights: bytes of the model's."""
    found = times[contender.name]
    forward, backward = contender.each(lengths)
    step = found.step
    row: dict[str, Any] = {"step": step.median, "low": step.low, "high": step.high, "samples": step.samples}
    row |= {"draws": list(lengths), "once": found.once, "forward": forward, "backward": backward}
    for key, other, wanted in (("floors", FLOOR, True), ("gain", "llc_fast", contender.role == "peer")):
        if wanted and other in times and min(step.median, times[other].step.median) > 0:
            row[key] = step.median / times[other].step.median
    if contender.peak is not None:
        row |= {"peak": weights + contender.peak, "times": 1 + contender.peak / weights}
    return row if contender.llc is None else row | {"llc": contender.llc}


def share(
    setting: Setting, walk: Walk, times: dict[str, Slope], absent: dict[str, str], table: Table, spare: Spare
) -> None:
    """Rows of the parts of a chain's step."""
    kinds = (
        ("ours", "llc_fast", "ours", "llc_fast"),
        ("devinterp", DEVINTERP, "peer", DEVINTERP),
        ("eager", "PyTorch by hand", "peer", FLOOR),
    )
    calls: dict[str, Call] = {}
    missing = {key: NO_TIME for key, *_ in kinds}
    if not spare.gone():
        calls, missing = samplers(walk, setting.backend)
    pace = replace(setting.pace, budget=min(1.0, setting.pace.budget), least=min(3, setting.pace.least))
    alone, failed = interleave(calls, pace, setting.device)
    calls.clear()
    missing |= failed
    release(setting)
    for key, name, role, chain in kinds:
        gone = [why[n] for n, why in ((FLOOR, absent), (chain, absent), (key, missing)) if n in why]
        title = f"{walk.component}: {name}"
        if gone:
            table.add(title, role, gone[0])
            continue
        model, sampler = times[FLOOR].step.median, alone[key].median
        row: dict[str, Any] = {"model": model, "sampler": sampler}
        if chain == FLOOR:
            row |= {"step": model + sampler}
        else:
            row |= {"step": times[chain].step.median, "rest": times[chain].step.median - model - sampler}
        table.add(title, role, **row, share=sampler / row["step"])
