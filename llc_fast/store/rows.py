"""Rows that are not in the store yet, and all else that a writer must remember from one process to the next."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import ArgumentError
from .spec import Region, Spec, check_slot

ALL = -1  # in place of a slot: the array was written as a whole


class Rows:
    """The rows of one slot of one array, from the first that is in no whole chunk of the store on.

    start: the number of that row, at a chunk's beginning. waiting: whole chunks. filled: rows in `last`,
    the chunk that is being filled. due: the row that comes next. shown: how many rows of `last` a reader
    of the store can see.
    """

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.start = 0
        self.waiting: list[np.ndarray] = []
        self.last: np.ndarray = np.empty(0)
        self.filled = 0
        self.due = 0
        self.shown = 0

    def take(self, row: int, array: np.ndarray) -> None:
        """Append a row; a smaller one is padded with the fill value. A chunk that is full then waits."""
        spec = self.spec
        if row != self.due or row >= spec.shape[1]:
            raise ArgumentError(f"{spec.name}: row {row} was put, row {self.due} of {spec.shape[1]} is due")
        if not len(self.last):
            self.last = self._blank()
        shape = self.last.shape[1:]
        if array.shape == shape:
            self.last[self.filled] = array
        elif array.ndim == len(shape) and all(a <= b for a, b in zip(array.shape, shape, strict=True)):
            part: tuple[int | slice, ...] = (self.filled, *(slice(n) for n in array.shape))
            self.last[part] = array
        else:
            raise ArgumentError(f"{spec.name}: a row has shape {shape}, got {array.shape}")
        self.filled += 1
        self.due += 1
        if self.filled == len(self.last):
            self.waiting.append(self.last)
            self.last, self.filled, self.shown = np.empty(0), 0, 0

    def advance(self) -> None:
        """The first waiting chunk is in the store."""
        self.start += len(self.waiting.pop(0))

    @property
    def at(self) -> int:
        """The first row of the chunk that is being filled."""
        return self.due - self.filled

    def pieces(self) -> Iterator[tuple[int, np.ndarray]]:
        """What is in memory, in chunks with their first rows."""
        for i, chunk in enumerate([*self.waiting, self.last] if self.filled else self.waiting):
            yield self.start + i * self.spec.chunks[1], chunk

    def save(self) -> dict[str, Any]:
        return {"start": self.start, "waiting": list(self.waiting), "last": self.last[: self.filled]}

    def load(self, saved: Mapping[str, Any]) -> Rows:
        self.start, self.waiting = saved["start"], list(saved["waiting"])
        self.due = self.start + sum(map(len, self.waiting))
        if len(saved["last"]):
            self.last, self.filled = self._blank(), len(saved["last"])
            self.last[: self.filled] = saved["last"]
            self.due += self.filled
        return self

    def _blank(self) -> np.ndarray:
        rows = min(self.spec.chunks[1], self.spec.shape[1] - self.due)
        return np.full((rows, *self.spec.shape[2:]), self.spec.filling, self.spec.dtype)


@dataclass
class Ledger:
    """All of it, for every array and slot.

    written: slots of an array, or ALL, that `write` filled. dead: a chain and the reason, in the order of /dead.
    held: slots of dead chains that the checkpoint on the disk still needs; nothing is written to them.
    pending: writes that wait for that.
    """

    rows: dict[str, dict[int, Rows]] = field(default_factory=dict)
    written: dict[str, list[int]] = field(default_factory=dict)
    used: set[int] = field(default_factory=set)
    dead: list[tuple[int, str]] = field(default_factory=list)
    held: list[int] = field(default_factory=list)
    pending: list[tuple[str, list[list[int]], np.ndarray]] = field(default_factory=list)

    def of(self, spec: Spec, slot: int) -> Rows:
        slots = self.rows.setdefault(spec.name, {})
        if slot not in slots:
            check_slot(spec, slot)
            slots[slot] = Rows(spec)
        return slots[slot]

    def note(self, spec: Spec, region: Region) -> None:
        """Remember that a part of an array was written."""
        whole = not spec.chained or region[0] == slice(0, spec.shape[0])
        slots = [ALL] if whole else list(range(region[0].start, region[0].stop))
        written = self.written.setdefault(spec.name, [])
        written += [slot for slot in slots if slot not in written]
        if not whole:
            self.used.update(slots)

    def has(self, name: str, slot: int) -> bool:
        """Whether `write` filled a slot of an array."""
        return not {slot, ALL}.isdisjoint(self.written.get(name, ()))

    def forget(self, slot: int, names: list[str]) -> None:
        """What there is of a slot in these arrays."""
        for name in names:
            self.rows.get(name, {}).pop(slot, None)
            if slot in self.written.get(name, ()):
                self.written[name].remove(slot)
        self.used.discard(slot)

    def save(self) -> dict[str, Any]:
        rows = {name: {i: r.save() for i, r in slots.items()} for name, slots in self.rows.items()}
        return {**vars(self), "rows": rows, "used": sorted(self.used)}

    @classmethod
    def load(cls, saved: Mapping[str, Any], specs: Mapping[str, Spec]) -> Ledger:
        rows = {
            name: {slot: Rows(specs[name]).load(r) for slot, r in slots.items()}
            for name, slots in saved["rows"].items()
        }
        return cls(**{**saved, "rows": rows, "used": {*saved["used"]}})
