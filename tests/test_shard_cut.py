"""Shards without ranks: blocks of rows and columns, their overlap with boxes, and what needs no torch.distributed."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llc_fast import Box
from llc_fast.shard import cut, is_dtensor, local, local_mask, positions, tiles


@st.composite
def shards(draw):
    shape = draw(st.lists(st.integers(1, 6), max_size=4))
    index = []
    for n in shape:
        held = draw(st.none() | st.sets(st.integers(0, n - 1)))
        index.append(None if held is None else np.array(sorted(held), dtype=np.int64))
    return shape, index


def places(block: cut.Block) -> list[tuple[int, int]]:
    """(local, global) index of each of its elements."""
    return [
        (block.offset + i * block.stride + j, block.start + i * block.global_stride + j)
        for i in range(block.rows)
        for j in range(block.cols)
    ]


def held(shape, index) -> set[tuple[int, int]]:
    here = np.arange(int(np.prod(shape))).reshape(shape)
    for d, own in enumerate(index):
        here = here if own is None else np.take(here, own, axis=d)
    return {(i, int(value)) for i, value in enumerate(here.reshape(-1))}


@settings(max_examples=200, deadline=None)
@given(shards(), st.data())
def test_blocks_and_boxes_hold_exactly_their_elements(shard, data):
    shape, index = shard
    blocks, wanted = cut.blocks(shape, index), held(shape, index)
    found = [place for block in blocks for place in places(block)]
    assert len(found) == len(set(found))
    assert set(found) == wanted
    assert all(b.rows == 1 or min(b.stride, b.global_stride) >= b.cols for b in blocks)
    size = int(np.prod(shape))
    cols = data.draw(st.integers(1, size))
    rows = data.draw(st.integers(1, 4))
    stride = data.draw(st.integers(cols, cols + 6))
    last = size - (rows - 1) * stride - cols
    if last < 0:
        return
    box = Box(data.draw(st.integers(0, last)), rows, cols, stride if rows > 1 else cols)
    inside = {box.start + i * box.stride + j for i in range(rows) for j in range(cols)}
    found = [place for block in blocks for part in cut.overlap(block, box) for place in places(part)]
    assert len(found) == len(set(found))
    assert set(found) == {place for place in wanted if place[1] in inside}


def test_blocks_are_few():
    def run(start, end):
        return np.arange(start, end)

    assert len(cut.blocks([64, 32], [run(16, 32), None])) == 1  # whole rows: one stretch
    assert len(cut.blocks([64, 32], [None, run(8, 16)])) == 1
    assert len(cut.blocks([64, 32], [run(3, 9), run(8, 16)])) == 1
    assert len(cut.blocks([8, 64, 32], [None, run(8, 16), None])) == 1
    assert len(cut.blocks([8, 64, 32], [run(2, 4), None, run(0, 5)])) == 1
    assert len(cut.blocks([64], [np.concatenate((run(0, 8), run(32, 40)))])) == 2  # a strided shard
    (rows,) = cut.blocks([64, 32], [run(16, 32), None])
    assert len(cut.overlap(rows, Box(8, 64, 4, 32))) == 1  # a head's columns
    assert len(cut.overlap(rows, Box(0, 64, 32, 32))) == 1
    (columns,) = cut.blocks([64, 32], [None, run(8, 16)])
    assert len(cut.overlap(columns, Box(10, 64, 12, 32))) == 1
    assert len(cut.overlap(columns, Box(0, 1, 64 * 32, 64 * 32))) == 1
    assert cut.overlap(columns, Box(16, 64, 4, 32)) == []


def test_plain_tensors_pass_through():
    p = torch.arange(6.0).view(2, 3)
    assert not is_dtensor(p)
    assert local(p) is p
    assert torch.equal(positions(p), torch.arange(6).view(2, 3))
    mask = p > 2
    assert torch.equal(local_mask(p, mask), mask)
    (whole,) = tiles(4, p, chain=7)
    assert (whole.tensor, whole.numel, whole.chain) == (4, 6, 7)
    assert [t.start for t in tiles(0, p, [Box(1, 1, 2, 2)])] == [1]


def test_without_shards_nothing_of_them_is_imported():
    program = (
        "import sys, torch; layer = torch.nn.Linear(2, 2); torch.optim.SGD(layer.parameters()).step()\n"
        "before = set(sys.modules); import llc_fast\n"
        "chain = llc_fast.SGLD(layer.named_parameters(), lr=1e-4, nbeta=30.0)\n"
        "chain.step()\n"
        "llc_fast.functional.init(dict(layer.named_parameters()))\n"
        "print(*(n for n in sys.modules if n not in before and n.startswith('torch.distributed')))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
