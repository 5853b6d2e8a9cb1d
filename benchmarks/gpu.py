"""The suite for a machine with a GPU: parts in processes of their own, most important first, and a table at the end.

    bash benchmarks/gpu.sh OUT [PART]

builds for the card and calls this module; without a GPU it is a dry run, see `gpu.sh`. OUT gets gpu.json (every table,
and the machine), gpu.md, curves.png, roofline.png, summary.txt, tests.log, sanitize.log and run.log.
"""

from __future__ import annotations

import os
import signal
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from . import _gpu_part, _gpu_plots
from ._gpu_device import NO_TIME
from ._gpu_part import LOST, Book, facts_of
from ._gpu_process import ended, started
from ._gpu_roofline import roofline
from ._gpu_targets import judge
from ._machine import state
from ._table import WIDTH, Column, Table, write_whole

# Part -> seconds that it may take; in the order of a whole run, which leaves the sanitizers out. Those of a whole run
# that hold targets leave time for the build; the chain, which holds none, has what is left.
BUDGETS = {
    "compile": 200,
    "tests": 120,
    "bandwidth": 90,
    "peers": 60,
    "noise": 35,
    "launches": 30,
    "graph": 25,
    "chain": 150,
    "sanitize": 500,
}
WHOLE = [part for part in BUDGETS if part not in ("compile", "sanitize")]
DRY = [part for part in BUDGETS if part != "sanitize"] + ["sanitize"]
LEAST = 8  # seconds that a part is worth starting for
GRACE = 20  # from the end of a part's time to the end of the part
FILES = (
    "gpu.json",
    "gpu.md",
    "curves.png",
    "roofline.png",
    "summary.txt",
    "tests.log",
    "sanitize.log",
    "run.log",
)
STOPPED = 124  # exit status of a part that did not end by itself
LOG_BYTES = 3 << 20  # of a log that are kept
Spawn = Callable[[str, float, dict[str, str]], int]


@dataclass
class Suite:
    """One run. until: when all has to be over, in seconds of `clock`. spawn: starts a part, gives its exit status.

    alone: one part is run, which may take all the time there is.
    """

    out: Path
    book: Book
    dry: bool
    spawn: Spawn
    until: float
    clock: Callable[[], float] = time.time
    lost: dict[str, str] = field(default_factory=dict)
    alone: bool = False
    states: Table = field(
        default_factory=lambda: Table(
            "gpu-run", "Parts", [Column("state", "how it ended"), Column("seconds", "seconds", ".0f")]
        )
    )

    @property
    def left(self) -> float:
        return self.until - self.clock()

    def run(self, parts: Sequence[str]) -> bool:
        """Whether all that was begun ended well."""
        well = [self.part(name) for name in parts]
        return all(well)

    def budget(self, name: str) -> float:
        """Seconds for a part; a dry run, which keeps no GPU waiting, may take its time."""
        most = float("inf") if self.alone or self.dry else BUDGETS[name]
        return min(most, self.left - GRACE)

    def part(self, name: str) -> bool:
        seconds = self.budget(name)
        if seconds < LEAST:
            self.note(name, 0.0, NO_TIME)
            return True
        began = self.clock()
        status = self.spawn(name, seconds, self.lost)
        if status == LOST and "cuda" not in self.lost and not self.dry:
            why = f"the device was lost in {name}, see run.log"
            seconds = self.budget(name)
            if seconds >= LEAST:
                self.spawn(name, seconds, self.lost | {"cuda": why})
            state = "FAILED: the device was lost; run again without CUDA"
        else:
            state = "done" if status == 0 else f"FAILED: {meaning(status)}"
        self.note(name, self.clock() - began, state)
        return status == 0

    def note(self, name: str, seconds: float, state: str) -> None:
        print(f"{name}: {state}, {seconds:.0f} s", flush=True)
        self.states.rows = [row for row in self.states.rows if row["name"] != name]
        self.states.add(name, state=state, seconds=seconds, failed=state.startswith("FAILED"))

    def finish(self, seconds: float) -> None:
        """Judge, draw, and write what is left to write; the short table last."""
        book = Book(self.book.path, self.book.report.command, self.book.report.machine)
        book.report.seconds = seconds
        book.report.machine["after"] = state("cpu" if self.dry else "cuda")
        tables = {t.key: t for t in book.report.tables}
        known = {row["name"] for row in self.states.rows}
        earlier = tables["gpu-run"].rows if "gpu-run" in tables else []
        self.states.rows = [*(row for row in earlier if row["name"] not in known), *self.states.rows]
        roof = []
        if "gpu-bandwidth" in tables:
            roof = [roofline(tables["gpu-bandwidth"], book.report.machine.get("gpu"))]
        book.last([*roof, self.states])
        targets = judge(book.report, self.dry)
        book.last([targets])
        pictures = draw(book.report.tables, self.out)
        short = summary(targets, self.states, book.report.heading(), seconds)
        write_whole(self.out / "summary.txt", short + "\n")
        links = [f"![{name}]({name}.png)" for name in pictures]
        write_whole(self.out / "gpu.md", "\n\n".join([book.report.markdown(()), *links]) + "\n")
        trim(self.out)
        print("\n" + short, flush=True)


