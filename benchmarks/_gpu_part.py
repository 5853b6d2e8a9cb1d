"""One part of the GPU suite in a process of its own: what it breaks, the next part does not see.

    python -m llc_fast.benchmarks._gpu_part PART --out FOLDER [--dry] [--seconds N] ...

Its tables go into FOLDER/gpu.json one by one, as soon as they are there. Exit status 1: something in it failed. 4: the
device answers nothing any more.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ._gpu_device import Bench, Cuda, Deadline, DeviceLostError, Host
from ._gpu_tests import Place
from ._machine import machine
from ._table import Report, Table
from ._timing import Pace
from ._work import Setting

LOST = 4
BACKENDS = ("cuda", "triton")
DRY_BACKENDS = ("cpu", "triton")  # Triton's in its interpreter
PACE = Pace(budget=0.5, least=5, most=25)
TINY = Pace(budget=0.0, least=1, most=1, sample=0.0)


def measure(part: str) -> Callable[[Bench, Place], Iterator[Table]]:
    """What a part runs; its module is loaded now, so that one that cannot be loaded is that part's failure."""
    if part in ("tests", "sanitize"):
        from . import _gpu_tests

        return {"tests": _gpu_tests.tests, "sanitize": _gpu_tests.sanitize}[part]
    if part == "compile":
        from . import _gpu_compile

        return _gpu_compile.compiled
    if part in ("bandwidth", "noise"):
        from . import _gpu_bandwidth

        return _alone({"bandwidth": _gpu_bandwidth.bandwidth, "noise": _gpu_bandwidth.noise}[part])
    if part == "launches":
        from ._gpu_launches import launches

        return _alone(launches)
    if part == "peers":
        from ._gpu_peers import peers

        return _alone(peers)
    if part == "graph":
        from ._gpu_graph import graph

        return _alone(graph)
    if part == "chain":
        return _alone(chain)
    raise ValueError(f"unknown part {part!r}")


def _alone(run: Callable[[Bench], Iterator[Table]]) -> Callable[[Bench, Place], Iterator[Table]]:
    return lambda bench, place: run(bench)


def chain(bench: Bench) -> Iterator[Table]:
    """The question of that name, on this device, with the first backend: the others' steps are in the other tables."""
    from . import run

    setting = replace(bench.setting, backends=bench.setting.backends[:1], left=lambda: bench.deadline.left)
    yield from run.ask(["chain"], setting)


class Book:
    """The report that all parts of a run write into.

    begins: a run begins, which keeps the tables of an earlier one only if they are of this machine and commit; a part
    takes the report as it is, whatever was committed meanwhile.
    """

    def __init__(self, path: Path, command: str, facts: dict[str, Any], begins: bool = False) -> None:
        self.path = path
        self.report = Report(command, facts)
        try:
            before = Report.read(path)
        except (OSError, ValueError):
            return
        if not begins:
            self.report = before
        elif _same_place(before.machine, facts):
            self.report.tables, self.report.seconds = before.tables, before.seconds

    def put(self, table: Table) -> None:
        """Add a table, or replace the one of its key, and write."""
        tables = self.report.tables
        keys = [t.key for t in tables]
        if table.key in keys:
            tables[keys.index(table.key)] = table
        else:
            tables.append(table)
        self.report.write(self.path)

    def last(self, tables: Sequence[Table]) -> None:
        """Add tables at the end, in the place of those of their keys, and write."""
        keys = {t.key for t in tables}
        self.report.tables = [*(t for t in self.report.tables if t.key not in keys), *tables]
        self.report.write(self.path)


def _same_place(a: dict[str, Any], b: dict[str, Any]) -> bool:
    names = [(m.get("gpu") or {}).get("name") for m in (a, b)]
    return names[0] == names[1] and all(a.get(k) == b.get(k) for k in ("cpu", "commit", "versions"))


def facts_of(device: str, commit: str) -> dict[str, Any]:
    found = dict(machine(device))
    found["commit"] = found["commit"] or commit or None
    return found


def bench_of(dry: bool, seconds: float, lost: dict[str, str]) -> Bench:
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - began:4.0f} s] {text}", flush=True)

    names = DRY_BACKENDS if dry else BACKENDS
    left = tuple(name for name in names if name not in lost)
    scale, pace, device = ("tiny", TINY, "cpu") if dry else ("full", PACE, "cuda")
    setting = Setting(device, left, scale, pace, say)
    return Bench(setting, Host() if dry else Cuda(), Deadline(seconds), lost)


def run(part: str, bench: Bench, place: Place, book: Book) -> int:
    """The part's tables, as they come; its exit status."""
    bad = False
    try:
        for table in measure(part)(bench, place):
            book.put(table)
            bad = bad or any(row.get("bad") for row in table.rows) or table.key.startswith("failed-")
    except DeviceLostError as e:
        print(f"the device is lost: {e}", flush=True)
        return LOST
    except Exception:
        traceback.print_exc()
        return LOST if gone(bench) else 1
    return int(bad)


def gone(bench: Bench) -> bool:
    """Whether the device answers nothing any more, which may show anywhere."""
    try:
        bench.alive()
    except DeviceLostError:
        return True
    return False


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description="One part of the GPU suite.")
    options.add_argument("part")
    options.add_argument("--out", type=Path, required=True)
    options.add_argument("--source", type=Path, default=Path.cwd(), help="the checkout, whose tests are run")
    options.add_argument(
        "--dry", action="store_true", help="tiny sizes on the CPU and in Triton's interpreter"
    )
    options.add_argument(
        "--seconds", type=float, default=float("inf"), help="when to stop beginning anything"
    )
    options.add_argument(
        "--lost", action="append", default=[], metavar="BACKEND=WHY", help="left out, and why"
    )
    options.add_argument("--command", default="bash benchmarks/gpu.sh")
    options.add_argument("--commit", default="", help="of the checkout, where there is no .git to ask")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    a = parser().parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what it has started ends too
    lost = dict(pair.split("=", 1) for pair in a.lost)
    bench = bench_of(a.dry, a.seconds, lost)
    book = Book(a.out / "gpu.json", a.command, facts_of(bench.setting.device, a.commit))
    return run(a.part, bench, Place(a.source, a.out), book)


if __name__ == "__main__":
    sys.exit(main())
