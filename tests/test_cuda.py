"""The CUDA backend where it cannot run: what it says, and that its extension imports."""

from __future__ import annotations

import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

import llc_fast
from llc_fast import errors
from llc_fast.backends import cuda_backend

built = pytest.mark.skipif(cuda_backend._cuda is None, reason="llc_fast._cuda is not built")


# --- where there is no device ---


def without_device(code: str) -> subprocess.CompletedProcess[str]:
    """Python code in a process that sees no GPU."""
    setup = "import os; os.environ['CUDA_VISIBLE_DEVICES'] = ''; from llc_fast import _cuda; "
    return subprocess.run([sys.executable, "-c", setup + code], capture_output=True, text=True, cwd="/")


@built
def test_extension_imports_without_a_device():
    run = without_device("print(_cuda.device_count(), _cuda.problem(), _cuda.archs, _cuda.runtime_version)")
    assert run.returncode == 0, run.stderr
    count, *problem, _, version = run.stdout.split()
    assert count == "0"
    assert problem
    assert int(version) >= 12000


CALLS = """
for call in ("normal(0, 0, 64, 0, 4, 0, 0, 0, 0, 0)", "advance_step(0, 0, 64)",
             "sgld_step(0, 0, 64, 1, 1, 64, 64, 0, 0, 0, 6, False, 0, 0, 0)",
             "resident_blocks(0, 0, 0, 0, 6, False, False)"):
    try:
        eval("_cuda." + call)
    except RuntimeError as e:
        print(type(e).__name__, e)
"""


@built
def test_the_extension_has_the_samplers_of_the_others():
    from llc_fast import _cpu

    assert cuda_backend._cuda.samplers() == _cpu.samplers()


@built
def test_wrong_numbers_are_refused():
    for sampler, storage in ((-1, 0), (99, 0), (0, 4)):
        with pytest.raises(ValueError, match="unknown sampler or storage"):
            cuda_backend._cuda.resident_blocks(0, sampler, storage, 0, 6, False, False)


@built
def test_failed_calls_raise_and_name_the_call():
    lines = without_device(f"exec({CALLS!r})").stdout.splitlines()
    assert len(lines) == 4
    for line in lines:
        assert re.fullmatch(r"CudaError cuda\w+: .+ \(cudaError\w+\)", line), line


def pretend(monkeypatch: pytest.MonkeyPatch, **here: object) -> None:
    """A machine with one H100 and all it needs, except for `here`."""
    machine = {
        "_cuda": SimpleNamespace(
            archs="80,90-real", runtime_version=13000, device_count=lambda: 1, problem=lambda: ""
        ),
        "cuda": "13.0",
        "available": True,
        "capability": (9, 0),
    } | here
    monkeypatch.setattr(cuda_backend, "_cuda", machine["_cuda"])
    monkeypatch.setattr(cuda_backend, "_why", "No module named 'llc_fast._cuda'", raising=False)
    monkeypatch.setattr(torch.version, "cuda", machine["cuda"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: machine["available"])
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda i: machine["capability"])


NO_DRIVER = SimpleNamespace(
    archs="80", runtime_version=13000, device_count=lambda: 0, problem=lambda: "driver too old"
)


@pytest.mark.parametrize(
    ("here", "words"),
    [
        ({"_cuda": None}, ["llc_fast._cuda", "No module named", "reinstall with nvcc"]),
        ({"cuda": None}, ["torch built for CUDA", torch.__version__]),
        ({"available": False}, ["needs a CUDA device", "nvidia-smi"]),
        ({"_cuda": NO_DRIVER}, ["CUDA 13.0", "driver too old", "update the driver"]),
        ({"capability": (7, 5)}, ["80,90-real", "7.5", "LLC_FAST_CUDA_ARCHS=native"]),
    ],
)
def test_load_says_why_it_cannot(monkeypatch, here, words):
    pretend(monkeypatch, **here)
    with pytest.raises(errors.BackendError, match="backend 'cuda'") as caught:
        cuda_backend.load("")
    for word in words:
        assert word in str(caught.value)


def test_load_where_it_can(monkeypatch):
    pretend(monkeypatch)
    assert cuda_backend.load("").name == "cuda"
    with pytest.raises(errors.BackendError, match="no variant 'fast'"):
        cuda_backend.load("fast")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a CUDA device")
def test_asking_for_it_without_a_device_raises():
    w = torch.ones(4)
    with pytest.raises(errors.BackendError, match="backend 'cuda' needs"):
        llc_fast.sgld_step_([w], [w.clone()], None, lr=1e-3, nbeta=1.0, seed=0, step=0, backend="cuda")
    assert torch.equal(w, torch.ones(4))


@pytest.mark.parametrize(
    ("archs", "capability", "runs"),
    [
        ("80,90-real,100-real,120-real", (8, 0), True),
        ("80,90-real,100-real,120-real", (8, 9), True),
        ("80,90-real,100-real,120-real", (10, 3), True),
        ("80,90-real,100-real,120-real", (11, 0), True),  # by the PTX of 8.0
        ("80,90-real,100-real,120-real", (13, 0), True),
        ("80,90-real,100-real,120-real", (7, 5), False),
        ("90-real", (8, 9), False),
        ("90-real", (10, 0), False),
        ("89-real", (8, 6), False),
        ("90-virtual", (10, 0), True),
        ("90-virtual", (8, 0), False),
        ("90a-real", (9, 0), True),
        ("90a", (10, 0), False),  # code for one architecture alone
        ("native", (9, 0), True),
    ],
)
def test_architectures(archs, capability, runs):
    assert cuda_backend.runs_on(archs, capability) == runs
