"""The Triton kernels without a device: how tiles are cut, what the compiled programs hold, equal bits interpreted."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llc_fast import backends, group, scalars
from llc_fast.backends import triton_backend
from llc_fast.types import Tile

STORAGES = {"float32": torch.float32, "split": torch.bfloat16}
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
compiled = pytest.mark.skipif(INTERPRETED, reason="TRITON_INTERPRET=1: nothing is compiled")


# --- geometry ---


def draw_group(rng: np.random.Generator, storage: group.Storage) -> group.Group:
    """Tiles of every kind at invented places: only their addresses matter here."""
    dtype = STORAGES[storage]
    tiles, params, anchors, remainders = [], [], [], []
    for i in range(int(rng.integers(1, 9))):
        rows = int(rng.choice([1, 2, 3, 50, 700]))
        cols = int(rng.choice([1, 3, 4, 8, 16, 24, 72, 200, 1000]))
        pitch = cols + int(rng.choice([0, 1, 2, 4, 8, 40]))
        start = int(rng.choice([0, 1, 3, 8, 2**34 - 64, 2**34 - 5, 2**40]))
        offset = int(rng.choice([0, start & 3, 1, 8]))
        params.append(torch.zeros(rows * pitch + 8, dtype=dtype))
        anchors.append(torch.zeros_like(params[-1]))
        remainders.append(torch.zeros_like(params[-1], dtype=torch.int16) if storage == "split" else None)
        stride = pitch if rng.random() < 0.7 else pitch + int(rng.integers(5))
        tiles.append(Tile(i, rows, cols, offset, pitch, start, stride))
    ids = list(range(len(tiles)))
    return group.Group(
        torch.device("cpu"), storage, tiles, params, anchors, remainders, ids, [(1, 2)] * len(ids)
    )


@pytest.mark.parametrize("storage", STORAGES)
def test_chunks_cover_every_element_once(storage: group.Storage):
    rng = np.random.default_rng(1)
    width = 8 if storage == "split" else 4
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
            col = (first + i - wraps * per_row) * width - (start & 3)
            for lane in range(width):
                inside = (row + wraps < t[group.ROWS]) & (col + lane >= 0) & (col + lane < t[group.COLS])
                np.add.at(seen[tile], ((row + wraps)[inside], (col + lane)[inside]), 1)
        for box in seen:
            assert (box == 1).all()


@pytest.mark.parametrize("storage", STORAGES)
def test_flags_say_which_vectors_are_aligned_and_full(storage: group.Storage):
    rng = np.random.default_rng(2)
    size = 2 if storage == "split" else 4
    flagged = np.zeros(4, dtype=np.int64)
    for _ in range(60):
        g = draw_group(rng, storage)
        for t in triton_backend.geometry(g, 64).table.tolist():
            row = np.arange(t[group.ROWS])
            phase = (t[group.START] + row * t[group.GLOBAL_STRIDE]) & 3
            aligned = bool((phase == phase[0]).all())
            for address, stride in [
                (t[group.W], t[group.W_STRIDE]),
                (t[group.W0], t[group.W0_STRIDE]),
                (t[group.LO], t[group.LO_STRIDE] if storage == "split" else 0),
                (phase[0] * size, t[group.G_STRIDE]),  # a gradient whose first row is aligned
            ]:
                if address:
                    aligned &= bool(((address + row * stride * size - phase * size) % 16 == 0).all())
            last = t[group.START] + row[-1] * t[group.GLOBAL_STRIDE] + t[group.COLS] - 1
            full = aligned and phase[0] == 0 and t[group.COLS] % (16 // size) == 0
            full = full and t[group.START] >> 34 == last >> 34
            flags = t[triton_backend.FLAGS]
            assert flags == aligned * triton_backend.ALIGNED + full * triton_backend.FULL
            flagged[flags] += 1
    assert (flagged[[0, 1, 3]] > 5).all()  # every kind has been seen


def test_buckets_stay_in_proportion_to_tiles():
    w = torch.empty(0)
    tiles = [Tile(0, 1, 2**33, 0, 2**33, 0, 2**33), Tile(1, 1, 5, 0, 5, 0, 5)]
    g = group.Group(torch.device("cpu"), "float32", tiles, [w, w], None, [None, None], [0, 1], [(0, 0)] * 2)
    cut = triton_backend.geometry(g, 512)
    assert cut.chunks == 2**33 // 2048 + 1
    assert len(cut.buckets) <= 8 * len(tiles) + 1


# --- numbers that stand in the kernels too ---


def test_the_kernels_have_the_table_s_columns_and_the_terms():
    pytest.importorskip("triton")
    from llc_fast.kernels import sgld_step as module

    kernel = sys.modules["llc_fast.kernels.sgld_step"]
    assert module is kernel
    for source in (group, triton_backend, scalars):
        for name in re.findall(r"^([A-Z][A-Z0-9_]*) = tl", Path(kernel.__file__).read_text(), re.MULTILINE):
            if hasattr(source, name):
                assert getattr(kernel, name).value == getattr(source, name), name
    names = {k for k, v in vars(group).items() if k.isupper() and isinstance(v, int)}
    assert names <= set(vars(kernel))


# --- why it cannot run ---


def test_the_reason_is_named():
    pytest.importorskip("triton")
    assert "no variant 'x'" in str(backends.missing("triton:x"))
    reason = backends.missing("triton")
    if INTERPRETED:
        assert reason is None
        assert "not on cuda" in str(backends.load("triton").refuses("cuda", "float32"))
    elif torch.cuda.is_available():
        assert reason is None
        assert "not on cpu" in str(backends.load("triton").refuses("cpu", "float32"))
        assert "reference" in str(backends.load("triton").refuses("cuda", "float64"))
    else:
        assert "CUDA device" in str(reason)
        assert "TRITON_INTERPRET" in str(reason)


# --- compiled programs ---


def check_program(name: str, arch: int) -> None:
    """The rules of exact arithmetic, and 16 bytes at a time."""
    from llc_fast.kernels import aot

    program = aot.compile_variant(name, arch)
    text = program.asm["ptx"]
    ptx = re.sub(r"//[^\n]*", "", text)
    for pattern in (r"\bfma\.", r"\bmad\.\w*\.?f32", r"\.ftz", r"\.approx", r"\b(min|max)\.\w*f32", r"bf16"):
        assert not re.search(pattern, ptx), (name, pattern)
    arithmetic = re.findall(r"\b(add|sub|mul|div|sqrt)((?:\.\w+)*)\.f32", ptx)
    assert arithmetic
    assert {rounding for _, rounding in arithmetic} == {".rn"}, name
    assert ".local" not in ptx, name
    kernel, _, constants, elements = aot.variants()[name]
    if kernel.__name__ == "sgld_step":
        assert program.metadata.shared == 0, name
        vectors = elements * (2 if constants["SPLIT"] else 4) // 16
        operands = 2 + bool(constants["TERMS"] & 10) + constants["SPLIT"]
        assert len(re.findall(r"ld\.global\.v4\.b32", ptx)) >= operands * vectors, name
        assert len(re.findall(r"st\.global\.v4\.b32", ptx)) >= (1 + constants["SPLIT"]) * vectors, name
    if arch == 90:
        check_machine_code(name, program.asm["cubin"], [kind for kind, _ in arithmetic])


def check_machine_code(name: str, cubin: bytes, arithmetic: list[str]) -> None:
    """ptxas has fused nothing, approximated nothing and spilled nothing, but for the expansion of sqrt."""
    code = disassemble(cubin)

    def count(pattern: str) -> int:
        return sum(bool(re.search(pattern, line)) for line in code)

    roots = count(r"MUFU\.RSQ")  # one for each sqrt, and one in what they call for operands out of range
    expected = arithmetic.count("sqrt") + (1 if arithmetic.count("sqrt") else 0)
    assert roots == expected, name
    assert count(r"\bFMUL ") == arithmetic.count("mul"), name
    assert count(r"\bFADD ") == arithmetic.count("add") + arithmetic.count("sub"), name
    assert count(r"\bFFMA") <= 2 * roots + 1, name
    assert count(r"\bF(MUL|ADD|SETP)\S*\.FTZ") <= 2 * roots + 6, name
    assert count(r"\b(LDL|STL)") == 0, name
    assert count(r"MUFU\.(?!RSQ|RCP)") == 0, name  # RCP: integer division


def disassemble(cubin: bytes) -> list[str]:
    from triton import knobs

    path = Path(os.environ["PYTEST_TMP"]) / "program.cubin"
    path.write_bytes(cubin)
    tool = knobs.nvidia.cuobjdump.path
    out = subprocess.run([tool, "-sass", path], check=True, capture_output=True, text=True).stdout
    return re.findall(r"/\*[0-9a-f]{4,5}\*/\s+(.*?);", out)


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Compile afresh, whatever this user has compiled before."""
    triton = pytest.importorskip("triton")
    if tuple(int(n) for n in triton.__version__.split(".")[:2]) < (3, 6):
        pytest.skip("Triton before 3.6 gives sqrt its .ftz, which changes no bit where nothing is subnormal")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTEST_TMP", str(tmp_path))
    return tmp_path


@compiled
@pytest.mark.parametrize("name", ["normal", "sgld_step_float32_15", "sgld_step_split_7"])
@pytest.mark.usefixtures("scratch")
def test_compiled_program(name: str):
    check_program(name, 90)


@compiled
@pytest.mark.slow
@pytest.mark.usefixtures("scratch")
def test_every_compiled_program():
    from llc_fast.kernels import aot

    for name in aot.variants():
        check_program(name, 90)
    for arch in (80, 100, 120):
        for name in ("normal", "sgld_step_float32_15", "sgld_step_split_15"):
            check_program(name, arch)


# --- interpreted programs ---


@pytest.mark.skipif(INTERPRETED, reason="TRITON_INTERPRET=1: test_triton_steps.py runs here itself")
def test_interpreted_steps():
    """In a process of its own: Triton decides when kernels are defined."""
    pytest.importorskip("triton")
    here = Path(__file__).resolve().parent
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist"]
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")} | {"TRITON_INTERPRET": "1"}
    command += ["-W", "ignore::RuntimeWarning", "test_triton_steps.py"]
    done = subprocess.run(command, cwd=here, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\b[1-9]\d* passed", done.stdout), done.stdout
    assert "skipped" not in done.stdout
