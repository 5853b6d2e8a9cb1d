"""What is compiled once for all tests and workers of a run."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from llc_fast.benchmarks import _kernels


@contextmanager
def shared_folder(factory: pytest.TempPathFactory, name: str) -> Iterator[Path]:
    """A folder that all workers see, for one of them at a time."""
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    folder.mkdir(exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder


def kernels(factory: pytest.TempPathFactory, language: str, only: str = "") -> list[_kernels.Kernel]:
    """The GPU kernels for sm_90, or a skip that says what is missing."""
    if language == "triton" and os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("TRITON_INTERPRET=1: nothing is compiled")
    try:
        with shared_folder(factory, language) as folder:
            return _kernels.compiled(language, "90", only, folder)
    except _kernels.Missing as e:
        pytest.skip(str(e))
