"""Boxes of one parameter: slices along an axis, and unions in one canonical form."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod

from ..types import Box


def grid(shape: Sequence[int]) -> tuple[int, int]:
    """Rows and columns of a parameter seen as a matrix: its last axis gives the columns."""
    return (prod(shape[:-1]), shape[-1]) if shape else (1, 1)


def span(shape: Sequence[int], axis: int, start: int, stop: int) -> Box:
    """The slice `start:stop` of the first (`axis=0`) or the last axis, at full size in the others."""
    rows, cols = grid(shape)
    if axis == len(shape) - 1:
        return _box(0, rows, start, stop, cols)
    if axis != 0:
        raise ValueError(f"axis must be the first or the last of {len(shape)}, got {axis}")
    inner = rows // shape[0]
    return _box(start * inner, stop * inner, 0, cols, cols)


def whole(shape: Sequence[int]) -> tuple[Box, ...]:
    """Every element: one box, or none where the parameter is empty."""
    rows, cols = grid(shape)
    return (_box(0, rows, 0, cols, cols),) if rows * cols else ()


def union(shape: Sequence[int], boxes: Iterable[Box]) -> tuple[Box, ...]:
    """Disjoint boxes with the same elements, in order of their first element.

    The result depends on the set of elements alone: columns that touch are joined within each
    row, then equal stretches of columns are joined down the rows.
    """
    _, width = grid(shape)
    corners = sorted({_corners(box, width) for box in boxes})
    cuts = sorted({row for top, bottom, _, _ in corners for row in (top, bottom)})
    done: list[tuple[int, int, int, int]] = []
    growing: dict[tuple[int, int], int] = {}
    active: list[tuple[int, int, int, int]] = []
    to_come = corners[::-1]
    for row in cuts:
        # At the last cut no box goes on, which closes all that are still open.
        active = [corner for corner in active if corner[1] > row]
        while to_come and to_come[-1][0] == row:
            active.append(to_come.pop())
        here = dict.fromkeys(_joined((left, right) for _, _, left, right in active))
        for cols in [cols for cols in growing if cols not in here]:
            done.append((growing.pop(cols), row, *cols))
        for cols in here:
            growing.setdefault(cols, row)
    return tuple(sorted(_box(*sides, width) for sides in done))


def _box(top: int, bottom: int, left: int, right: int, width: int) -> Box:
    rows, cols = bottom - top, right - left
    return Box(top * width + left, rows, cols, width if rows > 1 else cols)


def _corners(box: Box, width: int) -> tuple[int, int, int, int]:
    top, left = divmod(box.start, width)
    if left + box.cols > width or (box.rows > 1 and box.stride != width):
        raise ValueError(f"{box} does not lie in a matrix of {width} columns")
    return top, top + box.rows, left, left + box.cols


def _joined(intervals: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    out: list[tuple[int, int]] = []
    for left, right in sorted(intervals):
        if out and left <= out[-1][1]:
            out[-1] = (out[-1][0], max(out[-1][1], right))
        else:
            out.append((left, right))
    return out
