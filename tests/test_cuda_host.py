"""The CUDA kernels without a GPU: their code compiled for the CPU, run thread by thread, every access checked."""

from __future__ import annotations

import ctypes
import mmap
import sys

import cuda_host
import numpy as np
import pytest
import torch
from cases import WRAP, differing, draw
from cuda_host import I64, LARGE, Emulated, placed
from torch import Tensor

import llc_fast
from llc_fast import Tile, group
from llc_fast.backends import cuda_backend, reference_backend
from llc_fast.plan import Plan
from llc_fast.scalars import Scalars

host, emulated = cuda_host.host, cuda_host.emulated  # fixtures
DTYPES = [torch.float32, torch.bfloat16]


# --- the step ---


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("terms", range(16))
def test_step_has_the_reference_s_bits(emulated: Emulated, terms, dtype):
    for seed in range(6):
        emulated.resident = (1, 3, LARGE)[seed % 3]
        case = draw(1000 + 16 * seed + terms, dtype, terms)
        results = zip(case.run("cuda"), case.run("reference"), case.before(), case.touched(), strict=True)
        for result, want, old, inside in results:
            assert differing(result, want) == 0, case.label
            bits = torch.int32 if dtype == torch.float32 else torch.int16
            assert torch.equal(result.view(bits)[~inside], old.view(bits)[~inside]), case.label


ALL = -1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("tile", "offset", "shift", "edges"),
    [
        (Tile(0, 1, 40000, 0, 40000, 0, 40000), 0, 0, (0, 0)),
        (Tile(0, 1, 40000, 0, 40000, 4 * 10**9, 40000), 0, 0, (0, 0)),
        (Tile(0, 1, 40000, 0, 40000, 3, 40000), 3, 0, (2, 2)),  # both ends are partial
        (Tile(0, 1, 40000, 0, 40000, 4, 40000), 0, 0, (0, 0)),  # eight elements are any two blocks
        (Tile(0, 1, 40001, 0, 40001, 0, 40001), 0, 0, (1, 1)),
        (Tile(0, 1, 40000, 0, 40000, WRAP - 20020, 40000), 0, 0, (1, 1)),  # the counter's low word wraps
        (Tile(0, 1, 40000, 0, 40000, 0, 40000), 1, 0, (ALL, ALL)),  # memory and counter disagree
        (Tile(0, 1, 40000, 0, 40000, 2, 40000), 0, 0, (ALL, ALL)),
        (Tile(0, 1, 40000, 0, 40000, 0, 40000), 0, 1, (ALL, ALL)),  # the gradient alone is elsewhere
        (Tile(0, 200, 64, 64, 512, 64, 512), 0, 0, (0, 0)),  # a head
        (Tile(0, 200, 64, 64, 512, 64 + 2**40, 4096), 0, 0, (0, 0)),  # of a shard
        (Tile(0, 200, 64, 64, 512, WRAP - 512 * 81, 512), 0, 0, (1, 1)),
        (Tile(0, 300, 8, 8, 64, 8, 64), 0, 0, (0, 0)),
        (Tile(0, 60, 80, 16, 96, 16, 96), 0, 0, (0, 0)),
        (Tile(0, 37, 36, 4, 60, 4, 60), 0, 0, (0, ALL)),  # whole units in fp32 only
        (Tile(0, 50, 63, 0, 64, 0, 64), 0, 0, (ALL, ALL)),
        (Tile(0, 50, 64, 0, 67, 0, 67), 0, 0, (ALL, ALL)),
        (Tile(0, 50, 64, 0, 64, 0, 65), 0, 0, (ALL, ALL)),
        (Tile(0, 3, 30000, 8, 30016, 8, 30016), 0, 0, (0, 0)),
    ],
)
def test_layouts_take_the_fast_path_where_they_can(emulated: Emulated, tile, offset, shift, edges, dtype):
    n = tile.offset + tile.rows * tile.stride
    split = dtype == torch.bfloat16
    g, w0 = placed(n, dtype, offset + shift), placed(n, dtype, offset)
    settings = {"lr": 1e-4, "nbeta": 30.0, "localization": 5.0, "seed": 3, "step": 7, "tiles": [tile]}
    for emulated.resident in (1, LARGE):
        emulated.plain = emulated.chunks = 0
        results = []
        for backend in ("cuda", "reference"):
            w = placed(n, dtype, offset)
            lo = placed(n, torch.int16, offset) if split else None
            llc_fast.sgld_step_([w], [g], [w0], remainders=[lo], backend=backend, **settings)
            results.append([w, lo] if split else [w])
        assert [differing(*pair) for pair in zip(*results, strict=True)] == [0] * len(results[0])
    assert emulated.chunks - emulated.plain == (edges[split] if edges[split] != ALL else emulated.chunks)


