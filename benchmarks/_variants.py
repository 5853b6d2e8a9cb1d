"""How a step grows with chains, threads, and the statistics that it takes."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from llc_fast.types import Tile

from . import _pairs, _peers
from ._pairs import CACHES, Pair, compare_pairs, timed
from ._rotate import caches, copies, lacking, many, rotated, short, shortage
from ._table import Column, Plot, Table
from ._timing import Call
from ._work import Setting, Subject, Work, copy_of, gpt2_shapes, make, ours, traffic

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16


# --- chains ---


def chains(setting: Setting) -> Table:
    size = setting.pick(196_800, 196_800, 60)
    table = Table(
        "curve-chains",
        f"Steps of many chains of {short(size)} parameters (a head of GPT-2): folded into one launch, and one by one",
        [
            Column("us", "us for all", ",.1f"),
            Column("each", "us a chain", ",.1f"),
            Column("ns", "ns/param", ".3f"),
            Column("low", "from", ".3f"),
            Column("high", "to", ".3f"),
            Column("gain", "folded is faster by", ".2f", "x"),
            CACHES,
        ],
        "Chains of the same weights, each with noise of its own. folded: their weights lie in one tensor, each tile "
        "carries its chain, and a step is one launch. one by one: a step for each chain. What folding saves is the "
        "cost of a call, so it matters where a chain is small.",
        plot=Plot("curves", "each", "microseconds a step and chain", x="chains", xlabel="chains", log="xy"),
    )
    subjects, extra = [], {}
    for count in setting.pick([2**i for i in range(7)], [1, 4, 16, 64], [1, 3]):
        numel = count * size
        among = copies(12 * numel, setting.device, setting.pick(64, 32, 2))
        if (why := shortage(24 * numel * among, setting.device)) is not None:
            table.add(many(count, "chain"), absent=why)
            continue
        works = [make([(numel,)], FP32, setting.device, seed) for seed in range(among)]
        for backend in setting.backends:
            mine = f"folded, {many(count, 'chain')}"
            kinds: list[tuple[str, Callable[..., Call]]] = [("folded", _folded), ("one by one", _apart)]
            for kind, build in kinds:
                series = setting.named(kind, backend)
                title = setting.named(f"{kind}, {many(count, 'chain')}", backend)
                made = rotated(partial(build, count=count, backend=backend), works)
                role, against = ("ours", "") if kind == "folded" else ("peer", setting.named(mine, backend))
                subjects.append(Subject(title, made, numel, role=role, mine=against, stretch=str(count)))
                extra[title] = {"series": series, "chains": count}
                extra[title]["caches"] = caches(12 * numel * among, setting.device)
    if subjects:
        timed(table, subjects, setting, extra)
    for row in table.rows:
        row["role"] = "ours"  # both are; as a peer the second was timed beside the first
        if "us" in row:
            row["each"] = row["us"] / row["chains"]
    return table


def _folded(work: Work, count: int, backend: str) -> Call:
    size = work.numel // count
    return ours(
        work, backend, tiles=[Tile(0, 1, size, i * size, size, 0, size, chain=i) for i in range(count)]
    )


def _apart(work: Work, count: int, backend: str) -> Call:
    slices = [
        Work(*([t[0].chunk(count)[i]] for t in (work.params, work.grads, work.anchors))) for i in range(count)
    ]
    calls = [ours(part, backend, chain=i) for i, part in enumerate(slices)]

    def step() -> None:
        for call in calls:
            call()

    return step


# --- threads ---


def threads(setting: Setting) -> Table:
    numel = setting.pick(1 << 26, 1 << 23, 1 << 10)
    held = 12 * numel
    table = Table(
        "curve-threads",
        f"A step of {short(numel)} parameters against the number of threads",
        [
            Column("us", "us/step", ",.1f"),
            Column("ns", "ns/param", ".3f"),
            Column("low", "from", ".3f"),
            Column("high", "to", ".3f"),
            Column("speedup", "x one thread", ".2f"),
            Column("gain", "ours is faster by", ".1f", "x"),
            CACHES,
        ],
        "torch.set_num_threads before each point. x one thread: how many times faster than the same with one. A step "
        "that waits for memory stops gaining when the memory is busy, which a few cores may be enough for: compare "
        "with the copy.",
        plot=Plot("curves", "ns", "nanoseconds a parameter", x="threads", xlabel="threads", log="y"),
    )
    among = copies(held, setting.device, 8)
    if lacking(table, (3 * among + 3) * held, setting.device):  # the copy, devinterp's own, temporaries
        return table
    works = [make([(numel,)], FP32, setting.device, seed) for seed in range(among)]
    backend = setting.backend
    copy = copy_of(setting.device, traffic() * numel, traffic())
    subjects = [
        Subject("llc_fast fp32", rotated(partial(ours, backend=backend), works), numel),
        Subject("floor: no noise", rotated(partial(ours, backend=backend, noise_level=0.0), works), numel),
        replace(copy, build=rotated(lambda _: copy.build(), works)),
    ]
    subjects[1] = replace(subjects[1], role="floor")
    for name, build in (("devinterp SGMCMC.sgld", _peers.devinterp), ("PyTorch eager", _peers.eager)):
        subjects.append(Subject(name, rotated(build, works), numel, role="peer", mine="llc_fast fp32"))
    before = torch.get_num_threads()
    alone: dict[str, float] = {}
    try:
        for count in thread_counts(setting):
            torch.set_num_threads(count)
            points = Table(table.key, "", [])
            value = {"threads": count, "caches": caches(held * len(works), setting.device)}
            timed(points, subjects, setting, {s.name: value | {"series": s.name} for s in subjects})
            for row in points.rows:
                if "ns" in row:
                    row["speedup"] = alone.setdefault(row["name"], row["ns"]) / row["ns"]
                table.rows.append(row | {"name": f"{row['name']}, {many(count, 'thread')}"})
    finally:
        torch.set_num_threads(before)
    table.rows.sort(key=lambda row: [s.name for s in subjects].index(row["series"]))
    return table


def thread_counts(setting: Setting) -> list[int]:
    """1, 2, 4, ... and all cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    counts = sorted({*(2**i for i in range(cores.bit_length()) if 2**i <= cores), cores})
    return setting.pick(counts, counts, counts[:2])


