"""Index arithmetic of shards: which boxes of a row-major tensor a set of its rows and columns makes."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..types import Box

Index = npt.NDArray[np.int64]


class Block(NamedTuple):
    """A box in two places: a local tensor (offset, stride) and the full one (start, global_stride)."""

    rows: int
    cols: int
    offset: int
    stride: int
    start: int
    global_stride: int


def blocks(shape: Sequence[int], index: Sequence[Index | None]) -> list[Block]:
    """A local tensor as few blocks. index: for each dimension of the full shape the indices held, None for all."""
    sizes = [n if i is None else len(i) for n, i in zip(shape, index, strict=True)]
    if not prod(sizes):
        return []
    last = max((d for d, i in enumerate(index) if i is not None), default=None)
    if last is None:
        return [Block(1, prod(sizes), 0, prod(sizes), 0, prod(sizes))]
    inner = prod(
        sizes[last + 1 :]
    )  # these dimensions are whole: one stretch in memory with the one before them
    rows = np.zeros(1, dtype=np.int64)  # where in the full tensor each local row lies
    for d in range(last):
        held = index[d]
        held = np.arange(shape[d]) if held is None else held
        rows = (rows[:, None] * shape[d] + held).reshape(-1)
    held = index[last]
    assert held is not None
    breaks = np.flatnonzero(np.diff(held) != 1) + 1
    found = []
    for first, end in zip([0, *breaks.tolist()], [*breaks.tolist(), len(held)], strict=True):
        local = (np.arange(len(rows)) * sizes[last] + first) * inner
        start = (rows * shape[last] + held[first]) * inner
        found += stack(local, start, np.full(len(rows), (end - first) * inner))
    return found


def overlap(block: Block, box: Box) -> list[Block]:
    """What a block and a box of the full tensor have in common, as blocks."""
    if not box.numel:
        return []
    step = box.stride if box.rows > 1 else box.cols
    above = np.arange(block.rows)
    start = block.start + above * block.global_stride
    # Of each row of the block, the first and one past the last row of the box that reach into it.
    low = np.maximum((start - box.cols - box.start) // step + 1, 0)
    high = np.minimum(-((box.start - start - block.cols) // step), box.rows)
    count = np.maximum(high - low, 0)
    row = np.repeat(above, count)
    within = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)
    left = box.start + (low[row] + within) * step
    begin = np.maximum(start[row], left)
    length = np.minimum(start[row] + block.cols, left + box.cols) - begin
    local = block.offset + row * block.stride + begin - start[row]
    kept = length > 0
    return stack(local[kept], begin[kept], length[kept])


def stack(local: Index, start: Index, length: Index) -> list[Block]:
    """Stretches, in local order, joined where they touch and piled up where they have one length and one distance."""
    touch = (np.diff(local) == length[:-1]) & (np.diff(start) == length[:-1])
    heads = np.flatnonzero(np.concatenate((np.ones(min(len(local), 1), dtype=bool), ~touch)))
    length = np.add.reduceat(length, heads) if len(heads) else length
    local, start = local[heads], start[heads]
    down, across = np.diff(local), np.diff(start)
    fits = (length[1:] == length[:-1]) & (down >= length[:-1]) & (across >= length[:-1])
    same = fits[1:] & fits[:-1] & (down[1:] == down[:-1]) & (across[1:] == across[:-1])
    ends = np.append(np.flatnonzero(~same) + 1, len(down))  # distances before each of these are equal
    found, i = [], 0
    while i < len(local):
        at, first, cols = int(local[i]), int(start[i]), int(length[i])
        if i == len(down) or not fits[i]:
            found.append(Block(1, cols, at, cols, first, cols))
            i += 1
            continue
        last = int(ends[np.searchsorted(ends, i, side="right")])
        found.append(Block(last - i + 1, cols, at, int(down[i]), first, int(across[i])))
        i = last + 1
    return found
