"""Under torch.compile: the bits of a plain call, one compilation for every lr and step, optimizers left alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_library import STEP, TILES, Run, equal, rmsprop, sghmc, sgld, sums, tensors, thermostat
from test_step_effects import python
from torch import Tensor
from torch._dynamo.utils import counters

import llc_fast


def compiled(f: Run, **options: Any) -> Run:
    torch._dynamo.reset()
    counters.clear()
    return torch.compile(f, **{"backend": "aot_eager", "fullgraph": True} | options)


def compiles() -> int:
    return counters["stats"]["unique_graphs"]


def trial(f: Run, calls: list[tuple[Any, ...]], make: Run = tensors, **options: Any) -> list[int]:
    """How often f had been compiled after each call; its tensors are those that it leaves uncompiled."""
    fast, counts = compiled(f, **options), []
    for call in calls:
        got, want = make(), make()
        results = fast(got, *call), f(want, *call)
        counts.append(compiles())
        for a, b in zip([*got, *as_list(results[0])], [*want, *as_list(results[1])], strict=True):
            assert equal(a, b), call
    return counts


def as_list(result: Any) -> list[Tensor]:
    return [] if result is None else [result]


NUMBERS = [(1e-3, 0), (5e-4, 1), (0.0, 2), (1e-5, 2**32 - 1), (7e-4, 2**31)]
TENSORS = [(torch.tensor(lr, dtype=torch.float64), torch.tensor(step)) for lr, step in NUMBERS]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_changing_numbers_compile_once_more_and_tensors_never(dtype):
    def f(t: list[Tensor], lr: Any, step: Any) -> Tensor:
        sgld(t, lr=lr, step=step)
        return t[0].float().sum()

    # Dynamo takes a number for a constant until it changes; then, for any other value, as an input.
    assert trial(f, NUMBERS, lambda: tensors(dtype)) == [1, 2, 2, 2, 2]
    assert trial(f, TENSORS, lambda: tensors(dtype)) == [1] * 5


@pytest.mark.parametrize("step", [rmsprop, sghmc])
def test_other_samplers_compile_once(step):
    def f(t: list[Tensor], lr: Any, number: Any) -> Tensor:
        xi, found = thermostat(), sums()
        step(t, lr=lr, step=number, sums=found, **{"thermostat": xi} if step is sghmc else {})
        return torch.cat([xi.view(1, 1), found], dim=1)

    assert trial(f, TENSORS) == [1] * 5


def test_noise_compiles_once():
    def f(t: list[Tensor], step: Any) -> Tensor:
        return 2.0 * llc_fast.normal(9, seed=2**64 - 1, step=step, tensor_id=2, start=2**40) + t[0][0, :9]

    assert trial(f, [(step,) for _, step in NUMBERS]) == [1, 2, 2, 2, 2]
    assert trial(f, [(step,) for _, step in TENSORS]) == [1] * 5


def train(t: list[Tensor], lr: Any, step: Any) -> Tensor:
    """A loss, its gradients, a step on a part of one parameter and on all of another."""
    params = {"a": t[0], "b": t[3]}

    def loss(params: dict[str, Tensor]) -> Tensor:
        return (params["a"] @ params["b"].T).tanh().square().mean()

    g = torch.func.grad(loss)(params)
    a = params["a"][:, 2:7]
    llc_fast.sgld_step_(
        [a, params["b"]], [g["a"][:, 2:7], g["b"]], None, tensor_ids=[4, 1], masks=[None, t[1] > 0], **STEP
    )
    llc_fast.sgld_step_([t[0]], [None], None, tiles=TILES, **{**STEP, "lr": lr, "step": step})
    return loss(params)


def test_a_training_step_is_compiled_whole():
    assert trial(train, TENSORS[:3], backend="eager") == [1] * 3


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_inductor_s_code_has_the_same_bits(dtype):
    def f(t: list[Tensor], lr: Any, step: Any) -> Tensor:
        sgld(t, lr=lr, step=step)
        return llc_fast.normal(9, seed=3, step=step, tensor_id=2) + t[0][0, :9].float()

    assert trial(f, NUMBERS, lambda: tensors(dtype), backend="inductor") == [1, 2, 2, 2, 2]
    assert trial(f, TENSORS, lambda: tensors(dtype), backend="inductor") == [1] * 5


def test_an_optimizer_s_step_in_compiled_code_is_made_outside():
    results = []
    for use in (lambda f: f, lambda f: compiled(f, fullgraph=False)):
        torch.manual_seed(0)
        layer = torch.nn.Linear(3, 2)
        sampler = llc_fast.SGHMC(layer.named_parameters(), nbeta=30.0, seed=1)

        def work(layer: Any = layer, sampler: Any = sampler) -> Tensor:
            sampler.zero_grad()
            loss = layer(torch.ones(1, 3)).square().sum()
            loss.backward()
            sampler.step()
            return loss.detach()

        run = use(work)
        losses = [run() for _ in range(3)]
        results.append([*losses, *(p.detach() for p in layer.parameters())])
        assert sampler.param_groups[0]["step"] == 3
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_importing_imports_no_compiler():
    out = python(
        "import sys, torch; import llc_fast; print('torch._dynamo' in sys.modules, torch.ops.llc_fast.normal)"
    )
    assert out.split() == ["False", "llc_fast.normal"]
