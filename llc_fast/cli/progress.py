"""Progress on stderr: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from ..report import Cell

EVERY = 10.0  # seconds between lines where there is no terminal


class Reporter:
    """Shows how far a sweep of `cells` cells of `chains` chains is; a context manager.

    Called as estimate_llc's `progress`.
    """

    def __init__(self, cells: int, chains: int) -> None:
        self.cells, self.chains = cells, chains
        self.done = 0
        self.calls = 0  # of this cell
        self.what = ""
        self.start = time.monotonic()
        self.last = self.start - EVERY
        self.console = Console(stderr=True, highlight=False)
        self.bar: Progress | None = None
        if self.console.is_terminal:
            columns: list[Any] = [TextColumn("{task.description}"), BarColumn(), TaskProgressColumn()]
            self.bar = Progress(*columns, TimeRemainingColumn(), console=self.console, transient=True)
            self.task = self.bar.add_task("", total=cells)

    def __enter__(self) -> Self:
        if self.bar:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar:
            self.bar.stop()

    def begin(self, component: str, dataset: str) -> None:
        """The next cell."""
        self.what = f"{component} on {dataset}"
        self.calls = 0

    def __call__(self, chain: int, step: int, steps: int, loss: float) -> None:
        part = self.done + self.calls / (self.chains * steps)
        self.calls += 1
        text = f"{self.what}, chain {chain + 1}/{self.chains}, loss {loss:.3f}"
        if self.bar:
            self.bar.update(self.task, completed=part, description=text)
        elif time.monotonic() - self.last >= EVERY:
            self.last = time.monotonic()
            done = part / self.cells
            left = (
                f"; about {_time((self.last - self.start) * (1 - done) / done)} left" if done > 0.02 else ""
            )
            self._say(f"{done:4.0%}  {text}, step {step}/{steps}{left}")

    def end(self, cell: Cell) -> None:
        """A cell's number, as soon as it is there."""
        self.done += 1
        if cell.result is None:
            value = "every chain died"
        else:
            value = f"{cell.llc:8.3f} ± {cell.mcse:.3f} {cell.marks}"
        self._say(f"[{self.done}/{self.cells}]  {cell.component} on {cell.dataset}: {value}".rstrip())

    def _say(self, line: str) -> None:
        self.console.print(line, markup=False, soft_wrap=True)


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
