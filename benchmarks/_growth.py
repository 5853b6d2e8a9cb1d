"""How a step grows with the number of parameters and of tensors: the two curves, and the lines through them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from . import _peers
from ._fit import LEAST, fit
from ._rotate import MOST, caches, copies, many, rotated, short, shortage
from ._table import Column, Plot, Table
from ._timing import Call, host_seconds
from ._work import Setting, Shapes, Subject, Work, compare, copy_of, even_shapes, make, ours, release, traffic

FP32, BF16 = torch.float32, torch.bfloat16
SLOW = 1e8  # parameters from which a CPU's step is taken as often as there is time for, be it once
OBJECTS = 20_000  # tensors, over all copies
TENSOR = 1 << 20  # elements of the tensors that many parameters are in, about those of a model's layers


@dataclass(frozen=True)
class Curve:
    """A line of the picture. own: bytes a parameter that it keeps beside the `Work`; building: while it is built.

    bytes, floor, mine: as of a `Subject`.
    """

    name: str
    build: Callable[[Work], Call]
    bytes: float
    role: str = "ours"
    floor: str = ""
    mine: str = ""
    own: float = 0.0
    building: float = 0.0


MINE, FLOOR = "llc_fast fp32", "floor: no noise, fp32"
# Bytes of their own as `memory` measures them; what else a step takes is of the size of single tensors.
PEERS = [
    Curve("devinterp SGMCMC.sgld", _peers.devinterp, 16, "peer", FLOOR, MINE, 4),
    Curve("PyTorch eager", _peers.eager, 16, "peer", FLOOR, MINE),
    Curve("PyTorch _foreach", _peers.foreach, 16, "peer", FLOOR, MINE, 4),
    Curve("PyTorch fused AdamW (no sampler)", _peers.adamw, 28, "yardstick", FLOOR, MINE, 8),
]
TEMPORARIES = 20  # bytes that steps take at once for each element of the largest tensor


def parameters(setting: Setting) -> Table:
    table = Table(
        "curve-parameters",
        "A step against the number of parameters",
        [
            Column("us", "us/step", ",.1f"),
            Column("ns", "ns/param", ".3f"),
            Column("low", "from", ".3f"),
            Column("high", "to", ".3f"),
            Column("gbs", "GB/s", ".1f"),
            Column("floors", "x floor", ".2f"),
            Column("gain", "ours is faster by", ".1f", "x"),
            Column("caches", "data/cache", ".2f"),
        ],
        f"In tensors of at most {short(TENSOR)} parameters. us/step: median time of a step in microseconds; ns/param: "
        "the same for each parameter, with the middle half of the samples from .. to. For few parameters the time is "
        "that of the call, for many that of the memory. x floor: over our own kernel without noise. data/cache: the "
        "weights, gradients and anchors among which the steps rotate, over this machine's largest cache: above 1 "
        "they come from memory, well below from the cache, which is faster.",
        plot=Plot("curves", "us", "microseconds a step", x="n", xlabel="parameters", log="xy"),
    )
    sizes = setting.pick(
        [round(10 ** (4 + i / 2)) for i in range(11)],
        [10**4, 10**5, 10**6, 10**7, 3 * 10**7],
        [64, 256, 1024],
    )
    for n in sizes:
        _point(
            table, setting, even_shapes(n, math.ceil(n / TENSOR)), n, short(n), setting.pick(MOST, MOST, 2)
        )
    _sort(table)
    return table


def tensors(setting: Setting) -> Table:
    numel = setting.pick(1 << 26, 1 << 23, 1 << 10)
    counts = setting.pick([1, 10, 100, 1000, 3000, 10_000], [1, 100, 1000, 10_000], [1, 4, 16])
    columns = [
        Column("ms", "ms/step", ",.3f"),
        Column("ns", "ns/param", ".3f"),
        Column("low", "from", ".3f"),
        Column("high", "to", ".3f"),
        Column("gain", "ours is faster by", ".1f", "x"),
        Column("caches", "data/cache", ".2f"),
    ]
    if setting.cuda:
        columns.insert(1, Column("host", "ms of the host", ",.3f"))
    table = Table(
        "curve-tensors",
        f"A step of {short(numel)} parameters against the number of tensors that they are in",
        columns,
        "The same number of parameters in more and more tensors: what rises is the cost of a tensor. Ours launches "
        "once whatever their number, but each gradient is looked at. "
        + (
            "ms of the host: what the step costs the Python thread, which does not wait for the GPU; where it is more "
            "than the step, the GPU waits for Python. "
            if setting.cuda
            else ""
        )
        + "data/cache: as in the table of parameters.",
        plot=Plot("curves", "ms", "milliseconds a step", x="n", xlabel="tensors", log="xy"),
    )
    for count in counts:  # among as many copies everywhere, so that the cache is no part of the curve
        _point(
            table,
            setting,
            even_shapes(numel, count),
            count,
            many(count, "tensor"),
            max(1, OBJECTS // max(counts)),
        )
    _sort(table)
    return table


def lines(by_size: Table, by_tensor: Table) -> Table:
    """What the two curves say in numbers."""
    table = Table(
        "curve-lines",
        "Where overhead ends and bandwidth begins",
        [
            Column("overhead", "us a call", ".3g"),
            Column("slope", "ns a parameter", ".3f"),
            Column("crossover", "half overhead at", ",.0f"),
            Column("error", "worst point off by", ".0%"),
            Column("tensor", "us a tensor more", ".3g"),
            Column("strayed", "worst point off by", ".0%"),
        ],
        "Straight lines through the two curves: a step takes (us a call) + parameters x (ns a parameter) + further "
        "tensors x (us a tensor more). half overhead at: the number of parameters at which overhead and work are "
        "equal; below, a faster kernel would not help, above, it is the memory that counts. worst point off by: the "
        "largest distance of a measured time from its line; where it is large, the cost is no straight line (small "
        "problems fit into the cache, a thread is not worth starting for them) and the figures are rough.",
    )
    seen = list(dict.fromkeys((r["series"], r["role"]) for r in by_size.rows))
    for series, role in seen:
        try:
            size = fit(_points(by_size, series))
        except ValueError as e:
            table.add(series, role, str(e))
            continue
        values: dict[str, Any] = {
            "overhead": size.overhead * 1e6,
            "slope": size.slope * 1e9,
            "error": size.error,
        }
        values["crossover"] = _within(size.crossover, [n for n, _ in _points(by_size, series)])
        points = _points(by_tensor, series)
        if len(points) >= LEAST and not series.startswith("copy"):  # which is of one tensor always
            count = fit(points)
            values |= {"tensor": count.slope * 1e6, "strayed": count.error}
        table.add(series, role, **values)
    return table


def _within(found: float, sizes: Sequence[float]) -> float | str:
    """A number that lies among the sizes from which it was told, or that it does not."""
    if found < min(sizes):
        return f"below {short(min(sizes))}"
    return found if found <= max(sizes) else f"beyond {short(max(sizes))}"


def _points(table: Table, series: str) -> list[tuple[float, float]]:
    return [(r["n"], r["us"] / 1e6) for r in table.rows if r["series"] == series and "absent" not in r]


def _sort(table: Table) -> None:
    """Curve by curve, in the order in which they first came."""
    order = list(dict.fromkeys(row["series"] for row in table.rows))
    table.rows.sort(key=lambda row: order.index(row["series"]))


def _point(table: Table, setting: Setting, shapes: Shapes, n: int, at: str, most: int) -> None:
    """A point of all curves: fp32 with its peers, then split bf16, which need not fit into memory beside it."""
    kinds = [
        (FP32, MINE, FLOOR, traffic(), 0.0, PEERS),
        (BF16, "llc_fast split bf16", "floor: no noise, split bf16", traffic("sgld", "split"), 2.0, []),
    ]
    for dtype, mine, floor, moved, own, peers in kinds:
        base: list[Curve] = []
        for backend in setting.backends:
            quiet = setting.named(floor, backend)
            for name, role, level in ((setting.named(mine, backend), "ours", 1.0), (quiet, "floor", 0.0)):
                build = partial(ours, backend=backend, noise_level=level)
                base.append(Curve(name, build, moved, role, quiet, own=own, building=dtype.itemsize))
        _group(table, setting, shapes, n, at, most, dtype, base, peers)


def _group(
    table: Table,
    setting: Setting,
    shapes: Shapes,
    n: int,
    at: str,
    most: int,
    dtype: torch.dtype,
    base: Sequence[Curve],
    peers: Sequence[Curve],
) -> None:
    """Add the rows of the curves that share their weights at a point; what does not fit is not begun."""
    numel = sum(torch.Size(s).numel() for s in shapes)
    held = 3 * numel * dtype.itemsize
    count = copies(held, setting.device, most)
    works: list[Work] = []
    copy = copy_of(setting.device, traffic() * numel, traffic())
    if dtype == FP32:
        base = [
            *base,
            Curve(copy.name, lambda _: copy.build(), copy.bytes, "floor", own=copy.per / numel * 16),
        ]
    room = 3 * dtype.itemsize + sum(c.own for c in base) + max(c.building for c in base)
    temporary = TEMPORARIES * max(torch.Size(s).numel() for s in shapes)
    subjects: list[Subject] = []
    rows: dict[str, dict[str, Any]] = {}
    for curve in (*base, *peers):
        needed = count * numel * (room + (curve.own if curve in peers else 0)) + temporary
        why = shortage(needed, setting.device)
        if why is not None:
            rows[curve.name] = {"absent": why}
            continue
        per = copy.per if curve.name == copy.name else numel
        build = rotated(curve.build, works)
        subjects.append(Subject(curve.name, build, per, curve.bytes, curve.role, curve.floor, curve.mine))
    if subjects:
        works += [make(shapes, dtype, setting.device, seed) for seed in range(count)]
        pace = replace(setting.pace, budget=setting.pace.budget / 3)
        if numel > SLOW and not setting.cuda:
            pace = replace(pace, least=1)
        found = Table(f"{table.key}, {at}", "", [])
        compare(found, subjects, replace(setting, pace=pace))
        rows |= {row["name"]: row for row in found.rows}
        for subject in subjects:
            values = rows[subject.name]
            if "absent" not in values:
                values |= {"us": values["ns"] * numel / 1e3, "ms": values["ns"] * numel / 1e6}
                values |= {"caches": caches(count * held, setting.device)}
                if setting.cuda and any(c.key == "host" for c in table.columns):
                    values["host"] = _host(subject.build, setting)
    for curve in (*base, *peers):
        values = {k: v for k, v in rows[curve.name].items() if k not in ("name", "role")}
        table.add(f"{curve.name}, {at}", curve.role, **values, series=curve.name, n=n)


def _host(build: Callable[[], Call], setting: Setting) -> float:
    """Milliseconds that a call costs its Python thread."""
    call = build()
    call()
    found = host_seconds(call, 10) * 1e3
    del call
    release(setting)
    return found