def meaning(status: int) -> str:
    if status == STOPPED:
        return "stopped, its time was over"
    if status < 0:
        with suppress(ValueError):
            return f"ended by {signal.Signals(-status).name}"
    return f"exit status {status}, see run.log"


def draw(tables: Sequence[Table], out: Path) -> list[str]:
    """The pictures that could be drawn."""
    drawn = []
    for key, name, how in (
        ("gpu-bandwidth", "curves", _gpu_plots.curves),
        ("gpu-roofline", "roofline", _gpu_plots.roofline),
    ):
        try:
            drawn += [name for t in tables if t.key == key and how(t, out / f"{name}.png")]
        except Exception as e:  # a picture less is no failure
            print(f"no picture {name}.png: {type(e).__name__}: {e}", flush=True)
    return drawn


def summary(targets: Table, states: Table, heading: str, seconds: float) -> str:
    """What came of a run, in at most 40 lines."""
    lines = [part for line in heading.splitlines() for part in textwrap.wrap(line, WIDTH)]
    lines += ["", *targets.text(WIDTH).splitlines(), ""]
    lines += [f"{r['name']}: {r['state']}"[:WIDTH] for r in states.rows if r["failed"]]
    if late := [row["name"] for row in targets.rows if row["late"]]:
        lines += textwrap.wrap(f"{NO_TIME} for: {'; '.join(late)}", WIDTH)
    ends = [
        f"{r['name']} {'FAILED' if r['failed'] else r['state']} {r['seconds']:.0f} s" for r in states.rows
    ]
    lines += [f"in all {seconds:.0f} s", *textwrap.wrap("parts: " + ", ".join(ends), WIDTH)]
    return "\n".join(lines[:40])


def trim(out: Path) -> None:
    """Keep a long log's beginning and end."""
    for name in FILES:
        path = out / name
        if name.endswith(".log") and path.exists() and path.stat().st_size > LOG_BYTES:
            text, half = path.read_bytes(), LOG_BYTES // 2
            path.write_bytes(text[:half] + b"\n\n[... left out ...]\n\n" + text[-half:])


def processes(out: Path, source: Path, dry: bool, commit: str, command: str) -> Spawn:
    """Starts parts as processes, whose output goes to run.log."""
    env = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    env |= {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    env |= {"TRITON_INTERPRET": "1"} if dry else {}

    def spawn(part: str, seconds: float, lost: dict[str, str]) -> int:
        run = [sys.executable, "-m", _gpu_part.__name__, part, "--out", str(out), "--source", str(source)]
        run += ["--seconds", str(seconds), "--commit", commit, "--command", command]
        run += ["--dry"] if dry else []
        for name, why in lost.items():
            run += ["--lost", f"{name}={why}"]
        tested = part in ("tests", "sanitize")  # as on a GPU: not in the interpreter
        own = {k: v for k, v in env.items() if not tested or k != "TRITON_INTERPRET"}
        log = out / "run.log"
        with log.open("a") as to:
            to.write(f"\n##### {part}\n")
            to.flush()
            at = to.tell()
            with started(run, to, env=own) as child:
                (whole,) = ended([child], seconds + GRACE - 5, signal.SIGTERM)
            status = child.returncode if whole else STOPPED
        if status != 0:
            tail = log.read_bytes()[at:].decode(errors="replace").splitlines()[-15:]
            print("\n".join(f"  | {line[:200]}" for line in tail), flush=True)
        return status

    return spawn


def main(argv: Sequence[str] | None = None) -> int:
    options = _gpu_part.parser()
    options.add_argument(
        "--began", type=float, default=None, help="when the whole run began, in seconds of the epoch"
    )
    options.add_argument("--until", type=float, default=float("inf"), help="when it has to be over, likewise")
    options.add_argument("--build-failed", action="store_true")
    a = options.parse_args(argv)
    began = time.time() if a.began is None else a.began
    parts = (DRY if a.dry else WHOLE) if a.part == "all" else [a.part]
    if a.part == "build":  # which gpu.sh has done, where there is a GPU
        parts = ["compile"] if a.dry else []
    if a.part == "all":
        for name in FILES:
            if name != "run.log":  # which has the build
                (a.out / name).unlink(missing_ok=True)
    lost = dict(pair.split("=", 1) for pair in a.lost)
    book = Book(a.out / "gpu.json", a.command, facts_of("cpu" if a.dry else "cuda", a.commit), begins=True)
    book.report.write(book.path)
    spawn = processes(a.out, a.source.resolve(), a.dry, a.commit, a.command)
    suite = Suite(a.out, book, a.dry, spawn, a.until, lost=lost, alone=a.part != "all")
    if a.build_failed:
        suite.note("build", 0.0, "FAILED: without the CUDA extension, see run.log")
    well = suite.run(parts)
    suite.finish(time.time() - began)
    return 0 if well and not a.build_failed else 1


if __name__ == "__main__":
    sys.exit(main())
