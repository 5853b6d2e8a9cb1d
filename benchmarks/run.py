"""Ask the questions, print their tables as they come, and write JSON, Markdown and pictures."""

from __future__ import annotations

import sys
import textwrap
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path

import torch

from ._machine import Others, machine, state
from ._table import TOLERATED, WIDTH, Report, Table, terminal, write_whole
from ._timing import Pace, reason
from ._work import Setting

# Question -> its module, which has `tables(setting)`; in the order of "all".
QUESTIONS = {
    "step": "step",
    "noise": "noise",
    "memory": "memory",
    "curves": "curves",
    "host": "host",
    "chain": "chain",
    "stacked": "stacked",
}
PACES = {
    "full": Pace(),
    "quick": Pace(budget=1.0, least=5, most=25),
    "tiny": Pace(budget=0.0, least=1, most=1, sample=0.0),
}
DISTURBED = (
    "WARNING: other work took {:.0%} of the processors while this was timed. It holds up most whoever waits for all "
    "threads after each operation, which the peers do: do not trust the ratios."
)
FAILED = "failed-"  # how the key of a table begins that says why its question was not finished


def ask(names: Sequence[str], setting: Setting) -> Iterator[Table]:
    """The tables of some questions, one at a time; a question that fails is a last table which says so."""
    for name in names:
        try:
            module = import_module(f".{QUESTIONS[name]}", __package__)
            tables: Callable[[Setting], Iterator[Table]] = module.tables
            others = Others()
            for table in tables(setting):
                table.question = name
                table.others = others.share()
                if (table.others or 0.0) > TOLERATED:
                    table.reading = f"{DISTURBED.format(table.others)} {table.reading}".rstrip()
                yield table
                others = Others()
        except Exception as e:
            traceback.print_exc()
            failed = Table(FAILED + name, f"{name}: not finished", [], question=name)
            failed.add(name, absent=reason(e))
            yield failed


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
    show(report.heading())
    names = list(QUESTIONS) if question == "all" else [question]
    try:
        for table in ask(names, setting):
            print(table.text() + "\n", flush=True)
            report.tables.append(table)
            report.seconds = time.monotonic() - begin
            report.machine["after"] = state(device)
            write(report, out, json)
    except KeyboardInterrupt:
        if report.tables:
            show(f"finished: {', '.join(t.key for t in report.tables)}")
            name_files(report, out, json)
        raise
    if report.warnings():
        show("\n".join(report.warnings()))
    name_files(report, out, json)
    return report


def render(report: Report, *, out: Path | None = None, json: Path | None = None) -> None:
    """Print an earlier report's tables and write its files, without measuring anything."""
    show(f"{report.command}\n{report.heading()}")
    for table in report.tables:
        print(table.text() + "\n")
    write(report, out, json, report.tables)
    name_files(report, out, json)


def show(text: str) -> None:
    """Lines to stdout, folded."""
    width = min(terminal(), WIDTH)
    print("\n".join(textwrap.fill(line, width) for line in text.splitlines()) + "\n", flush=True)


def failed(report: Report) -> list[str]:
    """The questions that were not finished."""
    return [t.question for t in report.tables if t.key.startswith(FAILED)]


def write(report: Report, out: Path | None, json: Path | None, fresh: Sequence[Table] | None = None) -> None:
    """All files of a report as it is now. fresh: tables to draw, by default the last; none without matplotlib."""
    target = json if json is not None else out / "bench.json" if out is not None else None
    if target is not None:
        report.write(target)
    if out is None:
        return
    missing = ""
    for table in report.tables[-1:] if fresh is None else fresh:
        try:
            from ._plots import draw

            draw(table, out / f"{table.key}.png")
        except ModuleNotFoundError as e:
            missing = f"no pictures: {e.name} is not installed"
    if missing:
        print(missing, file=sys.stderr)
    pictures = {t.key for t in report.tables if (out / f"{t.key}.png").exists()}
    write_whole(out / "bench.md", report.markdown(pictures))


def written(report: Report, out: Path | None, json: Path | None) -> list[Path]:
    """The files of a report that are there: an interrupt may come between them."""
    paths = [json] if json is not None else [out / "bench.json"] if out is not None else []
    if out is not None:
        paths += [out / "bench.md", *(out / f"{t.key}.png" for t in report.tables)]
    return [p for p in paths if p.exists()]


def name_files(report: Report, out: Path | None, json: Path | None) -> None:
    """One a line, never folded: a path is to be copied."""
    for path in written(report, out, json):
        print(f"wrote {path}", flush=True)
