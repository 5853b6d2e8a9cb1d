"""Tiles in memory: where a box of a tensor lies, and that no two of them overlap."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .errors import ArgumentError, ArgumentTypeError
from .scalars import check_integer
from .types import Tile

MAX_ELEMENTS = 2**58  # a block index has 56 bits


def row_layout(t: Tensor) -> tuple[int, int, int] | None:
    """(rows, cols, stride) if the tensor is rows of unit-stride elements in memory, else None."""
    shape = [n for n in t.shape if n != 1]
    strides = [s for n, s in zip(t.shape, t.stride(), strict=True) if n != 1]
    if t.is_contiguous() or not shape:
        return 1, t.numel(), t.numel()
    if strides[-1] != 1:
        return None
    i = len(shape) - 1
    cols = shape[i]
    while i > 0 and strides[i - 1] == cols:
        i -= 1
        cols *= shape[i]
    rows, stride = 1, cols
    if i > 0:
        stride = strides[i - 1]
        while i > 0 and strides[i - 1] == stride * rows:
            i -= 1
            rows *= shape[i]
    return (rows, cols, stride) if i == 0 and stride >= cols else None


def whole(tensor: int, t: Tensor) -> Tile:
    """The tile of a whole parameter; rows follow its memory where that has gaps."""
    layout = row_layout(t)
    if layout is None:
        raise ArgumentError(
            f"params[{tensor}] has strides {t.stride()} for shape {tuple(t.shape)}: "
            "make it contiguous, it is not made of rows of adjacent elements"
        )
    rows, cols, _ = layout
    return Tile(tensor, rows, cols, 0, cols, 0, cols)


def locate(t: Tensor, tile: Tile) -> tuple[int, int] | None:
    """Memory offset and row stride (in elements, from data_ptr) of a tile, or None if it is no box there."""
    if t.is_contiguous():
        return tile.offset, tile.stride
    layout = row_layout(t)
    if layout is None:
        return None
    _, cols, stride = layout
    row, col = divmod(tile.offset, cols)
    if col + tile.cols > cols or (tile.rows > 1 and tile.stride % cols):
        return None
    return row * stride + col, tile.stride // cols * stride


def view(t: Tensor, tile: Tile) -> Tensor:
    """The (rows, cols) part of a tensor that a tile names; the tile must be a box of its memory."""
    t = t.detach()
    place = locate(t, tile)
    assert place is not None  # whoever made the plan has checked it
    return t.as_strided((tile.rows, tile.cols), (place[1], 1), t.storage_offset() + place[0])


def check_tiles(tiles: Sequence[Tile], params: Sequence[Tensor]) -> list[Tile]:
    """Tiles within their tensors and disjoint, one-row where rows touch; empty ones dropped."""
    kept = []
    for i, tile in enumerate(tiles):
        if not isinstance(tile, Tile):
            raise ArgumentTypeError(f"tiles[{i}] is a {type(tile).__name__}: give llc_fast.Tile records")
        check_integer(f"tiles[{i}].tensor", tile.tensor, maximum=len(params) - 1)
        for name in ("rows", "cols", "offset", "stride", "start", "global_stride"):
            check_integer(f"tiles[{i}].{name}", getattr(tile, name))
        if tile.chain is not None:
            check_integer(f"tiles[{i}].chain", tile.chain, maximum=2**64 - 1)
        if tile.numel == 0:
            continue
        if tile.rows > 1 and (tile.stride < tile.cols or tile.global_stride < tile.cols):
            raise ArgumentError(
                f"tiles[{i}] has rows of {tile.cols} elements at strides {tile.stride} (local) and "
                f"{tile.global_stride} (global): rows overlap, give strides >= cols"
            )
        last = tile.offset + (tile.rows - 1) * tile.stride + tile.cols
        size = params[tile.tensor].numel()
        if last > size:
            raise ArgumentError(
                f"tiles[{i}] ends at element {last} of params[{tile.tensor}], which has {size}: shrink it"
            )
        if tile.start + (tile.rows - 1) * tile.global_stride + tile.cols > MAX_ELEMENTS:
            raise ArgumentError(f"tiles[{i}] reaches beyond element 2^58 of the full parameter")
        touching = tile.rows > 1 and tile.stride == tile.global_stride == tile.cols
        if touching and params[tile.tensor].is_contiguous():
            n = tile.numel
            tile = Tile(tile.tensor, 1, n, tile.offset, n, tile.start, n, tile.chain)
        kept.append(tile)
    by_tensor: dict[int, list[Tile]] = {}
    for tile in kept:
        by_tensor.setdefault(tile.tensor, []).append(tile)
    for tensor, mine in by_tensor.items():
        if not _disjoint(mine, params[tensor].numel()):
            raise ArgumentError(f"tiles of params[{tensor}] overlap: an element would be updated twice")
    return kept


def pack(mask: Tensor) -> Tensor:
    """A boolean mask as bits in row-major order, the lowest of a byte first, with eight bytes to spare."""
    flat = mask.detach().reshape(-1).to(torch.uint8)
    flat = torch.nn.functional.pad(flat, (0, -flat.numel() % 8 + 64)).view(-1, 8)
    weights = torch.tensor([1 << i for i in range(8)], dtype=torch.uint8, device=flat.device)
    return (flat * weights).sum(dim=1, dtype=torch.uint8)


def unpack(bits: Tensor, tile: Tile) -> Tensor:
    """The (rows, cols) booleans of a tile, from what `pack` gave."""
    rows = torch.arange(tile.rows, device=bits.device)[:, None] * tile.stride
    index = tile.offset + rows + torch.arange(tile.cols, device=bits.device)
    return ((bits[index >> 3] >> (index & 7).to(torch.uint8)) & 1).bool()


def _disjoint(tiles: list[Tile], numel: int) -> bool:
    """Whether the tiles of one tensor share no element."""
    if len(tiles) < 2:
        return True
    spans = sorted((t.offset, t.offset + (t.rows - 1) * t.stride + t.cols) for t in tiles)
    if all(a[1] <= b[0] for a, b in pairwise(spans)):
        return True
    strides = {t.stride for t in tiles if t.rows > 1}
    if len(strides) == 1:
        stride = strides.pop()
        if all(t.offset % stride + t.cols <= stride for t in tiles):
            r0 = np.array([t.offset // stride for t in tiles])
            c0 = np.array([t.offset % stride for t in tiles])
            r1, c1 = r0 + [t.rows for t in tiles], c0 + [t.cols for t in tiles]
            for i in range(len(tiles) - 1):
                j = slice(i + 1, None)
                if np.any((r0[j] < r1[i]) & (r0[i] < r1[j]) & (c0[j] < c1[i]) & (c0[i] < c1[j])):
                    return False
            return True
    seen = np.zeros(numel, dtype=bool)
    for t in tiles:
        box = np.lib.stride_tricks.as_strided(seen[t.offset :], (t.rows, t.cols), (t.stride, 1))
        if box.any():
            return False
        box[...] = True
    return True


def extent(t: Tensor) -> tuple[int, int]:
    """First and one-past-last byte address that a tensor touches."""
    if t.is_contiguous():  # an empty one is, too
        return t.data_ptr(), t.data_ptr() + t.nbytes
    span = sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True)) + 1
    return t.data_ptr(), t.data_ptr() + span * t.element_size()


def check_memory(written: Sequence[tuple[str, Tensor]], read: Sequence[tuple[str, Tensor]]) -> None:
    """Raise if a tensor that is written shares memory with another that is written or read."""
    entries = [(*extent(t), name, t, True) for name, t in written]
    entries += [(*extent(t), name, t, False) for name, t in read]
    entries = sorted((e for e in entries if e[0] < e[1]), key=lambda e: e[:2])
    active: list[tuple[int, int, str, Tensor, bool]] = []
    for entry in entries:
        active = [a for a in active if a[1] > entry[0]]
        for other in active:
            if (entry[4] or other[4]) and _share(entry, other):
                raise ArgumentError(
                    f"{other[2]} and {entry[2]} share memory: give each tensor once, and copies "
                    "(.clone()) of the weights as anchors and gradients"
                )
        active.append(entry)


def spans(tensors: Sequence[Tensor]) -> npt.NDArray[np.uint64]:
    """The bytes that tensors lie within, as disjoint ranges in order: first and one-past-last addresses, (2, n)."""
    merged: list[list[int]] = []
    for low, high in sorted(extent(t) for t in tensors if t.numel()):
        if merged and low <= merged[-1][1]:
            merged[-1][1] = max(high, merged[-1][1])
        else:
            merged.append([low, high])
    return np.array(merged, dtype=np.uint64).reshape(-1, 2).T


def touches(
    ranges: npt.NDArray[np.uint64], low: npt.NDArray[np.uint64], sizes: npt.NDArray[np.uint64]
) -> bool:
    """Whether bytes from these addresses on, so many each, reach into one of the ranges that `spans` gave."""
    at = np.searchsorted(ranges[1], low, side="right")  # the first range that ends behind its start
    inside = at < ranges.shape[1]
    return bool(np.any(ranges[0][at[inside]] < (low + sizes)[inside]))


def _share(a: tuple[int, int, str, Tensor, bool], b: tuple[int, int, str, Tensor, bool]) -> bool:
    """Whether two tensors whose address ranges overlap touch a common byte."""
    if a[3].is_contiguous() and b[3].is_contiguous():
        return True
    low, high = min(a[0], b[0]), max(a[1], b[1])
    seen = np.zeros(high - low, dtype=bool)
    for address, _, _, t, _ in (a, b):
        size = t.element_size()
        shape = (*t.shape, size)
        strides = (*(s * size for s in t.stride()), 1)
        view = np.lib.stride_tricks.as_strided(seen[address - low :], shape, strides)
        if view.any():
            return True
        view[...] = True
    return False


def expanded(t: Tensor) -> bool:
    """Whether several elements of the tensor are one in memory."""
    if t.is_contiguous():
        return False
    order = sorted((s, n) for n, s in zip(t.shape, t.stride(), strict=True) if n > 1)
    reach = 0
    for stride, n in order:
        if stride <= reach:
            return True
        reach += (n - 1) * stride
    return False
