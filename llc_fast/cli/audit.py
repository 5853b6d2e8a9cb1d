"""What `llc-fast audit` prints and writes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table as RichTable

from ..audit import Audit, audit
from ..errors import ArgumentError, OutputError
from ..store.files import replaced


def run(store: Path, *, as_json: bool, out: Path | None) -> int:
    """Audit a store, print and write; the exit code."""
    if out is not None:
        _check(out, store)
    found = audit(store)
    text = json.dumps(found.to_dict(), indent=2)
    if out is not None:
        try:
            with replaced(out) as file:
                file.write((text + "\n").encode())
        except OSError as e:
            raise OutputError(f"out is {out}, which cannot be written: {e.strerror}") from e
    if as_json:
        print(text)
    else:
        show(found)
    return 0 if found.ok else 1


def show(found: Audit) -> None:
    """Both estimates side by side, every check, what is not known, and last the estimate as it should read."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=1000)  # rich takes what the table needs

    def say(text: str) -> None:
        console.print(text, markup=False, soft_wrap=True)

    by = f"{found.writer}, {found.chains} chain{'s' if found.chains != 1 else ''}"
    say(f"{found.source} ({by}{'' if found.completed else ', not completed'})".strip())
    console.print(_estimates(found))
    say(str(found.verdict))
    for note in found.notes:
        say(f"note: {note}")
    say(f"verdict: {_verdict(found)}")
    say(found.line)


def _verdict(found: Audit) -> str:
    if found.refusal:
        return "no estimate"
    failed, unknown = len(found.verdict.failed), len(found.verdict.unknown)
    told = f"{failed} check{'s' if failed != 1 else ''} failed" if failed else "no check failed"
    return f"{told}, {unknown} not known" if unknown else told


def _estimates(found: Audit) -> RichTable:
    grid = RichTable(box=box.SIMPLE_HEAD)
    grid.add_column("")
    grid.add_column("as reported", justify="right")
    grid.add_column("as it should be", justify="right")
    told, result = found.reported, found.result
    count = len(told.llc_per_chain) if told else 0
    counted = sum(math.isfinite(x) for x in result.llc_per_chain) if result else 0
    rows: list[tuple[str, Any, Any]] = [
        ("LLC", told and told.llc_mean, found.llc),
        ("standard error", None, found.error),
        ("std over chains", told and told.llc_std, result and result.llc_std),
        ("llc_scalar", told and told.llc_scalar, result and result.llc_scalar),
        ("loss at w0", told and told.init_loss, result and result.init_loss),
    ]
    for name, before, now in rows:
        grid.add_row(name, _number(before), _number(now))
    grid.add_row("chains counted", str(count) if told else "-", str(counted) if result else "-")
    grid.add_row("steps left out", "0" if told else "-", str(found.burnin) if result else "-")
    if found.as_set is not None:
        grid.add_row("LLC with burn-in as set", "-", _number(found.as_set))
    if found.without_half_dead is not None:
        grid.add_row("LLC without half-dead chains", "-", _number(found.without_half_dead))
    return grid


def _number(x: float | None) -> str:
    return "-" if x is None or math.isnan(x) else f"{x:.5g}"


def _check(out: Path, store: Path) -> None:
    """Raise before anything is read if the report cannot go there."""
    place, inside = out.expanduser().resolve(), store.expanduser().resolve()
    if place == inside or inside in place.parents:
        raise ArgumentError(f"out is {out}, inside the store, which is only read: give another path")
    if place.is_dir():
        raise ArgumentError(f"out is {out}, a directory: give a file")
    if not place.parent.is_dir():
        raise ArgumentError(f"out is {out}, but {place.parent} is no directory: make it first")
