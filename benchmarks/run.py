"""Ask the questions, print their tables as they come, and write JSON, Markdown and pictures."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path

import torch

from ._machine import machine
from ._table import Report, Table
from ._timing import Pace
from ._work import Setting

# Question -> its module, which has `tables(setting)`; in the order of "all".
QUESTIONS = {
    "step": "step",
    "noise": "noise",
    "memory": "memory",
    "curves": "curves",
    "chain": "chain",
}
PACES = {
    "full": Pace(),
    "quick": Pace(budget=1.0, least=3, most=25),
    "tiny": Pace(budget=0.0, least=1, most=1, sample=0.0),
}


def ask(names: Sequence[str], setting: Setting) -> Iterator[Table]:
    """The tables of some questions, one at a time."""
    for name in names:
        module = import_module(f".{QUESTIONS[name]}", __package__)
        tables: Callable[[Setting], Iterator[Table]] = module.tables
        yield from tables(setting)


def run(
    question: str = "all",
    *,
    scale: str = "full",
    device: str = "cpu",
    backends: Sequence[str] = ("auto",),
    threads: int | None = None,
    out: Path | None = None,
    json: Path | None = None,
    command: str = "llc-fast bench",
) -> Report:
    """Ask a question, or all; tables go to stdout, progress to stderr, files to `out` after each table.

    out: a folder for bench.json, bench.md and one PNG a plotted table; json: the JSON there instead.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    torch.manual_seed(0)
    begin = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - begin:4.0f} s] {text}", file=sys.stderr, flush=True)

    setting = Setting(device, tuple(backends), scale, PACES[scale], say)
    report = Report(command, machine(device))
    print(report.heading() + "\n", flush=True)
    names = list(QUESTIONS) if question == "all" else [question]
    for table in ask(names, setting):
        print(table.text() + "\n", flush=True)
        report.tables.append(table)
        report.seconds = time.monotonic() - begin
        write(report, out, json)
    for path in written(report, out, json):
        print(f"wrote {path}")
    return report


def write(report: Report, out: Path | None, json: Path | None) -> None:
    """All files of a report as it is now; without matplotlib no pictures."""
    if json is not None or out is not None:
        report.write(json or out / "bench.json")  # type: ignore[operator]
    if out is None:
        return
    (out / "bench.md").write_text(report.markdown())
    try:
        from ._plots import draw

        draw(report.tables[-1], out / f"{report.tables[-1].key}.png")
    except ModuleNotFoundError as e:
        print(f"no picture of {report.tables[-1].key}: {e.name} is not installed", file=sys.stderr)


def written(report: Report, out: Path | None, json: Path | None) -> list[Path]:
    paths = [json] if json is not None else [out / "bench.json"] if out is not None else []
    if out is not None:
        paths += [out / "bench.md", *(p for t in report.tables if (p := out / f"{t.key}.png").exists())]
    return [p for p in paths if p is not None]
