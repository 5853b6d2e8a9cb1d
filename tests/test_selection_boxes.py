"""Boxes against dense masks: the same elements, disjoint, and one form for one set."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llc_fast.selection.boxes import span, union, whole
from llc_fast.types import Box, Selection

SHAPES = [(), (1,), (7,), (1, 6), (6, 1), (5, 7), (3, 4, 5)]


def dense(shape: tuple[int, ...], boxes: tuple[Box, ...]) -> torch.Tensor:
    """How often each element lies in a box, counted element by element."""
    count = torch.zeros(max(1, torch.Size(shape).numel()), dtype=torch.int)
    for box in boxes:
        for i in range(box.rows):
            for j in range(box.cols):
                count[box.start + i * box.stride + j] += 1
    return count.view(shape)


@st.composite
def boxes_of_a_shape(draw: st.DrawFn) -> tuple[tuple[int, ...], list[Box]]:
    shape = draw(st.sampled_from(SHAPES))
    width = shape[-1] if shape else 1
    height = torch.Size(shape).numel() // width
    found = []
    for _ in range(draw(st.integers(1, 6))):
        top, left = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
        rows, cols = draw(st.integers(1, height - top)), draw(st.integers(1, width - left))
        found.append(Box(top * width + left, rows, cols, width if rows > 1 else cols))
    return shape, found


@settings(max_examples=300, deadline=None)
@given(boxes_of_a_shape(), st.randoms(use_true_random=False))
def test_union_has_the_same_elements_once_and_one_form(case, random):
    shape, boxes = case
    merged = union(shape, boxes)
    expected = dense(shape, boxes) > 0
    assert torch.equal(dense(shape, merged), expected.int())  # 1 everywhere: disjoint
    assert torch.equal(Selection("x", {"w": merged}, {"w": shape}, {}).mask("w"), expected)
    assert all(box.rows > 1 or box.stride == box.cols for box in merged)
    # The form depends on the elements only: shuffled, split to single elements, merged again.
    shuffled = boxes * 2
    random.shuffle(shuffled)
    elements = [Box(int(i), 1, 1, 1) for i in expected.view(-1).nonzero()]
    assert union(shape, shuffled) == union(shape, elements) == union(shape, merged) == merged


def test_neighbours_become_one_box():
    rows = [span((8, 6), 0, i, i + 2) for i in (4, 0, 2)]
    assert union((8, 6), rows) == (Box(0, 6, 6, 6),)
    assert union((8, 6), [span((8, 6), 1, 0, 2), span((8, 6), 1, 2, 5)]) == (Box(0, 8, 5, 6),)
    assert union((9,), [span((9,), 0, 0, 3), span((9,), 0, 3, 5)]) == (Box(0, 1, 5, 5),)


def test_a_row_slice_and_a_column_slice_are_one_box_each():
    assert span((12, 5), 0, 3, 6) == Box(start=15, rows=3, cols=5, stride=5)
    assert span((12, 5), 1, 2, 4) == Box(start=2, rows=12, cols=2, stride=5)
    assert span((12,), 0, 3, 6) == Box(start=3, rows=1, cols=3, stride=3)
    assert span((4, 3, 5), 0, 1, 2) == Box(start=15, rows=3, cols=5, stride=5)


def test_whole_parameters():
    assert whole((4, 3, 5)) == (Box(0, 12, 5, 5),)
    assert whole((7,)) == (Box(0, 1, 7, 7),)
    assert whole(()) == (Box(0, 1, 1, 1),)
    assert whole((0, 3)) == whole((3, 0)) == ()


def test_what_is_no_box_of_the_matrix_is_refused():
    with pytest.raises(ValueError, match="5 columns"):
        union((4, 5), [Box(3, 1, 4, 4)])
    with pytest.raises(ValueError, match="5 columns"):
        union((4, 5), [Box(0, 2, 3, 4)])
    with pytest.raises(ValueError, match="axis"):
        span((2, 3, 4), 1, 0, 1)
