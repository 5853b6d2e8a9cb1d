"""What a backend is given: the tiles of one device and storage, located in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .scalars import Scalars
from .tiles import locate
from .types import Tile

Storage = Literal["float32", "split", "float64"]
STORAGES: dict[torch.dtype, Storage] = {
    torch.float32: "float32",
    torch.bfloat16: "split",
    torch.float64: "float64",
}
STORAGE_CODES: dict[Storage, int] = {"float32": 0, "split": 1}

# Columns of the geometry table, one row of sixteen int64 a tile: the C++ and Triton kernels read the same.
W, W0, LO, ROWS, COLS, W_STRIDE, W0_STRIDE, LO_STRIDE, G_STRIDE, START, GLOBAL_STRIDE, KEY, TENSOR_ID = range(
    13
)
COLUMNS = 16


@dataclass
class Group:
    """Tiles that one launch updates.

    params, anchors, remainders: all the call's tensors, indexed by `tile.tensor`; tensor_ids likewise.
    keys: the Philox key of each tile's chain. cache: whatever a backend keeps between steps.
    """

    device: torch.device
    storage: Storage
    tiles: Sequence[Tile]
    params: Sequence[Tensor]
    anchors: Sequence[Tensor] | None
    remainders: Sequence[Tensor | None]
    tensor_ids: Sequence[int]
    keys: Sequence[tuple[int, int]]
    cache: dict[str, Any] = field(default_factory=dict)

    def rows(self) -> npt.NDArray[np.int64]:
        """The geometry table, int64 of shape (tiles, 16), with addresses in bytes and strides in elements."""
        table = np.zeros((len(self.tiles), COLUMNS), dtype=np.int64)
        for row, tile, key in zip(table, self.tiles, self.keys, strict=True):
            w = self.params[tile.tensor]
            row[W], row[W_STRIDE] = _place(w, tile)
            if self.anchors is not None:
                row[W0], row[W0_STRIDE] = _place(self.anchors[tile.tensor], tile)
            lo = self.remainders[tile.tensor]
            if lo is not None:
                row[LO], row[LO_STRIDE] = _place(lo, tile)
            row[ROWS], row[COLS], row[G_STRIDE] = tile.rows, tile.cols, tile.stride
            row[START], row[GLOBAL_STRIDE] = tile.start, tile.global_stride
            row[KEY] = np.uint64(key[0] | key[1] << 32).astype(np.int64)
            row[TENSOR_ID] = self.tensor_ids[tile.tensor]
        return table

    def gradient_addresses(self, grads: Sequence[Tensor | None]) -> npt.NDArray[np.int64]:
        """Address of each tile's first gradient element, 0 where there is none; gradients are contiguous."""
        if "grad_tensor" not in self.cache:
            size = 2 if self.storage == "split" else 4
            self.cache["grad_tensor"] = np.array([t.tensor for t in self.tiles], dtype=np.int64)
            self.cache["grad_offset"] = np.array([t.offset * size for t in self.tiles], dtype=np.int64)
        base = np.array([0 if g is None else g.data_ptr() for g in grads], dtype=np.int64)
        base = base[self.cache["grad_tensor"]]
        address: npt.NDArray[np.int64] = np.where(base == 0, 0, base + self.cache["grad_offset"])
        return address


def _place(t: Tensor, tile: Tile) -> tuple[int, int]:
    place = locate(t, tile)
    assert place is not None  # Plan has checked it
    return t.data_ptr() + place[0] * t.element_size(), place[1]


class Backend(Protocol):
    """One implementation of the step and its noise."""

    name: str

    def refuses(self, device_type: str, storage: Storage) -> str | None:
        """Why it cannot run on such tensors, as the end of a sentence, or None if it can."""

    def sgld_step(self, group: Group, grads: Sequence[Tensor | None], scalars: Scalars, step: int) -> None:
        """One step of every tile, in place."""

    def normal(
        self, out: Tensor, *, start: int, key: tuple[int, int], step: int, tensor_id: int, domain: int
    ) -> None:
        """Fill a 1-D contiguous fp32 tensor with the normals of elements start, start + 1, ..."""
