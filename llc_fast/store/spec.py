"""One array of a store: names, shape, and how its rows are grouped into chunks."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from ..errors import ArgumentError

MOST = 2**22  # bytes of a chunk: large enough for few files, small enough to be held once for every slot
LEAST = 2**16
ALL_SLOTS = 2**28  # bytes that one array's chunks, one for every slot, may take in memory
WHOLE = 2**26  # bytes of a chunk of an array that is written at once
DEAD = "dead"

Region = tuple[slice, ...]


class Spec(NamedTuple):
    """An array of the store.

    name: a path, such as "init_loss" or "llc_fast/gain". dims: "chain" can only be the first; its places
    are the slots. chunks: (1, rows, ...) where rows are put one by one; None: chosen. fill: what is read
    where nothing was written; None: NaN, for integers 0.
    """

    name: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    chunks: tuple[int, ...] = ()
    fill: float | None = None

    @property
    def chained(self) -> bool:
        """Whether each slot has its part of the array."""
        return self.dims[:1] == ("chain",)

    @property
    def filling(self) -> Any:
        """The fill value in the array's dtype."""
        dtype = np.dtype(self.dtype)
        fill = self.fill if self.fill is not None else (math.nan if dtype.kind in "fc" else 0)
        return dtype.type(fill)

    def chunked(self) -> Spec:
        """With chunks, chosen if none were given."""
        if self.chunks or not self.shape:
            return self
        size = np.dtype(self.dtype).itemsize
        if self.dims[0].endswith("chain"):
            most = min(MOST, max(LEAST, ALL_SLOTS // max(1, self.shape[0])))
            return self._replace(chunks=_split(self.shape, 1, most, size))
        return self._replace(chunks=_split(self.shape, 0, WHOLE, size))

    def layout(self) -> list[Any]:
        """All of it, for JSON."""
        return [self.name, [*self.dims], [*self.shape], self.dtype, [*self.chunks], str(self.filling)]

    def of_dead(self, chains: int) -> Spec:
        """The array that keeps this one's rows of dead chains."""
        return self._replace(
            name=f"{DEAD}/{self.name}",
            dims=("dead_chain", *self.dims[1:]),
            shape=(chains, *self.shape[1:]),
        )

    def region(self, index: dict[str, int | slice]) -> Region:
        """The part that an index by dimension names, in slices of step 1; whole chunks only."""
        unknown = sorted(index.keys() - set(self.dims))
        if unknown:
            raise ArgumentError(f"{self.name} has no dimension {unknown[0]!r}, it has {', '.join(self.dims)}")
        return tuple(map(self._part, self.dims, self.shape, self.chunks, [index.get(d) for d in self.dims]))

    def _part(self, dim: str, size: int, chunk: int, at: int | slice | None) -> slice:
        if at is None:
            return slice(0, size)
        if isinstance(at, slice):
            start, stop, step = at.indices(size)
        else:
            start, stop, step = int(at), int(at) + 1, 1
        if not 0 <= start <= stop <= size or step != 1:
            raise ArgumentError(f"{self.name}: {dim}={at} is not inside its {size} places")
        if start % chunk or (stop % chunk and stop != size):
            raise ArgumentError(f"{self.name}: {dim}={at} cuts a chunk of {chunk}: write whole chunks")
        return slice(start, stop)


def checked(specs: Iterable[Spec]) -> tuple[Spec, ...]:
    """The arrays with their chunks. Raises ArgumentError unless they can be those of one store."""
    specs = tuple(spec.chunked() for spec in specs)
    sizes: dict[str, set[int]] = {}
    for spec in specs:
        parts = spec.name.split("/")
        if not all(parts) or parts[0] == DEAD or any(p.startswith((".", "__")) for p in parts):
            raise ArgumentError(f"{spec.name!r} is no name for an array of a store")
        if not len(spec.shape) == len(spec.chunks) == len({*spec.dims}) == len(spec.dims) or 0 in spec.chunks:
            raise ArgumentError(
                f"{spec.name}: dims {spec.dims}, shape {spec.shape} and chunks {spec.chunks} do not fit"
            )
        if "chain" in spec.dims[1:] or (spec.chained and spec.chunks[0] != 1):
            raise ArgumentError(f"{spec.name}: 'chain' is the first dimension, one to a chunk")
        if spec.chained:
            sizes.setdefault("chain", set()).add(spec.shape[0])
    names = [spec.name for spec in specs]
    if len({*names}) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ArgumentError(f"two arrays are named {twice!r}")
    if len(sizes.get("chain", ())) > 1:
        raise ArgumentError(f"arrays differ in the number of slots: {sorted(sizes['chain'])}")
    return specs


def check_slot(spec: Spec, slot: int) -> None:
    """Raise ArgumentError unless the array has the slot."""
    if not 0 <= slot < spec.shape[0]:
        raise ArgumentError(f"{spec.name}: slot {slot} is not one of {spec.shape[0]}")


def whole(shape: tuple[int, ...]) -> Region:
    """The region of all places of these dimensions."""
    return tuple(slice(0, n) for n in shape)


def as_array(data: Any, spec: Spec) -> np.ndarray:
    """Numbers, an array or a tensor of any device, in the array's dtype."""
    if hasattr(data, "detach"):
        data = data.detach().cpu()
        if str(data.dtype) == "torch.bfloat16":
            data = data.float()
        data = data.numpy()
    array = np.asarray(data)
    if array.dtype == spec.dtype:
        return array
    if not np.can_cast(array.dtype, spec.dtype, "same_kind"):
        raise ArgumentError(f"{spec.name} is {spec.dtype}, got {array.dtype}")
    return array.astype(spec.dtype)


def _split(shape: tuple[int, ...], axis: int, most: int, size: int) -> tuple[int, ...]:
    """Chunks of about `most` bytes: one place of the dimensions before `axis`, all of those behind it."""
    if len(shape) <= axis:
        return (1,) * len(shape)
    row = max(1, math.prod(shape[axis + 1 :]) * size)
    rows = min(max(1, shape[axis]), max(1, most // row))
    return (1,) * axis + (rows,) + tuple(max(1, n) for n in shape[axis + 1 :])
