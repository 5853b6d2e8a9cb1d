"""One fp32 step on the GPU: ours, compiled from CUDA and from Triton, against what people use otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from . import _peers
from ._gpu_device import Bench
from ._table import Table, count
from ._timing import reason
from ._work import COLUMNS, Subject, Work, compare, copy_of, make, ours, traffic

TENSORS = 16
SIZES = {"64M": 2**22, "256M": 2**24}  # elements of a tensor, with the whole step beyond the cache
ASKED = (
    _peers.devinterp,
    _peers.posteriors,
    _peers.eager,
    _peers.in_place,
    _peers.foreach,
    _peers.compiled,
    _peers.adamw,
)
READING = (
    "Time of a step per parameter as its caller sees it, host and device. Ours is faster by: the row over the CUDA "
    "kernel's step (Triton's, without it), timed in turn with it. AdamW moves 28 bytes a parameter, the samplers 16, "
    "so that GB/s compares them."
)


def peers(bench: Bench) -> Iterator[Table]:
    for label, each in SIZES.items():
        yield against(bench, label, *bench.setting.pick((TENSORS, each), (TENSORS, each), (2, 256)))
        bench.alive()


def against(bench: Bench, label: str, tensors: int, each: int) -> Table:
    setting = bench.setting
    numel = each * tensors
    title = f"One fp32 step of {count(numel)} parameters in {tensors} tensors"
    table = Table(f"gpu-peers-{label}", title, COLUMNS, READING)
    rows = [b for b in bench.backends if b not in bench.lost]
    try:
        bench.deadline.check()
        work = make([(each,)] * tensors, torch.float32, setting.device)
    except Exception as e:
        table.add("everything", "ours", reason(e), size=label, numel=numel)
        return table
    compare(table, list(subjects(bench, rows, work, numel)), setting)
    for backend in bench.lost:
        table.add(f"llc_fast, {backend}", "ours", bench.lost[backend], backend=backend)
    for row in table.rows:
        row |= {"size": label, "numel": numel, "mine": rows[0] if rows else None}
    return table


def subjects(bench: Bench, rows: list[str], work: Work, numel: int) -> Iterator[Subject]:
    mine = f"llc_fast, {rows[0]}" if rows else ""
    floor = f"floor: no noise, {rows[0]}" if rows else ""
    for backend in rows:
        for name, role, level in (
            (f"llc_fast, {backend}", "ours", 1.0),
            (f"floor: no noise, {backend}", "floor", 0.0),
        ):
            build = bench.deadline.timely(partial(ours, work, backend, level))
            yield Subject(name, build, numel, traffic(), role, f"floor: no noise, {backend}")
    yield copy_of(bench.setting.device, traffic() * numel, traffic())
    for name, builder, role, least in _peers.STEP:
        if builder in ASKED:
            build = bench.deadline.timely(partial(builder, work))
            yield Subject(name, build, numel, least, role, floor, mine)
