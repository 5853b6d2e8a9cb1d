"""What a backend is given: the tiles of one device and storage, located in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .samplers import Sampler
from .scalars import Scalars
from .tiles import locate
from .types import Tile

Storage = Literal["float32", "split", "sr", "float16", "float64"]
STORAGE_CODES: dict[Storage, int] = {"float32": 0, "split": 1, "sr": 2, "float16": 3}
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
REMAINDERS: dict[torch.dtype, torch.dtype] = {torch.bfloat16: torch.int16, torch.float16: torch.float32}

# Columns of the geometry table, one row of int64 a tile: the C++ and Triton kernels read the same.
W, W0, LO, ROWS, COLS, W_STRIDE, W0_STRIDE, LO_STRIDE, G_STRIDE, START, GLOBAL_STRIDE, KEY, TENSOR_ID = range(
    13
)
AUX, AUX_STRIDE, XI, MASK, MASK_START, MASK_STRIDE, SLOT = range(16, 23)  # 13 to 15 are Triton's own
COLUMNS = 24


def storage_of(p: Tensor, remainder: Tensor | None) -> Storage:
    """How a parameter's weights are stored."""
    if p.dtype == torch.bfloat16:
        return "sr" if remainder is None else "split"
    return {torch.float32: "float32", torch.float16: "float16", torch.float64: "float64"}[p.dtype]  # type: ignore[return-value]


class Gradients(list["Tensor | None"]):
    """The gradients of a step, contiguous; addresses: of each, 0 where there is none, one array while all stay."""

    addresses: npt.NDArray[np.int64]


@dataclass
class Group:
    """Tiles that one launch updates.

    params, anchors, remainders, buffers, masks: all the call's tensors, indexed by `tile.tensor`; tensor_ids
    likewise. remainders: int16 of split bf16, the fp32 master of fp16. buffers: the sampler's fp32 state. masks:
    packed bits (`tiles.pack`), None where every element of the tiles moves. keys: the Philox key of each tile's
    chain. noise: its kind. xi: fp64, the friction of each tile's chain, None for the scalars'. slots: the row of
    each tile in `sums`, fp64 (slots, 24), which a step adds to; None for no sums. owners: the (tensor, chain) of each
    of these rows; row_tensors, row_chains: these tensors, and the places of these chains, on the device;
    ordered: whether these are all parameters of all chains, in order. moved,
    beside: the params, and what is kept beside them, whose change autograd is told of. cache: whatever a backend
    keeps between steps.
    """

    device: torch.device
    storage: Storage
    sampler: Sampler
    noise: str
    tiles: Sequence[Tile]
    params: Sequence[Tensor]
    anchors: Sequence[Tensor] | None
    remainders: Sequence[Tensor | None]
    buffers: Sequence[Tensor | None]
    masks: Sequence[Tensor | None]
    tensor_ids: Sequence[int]
    keys: Sequence[tuple[int, int]]
    xi: Sequence[Tensor] | None = None
    slots: Sequence[int] = ()
    sums: Tensor | None = None
    owners: Sequence[tuple[int, int]] = ()
    row_tensors: Tensor | None = None
    row_chains: Tensor | None = None
    ordered: bool = False
    moved: Sequence[int] = ()
    beside: Sequence[Tensor] = ()
    cache: dict[str, Any] = field(default_factory=dict)

    def rows(self) -> npt.NDArray[np.int64]:
        """The geometry table, int64 of shape (tiles, 24), with addresses in bytes and strides in elements."""
        table = np.zeros((len(self.tiles), COLUMNS), dtype=np.int64)
        for i, (row, tile, key) in enumerate(zip(table, self.tiles, self.keys, strict=True)):
            row[W], row[W_STRIDE] = _place(self.params[tile.tensor], tile)
            if self.anchors is not None:
                row[W0], row[W0_STRIDE] = _place(self.anchors[tile.tensor], tile)
            for tensors, address, stride in (
                (self.remainders, LO, LO_STRIDE),
                (self.buffers, AUX, AUX_STRIDE),
            ):
                t = tensors[tile.tensor]
                if t is not None:
                    row[address], row[stride] = _place(t, tile)
            mask = self.masks[tile.tensor]
            if mask is not None:
                row[MASK], row[MASK_START], row[MASK_STRIDE] = mask.data_ptr(), tile.offset, tile.stride
            row[ROWS], row[COLS], row[G_STRIDE] = tile.rows, tile.cols, tile.stride
            row[START], row[GLOBAL_STRIDE] = tile.start, tile.global_stride
            row[KEY] = np.uint64(key[0] | key[1] << 32).astype(np.int64)
            row[TENSOR_ID] = self.tensor_ids[tile.tensor]
            row[XI] = 0 if self.xi is None else self.xi[i].data_ptr()
            row[SLOT] = self.slots[i] if self.slots else 0
        return table

    def gradient_addresses(self, grads: Gradients) -> npt.NDArray[np.int64]:
        """Address of each tile's first gradient element, 0 where there is none; one array while all stay."""
        known: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]] | None = self.cache.get("gradients")
        if known is not None and known[0] is grads.addresses:
            return known[1]
        places: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]] | None = self.cache.get("places")
        if places is None:
            size = 4 if self.storage == "float32" else 2
            tensors = np.array([t.tensor for t in self.tiles], dtype=np.int64)
            offsets = np.array([t.offset * size for t in self.tiles], dtype=np.int64)
            places = self.cache["places"] = tensors, offsets
        base = grads.addresses[places[0]]
        address: npt.NDArray[np.int64] = np.where(base == 0, 0, base + places[1])
        self.cache["gradients"] = grads.addresses, address
        return address


def _place(t: Tensor, tile: Tile) -> tuple[int, int]:
    place = locate(t, tile)
    assert place is not None  # Plan has checked it
    return t.data_ptr() + place[0] * t.element_size(), place[1]


class Backend(Protocol):
    """One implementation of the step and its noise."""

    name: str

    def refuses(self, device_type: str, storage: Storage, sampler: Sampler) -> str | None:
        """Why it cannot run on such tensors, as the end of a sentence, or None if it can."""

    def sgld_step(self, group: Group, grads: Gradients, scalars: Scalars, step: int) -> None:
        """One step of every tile, in place; where the group has sums, adds to them."""

    def normal(
        self,
        out: Tensor,
        *,
        start: int,
        key: tuple[int, int],
        step: int,
        tensor_id: int,
        domain: int,
        kind: str = "gaussian",
    ) -> None:
        """Fill a 1-D contiguous fp32 tensor with the normals of elements start, start + 1, ..."""
