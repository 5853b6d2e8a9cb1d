"""The arrays of a store through zarr's public functions, and the repair of what a killed writer left."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .files import flush, sweep
from .reading import needed
from .rows import Ledger
from .spec import DEAD, Region, Spec, whole


class Tree:
    """Arrays of a store that are open for writing, by name. store: a folder's path, or a zarr store in memory."""

    def __init__(self, store: Any, specs: Iterable[Spec]) -> None:
        self.store = store
        self.specs = {spec.name: spec for spec in specs}
        self._root = needed("zarr").open_group(_location(store), mode="r+")
        self._arrays = {name: self._root[name] for name in self.specs}
        self._unsynced: set[Path] = set()

    @classmethod
    def build(cls, store: Any, specs: Iterable[Spec], attrs: Mapping[str, Any]) -> Tree:
        """A new store with its metadata and no chunk."""
        specs = tuple(specs)
        root = needed("zarr").open_group(_location(store), mode="w", zarr_format=3)
        root.update_attributes(dict(attrs))
        tree = cls(store, ())
        for spec in specs:
            tree.add(spec)
        return tree

    def add(self, spec: Spec) -> None:
        """A new array; its groups are made where they are not there."""
        codecs = needed("zarr.codecs")
        parent, _, name = spec.name.rpartition("/")
        group = self._root.require_group(parent) if parent else self._root
        self._arrays[spec.name] = group.create_array(
            name,
            shape=spec.shape,
            chunks=spec.chunks,
            dtype=spec.dtype,
            fill_value=spec.filling,
            dimension_names=spec.dims,
            compressors=codecs.ZstdCodec(level=1, checksum=True),  # a reader sees a damaged chunk
            chunk_key_encoding={"name": "default", "separator": "/"},
            overwrite=True,
        )
        self.specs[spec.name] = spec

    def write(self, name: str, region: Region, data: np.ndarray, *, keep: bool = True) -> None:
        """Write whole chunks. keep: they must outlive the machine's going down after the next `sync`."""
        self._arrays[name][region or ...] = data
        if keep and isinstance(self.store, Path):
            self._unsynced.update(self._files(self.specs[name], region))

    def read(self, name: str, region: Region) -> np.ndarray:
        return np.asarray(self._arrays[name][region or ...])

    def sync(self) -> None:
        """Bring chunks to the disk."""
        for path in sorted(self._unsynced):
            flush(path)
            self._unsynced.discard(path)

    def clear(self, slot: int) -> None:
        """Nothing is written in a slot."""
        for name, spec in self.specs.items():
            if spec.chained:
                self._arrays[name][slot] = spec.filling

    def resize(self, name: str, places: int) -> None:
        """Give the first dimension another size."""
        spec = self.specs[name]
        if places == spec.shape[0]:
            return
        self.specs[name] = spec._replace(shape=(places, *spec.shape[1:]))
        self._arrays[name].resize(self.specs[name].shape)

    def move(self, spec: Spec, source: int, target: int) -> None:
        """Copy a slot of an array over another one."""
        for part in parts(spec):
            self.write(spec.name, (_one(target), *part), self.read(spec.name, (_one(source), *part)))

    @property
    def attrs(self) -> dict[str, Any]:
        """The root's attributes."""
        return dict(self._root.attrs.asdict())

    def attributes(self, attrs: Mapping[str, Any], group: str = "") -> None:
        (self._root[group] if group else self._root).update_attributes(dict(attrs))

    def _files(self, spec: Spec, region: Region) -> Iterator[Path]:
        """Where the chunks of a region lie, by the encoding that `add` asks for."""
        home = self.store / spec.name / "c"
        spans = [
            range(part.start // n, -(-part.stop // n)) for part, n in zip(region, spec.chunks, strict=True)
        ]
        for place in itertools.product(*spans):
            yield home.joinpath(*map(str, place))


def parts(spec: Spec, rows: int | None = None) -> Iterator[Region]:
    """A slot's part of an array, chunk by chunk along the second dimension; only the first rows of it if asked."""
    if len(spec.shape) < 2:
        yield ()
        return
    stop = spec.shape[1] if rows is None else rows
    for start in range(0, stop, spec.chunks[1]):
        end = min(start + spec.chunks[1], spec.shape[1])
        yield (slice(start, end), *whole(spec.shape[2:]))


def heal(path: Path, skeleton: Path, specs: Iterable[Spec], ledger: Ledger, *, moved: bool) -> None:
    """Bring a store back to what a ledger says: fresh metadata, and no chunk that the ledger does not vouch for.

    moved: all chunks are in place, and slots are being moved: only metadata and unfinished files matter.
    """
    for file in sorted(skeleton.rglob("zarr.json"), key=lambda p: len(p.parts), reverse=True):
        target = path / file.relative_to(skeleton)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(file, target)
    shutil.rmtree(skeleton)
    if not moved:
        for spec in specs:
            _cut(path / spec.name / "c", spec, ledger)
            _cut_dead(path / DEAD / spec.name / "c", len(ledger.dead))
        if not ledger.dead:
            shutil.rmtree(path / DEAD, ignore_errors=True)
    sweep(path)


def _cut(chunks: Path, spec: Spec, ledger: Ledger) -> None:
    slots = ledger.rows.get(spec.name, {})
    for slot in _numbered(chunks):
        number = int(slot.name)
        rows = slots.get(number)
        if rows is not None:
            first = -(-rows.start // spec.chunks[1])  # the last chunk may be a shorter one
            for late in _numbered(slot):
                if int(late.name) >= first:
                    _remove(late)
        elif not ledger.has(spec.name, number) or (spec.chained and number in ledger.held):
            _remove(slot)


def _cut_dead(chunks: Path, dead: int) -> None:
    for place in _numbered(chunks):
        if int(place.name) >= dead:
            _remove(place)


def _numbered(folder: Path) -> list[Path]:
    return [p for p in folder.iterdir() if p.name.isdigit()] if folder.is_dir() else []


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _one(slot: int) -> slice:
    return slice(slot, slot + 1)


def _location(store: Any) -> Any:
    return needed("zarr.storage").LocalStore(store) if isinstance(store, Path) else store
