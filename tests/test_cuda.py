"""The CUDA backend: what it says where it cannot run; streams, rings and sizes on a GPU.

Known answers and fuzzed steps run on it in test_step.py and test_noise.py, as on every backend.
"""

from __future__ import annotations

import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from cases import differing
from torch import Tensor

import llc_fast
from conftest import ON_GPU
from llc_fast import backends, errors
from llc_fast.backends import cuda_backend
from llc_fast.plan import Plan
from llc_fast.scalars import Scalars


def on_gpu(test):
    for mark in ON_GPU:
        test = mark(test)
    return test


built = pytest.mark.skipif(cuda_backend._cuda is None, reason="llc_fast._cuda is not built")
SCALARS = Scalars(lr=1e-3, nbeta=30.0, localization=5.0, weight_decay=0.1)


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
for call in ("normal(0, 0, 64, 0, 4, 0, 0, 0, 0)", "sgld_step(0, 0, 64, 1, 1, 64, 64, 6, 0)",
             "advance_step(0, 0, 64)", "resident_blocks(0, 0, 6)"):
    try:
        eval("_cuda." + call)
    except RuntimeError as e:
        print(type(e).__name__, e)
"""


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


# --- on a device ---


def tensors(n: int, device: str, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(device) for shape in ((n,), (33, 64), (5,))]


def chain(backend: str, device: str, steps: int, n: int, streams: list[torch.cuda.Stream]) -> list[Tensor]:
    """Weights after some steps, every one with gradients elsewhere in memory, on one stream after the other."""
    params, anchors = tensors(n, device), tensors(n, device, 1)
    plan = Plan(params, anchors, seed=1, chain=2, backend=backend)
    grads = [tensors(n, device, 10 + i) for i in range(3)]
    for step in range(steps):
        given = [None if (step + i) % 5 == 0 else g for i, g in enumerate(grads[step % 3])]
        if streams:
            stream = streams[step % len(streams)]
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                plan.step(given, SCALARS, step)
            torch.cuda.current_stream().wait_stream(stream)
        else:
            plan.step(given, SCALARS, step)
    return params


@pytest.mark.parametrize("streams", [pytest.param(n, marks=ON_GPU) for n in (0, 1, 3)])
@pytest.mark.parametrize("n", [1000, 3_000_001])
def test_a_chain_runs_ahead_on_any_stream(streams, n):
    """Many more steps than the ring has slots, without waiting in between."""
    there = chain(
        "cuda", "cuda", 5 * cuda_backend.SLOTS + 3, n, [torch.cuda.Stream() for _ in range(streams)]
    )
    here = chain("cpu", "cpu", 5 * cuda_backend.SLOTS + 3, n, [])
    for a, b in zip(there, here, strict=True):
        assert differing(a.cpu(), b) == 0


@pytest.mark.parametrize("stream", [pytest.param(name, marks=ON_GPU) for name in ("current", "side")])
def test_plans_may_be_dropped_at_once(stream):
    """Memory that a running launch reads is not handed out again."""
    side = torch.cuda.Stream() if stream == "side" else torch.cuda.current_stream()
    params, anchors, grads = (tensors(2_000_000, "cuda", i) for i in range(3))
    torch.cuda.synchronize()
    settings = {"lr": 1e-3, "nbeta": 30.0, "localization": 5.0, "seed": 3}
    with torch.cuda.stream(side):
        for step in range(30):
            llc_fast.sgld_step_(params, grads, anchors, step=step, backend="cuda", **settings)
            torch.zeros(1 << 16, dtype=torch.uint8, device="cuda")
    torch.cuda.synchronize()
    want, anchors, grads = (tensors(2_000_000, "cpu", i) for i in range(3))
    for step in range(30):
        llc_fast.sgld_step_(want, grads, anchors, step=step, backend="cpu", **settings)
    assert [differing(a.cpu(), b) for a, b in zip(params, want, strict=True)] == [0, 0, 0]


@on_gpu
def test_more_elements_than_31_bits_count():
    n = 2**31 + 12_345
    if torch.cuda.mem_get_info()[0] < 4 * n + 2**30:
        pytest.skip("needs 9.6 GB of free device memory")
    w = torch.zeros(n, device="cuda")
    llc_fast.sgld_step_([w], [None], None, lr=1.0, nbeta=1.0, seed=4, step=5, backend="cuda")
    for start in (0, 2**30 + 1, 2**31 - 500, n - 1000):
        z = llc_fast.normal(1000, seed=4, step=5, tensor_id=0, start=start, backend="reference")
        assert differing(w[start : start + 1000].cpu(), z) == 0
        there = llc_fast.normal(1000, seed=4, step=5, tensor_id=0, start=start, device="cuda", backend="cuda")
        assert differing(there.cpu(), z) == 0


@on_gpu
def test_the_step_counter_of_a_graph_advances():
    packed = torch.frombuffer(bytearray(SCALARS.pack(41)), dtype=torch.uint8).cuda()
    cuda_backend._cuda.advance_step(0, torch.cuda.current_stream().cuda_stream, packed.data_ptr())
    assert bytes(packed.cpu().numpy()) == SCALARS.pack(42)


@on_gpu
def test_capture_is_refused():
    w, g = torch.ones(64, device="cuda"), torch.ones(64, device="cuda")
    plan = Plan([w], [w.clone()], seed=0, backend="cuda")
    with (
        pytest.raises(errors.BackendError, match="outside of the capture"),
        torch.cuda.graph(torch.cuda.CUDAGraph()),
    ):
        plan.step([g], SCALARS, 0)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_the_current_device_stays():
    params, anchors, grads = (tensors(5000, "cuda:1", i) for i in range(3))
    llc_fast.sgld_step_(params, grads, anchors, lr=1e-3, nbeta=1.0, localization=1.0, seed=0, step=0)
    assert torch.cuda.current_device() == 0
    assert backends.resolve("auto", "cuda", "float32").name == "cuda"
