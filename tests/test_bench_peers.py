"""Peers are honest: each makes the same step as ours, in law, on the tensors that it is given."""

from __future__ import annotations

import builtins
import math
import os
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from llc_fast.benchmarks import _peers, noise, step
from llc_fast.benchmarks._timing import Call
from llc_fast.benchmarks._work import LOCALIZATION, LR, NBETA, OWN, Setting, Work, make, ours

SHAPES = [(60_000,), (200, 200)]
ERRORS = 4.5  # standard errors that a number may be off by: 7e-6 of all true ones are farther
PACKAGES = {"devinterp": "devinterp", "posteriors": "posteriors", "blackjax": "blackjax"}
NO_STEP = ("PyTorch normal_ alone", "PyTorch fused AdamW (no sampler)")
OURS: list[tuple[str, Callable[[Work], Call]]] = [
    ("llc_fast sgld", ours),
    ("llc_fast rmsprop_sgld", partial(ours, sampler="rmsprop_sgld")),
    ("llc_fast sghmc", partial(ours, sampler="sghmc")),
]
BUILDERS = dict([*OURS, *(p[:2] for p in _peers.STEP), *(p[:2] for p in step.SAMPLER_PEERS)])


@pytest.fixture
def work() -> Work:
    """Gradients and displacements so large that their parts of the drift are as large as the noise."""
    generator = torch.Generator().manual_seed(1)
    torch.manual_seed(2)

    def draw(scale: float) -> list[Tensor]:
        return [torch.randn(s, generator=generator) * scale for s in SHAPES]

    anchors, grads, off = draw(1.0), draw(100.0), draw(30.0)
    return Work([a + d for a, d in zip(anchors, off, strict=True)], grads, anchors)


def build(name: str, work: Work) -> Call:
    package = name.split()[0]
    if package in PACKAGES:
        pytest.importorskip(package, reason=f"{package} is in the extra bench")
    return BUILDERS[name](work)


def flat(tensors: list[Tensor]) -> Tensor:
    """In float64, and copied."""
    return torch.cat([t.detach().flatten() for t in tensors]).double()


def weights(call: Call, work: Work) -> Tensor:
    return flat(call.weights() if isinstance(call, _peers.Own) else work.params)


@pytest.mark.parametrize("name", [n for n in BUILDERS if n not in NO_STEP])
def test_a_step_is_the_same_in_law(name: str, work: Work) -> None:
    """The displacement over its noise, regressed on the parts of the drift: both count once, and the rest is N(0, 1).

    Of SGLD's second step, as the first could be a special one; RMSprop's first, whose mean square is known; and of
    posteriors' SGHMC the second, as its first moves only the velocity.
    """
    call = build(name, work)
    g, w0 = flat(work.grads), flat(work.anchors)
    if "rmsprop" not in name and "llc_fast sghmc" not in name:
        call()
    before = weights(call, work)
    call()
    moved = weights(call, work) - before

    scale, variance = LR / 2, torch.full_like(g, LR)
    if "rmsprop" in name:
        alpha, eps = OWN["rmsprop_sgld"]["alpha"], OWN["rmsprop_sgld"]["eps"]
        preconditioner = 1 / ((1 - alpha) ** 0.5 * g.abs() + eps)
        scale, variance = LR / 2 * preconditioner, LR * preconditioner
    elif "sghmc" in name:
        scale, variance = LR, torch.full_like(g, 2 * OWN["sghmc"]["friction"] * LR)
    parts = torch.stack([-scale * NBETA * g, -scale * LOCALIZATION * (before - w0), torch.ones_like(g)], 1)
    parts[:, :2] /= variance.sqrt()[:, None]
    moved /= variance.sqrt()

    inverse = torch.linalg.inv(parts.T @ parts)
    found = inverse @ (parts.T @ moved)
    errors = inverse.diagonal().sqrt()
    off = ((found - torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64)) / errors).tolist()
    assert max(map(abs, off)) < ERRORS, f"gradient, localization, mean: off by {off} standard errors"
    assert errors[:2].max() < 0.01, "the drift cannot be seen in the noise"
    rest = (moved - parts @ found).var().item()
    assert abs(rest - 1) < ERRORS * math.sqrt(2 / moved.numel())


@pytest.mark.parametrize("name", list(BUILDERS))
def test_what_moves_and_in_whose_memory(name: str, work: Work) -> None:
    places = [t.data_ptr() for ts in (work.params, work.grads, work.anchors) for t in ts]
    before, given = flat(work.params), flat(work.grads + work.anchors)
    call = build(name, work)
    for _ in range(2):
        call()
    assert [t.data_ptr() for ts in (work.params, work.grads, work.anchors) for t in ts] == places
    assert torch.equal(flat(work.grads + work.anchors), given)
    changed = (flat(work.params) != before).double().mean().item()
    if name == "PyTorch normal_ alone":
        assert changed == 0
    elif name.startswith(("posteriors", "blackjax")):
        assert changed == 0, "it is to work on weights of its own"
        assert (weights(call, work) != before).double().mean() > 0.99
    else:
        # A sum may round to where it was: AdamW's steps of LR are below half an ulp of weights above 16 or 32.
        assert changed > (0.5 if "AdamW" in name else 0.99)


def test_a_compiled_step_is_one_call_of_one_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled in its first call; a call a tensor would be as slow as Python is."""
    calls: list[int] = []
    real = torch.compile

    def backend(graph: torch.fx.GraphModule, _: object) -> Callable[..., object]:
        index = len(calls)
        calls.append(0)

        def run(*operands: Tensor) -> object:
            calls[index] += 1
            return graph(*operands)

        return run

    monkeypatch.setattr(
        torch, "compile", lambda f, dynamic, options: real(f, backend=backend, dynamic=dynamic)
    )
    made = make([(n + 2, 5) for n in range(12)])
    call = _peers.compiled(made)
    for _ in range(4):
        call()
    assert calls == [4]


@pytest.mark.parametrize("who", ["blackjax", "noise"])
def test_jax_does_not_take_a_gpu_for_itself(who: str, work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its setting is there when JAX is first imported; who has set it already is obeyed."""
    key, real, seen = "XLA_PYTHON_CLIENT_PREALLOCATE", builtins.__import__, []

    def blocked(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] in ("jax", "blackjax"):
            seen.append(os.environ.get(key))
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", blocked)
    for before, wanted in ((None, "false"), ("true", "true")):
        monkeypatch.setenv(key, before or "")
        if before is None:
            monkeypatch.delenv(key)
        with pytest.raises(ModuleNotFoundError):
            _peers.blackjax(work) if who == "blackjax" else noise._jax(8, Setting())
        assert seen.pop() == wanted
        assert not seen


def test_noise_alone_draws_a_number_for_each_weight(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    normal = Tensor.normal_

    def counted(self: Tensor) -> Tensor:
        drawn.append(self.numel())
        return normal(self)

    monkeypatch.setattr(Tensor, "normal_", counted)
    _peers.normal(work)()
    assert drawn == [p.numel() for p in work.params]


def test_who_keeps_metrics_has_them(work: Work) -> None:
    """Ours are compared with devinterp's where both take them: the row would be wrong if they were not taken."""
    pytest.importorskip("devinterp", reason="devinterp is in the extra bench")
    call = _peers.devinterp(work, save_metrics=True)
    call()
    metrics = call.__self__.get_metrics()  # type: ignore[attr-defined]
    assert metrics.distance.item() == pytest.approx(
        (flat(work.params) - flat(work.anchors)).norm().item(), rel=1e-3
    )
