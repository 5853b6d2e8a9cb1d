"""What share of the device's copy bandwidth does a step reach, what does noise cost, and how fast is 7B?

Times are of the device with a full queue, so that what the host costs does not show: `_gpu_launches` has that. Small
problems rotate among copies beyond the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from . import _rotate
from ._gpu_device import AHEAD, Bench, device_times
from ._table import Column, Table, count, spread
from ._timing import Call, Timing, reason, rotation
from ._work import Shapes, copy_of, even_shapes, make, ours, release, traffic

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
# In order of what matters if time runs out: what the targets are about comes first.
SIZES = {"64M": 2**26, "256M": 2**28, "1G": 2**30, "4G": 2**32, "16M": 2**24, "4M": 2**22, "1M": 2**20}
TINY = {"2k": 2**11, "4k": 2**12}
LARGEST = 2**30  # elements of a tensor: building a plan takes several times the memory of one
COPY = 2**31  # bytes that the copy moves
HEATING = 28  # bytes an element that working out what sr's rounding adds to the noise takes, in fp64


@dataclass(frozen=True)
class Kind:
    """A step to measure. storage: as `traffic` names it. options: of `ours`."""

    name: str
    dtype: torch.dtype
    storage: str
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        return traffic(self.options.get("sampler", "sgld"), self.storage)

    @property
    def beside(self) -> int:
        """Bytes a parameter that a plan keeps beside the tensors."""
        kept = {"float32": 0, "split": 2, "sr": 0, "float16": 4}[self.storage]
        return kept + (4 if "sampler" in self.options else 0)

    def touched(self, numel: int) -> int:
        """Bytes of memory that a step reads or writes."""
        return numel * (3 * self.dtype.itemsize + self.beside)

    def memory(self, shapes: Shapes, plans: int = 1) -> float:
        """Bytes that so many plans on the same tensors take at most.

        One is being built then, with a copy of the anchors, and what is worked out from the largest tensor.
        """
        numel, largest = sum(shape[0] for shape in shapes), max(shape[0] for shape in shapes)
        each = self.dtype.itemsize
        working = HEATING if self.storage == "sr" else each
        return numel * (4 * each + plans * self.beside) + largest * working


SUMS = {"sums": True}
RMSPROP, SGHMC = {"sampler": "rmsprop_sgld"}, {"sampler": "sghmc"}
SR, IH4 = {"state": "sr"}, {"state": "sr", "noise": "ih4"}
KINDS = [
    Kind("fp32", FP32, "float32"),
    Kind("split", BF16, "split"),
    Kind("sr", BF16, "sr", SR),
    Kind("sr ih4", BF16, "sr", IH4),
    Kind("RMSprop fp32", FP32, "float32", RMSPROP),
    Kind("RMSprop split", BF16, "split", RMSPROP),
    Kind("SGHMC fp32", FP32, "float32", SGHMC),
    Kind("fp32 statistics", FP32, "float32", SUMS),
    Kind("split statistics", BF16, "split", SUMS),
]
NOISY = [*KINDS[:4], Kind("fp16", FP16, "float16")]

COLUMNS = [
    Column("ns", "ns/param", ".4f"),
    Column("low", "from", ".4f"),
    Column("high", "to", ".4f"),
    Column("gbs", "GB/s", ".0f"),
    Column("copy", "copy GB/s", ".0f"),
    Column("share", "of copy", ".1%"),
]
READING = (
    "Device time of a step per parameter, the queue full; median, and the middle half of the samples from .. to. GB/s: "
    "bytes that a step must move over its time; copy: a copy's, read and written, timed in turn with the row. 4G: in "
    "tensors of 1G."
)


def bandwidth(bench: Bench) -> Iterator[Table]:
    """Two tables: 7B first, then every kind and size; the second is yielded again as it grows."""
    yield seven(bench)
    table = Table("gpu-bandwidth", "Share of the device's copy bandwidth", COLUMNS, READING)
    sizes = bench.setting.pick(SIZES, SIZES, TINY)
    for label, numel in sizes.items():
        for kind in KINDS:
            shares(table, bench, kind, label, tensors(numel))
            bench.alive()
        yield table
    table.rows.sort(key=lambda row: (row["backend"], row["numel"]))
    yield table


def tensors(numel: int) -> Shapes:
    """One, or as few as may be."""
    return even_shapes(numel, -(-numel // LARGEST))


def shares(table: Table, bench: Bench, kind: Kind, label: str, shapes: Shapes) -> None:
    """Add a row for each backend."""
    numel = sum(shape[0] for shape in shapes)
    where = f"{kind.name}, {label}"
    times, absent = stepped(bench, kind, shapes, dict.fromkeys(bench.backends, kind.options))
    copy = times.get("copy")
    for backend in bench.backends:
        facts = {"kind": kind.name, "backend": backend, "numel": numel, "size": label, "bytes": kind.bytes}
        name, time = f"{where}, {backend}", times.get(backend)
        if time is None:
            table.add(name, absent=absent.get(backend, "no sample was taken"), **facts)
            continue
        rate = kind.bytes * numel / time.median
        values = {**spread(time, numel), "gbs": rate / 1e9}
        if copy is not None:
            moved = copied(bench) / copy.median
            values |= {"copy": moved / 1e9, "share": rate / moved}
        table.add(name, **facts, **values)


def copied(bench: Bench) -> int:
    """Bytes that a copy reads and writes."""
    return int(bench.setting.pick(COPY, COPY, 2**16))


def stepped(
    bench: Bench, kind: Kind, shapes: Shapes, ways: dict[str, dict[str, Any]]
) -> tuple[dict[str, Timing], dict[str, str]]:
    """Device times of steps on the same tensors, and of a copy; ways: options by "backend" or "backend, ...".

    Why a way has none is in the second.
    """
    setting = bench.setting
    numel = sum(shape[0] for shape in shapes)
    absent: dict[str, str] = {}
    nbytes = kind.memory(shapes, len(ways))
    for way in ways:
        why = bench.absent(way.partition(",")[0], nbytes + copied(bench))
        if why is not None:
            absent[way] = why
    if len(absent) == len(ways):
        return {}, absent
    setting.say(f"{kind.name}, {numel:,} parameters")
    calls: dict[str, Call] = {}
    sets = _rotate.copies(kind.touched(numel), setting.device, 32)
    try:
        works = [make(shapes, kind.dtype, setting.device, seed=i) for i in range(sets)]
        calls["copy"] = copy_of(setting.device, copied(bench), 1.0).build()
    except Exception as e:
        return {}, absent | {way: reason(e) for way in ways if way not in absent}
    for way, options in ways.items():
        if way in absent:
            continue
        level = options.get("noise_level", 1.0)
        rest = {k: v for k, v in options.items() if k != "noise_level"}
        build: Callable[..., Call] = partial(ours, backend=way.partition(",")[0], noise_level=level, **rest)
        try:
            calls[way] = rotation([build(work) for work in works])  # whose first steps, which wait, are made
        except Exception as e:  # a row, not a crash
            absent[way] = reason(e)
    times, failed = device_times(calls, bench, AHEAD * sets)
    calls.clear()
    del works
    release(setting)
    return times, absent | failed


def seven(bench: Bench) -> Table:
    """A split step of 7 billion parameters against its floor."""
    shapes = bench.setting.pick([(25_000_000,)] * 280, [(25_000_000,)] * 280, [(64,)] * 3)
    label = count(sum(shape[0] for shape in shapes))
    table = Table(
        "gpu-7b",
        f"A split step of {label} parameters in {len(shapes)} tensors",
        [
            Column("ms", "ms", ".2f"),
            Column("floor_ms", "floor ms", ".2f"),
            Column("floors", "x floor", ".3f"),
            *COLUMNS[3:],
        ],
        "Floor: its 12 bytes a parameter at the speed of the copy in the same run.",
    )
    shares(table, bench, KINDS[1], label, shapes)
    for row in table.rows:
        if "share" in row:
            ms = row["ns"] * row["numel"] / 1e6
            row |= {"ms": ms, "floor_ms": ms * row["share"], "floors": 1 / row["share"]}
    bench.alive()
    return table


def noise(bench: Bench) -> Iterator[Table]:
    """What noise adds to a step, for every storage."""
    table = Table(
        "gpu-noise",
        "What noise costs over the same kernel without it",
        [
            Column("ns", "ns/param", ".4f"),
            Column("without", "without", ".4f"),
            Column("cost", "costs", "+.1%"),
            Column("share", "of copy", ".1%"),
            Column("quiet", "without, of copy", ".1%"),
        ],
        "Device times of the two in turn. Of copy: the bytes it must move over its time, beside those of a copy.",
    )
    sizes = bench.setting.pick(SIZES, SIZES, TINY)
    for label in list(sizes)[:2]:
        for kind in NOISY:
            _noise_rows(table, bench, kind, label, sizes[label])
            bench.alive()
        yield table


def _noise_rows(table: Table, bench: Bench, kind: Kind, label: str, numel: int) -> None:
    quiet = {k: v for k, v in kind.options.items() if k != "noise"} | {"noise_level": 0.0}
    ways = {
        w: o for b in bench.backends for w, o in ((b, dict(kind.options)), (f"{b}, without noise", quiet))
    }
    times, absent = stepped(bench, kind, tensors(numel), ways)
    for backend in bench.backends:
        facts = {"kind": kind.name, "backend": backend, "numel": numel, "size": label}
        name, without = f"{kind.name}, {label}, {backend}", f"{backend}, without noise"
        if backend not in times or without not in times:
            why = absent.get(backend) or absent.get(without) or "no sample was taken"
            table.add(name, absent=why, **facts)
            continue
        values = {**spread(times[backend], numel), "without": times[without].median / numel * 1e9}
        values["cost"] = times[backend].median / times[without].median - 1
        if "copy" in times:
            moved = copied(bench) / times["copy"].median
            for key, way in (("share", backend), ("quiet", without)):
                values[key] = kind.bytes * numel / times[way].median / moved
        table.add(name, **facts, **values)