def test_a_chain_uploads_what_changes(emulated: Emulated):
    """Gradients come and go and move between steps; twenty steps go around the ring of slots."""
    names = ("cuda", "reference")
    params = {name: [placed(500, torch.float32, 0).clone(), torch.ones(33)] for name in names}
    anchors = [p.clone() for p in params["cuda"]]
    scalars = Scalars(lr=1e-3, nbeta=3.0, localization=2.0)
    plans = {name: Plan(params[name], anchors, seed=5, chain=6, backend=name) for name in names}
    generator = torch.Generator().manual_seed(0)
    grads: list[Tensor | None] = [None, None]
    for step in range(20):
        if step % 3 == 0:
            grads = [torch.randn(p.shape, generator=generator) for p in params["cuda"]]
            grads[1] = grads[1] if step % 2 else None
        else:
            for g in grads:
                if g is not None:
                    g.mul_(0.5)
        for name in names:
            plans[name].step(grads, scalars, step)
        assert [differing(*pair) for pair in zip(*params.values(), strict=True)] == [0, 0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("anchored", [True, False])
def test_rows_with_gaps_in_the_weights_alone(emulated: Emulated, anchored, dtype):
    """Every row of every operand starts at a multiple of sixteen bytes, but their strides differ."""
    rows, cols, pitch = 40, 64, 96
    g, w0 = (placed(rows * cols, dtype, 0).view(rows, cols) for _ in range(2))
    results = []
    for backend in ("cuda", "reference"):
        wide, low = placed(rows * pitch, dtype, 0), placed(rows * cols, torch.int16, 0)
        w, lo = wide.view(rows, pitch)[:, :cols], low.view(rows, cols)
        remainders = [lo if dtype == torch.bfloat16 else None]
        settings = {"lr": 1e-4, "nbeta": 30.0, "seed": 3, "step": 7, "localization": 5.0 * anchored}
        anchors = [w0] if anchored else None
        llc_fast.sgld_step_([w], [g], anchors, remainders=remainders, backend=backend, **settings)
        results.append([wide, low])
    assert [differing(*pair) for pair in zip(*results, strict=True)] == [0, 0]
    assert emulated.plain == 0


def far(n: int) -> Tensor:
    """A tensor of zeros whose memory exists only where it is touched."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000  # MAP_NORESERVE
    try:
        memory = mmap.mmap(-1, 4 * n, flags=flags)
    except (OSError, ValueError) as e:
        pytest.skip(f"needs {4 * n / 2**30:.0f} GB of addresses: {e}")
    return torch.frombuffer(memory, dtype=torch.float32)


@pytest.mark.skipif(sys.platform != "linux", reason="needs sparse memory")
def test_rows_that_are_gigabytes_apart(emulated: Emulated):
    stride = 2**32 + 8
    tile = Tile(0, 3, 64, 16, stride, 2**40 + 16, 2**33)
    results = []
    for backend in ("cuda", "reference"):
        w, g = far(3 * stride), far(3 * stride)
        g[2 * stride + 16 : 2 * stride + 80] = torch.arange(64.0)
        settings = {"lr": 1e-2, "nbeta": 2.0, "seed": 1, "step": 2, "tiles": [tile]}
        llc_fast.sgld_step_([w], [g], None, backend=backend, **settings)
        results.append(w.as_strided((3, 64), (stride, 1), 16).clone())
    assert differing(*results) == 0
    assert results[0].count_nonzero() == 3 * 64
    assert emulated.plain == emulated.chunks


# --- the noise ---


@pytest.mark.parametrize("offset", [0, 1, 3])
def test_normal_has_the_reference_s_bits(emulated: Emulated, offset):
    where = {"key": (123456789, 987654321), "step": 2**32 - 1, "tensor_id": 2**31 + 5, "domain": 2}
    for start in (0, 1, 2, 3, 4, WRAP - 7, 2**58 - 3000):
        for n in (1, 2, 3, 4, 5, 1000, 2999):
            out = [placed(n, torch.float32, offset) for _ in range(2)]
            cuda_backend.Cuda().normal(out[0], start=start, **where)
            reference_backend.Reference().normal(out[1], start=start, **where)
            assert differing(*out) == 0


# --- its parts ---


def test_plans_of_large_tiles(host: ctypes.CDLL):
    """Chunks cover a tile exactly, and their offsets fit 32 bits; without running anything."""
    for rows, cols, stride, size in [
        (1, 1, 1, 4),
        (1, 10**9, 10**9, 4),
        (1, 4 * 10**10, 4 * 10**10, 2),
        (151_936, 128, 12_288, 2),
        (10**6, 8, 2**26, 4),
        (10**6, 8, 2**31, 4),
        (65_536, 65_536, 65_536 + 8, 2),
        (7, 8193 * 4, 2**20, 4),
    ]:
        for resident in (1, 132 * 6, LARGE):
            row = np.zeros(group.COLUMNS, dtype=np.int64)
            row[[group.ROWS, group.COLS, group.W_STRIDE, group.G_STRIDE]] = rows, cols, stride, stride
            row[group.GLOBAL_STRIDE], row[group.W] = stride, 2**20
            found = I64()
            at = ctypes.c_void_p(row.ctypes.data)
            host.host_geometry(at, {4: 0, 2: 1}[size], ctypes.c_int64(resident), found)
            units, across, chunk_rows, chunk_units, regular, chunks = found
            per = 16 // size
            assert units == -(-cols // per)
            assert 0 < chunk_units <= 32 * 256
            assert 0 < chunk_rows * chunk_units <= 32 * 256
            assert (across - 1) * chunk_units < units <= across * chunk_units
            assert chunk_rows == 1 or across == 1
            assert chunks == across * -(-rows // chunk_rows)
            assert regular == (rows == 1 or stride % per == 0)
            assert chunk_rows == 1 or chunk_rows * stride * size < 2**31


def test_chunks_grow_with_the_work(host: ctypes.CDLL):
    """A small tensor is spread over the device; a large one pays for few searches."""
    row = np.zeros(group.COLUMNS, dtype=np.int64)
    row[group.ROWS], found = 1, I64()
    sizes = {}
    for cols in (10**5, 10**9):
        row[group.COLS] = cols
        host.host_geometry(ctypes.c_void_p(row.ctypes.data), 0, ctypes.c_int64(132 * 6), found)
        sizes[cols] = found[3]
    assert sizes[10**5] <= 256
    assert sizes[10**9] > 16 * 256


def test_parts_agree_with_their_definitions(host: ctypes.CDLL):
    assert host.host_division() == 0
    assert host.host_rounding(0, 1, ctypes.c_int64(2**17)) == 0
    assert host.host_rounding(0x7F7F0000, 1, ctypes.c_int64(2**17)) == 0  # around infinity, NaNs
    assert host.host_rounding(0xFF7F0000, 1, ctypes.c_int64(2**17)) == 0
    assert host.host_rounding(12345, 40_503, ctypes.c_int64(2**20)) == 0
    for first in (0, 2**32 - 1000, 2**32, 2**56 - 1000):
        numbers = ctypes.c_uint64(first), ctypes.c_int64(1000), ctypes.c_uint64(0x9ABCDEF012345678)
        assert host.host_rounds(*numbers, ctypes.c_uint32(2**32 - 1), ctypes.c_uint32(77), 2) == 0
