"""Copies of a small problem, so many that none is still in the cache when its turn comes, and what fits into memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

from . import _machine
from ._table import Table
from ._timing import Call, rotation

T = TypeVar("T")

MOST = 256  # copies: each is a plan, or an optimizer, of its own
BEYOND = 1.5  # caches that the copies fill
COPIES, ALL = 1 / 8, 0.8  # shares of the free memory that copies, and everything together, may take


def copies(nbytes: float, device: str, most: int = MOST) -> int:
    """How many copies of a problem of so many bytes to rotate among."""
    enough = math.ceil(BEYOND * _machine.cache(device) / max(nbytes, 1))
    room = int(COPIES * _machine.memory(device) / max(nbytes, 1))
    return max(1, min(enough, room, most))


def rotated(build: Callable[[T], Call], problems: Sequence[T]) -> Callable[[], Call]:
    """A builder of a call that takes the problems in turn."""
    return lambda: rotation([build(problem) for problem in problems])


def caches(nbytes: float, device: str) -> float:
    """So many bytes, in caches."""
    return nbytes / _machine.cache(device)


def shortage(nbytes: float, device: str) -> str | None:
    """Why so many bytes are not even asked for, or None if there is room."""
    free = _machine.memory(device)
    if nbytes <= ALL * free:
        return None
    return f"needs {size(nbytes)}, {size(ALL * free)} of the {size(free)} that are free may be used"


def lacking(table: Table, nbytes: float, device: str) -> bool:
    """Whether a whole table has no room; a row of it then says so."""
    why = shortage(nbytes, device)
    if why is not None:
        table.add("all rows", absent=why)
    return why is not None


def size(nbytes: float) -> str:
    """Bytes as one reads them."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6)):
        if nbytes >= scale:
            return f"{nbytes / scale:.3g} {unit}"
    return f"{nbytes / 1e3:.3g} kB"


def short(count: float) -> str:
    """A number of elements as one reads it: 1.05M."""
    for unit, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= scale:
            return f"{count / scale:.3g}{unit}"
    return f"{count:.3g}"


def many(count: int, what: str) -> str:
    """1 chain, 2 chains."""
    return f"{count:,} {what}{'s' * (count != 1)}"
