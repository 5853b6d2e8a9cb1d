"""What the GPU suite is for: each target with the number that was measured, and whether it is met."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from ._gpu_device import NO_TIME
from ._table import Column, Report, Table

FROM = 2**26  # parameters from which shares of bandwidth are judged
BACKENDS = ("cuda", "triton")
Tables = Mapping[str, Table]


@dataclass(frozen=True)
class Measured:
    """The worst of the rows that a target is about; how many there are of how many."""

    value: float
    found: int
    wanted: int


Measure = Callable[[Tables, str], Measured | None]


@dataclass(frozen=True)
class Target:
    """name: what is asked. part: of the suite, which measures it. bound: what is met, `least` or at most.

    form: how the number is written.
    """

    name: str
    part: str
    bound: float
    measure: Measure
    least: bool = False
    form: str = ".1%"
    backends: tuple[str, ...] = BACKENDS

    def met(self, value: float) -> bool:
        return value >= self.bound if self.least else value <= self.bound

    def text(self, value: float) -> str:
        return format(value, self.form) + ("x" if self.form.endswith("f") and self.form != ".0f" else "")


def rows_of(tables: Tables, key: str, **want: Any) -> list[dict[str, Any]]:
    rows = tables[key].rows if key in tables else []
    return [row for row in rows if all(row.get(k) == v for k, v in want.items())]


def worst(rows: list[dict[str, Any]], key: str, least: bool = False) -> Measured | None:
    """Of the rows' numbers the greatest, or the least if `least` is what has to be large; None without any."""
    values = [row[key] for row in rows if number(row.get(key))]
    return Measured((min if least else max)(values), len(values), len(rows)) if values else None


def number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def large(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if row.get("numel", 0) >= FROM]


# --- measures ---


def share(kind: str) -> Measure:
    return lambda tables, backend: worst(
        large(rows_of(tables, "gpu-bandwidth", kind=kind, backend=backend)), "share", least=True
    )


def cost(kind: str) -> Measure:
    return lambda tables, backend: worst(
        large(rows_of(tables, "gpu-noise", kind=kind, backend=backend)), "cost"
    )


def seven(tables: Tables, backend: str) -> Measured | None:
    return worst(rows_of(tables, "gpu-7b", backend=backend), "floors")


def kernels(tables: Tables, backend: str) -> Measured | None:
    """By how many launches a step of many tensors has more, or fewer, than one of one."""
    spreads = []
    rows = rows_of(tables, "gpu-launches", backend=backend)
    for kind in dict.fromkeys(row.get("kind") for row in rows):
        of = [row for row in rows if row.get("kind") == kind]
        counts = [row["kernels"] for row in of if number(row.get("kernels"))]
        if len(counts) == len(of) > 1:
            spreads.append(max(counts) - min(counts))
    return Measured(max(spreads), len(spreads), len({r.get("kind") for r in rows})) if spreads else None


def many(tables: Tables, backend: str) -> Measured | None:
    rows = [row for row in rows_of(tables, "gpu-launches", backend=backend) if row.get("tensors", 0) > 100]
    return worst(rows, "ratio")


def faster(peer: str) -> Measure:
    """The least gain over a peer: the row's own, of the backend that it was timed in turn with, else of two medians."""

    def measure(tables: Tables, backend: str) -> Measured | None:
        gains, wanted = [], 0
        for key in tables:
            if key.startswith("gpu-peers-"):
                wanted += 1
                found = [r for r in rows_of(tables, key) if r["name"].startswith(peer)]
                ours = rows_of(tables, key, name=f"llc_fast, {backend}")
                gains += [gain for gain in map(partial(_gain, backend, ours), found) if number(gain)]
        return Measured(min(gains), len(gains), wanted) if gains else None

    return measure


def _gain(backend: str, ours: list[dict[str, Any]], peer: dict[str, Any]) -> float | None:
    if peer.get("mine") == backend:
        return peer.get("gain")
    times = [peer.get("ns"), *(row.get("ns") for row in ours)]
    return times[0] / times[1] if len(times) == 2 and all(map(number, times)) else None


def failures(key: str) -> Measure:
    """Rows of a table that are failures; without a row that is none there is no answer."""

    def measure(tables: Tables, backend: str) -> Measured | None:
        rows = rows_of(tables, key)
        return Measured(sum(bool(row.get("bad")) for row in rows), len(rows), len(rows)) if rows else None

    return measure


