"""The CUDA kernels as a library for the CPU, and a stand-in for `llc_fast._cuda` that runs it on CPU tensors."""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import subprocess
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import ptx
import pytest
import torch
from torch import Tensor

from llc_fast import backends
from llc_fast.backends import cuda_backend

CSRC = Path(__file__).parent.parent / "csrc"
I64 = ctypes.c_int64 * 6
Nodes = list[Callable[[], None]]
LARGE = 10**6  # blocks that a device holds: chunks are as small as they get


@pytest.fixture(scope="session", params=["source", pytest.param("ptx", marks=pytest.mark.slow)])
def host(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The kernels, from their source and from the PTX that nvcc makes of it."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # what one worker has built the others take
        folder = folder.parent
    path = folder / f"host_check_{request.param}.so"
    with open(folder / f"host_check_{request.param}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            build(request.param, path)
    loaded = ctypes.CDLL(str(path))
    for name in ("table_bytes", "plan", "rounding", "division", "rounds"):
        getattr(loaded, f"host_{name}").restype = ctypes.c_int64
    loaded.host_samplers.restype = ctypes.c_char_p
    return loaded


@pytest.fixture
def emulated(host: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> Emulated:
    """Backend "cuda" for CPU tensors: its Python, table and kernels, with a stand-in for the CUDA runtime."""
    module = Emulated(host)
    stream = Stream()
    monkeypatch.setattr(cuda_backend, "_cuda", module)
    monkeypatch.setattr(cuda_backend, "_index", lambda device: 0)
    monkeypatch.setattr(cuda_backend, "_pinned", lambda size: torch.empty(size, dtype=torch.uint8))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: module.graph is not None)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    resolve, backend = backends.resolve, cuda_backend.Cuda()
    monkeypatch.setattr(
        backends, "resolve", lambda name, *kind: backend if name == "cuda" else resolve(name, *kind)
    )
    return module


def build(kind: str, path: Path) -> None:
    """kind: from the "source" of the kernels, or from the "ptx" that nvcc makes of it."""
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("needs a C++ compiler")
    sources = [str(CSRC / "cuda" / name) for name in ("host_check.cpp", "plan.cpp")]
    flags = ["-std=c++17", "-O2", "-ffp-contract=off", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror"]
    flags += [f"-I{CSRC / name}" for name in ("", "include", "cuda")]
    if kind == "ptx":
        if shutil.which("nvcc") is None:
            pytest.skip("needs nvcc")
        translated = path.with_name("translated.cpp")
        translated.write_text(ptx.library(CSRC, path.parent))
        sources.append(str(translated))
        flags += ["-DLLCF_PTX", "-O1", "-Wno-unused", "-Wno-unused-but-set-variable"]
    made = path.with_suffix(".made")
    subprocess.run([compiler, *flags, *sources, "-o", str(made)], check=True)
    made.rename(path)


class Emulated:
    """`llc_fast._cuda`, on the CPU: addresses are those of CPU tensors.

    graph: what a capture has recorded, None outside of one.
    """

    def __init__(self, host: ctypes.CDLL) -> None:
        self.host = host
        self.resident, self.plain, self.chunks = LARGE, 0, 0
        self.graph: Nodes | None = None

    def samplers(self) -> list[str]:
        return self.host.host_samplers().decode().split()

    def resident_blocks(self, device: int, *kind: int) -> int:
        return self.resident

    def plan(self, rows: int, n: int, storage: int, resident: int, slots: int) -> tuple[bytearray, int]:
        table = bytearray(self.host.host_table_bytes(ctypes.c_int64(n), ctypes.c_int64(slots)))
        at = (ctypes.c_char * len(table)).from_buffer(table)
        n, resident, slots = (ctypes.c_int64(x) for x in (n, resident, slots))
        chunks = self.host.host_plan(ctypes.c_void_p(rows), n, storage, resident, slots, at)
        assert chunks >= 0
        return table, chunks

    def sgld_step(self, device: int, stream: int, *arguments: int) -> None:
        if self.graph is None:
            self._step(*arguments)
        else:
            self.graph.append(lambda: self._step(*arguments))

    def _step(self, table: int, n: int, chunks: int, grads: int, scalars: int, *rest: int) -> None:
        *kind, partials, sums, slots = rest
        found = I64()
        table, grads, scalars, partials, sums = (
            ctypes.c_void_p(p) for p in (table, grads, scalars, partials if sums else 0, sums)
        )
        blocks = ctypes.c_int64(min(chunks, self.resident))
        counts = ctypes.c_int64(n), ctypes.c_int64(chunks)
        kind = (ctypes.c_int * 5)(*kind)
        self.host.host_sgld_step(table, *counts, grads, scalars, kind, partials, blocks, found)
        assert found[1] == 0, "an access is outside of the tiles, misaligned, or writes what may only be read"
        assert found[2] == 0, "bytes are not written, or more than once"
        if sums:
            self.host.host_totals(partials, table, counts[0], ctypes.c_int64(slots), sums)
        self.plain += found[0]
        self.chunks += chunks

    def advance_step(self, device: int, stream: int, scalars: int) -> None:
        step = ctypes.c_uint32.from_address(scalars)

        def advance() -> None:
            step.value += 1

        assert self.graph is not None
        self.graph.append(advance)

    def normal(
        self,
        device: int,
        stream: int,
        out: int,
        start: int,
        n: int,
        kind: int,
        key: int,
        step: int,
        tensor_id: int,
        domain: int,
    ) -> None:
        found = I64()
        words = (ctypes.c_uint32(word) for word in (step, tensor_id, domain))
        numbers = ctypes.c_uint64(start), ctypes.c_int64(n), kind, ctypes.c_uint64(key)
        self.host.host_normal(ctypes.c_void_p(out), *numbers, *words, found)
        assert found[:2] == [0, 0]


class Stream:
    cuda_stream = 0


class Event:
    """One that has to be recorded again before each wait."""

    def __init__(self) -> None:
        self.fresh = True

    def query(self) -> bool:
        return False  # as on a device that is far behind

    def synchronize(self) -> None:
        assert self.fresh
        self.fresh = False

    def record(self, stream: Stream) -> None:
        self.fresh = True


def placed(n: int, dtype: torch.dtype, offset: int) -> Tensor:
    """Random values, the first one `offset` elements after a multiple of sixteen bytes."""
    generator = torch.Generator().manual_seed(n)
    buffer = torch.randint(-(2**15), 2**15, (n + 16,), dtype=torch.int16, generator=generator)
    if dtype != torch.int16:
        buffer = (buffer / 2**15).to(dtype)
    first = -(buffer.data_ptr() // buffer.element_size()) % 8 + offset
    return buffer[first : first + n]
