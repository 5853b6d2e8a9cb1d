"""The few frozen records that every layer shares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch


@dataclass(frozen=True, slots=True, order=True)
class Box:
    """`rows x cols` elements of a row-major tensor.

    Element (i, j) has the row-major index `start + i * stride + j` in the full parameter.
    A one-row box has `stride == cols`.
    """

    start: int
    rows: int
    cols: int
    stride: int

    @property
    def numel(self) -> int:
        return self.rows * self.cols


@dataclass(frozen=True, slots=True)
class Tile:
    """A box of a local tensor, and where the same box lies in the full, unsharded parameter.

    tensor: position in the list of parameters it belongs to.
    rows, cols: size. offset, stride: row-major index of the first element and the row stride
    in the local tensor. start, global_stride: the same two in the full parameter (they count
    the noise). chain: the trajectory it belongs to; None means the call's own.
    """

    tensor: int
    rows: int
    cols: int
    offset: int
    stride: int
    start: int
    global_stride: int
    chain: int | None = None

    @classmethod
    def of(cls, tensor: int, box: Box, chain: int | None = None) -> Tile:
        """The tile of a box of an unsharded parameter."""
        return cls(tensor, box.rows, box.cols, box.start, box.stride, box.start, box.stride, chain)

    @property
    def numel(self) -> int:
        return self.rows * self.cols


@dataclass(frozen=True)
class Selection:
    """Which elements of which parameters a component consists of.

    component: its canonical name. boxes: disjoint boxes by canonical parameter name (wrapper
    prefixes stripped, tied parameters under their smallest name), in name order; shapes: the
    shape of each of these parameters. tensor_ids: the table of ALL the model's parameter names.
    """

    component: str
    boxes: Mapping[str, tuple[Box, ...]]
    shapes: Mapping[str, tuple[int, ...]]
    tensor_ids: Mapping[str, int] = field(repr=False)

    @property
    def numel(self) -> int:
        """Number of selected elements."""
        return sum(box.numel for boxes in self.boxes.values() for box in boxes)

    def mask(self, name: str) -> torch.Tensor:
        """Boolean tensor of the parameter's shape, true where it is selected."""
        shape = self.shapes[name]
        mask = torch.zeros(shape, dtype=torch.bool)
        for box in self.boxes[name]:
            mask.view(-1).as_strided((box.rows, box.cols), (box.stride, 1), box.start).fill_(True)
        return mask

    def covers(self, name: str) -> bool:
        """Whether every element of the parameter is selected."""
        size = 1
        for n in self.shapes[name]:
            size *= n
        return sum(box.numel for box in self.boxes[name]) == size
