"""What does a step cost the host, whatever the size of the tensors?

Time of a step over 1 to 10,000 tensors of one element: ours at each of its doors, PyTorch's own lists, its optimizers
and devinterp's; then the line through each: what a step costs by itself, and what each tensor adds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch

import llc_fast
from llc_fast import functional

from . import _peers
from ._fit import LEAST, fit
from ._table import Column, Plot, Table, spread
from ._timing import Call, interleave, reason
from ._work import LR, SETTINGS, Setting, Work, make, ours, release

OURS = "Plan.step"  # what all rows are compared with
HOST = "cpu"  # the clock is the calling thread's, on a GPU too


def optimizer(work: Work, backend: str) -> Call:
    step: Call = llc_fast.SGLD(_peers.leaves(work), **SETTINGS, backend=backend).step
    return step


def at_once(work: Work, backend: str) -> Call:
    """Checks and locates all operands at each step."""
    given = work.params, work.grads, work.anchors
    return lambda: llc_fast.sgld_step_(*given, **SETTINGS, seed=0, step=0, backend=backend)


def explicit(work: Work, backend: str) -> Call:
    params = {f"layers.{i}.weight": p for i, p in enumerate(work.params)}
    grads = dict(zip(params, work.grads, strict=True))
    state = functional.init(params, backend=backend)

    def step() -> None:
        nonlocal state
        state = functional.update(grads, state, params, **SETTINGS)

    return step


def one_list(work: Work) -> Call:
    """One call of PyTorch over two lists: what handing over lists of tensors costs."""
    return lambda: torch._foreach_add_(work.params, work.grads, alpha=-LR)


def sgd(work: Work) -> Call:
    return torch.optim.SGD(_peers.leaves(work), lr=LR, foreach=True).step


def subjects(setting: Setting) -> list[tuple[str, str, Callable[[Work], Call]]]:
    """Name, role and builder of each row."""
    found: list[tuple[str, str, Callable[[Work], Call]]] = []
    for backend in setting.backends:
        doors = (
            (OURS, ours),
            ("SGLD.step", optimizer),
            ("functional.update", explicit),
            ("sgld_step_", at_once),
        )
        found += [(setting.named(name, backend), "ours", partial(b, backend=backend)) for name, b in doors]
    return [
        *found,
        ("PyTorch one _foreach_add_ (no sampler)", "yardstick", one_list),
        ("PyTorch _foreach", "peer", _peers.foreach),
        ("PyTorch SGD(foreach=True) (no sampler)", "yardstick", sgd),
        ("PyTorch AdamW(fused=True) (no sampler)", "yardstick", _peers.adamw),
        ("devinterp SGMCMC.sgld", "peer", _peers.devinterp),
    ]


def tables(setting: Setting) -> Iterator[Table]:
    counts = setting.pick((1, 16, 148, 1000, 10000), (1, 16, 148, 1000), (1, 2, 4))
    points: dict[str, list[tuple[int, float]]] = {}
    table = Table(
        "host",
        "A step over tensors of one element: what it costs the host",
        [
            Column("tensors", "tensors", ",d"),
            Column("ns", "us a step", ",.1f", scale=1e-3),
            Column("low", "from", ",.1f", scale=1e-3),
            Column("high", "to", ",.1f", scale=1e-3),
            Column("ratio", f"x {OURS}", ".2f"),
        ],
        "Median time that a step keeps its caller, with the middle half of the samples from .. to; rows of one number "
        "of tensors are timed in turn. Operands stay where they are, as in a training loop's steady state. "
        f"{OURS} is what the estimator takes; SGLD.step adds PyTorch's Optimizer, sgld_step_ checks everything anew. "
        "On a CPU the time has the kernel in it, on a GPU its launch.",
        plot=Plot("curves", "ns", "microseconds a step", x="tensors", xlabel="tensors", log="xy", scale=1e-3),
    )
    for n in counts:
        _at(table, setting, n, points)
    yield table
    yield lines(points, [(name, role) for name, role, _ in subjects(setting)])


def _at(table: Table, setting: Setting, n: int, points: dict[str, list[tuple[int, float]]]) -> None:
    """The rows of one number of tensors."""
    setting.say(f"host: {n:,} tensors")
    pace = replace(setting.pace, budget=setting.pace.budget / 4)
    work = make([(1,)] * n, device=setting.device)
    calls: dict[str, Call] = {}
    absent: dict[str, str] = {}
    for name, _, build in subjects(setting):
        try:
            calls[name] = build(work)
        except Exception as e:  # what cannot run here is a row, not a crash
            absent[name] = reason(e)
    times, failed = interleave(calls, pace, HOST)
    absent |= failed
    for name, role, _ in subjects(setting):
        where = {"series": name, "tensors": n}
        if name not in times:
            table.add(f"{name}, {n:,} tensors", role, absent.get(name, "no sample was taken"), **where)
            continue
        points.setdefault(name, []).append((n, times[name].median))
        ratio = {"ratio": times[name].median / times[OURS].median} if OURS in times else {}
        table.add(name, role, **where, **spread(times[name]), **ratio)
    calls.clear()
    release(setting)


def lines(points: dict[str, list[tuple[int, float]]], rows: list[tuple[str, str]]) -> Table:
    table = Table(
        "host-lines",
        "What a step costs the host by itself, and what each tensor adds",
        [
            Column("fixed", "fixed, us", ".1f", scale=1e6),
            Column("each", "a tensor, us", ".3f", scale=1e6),
            Column("error", "off by up to", ".0%"),
        ],
        "Of the line through the times above that is nearest by relative distance; off by: its largest distance from "
        "a time. Beyond some thousands of tensors each also costs more, as what is known of them leaves the cache.",
        plot=Plot("bars", "each", "microseconds a tensor", scale=1e6),
    )
    for name, role in rows:
        found = points.get(name, [])
        if len(found) < LEAST:
            table.add(name, role, f"timed at {len(found)} numbers of tensors, a line needs {LEAST}")
            continue
        line = fit(found)
        table.add(name, role, fixed=line.overhead, each=line.slope, error=line.error)
    return table
