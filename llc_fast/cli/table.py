"""The table of a sweep, and the notes below it."""

from __future__ import annotations

import re
from collections.abc import Iterator

from rich import box
from rich.console import Console
from rich.table import Table as RichTable

from ..report import MARKS, Table


def show(table: Table) -> None:
    """Print components x datasets as LLC ± standard error, then what its reader must know."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=1000)  # rich takes what the table needs
    grid = RichTable(box=box.SIMPLE_HEAD, title="LLC ± standard error", title_justify="left")
    grid.add_column("component")
    grid.add_column("weights", justify="right")
    for name in table.datasets:
        grid.add_column(name, justify="right", no_wrap=True)
    for component in table.components:
        cells = [table[component, dataset] for dataset in table.datasets]
        texts = [_cell(c.llc, c.mcse, c.marks) for c in cells]
        grid.add_row(component, f"{cells[0].weights:,}", *texts)
    console.print(grid, markup=False)
    for line in notes(table):
        console.print(line, markup=False, soft_wrap=True)


def _cell(llc: float, mcse: float, marks: str) -> str:
    if llc != llc:
        return f"none {marks}"
    error = f" ± {mcse:.3f}" if mcse == mcse else ""
    return f"{llc:.3f}{error}{' ' + marks if marks else '  '}"


def notes(table: Table) -> Iterator[str]:
    """Meanings of the marks that occur, then each kind of note once, with the cells that have it."""
    marks = "".join(cell.marks for cell in table.cells)
    for mark, meaning in MARKS.items():
        if mark in marks:
            yield f"{mark} {meaning} (see the notes)."
    kinds: dict[str, list[tuple[str, str]]] = {}
    for cell in table.cells:
        where = f"{cell.component} on {cell.dataset}"
        for note in cell.result.notes if cell.result else [f"no estimate: {cell.error}"]:
            kinds.setdefault(re.split(r"-?\d", note)[0], []).append((where, note))
    for found in kinds.values():
        where, note = found[0]
        if len({n for _, n in found}) == 1 and len(found) == len(table.cells):
            where = "every cell"
        elif len(found) > 1:
            where += f", and {len(found) - 1} more like it: " + ", ".join(w for w, _ in found[1:4])
            where += ", ..." if len(found) > 4 else ""
        yield f"note: {note}  [{where}]"
