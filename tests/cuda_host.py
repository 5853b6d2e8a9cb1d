"""The CUDA kernels as a library for the CPU, and a stand-in for `llc_fast._cuda` that runs it on CPU tensors."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import ptx
import pytest

CSRC = Path(__file__).parent.parent / "csrc"
I64 = ctypes.c_int64 * 6
LARGE = 10**6  # blocks that a device holds: chunks are as small as they get


def library(kind: str, folder: Path) -> ctypes.CDLL:
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
        translated = folder / "translated.cpp"
        translated.write_text(ptx.library(CSRC, folder))
        sources.append(str(translated))
        flags += ["-DLLCF_PTX", "-O1", "-Wno-unused", "-Wno-unused-but-set-variable"]
    path = folder / "host_check.so"
    subprocess.run([compiler, *flags, *sources, "-o", str(path)], check=True)
    loaded = ctypes.CDLL(str(path))
    for name in ("table_bytes", "plan", "rounding", "division", "rounds"):
        getattr(loaded, f"host_{name}").restype = ctypes.c_int64
    return loaded


class Emulated:
    """`llc_fast._cuda`, on the CPU: addresses are those of CPU tensors."""

    def __init__(self, host: ctypes.CDLL) -> None:
        self.host = host
        self.resident, self.plain, self.chunks = LARGE, 0, 0

    def resident_blocks(self, device: int, storage: int, terms: int) -> int:
        return self.resident

    def plan(self, rows: int, n: int, storage: int, resident: int) -> tuple[bytearray, int]:
        table = bytearray(self.host.host_table_bytes(ctypes.c_int64(n)))
        at = (ctypes.c_char * len(table)).from_buffer(table)
        n, resident = ctypes.c_int64(n), ctypes.c_int64(resident)
        return table, self.host.host_plan(ctypes.c_void_p(rows), n, storage, resident, at)

    def sgld_step(
        self, device: int, stream: int, table: int, n: int, chunks: int, grads: int, scalars: int, *code: int
    ) -> None:
        found = I64()
        table, grads, scalars = (ctypes.c_void_p(p) for p in (table, grads, scalars))
        blocks = ctypes.c_int64(min(chunks, self.resident))
        counts = ctypes.c_int64(n), ctypes.c_int64(chunks)
        self.host.host_sgld_step(table, *counts, grads, scalars, *code, blocks, found)
        assert found[1] == 0, "an access is outside of the tiles, misaligned, or writes what may only be read"
        assert found[2] == 0, "bytes are not written, or more than once"
        self.plain += found[0]
        self.chunks += chunks

    def normal(
        self,
        device: int,
        stream: int,
        out: int,
        start: int,
        n: int,
        key: int,
        step: int,
        tensor_id: int,
        domain: int,
    ) -> None:
        found = I64()
        words = (ctypes.c_uint32(word) for word in (step, tensor_id, domain))
        numbers = ctypes.c_uint64(start), ctypes.c_int64(n), ctypes.c_uint64(key)
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
