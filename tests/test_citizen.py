"""Every sampler among PyTorch's other parts: schedulers, scalers, hooks, closures, bad settings, no warnings."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_functional import Net
from torch import Tensor, nn
from torch.optim import lr_scheduler

import llc_fast
from llc_fast import SGHMC, SGLD, SGMCMC, SGNHT, Box, LlcFastError, RMSpropSGLD, Selection
from llc_fast.optim import Langevin

STORAGES = {
    "float32": (torch.float32, "split"),
    "split": (torch.bfloat16, "split"),
    "sr": (torch.bfloat16, "sr"),
    "float16": (torch.float16, "split"),
}
KINDS: dict[str, Callable[..., Langevin]] = {
    "SGLD": SGLD,
    "RMSpropSGLD": RMSpropSGLD,
    "SGHMC": SGHMC,
    "SGNHT": SGNHT,
    "SGMCMC": SGMCMC,
    "SGMCMC.rmsprop_sgld": SGMCMC.rmsprop_sgld,
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def sampler(kind: str, model: nn.Module, storage: str = "float32", **changes: Any) -> Langevin:
    settings = {"lr": 1e-3, "nbeta": 30.0, "localization": 5.0, "seed": 3, "state": STORAGES[storage][1]}
    settings = settings | changes
    params = settings.pop("params", None) or model.named_parameters()
    if settings["state"] == "sr" and kind not in ("SGLD", "SGMCMC"):
        with pytest.warns(UserWarning, match="state 'sr' is for SGLD"):
            return KINDS[kind](params, **settings)
    return KINDS[kind](params, **settings)


def net(storage: str = "float32") -> Net:
    return Net(STORAGES[storage][0])


def walk(model: Net, optimizer: Langevin, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        model.loss().backward()
        optimizer.step()


def everything(model: nn.Module, optimizer: Langevin) -> list[Tensor]:
    """Copies of the weights and of all that is kept."""
    kept = [s[name] for p in model.parameters() for s in [optimizer.state[p]] for name in sorted(s)]
    return [t.detach().clone() for t in [*model.parameters(), *kept]]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(x.dtype == y.dtype and torch.equal(x, y) for x, y in zip(a, b, strict=True))


def through_a_file(thing: Any) -> Any:
    file = io.BytesIO()
    torch.save(thing, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def half(model: nn.Module) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(p.shape, generator=generator) < 0.5 for p in model.parameters()]


def part(model: nn.Module) -> Selection:
    ids = {name: i for i, name in enumerate(sorted(dict(model.named_parameters())))}
    return Selection("part", {"last.weight": (Box(4, 3, 2, 4),)}, {"last.weight": (6, 4)}, ids)


# --- schedulers, scalers, hooks, closures ---

HALVE = {
    "StepLR": lambda o: lr_scheduler.StepLR(o, 1, gamma=0.5),
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda i: 0.5**i),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o,
        [lr_scheduler.ExponentialLR(o, 0.5), lr_scheduler.LambdaLR(o, lambda i: 0.5 ** (i + 2))],
        milestones=[2],
    ),
}


@pytest.mark.parametrize("scheduler", HALVE)
@every_kind
def test_a_scheduler_sets_the_step_size_also_after_loading(kind, scheduler):
    one, other = net(), net()
    first, second = sampler(kind, one), sampler(kind, other)
    schedule = HALVE[scheduler](first)
    for i in range(4):
        if i == 2:
            saved = through_a_file([first.state_dict(), schedule.state_dict()])
            first = sampler(kind, one, lr=7.0, seed=8)
            schedule = HALVE[scheduler](first)
            schedule.load_state_dict(saved[1])
            first.load_state_dict(saved[0])
        walk(one, first, 1)
        schedule.step()
        second.param_groups[0]["lr"] = 1e-3 * 0.5**i
        walk(other, second, 1)
    assert same(everything(one, first), everything(other, second))


@every_kind
@pytest.mark.parametrize("storage", ["float32", "split"])
def test_a_grad_scaler_s_gradients_are_unscaled_and_infinite_ones_skipped(kind, storage):
    one, other = net(storage), net(storage)
    first, second = sampler(kind, one, storage), sampler(kind, other, storage)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for bad in (False, True, False):
        first.zero_grad()
        scaler.scale(one.loss()).backward()
        if bad:
            one.first.bias.grad[1] = float("inf")
        before = everything(one, first)
        scaler.step(first)
        scaler.update()
        if bad:
            assert same(everything(one, first), before)
        else:
            walk(other, second, 1)
            assert same(everything(one, first), everything(other, second))
    assert scaler.get_scale() == 2.0**9
    assert first.param_groups[0]["step"] == 2


@every_kind
def test_hooks_are_called_around_a_step_and_a_closure_in_it(kind):
    one, other = net(), net()
    first, second = sampler(kind, one), sampler(kind, other)
    calls: list[str] = []

    def before(optimizer: Any, args: Any, kwargs: Any) -> None:
        calls.append(f"before {optimizer.param_groups[0]['step']}")

    handles = [
        first.register_step_pre_hook(before),
        first.register_step_post_hook(
            lambda o, args, kwargs: calls.append(f"after {o.param_groups[0]['step']}")
        ),
    ]

    def closure() -> Tensor:
        calls.append("closure")
        first.zero_grad()
        loss = one.loss()
        loss.backward()
        return loss

    expected = other.loss().item()
    assert first.step(closure).item() == expected
    for handle in handles:
        handle.remove()
    walk(one, first, 1)
    walk(other, second, 2)
    assert calls == ["before 0", "closure", "after 1"]
    assert same(everything(one, first), everything(other, second))


@every_kind
def test_a_group_that_is_added_is_one_of_the_sampler_s(kind):
    one, other = net(), net()
    named = list(other.named_parameters())
    first, second = sampler(kind, one), sampler(kind, other, params=named[:2])
    second.add_param_group({"params": named[2:], "lr": 1e-4})
    first.param_groups[0]["lr"] = 1e-3
    walk(one, first, 1)
    walk(other, second, 1)
    assert second.param_groups[1]["lr"] == 1e-4
    moved = [not torch.equal(p, q) for p, q in zip(other.parameters(), net().parameters(), strict=True)]
    assert moved == [True] * 4
    if kind != "SGNHT":  # whose groups have each a thermostat
        assert same(everything(one, first)[:2], everything(other, second)[:2])
    else:
        assert len(second.thermostats) == 2


# --- bad settings, storages ---


@every_kind
def test_masks_that_do_not_fit_are_refused(kind):
    model = net()
    masks: list[Any] = half(model)
    cases: list[tuple[Any, str]] = [
        (masks[:-1], "mask has 3 entries for 4 params"),
        (masks[0], "mask has 1 entries for 4 params"),
        ([m.t() for m in masks], r"mask\[0\] has shape \(4, 6\), its parameter \(6, 4\)"),
        ([*masks[:3], masks[3] * 2.0], r"mask\[3\] holds values other than 0 and 1"),
        ([*masks[:3], [True]], r"mask\[3\] is a list"),
        (5, "mask is a int"),
    ]
    for mask, match in cases:
        with pytest.raises(LlcFastError, match=match):
            sampler(kind, model, mask=mask)
    with pytest.raises(LlcFastError, match="mask and selection are both given"):
        sampler(kind, model, mask=masks, selection=part(model))


@pytest.mark.parametrize("kind", ["SGLD", "SGMCMC"])
def test_sr_falls_back_for_the_tensors_that_it_would_heat_and_says_so_once(kind):
    model = net("sr")
    with torch.no_grad():
        model.first.weight.fill_(100.0)
        model.last.bias.fill_(50.0)
    with pytest.warns(
        UserWarning, match=r"(last|first)\..*stochastic rounding would heat it by .*1 more"
    ) as caught:
        optimizer = sampler(kind, model, "sr")
    assert len(caught) == 1
    assert [note.partition(":")[0] for note in optimizer.notes] == ["last.bias", "first.weight"]
    kept = {name for name, p in model.named_parameters() if "remainder" in optimizer.state[p]}
    assert kept == {"last.bias", "first.weight"}
    walk(model, optimizer, 1)


def test_a_step_that_overflows_fp16_is_reported_and_counted():
    model = net("float16")
    optimizer = sampler("SGLD", model, "float16", nbeta=0.0)
    before = everything(model, optimizer)
    model.first.weight.grad = torch.zeros_like(model.first.weight)
    optimizer.param_groups[0]["lr"] = 1e12
    with pytest.raises(llc_fast.errors.WeightOverflowError, match="exceeds 65504"):
        optimizer.step()
    assert optimizer.param_groups[0]["step"] == 1  # its noise does not come again
    assert not same(everything(model, optimizer), before)
    assert all(torch.isfinite(s["remainder"]).all() for s in optimizer.state.values())


# --- no warnings ---


@pytest.mark.parametrize("storage", STORAGES)
@every_kind
def test_normal_use_warns_of_nothing(kind, storage):
    if storage == "sr" and kind not in ("SGLD", "SGMCMC"):
        return
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = net(storage)
        optimizer = sampler(kind, model, storage, bounding_box_size=1.0, save_metrics=True)
        schedule = lr_scheduler.StepLR(optimizer, 1, gamma=0.9)  # stochastic rounding minds less noise
        for _ in range(2):
            walk(model, optimizer, 1)
            schedule.step()
        assert optimizer.get_metrics().numel == sum(p.numel() for p in model.parameters())
        optimizer.load_state_dict(through_a_file(optimizer.state_dict()))
        walk(model, optimizer, 1)
        assert "lr" in repr(optimizer)
    assert optimizer.notes == []