def unlike(tables: Tables, backend: str) -> Measured | None:
    """1 where a captured step has other bits than an eager one; nothing where eager ones differ themselves."""
    found = [row.get("bits") for row in rows_of(tables, "gpu-graph", backend=backend, kind="captured")]
    return Measured(float(found[0] != "equal"), 1, 1) if found and found[0] in ("equal", "differ") else None


UNKNOWN = "not measured"
TABLES = {"bandwidth": ("gpu-bandwidth", "gpu-7b")}  # of a part, where they are not named like it
ALONE = ("cuda",)  # where there is one answer, not one a backend
TARGETS = [
    Target("tests that need a GPU: failures", "tests", 0, failures("gpu-tests"), form=".0f", backends=ALONE),
    Target(
        "compute-sanitizer: runs with findings",
        "sanitize",
        0,
        failures("gpu-sanitize"),
        form=".0f",
        backends=ALONE,
    ),
    Target("fp32, share of a copy's bandwidth, from 64M", "bandwidth", 0.90, share("fp32"), least=True),
    Target("split, share of a copy's bandwidth (aim 90 %)", "bandwidth", 0.85, share("split"), least=True),
    Target("sr with gaussian noise, share of a copy's", "bandwidth", 0.70, share("sr"), least=True),
    Target("sr with ih4, share of a copy's", "bandwidth", 0.85, share("sr ih4"), least=True),
    Target("noise costs, fp32", "noise", 0.05, cost("fp32"), form="+.1%"),
    Target("noise costs, split", "noise", 0.10, cost("split"), form="+.1%"),
    Target("launches more for more tensors", "launches", 0, kernels, form=".0f"),
    Target("10,000 tensors against one of their size", "launches", 1.10, many, form=".3f"),
    Target("7B split step against its floor (aim 1.11)", "bandwidth", 1.18, seven, form=".3f"),
    Target("faster than PyTorch eager, fp32", "peers", 5.0, faster("PyTorch eager"), least=True, form=".1f"),
    Target("faster than devinterp, fp32", "peers", 10.0, faster("devinterp"), least=True, form=".1f"),
    Target("captured step with other bits than eager", "graph", 0, unlike, form=".0f", backends=ALONE),
]


def verdicts(tables: Tables, dry: bool) -> Iterator[dict[str, Any]]:
    """A row a target: the bound, the number of each backend, and what to make of it; a dry run judges nothing.

    late: whether time was too short for one that has no number.
    """
    for target in TARGETS:
        row: dict[str, Any] = {
            "bound": ("at least " if target.least else "at most ") + target.text(target.bound)
        }
        said = {}
        for backend in target.backends:
            found = None if dry else target.measure(tables, backend)
            if found is None:
                said[backend] = NO_TIME if not dry and hurried(tables, target.part, backend) else UNKNOWN
                row[backend] = "-"
                continue
            said[backend] = "met" if target.met(found.value) else "MISSED"
            if found.found < found.wanted:
                said[backend] += f" ({found.found} of {found.wanted} measured)"
            row[backend] = target.text(found.value)
        first, *rest = (said[b] for b in target.backends)
        row["verdict"] = first if not rest or rest[0] == first else f"{first}; Triton {rest[0]}"
        yield {"name": target.name, "said": said, "late": NO_TIME in said.values(), **row}


def hurried(tables: Tables, part: str, backend: str) -> bool:
    """Whether a part was not begun for lack of time, or left out rows of a backend."""
    states = [row["state"] for row in rows_of(tables, "gpu-run", name=part)]
    return NO_TIME in states or any(
        NO_TIME in row.get("absent", "")
        for key in tables
        if key.startswith(TABLES.get(part, (f"gpu-{part}",)))
        for row in tables[key].rows
        if row.get("backend", backend) == backend
    )


READING = (
    "The worst of all sizes that a target is about; met or missed by the CUDA backend. Its gains over peers are of the "
    "same rounds, Triton's of medians that were taken in different ones."
)


def judge(report: Report, dry: bool) -> Table:
    table = Table(
        "gpu-targets",
        "Targets" + (": a dry run, nothing was measured" if dry else ""),
        [Column("bound", "bound"), Column("cuda", "CUDA"), Column("triton", "Triton"), Column("verdict", "")],
        "" if dry else READING,
    )
    for row in verdicts({t.key: t for t in report.tables}, dry):
        table.add(**row)
    return table
