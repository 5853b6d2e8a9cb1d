"""Tensors whose elements are not in memory, or not where their class says: a step neither reads nor writes them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from llc_fast import steady
from llc_fast.errors import ArgumentError, ArgumentTypeError
from llc_fast.plan import Plan
from llc_fast.scalars import Scalars

SCALARS = Scalars.check(lr=1e-2, nbeta=1.0)


@pytest.fixture(params=["guards", "python"])
def facts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Tensors are compared by PyTorch's guards, and as where there are none."""
    if request.param == "python":
        monkeypatch.setattr(steady, "_guards", lambda: None)
    return request.param


class Wrapper(Tensor):
    @staticmethod
    def __new__(cls, inner: Tensor) -> Wrapper:
        return Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype, device=inner.device)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func} of a wrapper")


def resized(size: int) -> Callable[[Tensor], Tensor]:
    def make(t: Tensor) -> Tensor:
        t = t.clone()
        t.untyped_storage().resize_(size)
        return t

    return make


WITHOUT_MEMORY: dict[str, Callable[[Tensor], Tensor]] = {
    "wrapper": Wrapper,
    "fake": lambda t: FakeTensorMode().from_tensor(t),
    "functional": torch._to_functional_tensor,
    "zero": lambda t: torch._efficientzerotensor(t.shape),
    "freed": resized(0),
}


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("name", WITHOUT_MEMORY)
def test_a_gradient_without_memory_is_not_no_gradient(name: str, first: bool, facts: str):
    p, g = [torch.zeros(4, 4)], torch.ones(4, 4)
    plan = Plan(p, None, seed=1)
    if not first:
        plan.step([g], SCALARS, 0)
    before, bad = p[0].clone(), WITHOUT_MEMORY[name](g)
    for _ in range(2):
        with pytest.raises(ArgumentError, match=r"grads\[0\] has elements that are not in memory"):
            plan.step([bad], SCALARS, 1)
    assert torch.equal(p[0], before)


@pytest.mark.parametrize("make", [*WITHOUT_MEMORY.values(), resized(16)])
@pytest.mark.parametrize("where", ["params", "anchors", "remainders"])
def test_nor_is_it_written_or_read(make: Callable[[Tensor], Tensor], where: str):
    given = {"params": [torch.zeros(64)], "anchors": [torch.zeros(64)], "remainders": [None]}
    if where == "remainders":
        given = {
            "params": [torch.zeros(64).half()],
            "anchors": [torch.zeros(64).half()],
            "remainders": [torch.zeros(64)],
        }
    given[where] = [make(given[where][0])]  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match=rf"{where}\[0\] has elements that are not in memory"):
        Plan(given.pop("params"), given.pop("anchors"), **given, seed=1)  # type: ignore[arg-type]


def test_a_storage_that_shrinks_between_steps():
    p = torch.zeros(1000)
    plan = Plan([p], None, seed=1)
    plan.step([torch.ones(1000)], SCALARS, 0)
    p.untyped_storage().resize_(64)
    with pytest.raises(ArgumentError, match=r"params\[0\] has elements that are not in memory"):
        plan.step([torch.ones(1000)], SCALARS, 1)


NESTED = """
import warnings; warnings.simplefilter("ignore")
import torch
from llc_fast.errors import ArgumentTypeError
from llc_fast.plan import Plan
from llc_fast.scalars import Scalars
g, scalars = torch.ones(4, 4), Scalars.check(lr=1e-2, nbeta=1.0)
plan = Plan([torch.zeros(4, 4)], None, seed=1)
plan.step([g], scalars, 0)
try:
    plan.step([torch.nested.nested_tensor([g, g])], scalars, 1)
except ArgumentTypeError as e:
    print(e)
"""


def test_a_nested_gradient_is_refused_and_does_not_end_the_process():
    done = subprocess.run([sys.executable, "-c", NESTED], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-500:]
    assert "grads[0] is a nested tensor" in done.stdout


def test_a_sparse_gradient_is_named(facts: str):
    plan = Plan([torch.zeros(4, 4)], None, seed=1)
    plan.step([torch.ones(4, 4)], SCALARS, 0)
    with pytest.raises(ArgumentTypeError, match=r"grads\[0\] has layout torch.sparse_csr"):
        plan.step([torch.eye(4).to_sparse_csr()], SCALARS, 1)
