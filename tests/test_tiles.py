"""Tiles against brute force: every element listed, every address compared."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from llc_fast.errors import ArgumentError
from llc_fast.reference import chunks
from llc_fast.tiles import check_memory, check_tiles, expanded, locate, row_layout, spans, touches, whole
from llc_fast.types import Box, Selection, Tile


def elements(tile: Tile) -> list[int]:
    """Row-major indices in the local tensor."""
    return [tile.offset + r * tile.stride + c for r in range(tile.rows) for c in range(tile.cols)]


def numbers(tile: Tile) -> list[int]:
    """Indices in the full tensor."""
    return [tile.start + r * tile.global_stride + c for r in range(tile.rows) for c in range(tile.cols)]


LAYOUTS = {
    "a line": ((7,), (1,)),
    "a matrix": ((4, 6), (6, 1)),
    "rows with gaps": ((4, 6), (9, 1)),
    "rows of rows": ((2, 3, 5), (21, 7, 1)),
    "rows of planes": ((3, 2, 5), (13, 5, 1)),
    "one row": ((1, 6), (40, 1)),
    "planes of one row": ((3, 1, 5), (8, 99, 1)),
    "a scalar": ((), ()),
    "one element": ((1, 1), (3, 5)),
    "nothing": ((0, 4), (4, 1)),
}


@pytest.mark.parametrize("kind", LAYOUTS)
def test_a_whole_tensor_is_one_tile(kind):
    shape, stride = LAYOUTS[kind]
    memory = torch.arange(200)
    t = memory.as_strided(shape, stride, 3)
    tile = whole(0, t)
    assert elements(tile) == numbers(tile) == list(range(t.numel()))
    place = locate(t, tile)
    assert place is not None
    addresses = [3 + place[0] + r * place[1] + c for r in range(tile.rows) for c in range(tile.cols)]
    assert addresses == t.flatten().tolist()


@pytest.mark.parametrize(
    ("shape", "stride"),
    [((5,), (2,)), ((4, 6), (1, 4)), ((2, 3, 5), (40, 7, 1)), ((3, 4, 5), (2, 12, 1)), ((4, 5), (3, 2))],
)
def test_what_is_not_rows_is_refused(shape, stride):
    t = torch.arange(200).as_strided(shape, stride)
    assert row_layout(t) is None
    with pytest.raises(ArgumentError, match=r"params\[7\] has strides"):
        whole(7, t)


def test_locate_finds_boxes_and_refuses_what_is_none():
    rng = np.random.default_rng(0)
    memory = torch.arange(4000)
    found = 0
    for _ in range(2000):
        rows, cols = (int(n) for n in rng.integers(1, 12, size=2))
        t = memory.as_strided((rows, cols), (cols + int(rng.integers(0, 4)), 1), 5)
        height, width = int(rng.integers(1, rows + 1)), int(rng.integers(1, cols + 3))
        stride = int(rng.choice([cols, cols, 2 * cols, cols + 1]))
        offset = int(rng.integers(0, rows * cols))
        tile = Tile(0, height, width, offset, stride, 0, stride)
        index = elements(tile)
        if index[-1] >= t.numel():
            continue
        expected = t.flatten()[index]
        place = locate(t, tile)
        if place is None:  # then it is across a gap, or at a stride that is no number of rows
            crosses = offset % cols + width > cols
            assert not t.is_contiguous()
            assert crosses or (height > 1 and stride % cols) or cols == 1
            continue
        found += 1
        at = [5 + place[0] + r * place[1] + c for r in range(height) for c in range(width)]
        assert at == expected.tolist()
    assert found > 400


def test_overlap_is_found_exactly():
    rng = np.random.default_rng(1)
    outcomes = set()
    for _ in range(3000):
        cols = int(rng.integers(2, 9))
        size = cols * 8
        tiles = []
        for _ in range(int(rng.integers(2, 5))):
            height, width = int(rng.integers(1, 4)), int(rng.integers(1, cols + 1))
            stride = cols if rng.random() < 0.8 else cols + 1
            reach = (height - 1) * stride + width
            offset = int(rng.integers(0, max(1, size - reach + 1)))
            if offset + reach <= size:
                tiles.append(Tile(0, height, width, offset, stride, offset, stride))
        index = [i for tile in tiles for i in elements(tile)]
        overlap = len(set(index)) < len(index)
        outcomes.add(overlap)
        if overlap:
            with pytest.raises(ArgumentError, match="overlap"):
                check_tiles(tiles, [torch.empty(size)])
        else:
            kept = check_tiles(tiles, [torch.empty(size)])
            assert sorted(i for tile in kept for i in elements(tile)) == sorted(index)
    assert outcomes == {True, False}


def test_rows_that_touch_become_one_row_and_empty_tiles_go():
    tiles = [
        Tile(0, 3, 4, 0, 4, 100, 4),
        Tile(0, 2, 4, 12, 4, 0, 5),
        Tile(0, 0, 4, 0, 4, 0, 4),
        Tile(0, 1, 0, 0, 0, 0, 0),
    ]
    kept = check_tiles(tiles, [torch.empty(20)])
    assert kept == [Tile(0, 1, 12, 0, 12, 100, 12), tiles[1]]
    assert check_tiles(tiles, [torch.empty(5, 8)[:, :4]]) == tiles[:2]  # there, rows do not touch in memory


def views(rng: np.random.Generator, base: torch.Tensor) -> torch.Tensor:
    """A random matrix of rows within a buffer."""
    rows, cols = int(rng.integers(1, 6)), int(rng.integers(1, 8))
    stride = cols if rng.random() < 0.4 else int(rng.choice([8, 9]))
    return base.as_strided((rows, max(1, min(cols, stride))), (stride, 1), int(rng.integers(0, 60)))


def test_shared_memory_is_found_exactly():
    rng = np.random.default_rng(2)
    outcomes = set()
    for _ in range(3000):
        base, position = torch.zeros(200), torch.arange(200)
        state = rng.bit_generator.state
        t, u = views(rng, base), views(rng, base)
        rng.bit_generator.state = state
        where = [set(views(rng, position).flatten().tolist()) for _ in range(2)]
        shared = bool(where[0] & where[1])
        outcomes.add(shared)
        for written, read in (([("t", t), ("u", u)], []), ([("t", t)], [("u", u)])):
            if shared:
                with pytest.raises(ArgumentError, match="share memory"):
                    check_memory(written, read)
            else:
                check_memory(written, read)
        check_memory([], [("t", t), ("u", u)])
        size = np.array([u.nbytes], dtype=np.uint64)
        assert touches(spans([t]), addresses(u), size) or not (shared and u.is_contiguous())
        assert not touches(spans([t]), addresses(u.clone()), size)
        assert not touches(spans([t]), np.zeros(1, dtype=np.uint64), size)
    assert outcomes == {True, False}


def test_touching_ranges_are_found():
    base = torch.zeros(100)
    ranges = spans([base[10:20], base[40:50], base[15:30], torch.zeros(0)])
    assert ranges.shape == (2, 2)
    for low in range(100):
        for high in range(low + 1, min(low + 30, 100)):
            inside = (low < 30 and high > 10) or (low < 50 and high > 40)
            sizes = np.array([20, 4 * (high - low)], dtype=np.uint64)
            assert touches(ranges, addresses(base[:5], base[low:high]), sizes) == inside


def addresses(*tensors: torch.Tensor) -> np.ndarray:
    return np.array([t.data_ptr() for t in tensors], dtype=np.uint64)


def test_expanded_is_true_where_elements_share_memory():
    rng = np.random.default_rng(3)
    for _ in range(2000):
        shape = tuple(int(n) for n in rng.integers(0, 5, size=3))
        stride = tuple(int(n) for n in rng.choice([0, 1, 2, 3, 4, 8, 12, 20], size=3))
        index = torch.arange(1000).as_strided(shape, stride).flatten().tolist()
        if len(set(index)) < len(index):
            assert expanded(torch.zeros(1000).as_strided(shape, stride))
    for shape, stride in LAYOUTS.values():
        assert not expanded(torch.zeros(200).as_strided(shape, stride))


def test_chunks_cover_a_tile_in_order():
    for size in (1, 3, 7, 10, 1000):
        for tile in (Tile(2, 5, 7, 3, 9, 1000, 20, 4), Tile(0, 1, 30, 0, 30, 2**40, 30)):
            parts = list(chunks(tile, size))
            assert all(part.numel <= max(size, 1) for part in parts)
            assert all((part.tensor, part.chain) == (tile.tensor, tile.chain) for part in parts)
            got = sorted(zip(*([f(p) for p in parts] for f in (elements, numbers)), strict=True))
            pairs = [pair for local, full in got for pair in zip(local, full, strict=True)]
            assert sorted(pairs) == sorted(zip(elements(tile), numbers(tile), strict=True))


def test_a_mask_is_made_of_its_boxes():
    boxes = (Box(0, 1, 3, 3), Box(7, 2, 2, 5))
    selection = Selection(
        "x", {"w": boxes, "v": (Box(0, 1, 4, 4),)}, {"w": (4, 5), "v": (4,)}, {"v": 0, "w": 1}
    )
    mask = selection.mask("w")
    assert mask.flatten().nonzero().flatten().tolist() == [0, 1, 2, 7, 8, 12, 13]
    assert selection.numel == 11
    assert (selection.covers("v"), selection.covers("w")) == (True, False)
    assert elements(Tile.of(3, boxes[1], 9)) == [7, 8, 12, 13]