# --- statistics ---


def statistics(setting: Setting) -> Table:
    shapes = setting.pick(gpt2_shapes(), gpt2_shapes(3, 384, 16000), [(40, 16), (33,)])
    numel = sum(torch.Size(s).numel() for s in shapes)
    table = Table(
        "curve-statistics",
        f"What statistics add to a step of {short(numel)} parameters, by storage",
        _pairs.COLUMNS,
        "The same step with and without its statistics (norms and dot products of gradient, displacement and noise, "
        "taken in the same pass), all timed in turn in one run. devinterp's save_metrics is the same for it.",
        plot=Plot("bars", "more", "percent that statistics add to a step", scale=100),
    )
    if lacking(
        table, 120 * numel, setting.device
    ):  # weights of three dtypes, what is kept, devinterp's metrics
        return table
    work = {dtype: make(shapes, dtype, setting.device) for dtype in (FP32, BF16, FP16)}
    kinds: list[tuple[str, torch.dtype, dict[str, Any]]] = [
        ("SGLD fp32", FP32, {}),
        ("SGLD split bf16", BF16, {}),
        ("SGLD sr bf16", BF16, {"state": "sr"}),
        ("SGLD fp16 with master", FP16, {}),
        ("RMSprop-SGLD fp32", FP32, {"sampler": "rmsprop_sgld"}),
        ("SGHMC fp32", FP32, {"sampler": "sghmc"}),
    ]
    pairs = []
    for backend in setting.backends:
        for name, dtype, options in kinds:
            build = partial(ours, work[dtype], backend, **options)
            pairs.append(Pair(setting.named(name, backend), partial(build, sums=True), build, numel))
    less = partial(_peers.devinterp, work[FP32])
    more = partial(less, save_metrics=True)
    pairs.append(Pair("devinterp SGMCMC.sgld", more, less, numel, "peer"))
    compare_pairs(table, pairs, setting)
    return table
