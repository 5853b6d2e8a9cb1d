"""What every test of the core runs over: backends, each with a device that it computes on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import llc_fast
from llc_fast import backends

ON_GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """A worker takes one core; tests of threads ask for more."""
    torch.set_num_threads(1)


@dataclass(frozen=True)
class Target:
    backend: str
    device: str

    def normal(self, numel: int, **where: Any) -> Tensor:
        """`llc_fast.normal` of this backend, brought to the CPU."""
        return llc_fast.normal(numel, backend=self.backend, device=self.device, **where).cpu()


@pytest.fixture(
    params=[
        Target("reference", "cpu"),
        Target("cpu:generic", "cpu"),
        Target("cpu:avx2", "cpu"),
        Target("cpu:avx512", "cpu"),
        pytest.param(Target("cuda", "cuda"), marks=ON_GPU),
        pytest.param(Target("triton", "cuda"), marks=ON_GPU),
        pytest.param(Target("reference", "cuda"), marks=ON_GPU),
    ],
    ids=lambda target: f"{target.backend}-{target.device}",
)
def target(request: pytest.FixtureRequest) -> Target:
    """One backend and device after the other."""
    reason = backends.missing(request.param.backend)
    if reason is not None:
        pytest.skip(reason)
    return request.param


@pytest.fixture(params=["cpu:generic", "cpu:avx2", "cpu:avx512"])
def isa(request: pytest.FixtureRequest) -> str:
    """One instruction set of the C++ backend after the other."""
    reason = backends.missing(request.param)
    if reason is not None:
        pytest.skip(reason)
    return request.param


@pytest.fixture(params=["guards", "python"])
def facts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Tensors are compared by PyTorch's guards, and as where there are none."""
    from llc_fast import steady

    if request.param == "python":
        monkeypatch.setattr(steady, "_guards", lambda: None)
    return request.param
