"""The frame of the truth scripts: rows with a target, printed as they come, and the exit status."""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import torch

SIGMAS = 3.0


class Row(Protocol):
    """A figure that was seen, and what it must be."""

    @property
    def passed(self) -> bool: ...

    def cells(self) -> tuple[str, str, str, str, str]:
        """Name, target, value, standard error, and how far the value is from what is allowed."""


@dataclass(frozen=True)
class Near:
    """Within 3 standard errors of the target, plus a share of it.

    error: standard error of value - target. allowed: share of |target| granted beside it, for what the target
    leaves out; each script says why.
    """

    name: str
    target: float
    value: float
    error: float
    allowed: float = 0.0

    @property
    def passed(self) -> bool:
        limit = SIGMAS * self.error + self.allowed * abs(self.target)
        return math.isfinite(limit) and abs(self.value - self.target) <= limit

    def cells(self) -> tuple[str, str, str, str, str]:
        off = self.value - self.target
        share = f"{100 * off / abs(self.target):+.2f} %" if self.target else f"{off:+.3g}"
        return self.name, f"{self.target:.5g}", f"{self.value:.5g}", f"{self.error:.2g}", share


@dataclass(frozen=True)
class AtLeast:
    """Not below the target; low and high bound the value's 95 % interval."""

    name: str
    target: float
    value: float
    low: float
    high: float

    @property
    def passed(self) -> bool:
        return self.value >= self.target

    def cells(self) -> tuple[str, str, str, str, str]:
        interval = f"{self.low:.3g} to {self.high:.3g}"
        return self.name, f">= {self.target:g}", f"{self.value:.4g}", "", interval


Rows = Callable[[bool], Iterable[Row | str]]


def report(rows: Iterable[Row | str]) -> bool:
    """Print rows, and lines of text between them, as they come; whether there was a row and all passed."""
    results = []
    _line("", "target", "value", "std error", "off by", "")
    for row in rows:
        if isinstance(row, str):
            print(row, flush=True)
        else:
            results.append(row.passed)
            _line(*row.cells(), "PASS" if row.passed else "FAIL")
    failed = len(results) - sum(results)
    print(
        f"{'PASS' if results and not failed else 'FAIL'}: {len(results)} figures, {failed} failed", flush=True
    )
    return bool(results) and not failed


def main(description: str, rows: Rows) -> None:
    """Run a script: `--quick` takes smaller sizes; exits with 1 if a figure fails."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="smaller sizes, larger standard errors")
    options = parser.parse_args()
    torch.set_num_threads(1)  # such small models run fastest so
    start = time.perf_counter()
    print(f"{description.strip()}\n", flush=True)
    passed = report(rows(options.quick))
    print(f"{time.perf_counter() - start:.0f} s", flush=True)
    sys.exit(0 if passed else 1)


def _line(name: str, *cells: str) -> None:
    widths = (11, 11, 10, 15, 4)
    print(f"{name:<52}", *(f"{cell:>{w}}" for cell, w in zip(cells, widths, strict=True)), flush=True)
