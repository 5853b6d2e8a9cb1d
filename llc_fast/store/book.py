"""Where rows go: into memory, into whole chunks of the tree, or, of dead chains, to /dead. Every step can be redone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import ArgumentError
from .folder import Run
from .rows import Ledger, Rows
from .spec import DEAD, Region, Spec, as_array, check_slot, whole
from .tree import Tree, parts


class Book:
    """A tree and what is not in it yet. durable: a checkpoint on the disk may need what the tree holds."""

    def __init__(self, tree: Tree, specs: Sequence[Spec], ledger: Ledger, *, durable: bool) -> None:
        self.tree = tree
        self.ledger = ledger
        self._specs = {spec.name: spec for spec in specs}
        self._chained = [spec for spec in specs if spec.chained]
        self._durable = durable

    def put(self, name: str, slot: int | Sequence[int], row: int, data: Any) -> None:
        """Append a row of one slot, or of several. Where the store cannot take it, it waits in memory."""
        spec = self._spec(name)
        if len(spec.shape) < 2 or spec.chunks[0] != 1:
            raise ArgumentError(f"{name} has no rows of a slot: use write")
        array = as_array(data, spec)
        full = []
        for i, values in [(slot, array)] if isinstance(slot, int) else zip(slot, array, strict=True):
            rows = self.ledger.of(spec, i)
            rows.take(row, values)
            if spec.chained:
                self.ledger.used.add(i)
            if rows.waiting:
                full.append((i, rows))
        for i, rows in full:
            self._drain(i, rows)

    def write(self, name: str, data: Any, index: Mapping[str, int | slice]) -> None:
        """Write whole chunks at once, or as soon as the checkpoint on the disk no longer needs what is there."""
        spec = self._spec(name)
        index = {d: i if isinstance(i, slice) else int(i) for d, i in index.items()}
        region = spec.region(index)
        shape = tuple(part.stop - part.start for part in region)
        dropped = tuple(n for d, n in zip(spec.dims, shape, strict=True) if not isinstance(index.get(d), int))
        array = as_array(data, spec)
        if array.shape != dropped:
            raise ArgumentError(f"{name}: what is written there has shape {dropped}, got {array.shape}")
        array = array.reshape(shape)
        if spec.chained and self.ledger.held:
            self.ledger.pending.append((name, [[p.start, p.stop] for p in region], array.copy()))
        else:
            self.tree.write(name, region, array)
        self.ledger.note(spec, region)

    def bury(self, slot: int, chain: int, reason: str) -> None:
        """Copy a slot to the next place of /dead, and free it."""
        place = len(self.ledger.dead)
        for spec in self._chained:
            check_slot(spec, slot)
            dead = spec.of_dead(place + 1)
            if dead.name in self.tree.specs:
                self.tree.resize(dead.name, place + 1)
            else:
                self.tree.add(dead)
            for region, data in self._content(spec, slot):
                self.tree.write(dead.name, (slice(place, place + 1), *region), data[None])
        dead_now = [*self.ledger.dead, (chain, reason)]
        self.tree.attributes(dead_attributes(dead_now), DEAD)
        self.ledger.dead = dead_now
        for name, where, data in self.ledger.pending:
            if where[0][0] <= slot < where[0][1]:
                data[slot - where[0][0]] = self._specs[name].filling
        self.ledger.forget(slot, [spec.name for spec in self._chained])
        if not self._durable:
            self.tree.clear(slot)
        elif slot not in self.ledger.held:
            self.ledger.held.append(slot)

    def show(self) -> None:
        """Let readers see the rows of chunks that are not full."""
        for slot, rows in self._all_rows():
            if rows.filled > rows.shown and not self._holds(rows.spec, slot):
                self._write(slot, rows, rows.at, rows.last, keep=False)
                rows.shown = rows.filled

    def settle(self) -> None:
        """After a checkpoint: free the slots that earlier ones needed, and write what waited for that."""
        for slot in self.ledger.held:
            self.tree.clear(slot)
        for name, region, data in self.ledger.pending:
            self.tree.write(name, tuple(slice(*part) for part in region), data)
        self.ledger.held, self.ledger.pending = [], []
        for slot, rows in self._all_rows():
            self._drain(slot, rows)

    def complete(self, slots: Sequence[int], attrs: Mapping[str, Any], run: Run | None) -> None:
        """Write all that is in memory, close the gaps between slots, cut them, and set the last attributes."""
        done = run.journal() if run else None
        if done is None:
            self.settle()
            for slot, rows in self._all_rows():
                if rows.filled:
                    self._write(slot, rows, rows.at, rows.last)
            self.tree.sync()
            if run:
                run.mark(0)
            done = 0
        moves = [(source, i) for i, source in enumerate(slots) if source != i]
        steps = [(spec, source, target) for source, target in moves for spec in self._chained]
        for i, (spec, source, target) in enumerate(steps[done:], done + 1):
            self.tree.move(spec, source, target)
            self.tree.sync()
            if run:
                run.mark(i)
        for spec in self._chained:
            self.tree.resize(spec.name, len(slots))
        self.tree.attributes(attrs)

    def _content(self, spec: Spec, slot: int) -> Iterator[tuple[Region, np.ndarray]]:
        """A slot's part of an array, wherever it is now."""
        rows = self.ledger.rows.get(spec.name, {}).get(slot)
        if slot not in self.ledger.held and (rows or self.ledger.has(spec.name, slot)):
            for part in parts(spec, rows.start if rows else None):
                yield part, self.tree.read(spec.name, (slice(slot, slot + 1), *part))[0]
        for start, chunk in rows.pieces() if rows else ():
            yield (slice(start, start + len(chunk)), *whole(chunk.shape[1:])), chunk
        for name, region, data in self.ledger.pending:
            if name == spec.name and region[0][0] <= slot < region[0][1]:
                yield tuple(slice(*part) for part in region[1:]), data[slot - region[0][0]]

    def _drain(self, slot: int, rows: Rows) -> None:
        """Write the chunks that wait for nothing else."""
        while rows.waiting and not self._holds(rows.spec, slot):
            self._write(slot, rows, rows.start, rows.waiting[0])
            rows.advance()

    def _write(self, slot: int, rows: Rows, start: int, chunk: np.ndarray, *, keep: bool = True) -> None:
        region = (slice(slot, slot + 1), slice(start, start + len(chunk)), *whole(chunk.shape[1:]))
        self.tree.write(rows.spec.name, region, chunk[None], keep=keep)

    def _all_rows(self) -> Iterator[tuple[int, Rows]]:
        for slots in self.ledger.rows.values():
            yield from slots.items()

    def _holds(self, spec: Spec, slot: int) -> bool:
        return spec.chained and slot in self.ledger.held

    def _spec(self, name: str) -> Spec:
        if name not in self._specs:
            raise ArgumentError(f"the store has no array {name!r}, it has {', '.join(self._specs)}")
        return self._specs[name]


def dead_attributes(dead: Sequence[tuple[int, str]]) -> dict[str, Any]:
    """The attributes of /dead."""
    return {"chains": [chain for chain, _ in dead], "reasons": [reason for _, reason in dead]}
