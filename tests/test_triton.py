"""The Triton kernels without a device: how tiles are cut, what is refused, and equal bits in the interpreter."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llc_fast import backends, group, noise, scalars, sums
from llc_fast.backends import triton_backend
from llc_fast.samplers import SAMPLERS
from llc_fast.types import Tile

STORAGES: dict[group.Storage, torch.dtype] = {
    "float32": torch.float32,
    "split": torch.bfloat16,
    "sr": torch.bfloat16,
    "float16": torch.float16,
}
REMAINDERS = {"split": torch.int16, "float16": torch.float32}
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


# --- geometry ---


def make_group(storage: group.Storage, tiles: list[Tile], **more: Any) -> group.Group:
    """A group of SGLD without noise to speak of, unless told otherwise."""
    none = [None] * len(tiles)
    whole: dict[str, Any] = {
        "device": torch.device("cpu"),
        "storage": storage,
        "sampler": SAMPLERS["sgld"],
        "noise": "gaussian",
        "tiles": tiles,
        "params": none,
        "anchors": None,
        "remainders": none,
        "buffers": none,
        "masks": none,
        "tensor_ids": range(len(tiles)),
        "keys": [(1, 2)] * len(tiles),
    }
    return group.Group(**(whole | more))


def draw_group(rng: np.random.Generator, storage: group.Storage) -> group.Group:
    """Tiles of every kind at invented places: only their addresses matter here."""
    dtype, own = STORAGES[storage], REMAINDERS.get(storage)
    sampler = SAMPLERS[rng.choice(list(SAMPLERS))]
    tiles, params, anchors, remainders, buffers = [], [], [], [], []

    def zeros(n: int, dtype: torch.dtype) -> torch.Tensor:
        """As an allocator places it, or seldom one element beside that."""
        odd = int(rng.random() < 0.1)
        return torch.zeros(n + odd, dtype=dtype)[odd:]

    for i in range(int(rng.integers(1, 9))):
        rows = int(rng.choice([1, 2, 3, 50, 700]))
        cols = int(rng.choice([1, 3, 4, 8, 16, 24, 72, 200, 1000]))
        pitch = cols + int(rng.choice([0, 1, 2, 4, 8, 40]))
        start = int(rng.choice([0, 1, 3, 8, 12, 2**34 - 64, 2**34 - 5, 2**40]))
        offset = int(rng.choice([0, start & 3, start & 7, 1, 8]))
        size = rows * pitch + 8
        params.append(torch.zeros(size, dtype=dtype))
        anchors.append(zeros(size, dtype))
        remainders.append(None if own is None else zeros(size, own))
        buffers.append(None if sampler.buffer is None else zeros(size, torch.float32))
        stride = pitch if rng.random() < 0.7 else pitch + int(rng.integers(9))
        tiles.append(Tile(i, rows, cols, offset, pitch, start, stride))
    return make_group(
        storage,
        tiles,
        sampler=sampler,
        params=params,
        anchors=anchors,
        remainders=remainders,
        buffers=buffers,
        slots=rng.permutation(len(tiles)).tolist(),
    )


@pytest.mark.parametrize("storage", STORAGES)
def test_chunks_cover_every_element_once(storage: group.Storage):
    rng = np.random.default_rng(1)
    width, unit = 4 if storage == "float32" else 8, 8 if storage == "sr" else 4
    for _ in range(40):
        vectors = int(rng.choice([16, 64, 512]))
        g = draw_group(rng, storage)
        cut = triton_backend.geometry(g, vectors)
        seen = [np.zeros((t.rows, t.cols), dtype=np.int8) for t in g.tiles]
        for chunk in range(cut.chunks):
            low, high = cut.buckets[chunk >> cut.shift], cut.buckets[(chunk >> cut.shift) + 1]
            tile = int(np.searchsorted(cut.first_chunk, chunk, side="right")) - 1
            assert low <= tile <= high
            t = cut.table[tile]
            per_row, reciprocal = int(t[triton_backend.VECTORS_PER_ROW]), int(t[triton_backend.RECIPROCAL])
            row, first = divmod((chunk - int(cut.first_chunk[tile])) * vectors, per_row)
            i = np.arange(vectors, dtype=np.int64)
            if reciprocal:
                product = (first + i) * (reciprocal & 0xFFFFFFFF)
                assert product.max() < 2**31  # the kernel multiplies in 32 bits
                wraps = product >> (reciprocal >> 32)
            else:
                wraps = (first + i >= per_row).astype(np.int64)
            if t[group.ROWS] > 1:
                assert np.array_equal(wraps, (first + i) // per_row)
            start = t[group.START] + (row + wraps) * t[group.GLOBAL_STRIDE]
            col = (first + i - wraps * per_row) * width - start % unit
            for lane in range(width):
                inside = (row + wraps < t[group.ROWS]) & (col + lane >= 0) & (col + lane < t[group.COLS])
                np.add.at(seen[tile], ((row + wraps)[inside], (col + lane)[inside]), 1)
        for box in seen:
            assert (box == 1).all()
        check_sums(g, cut)


def check_sums(g: group.Group, cut: triton_backend.Geometry) -> None:
    """Every chunk has a place for its sums, those of a slot side by side."""
    counts = np.diff(np.append(cut.first_chunk, cut.chunks))
    owner = np.full(cut.chunks, -1)
    for slot, place, count in zip(g.slots, cut.table[:, group.SLOT], counts, strict=True):
        assert (owner[place : place + count] == -1).all()
        owner[place : place + count] = slot
    for slot in g.slots:
        assert (owner[cut.bounds[slot] : cut.bounds[slot + 1]] == slot).all()
    assert cut.bounds[0] == 0
    assert cut.bounds[-1] == cut.chunks
    assert len(cut.bounds) == len(g.slots) + 1


@pytest.mark.parametrize("storage", STORAGES)
def test_flags_say_which_vectors_are_aligned_and_full(storage: group.Storage):
    rng = np.random.default_rng(2)
    size, unit = 4 if storage == "float32" else 2, 8 if storage == "sr" else 4
    flagged = np.zeros(4, dtype=np.int64)
    for _ in range(150):
        g = draw_group(rng, storage)
        for t in triton_backend.geometry(g, 64).table.tolist():
            row = np.arange(t[group.ROWS])
            phase = (t[group.START] + row * t[group.GLOBAL_STRIDE]) % unit
            aligned = bool((phase == phase[0]).all())
            for address, stride, each in [
                (t[group.W], t[group.W_STRIDE], size),
                (t[group.W0], t[group.W0_STRIDE], size),
                (t[group.LO], t[group.LO_STRIDE], 4 if storage == "float16" else 2),
                (t[group.AUX], t[group.AUX_STRIDE], 4),
                (phase[0] * size, t[group.G_STRIDE], size),  # a gradient whose first row is aligned
            ]:
                if address:
                    aligned &= bool(((address + row * stride * each - phase * each) % 16 == 0).all())
            last = t[group.START] + row[-1] * t[group.GLOBAL_STRIDE] + t[group.COLS] - 1
            full = aligned and phase[0] == 0 and t[group.COLS] % (16 // size) == 0
            full = full and t[group.START] >> 34 == last >> 34
            flags = t[triton_backend.FLAGS]
            assert flags == aligned * triton_backend.ALIGNED + full * triton_backend.FULL
            flagged[flags] += 1
    assert (flagged[[0, 1, 3]] > 5).all()  # every kind has been seen


def test_buckets_stay_in_proportion_to_tiles():
    tiles = [Tile(0, 1, 2**33, 0, 2**33, 0, 2**33), Tile(1, 1, 5, 0, 5, 0, 5)]
    g = make_group("float32", tiles, params=[torch.empty(0)] * 2)
    cut = triton_backend.geometry(g, 512)
    assert cut.chunks == 2**33 // 2048 + 1
    assert len(cut.buckets) <= 8 * len(tiles) + 1


# --- numbers that stand in the kernels too ---


def test_the_kernels_have_the_numbers_of_python():
    pytest.importorskip("triton")
    from llc_fast.kernels import table

    here = {k: v.value for k, v in vars(table).items() if k.isupper()}
    assert here.pop("SUMS") == sums.COLUMNS
    for source in (group, triton_backend, scalars, noise):
        for name in here.keys() & vars(source).keys() - {"SUMS"}:
            assert here[name] == getattr(source, name), name
    columns = {k for k, v in vars(group).items() if k.isupper() and isinstance(v, int)}
    assert columns <= here.keys()
    assert here.keys() - columns == {
        *("VECTORS_PER_ROW", "RECIPROCAL", "FLAGS", "ALIGNED", "FULL"),
        *("WEIGHT_DECAY", "LOCALIZATION", "NOISE", "BOX", "ROUNDING"),
    }


# --- why it cannot run ---


def test_the_reason_is_named():
    pytest.importorskip("triton")
    assert "no variant 'x'" in str(backends.missing("triton:x"))
    reason = backends.missing("triton")
    if INTERPRETED or torch.cuda.is_available():
        assert reason is None
    else:
        assert "CUDA device" in str(reason)
        assert "TRITON_INTERPRET" in str(reason)


def test_what_is_refused(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("triton")
    from llc_fast.kernels import launch

    here, there = triton_backend.Triton(interpreted=False), triton_backend.Triton(interpreted=True)
    sgld = SAMPLERS["sgld"]
    assert "not on cpu" in str(here.refuses("cpu", "float32", sgld))
    assert "not on cuda" in str(there.refuses("cuda", "float32", sgld))
    assert "backend='reference'" in str(here.refuses("cuda", "float64", sgld))
    new = replace(sgld, name="mine", kernel="Mine")  # in Python and C++, but not here
    assert here.refuses("cuda", "float32", new) == "has no mine step: use backend='cuda' or 'reference'"
    for keeps in (True, False):
        monkeypatch.setattr(launch, "KEEPS_SUBNORMALS", keeps)
        for sampler in SAMPLERS.values():
            for storage in STORAGES:
                reason = here.refuses("cuda", storage, sampler)
                if keeps or sampler.name != "rmsprop_sgld":
                    assert reason is None
                else:
                    assert "Triton 3.6" in str(reason)


# --- interpreted programs ---


@pytest.mark.skipif(INTERPRETED, reason="TRITON_INTERPRET=1: these tests run here themselves")
@pytest.mark.parametrize("name", ["test_triton_steps.py", "test_triton_samplers.py"])
def test_interpreted(name: str):
    """In a process of its own: Triton decides when kernels are defined."""
    pytest.importorskip("triton")
    here = Path(__file__).resolve().parent
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist"]
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")} | {"TRITON_INTERPRET": "1"}
    command += ["-W", "ignore::RuntimeWarning", name]
    done = subprocess.run(command, cwd=here, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\b[1-9]\d* passed", done.stdout), done.stdout
    assert "skipped" not in done.stdout
