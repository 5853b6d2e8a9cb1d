"""Every sampler saved and loaded: state dicts, copies, hooks, `torch.distributed.checkpoint`."""

from __future__ import annotations

import copy
import pickle
import warnings
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from test_citizen import (
    STORAGES,
    every_kind,
    everything,
    half,
    net,
    part,
    same,
    sampler,
    through_a_file,
    walk,
)
from test_functional import Net
from torch import nn
from torch.distributed.checkpoint import state_dict as dcp_state

from llc_fast import LlcFastError
from llc_fast.optim import Langevin


@pytest.mark.parametrize("storage", STORAGES)
@every_kind
def test_a_loaded_sampler_goes_on_bit_for_bit(kind, storage):
    one, fresh = net(storage), net(storage)
    first = sampler(kind, one, storage)
    walk(one, first, 3)
    saved = through_a_file({"model": one.state_dict(), "sampler": first.state_dict()})
    before = everything(one, first)
    second = sampler(kind, fresh, storage, seed=99, lr=0.5)
    walk(fresh, second, 1)
    fresh.load_state_dict(saved["model"])
    second.load_state_dict(saved["sampler"])
    assert same(everything(fresh, second), before)  # nothing was cast
    walk(one, first, 3)
    walk(fresh, second, 3)
    assert same(everything(one, first), everything(fresh, second))
    assert not same(everything(one, first), before)
    assert second.param_groups[0]["step"] == 6


@pytest.mark.parametrize("kind", ["SGNHT", "RMSpropSGLD"])
@pytest.mark.parametrize("where", ["mask", "selection"])
def test_what_moves_is_the_same_after_loading(kind, where):
    one, fresh = net("split"), net("split")

    def part_of(model: Net) -> Langevin:
        given: Any = half(model) if where == "mask" else part(model)
        return sampler(kind, model, "split", **{where: given})

    first, second = part_of(one), part_of(fresh)
    if where == "mask":
        second = sampler(kind, fresh, "split", mask=[~m for m in half(fresh)])
    walk(one, first, 2)
    fresh.load_state_dict(one.state_dict())
    second.load_state_dict(through_a_file(first.state_dict()))
    walk(one, first, 2)
    walk(fresh, second, 2)
    assert same(everything(one, first), everything(fresh, second))
    still = ~half(one)[0] if where == "mask" else ~part(one).mask("last.weight")
    assert torch.equal(one.last.weight[still], net("split").last.weight[still])


def test_groups_of_different_samplers_are_saved():
    def two(model: Net) -> Langevin:
        named = list(model.named_parameters())
        groups = [{"params": named[:2], "preconditioner": "rmsprop"}, {"params": named[2:], "lr": 1e-4}]
        return sampler("SGMCMC", model, params=groups)

    one, fresh = net(), net()
    first, second = two(one), two(fresh)
    walk(one, first, 2)
    fresh.load_state_dict(one.state_dict())
    second.load_state_dict(through_a_file(first.state_dict()))
    walk(one, first, 1)
    walk(fresh, second, 1)
    assert same(everything(one, first), everything(fresh, second))


def changed(state: dict[str, Any], group: dict[str, Any] | None = None, drop: str = "") -> dict[str, Any]:
    """A copy of a state dict with another group, or without something of its parameter 0."""
    state = copy.deepcopy(state)
    state["param_groups"][0] |= group or {}
    state["state"][0].pop(drop, None)
    return state


def test_states_that_do_not_fit_are_refused_and_change_nothing():
    model = net("split")
    optimizer = sampler("SGNHT", model, "split")
    walk(model, optimizer, 1)
    good = optimizer.state_dict()
    other = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 4)).bfloat16()
    wide = net("split")
    wide.last = nn.Linear(5, 6).bfloat16()
    wide.tied.weight = wide.last.weight
    cases: list[tuple[Any, str]] = [
        (sampler("SGHMC", net("split")).state_dict(), "state_dict has no 'diffusion_factor'"),
        (sampler("SGLD", net("split")).state_dict(), "state_dict has no 'diffusion_factor'"),
        (changed(good, {"sampler": "sghmc"}), "sampler 'sghmc', expected 'sgnht'"),
        (changed(good, {"format": 99}), "format 99, expected 1"),
        (changed(good, {"noise": "ih4"}), "noise 'ih4', expected 'gaussian'"),
        (changed(good, {"state": "sr"}), "state 'sr', expected 'split'"),
        (sampler("SGNHT", other).state_dict(), "state_dict names other parameters"),
        (sampler("SGNHT", wide).state_dict(), "no anchor that fits parameter 0"),
        (sampler("SGNHT", net()).state_dict(), "no anchor that fits parameter 0"),
        (changed(good, drop="thermostat"), "no thermostat that fits parameter 0"),
        (changed(good, drop="velocity"), "no velocity that fits parameter 0"),
        (sampler("SGNHT", model, mask=half(model)).state_dict(), "has a mask for parameter 0, expected none"),
        (good | {"state": {0: {"anchor": 5}}}, "no anchor that fits parameter 0"),
        (good | {"param_groups": [{}]}, "state_dict has no 'params' in a group"),
        (good | {"param_groups": []}, "different number of parameter groups"),
        ([good], "state_dict is a list without a state"),
    ]
    before, groups = everything(model, optimizer), copy.deepcopy(good["param_groups"])
    for state, match in cases:
        with pytest.raises(LlcFastError, match=match):
            optimizer.load_state_dict(state)
        assert same(everything(model, optimizer), before), match
        assert optimizer.state_dict()["param_groups"] == groups, match


def test_hooks_of_others_come_before_the_check_and_after_the_restoring():
    model, fresh = net("split"), net("split")
    first, second = sampler("SGHMC", model, "split"), sampler("SGHMC", fresh, "split")
    walk(model, first, 2)
    calls = []
    first.register_state_dict_pre_hook(lambda o: calls.append("before saving"))
    first.register_state_dict_post_hook(lambda o, state: state | {"by": "me"})
    saved = first.state_dict()
    assert (calls, saved["by"]) == (["before saving"], "me")
    for group in saved["param_groups"]:
        group["param_names"] = [f"old.{name}" for name in group["param_names"]]

    def rename(_: Any, state: dict[str, Any]) -> dict[str, Any]:
        state = copy.deepcopy(state)
        for group in state["param_groups"]:
            group["param_names"] = [name.removeprefix("old.") for name in group["param_names"]]
        return state

    def look(optimizer: Any) -> None:
        calls.extend({s["velocity"].dtype for s in optimizer.state.values()})

    with pytest.raises(LlcFastError, match="names other parameters"):
        second.load_state_dict(saved)
    second.register_load_state_dict_pre_hook(rename)
    second.register_load_state_dict_post_hook(look)
    second.load_state_dict(saved)
    fresh.load_state_dict(model.state_dict())
    assert calls[1:] == [torch.float32]
    assert same(everything(model, first), everything(fresh, second))
    assert len(second._optimizer_load_state_dict_pre_hooks) == 1


@every_kind
@pytest.mark.parametrize("clone", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_go_on_by_themselves(kind, clone):
    model = net("split")
    optimizer = sampler(kind, model, "split", mask=half(model), save_metrics=True)
    walk(model, optimizer, 2)
    other, second = clone((model, optimizer))
    walk(model, optimizer, 2)
    walk(other, second, 2)
    assert same(everything(model, optimizer), everything(other, second))
    assert torch.equal(optimizer.get_metrics().noise, second.get_metrics().noise)


@pytest.mark.parametrize("where", ["nothing", "mask", "selection"])
@pytest.mark.parametrize("kind", ["SGLD", "SGNHT"])
def test_distributed_checkpoints(kind, where, tmp_path):
    def part_of(model: Net, **changes: Any) -> Langevin:
        given = {"nothing": {}, "mask": {"mask": half(model)}, "selection": {"selection": part(model)}}[where]
        return sampler(kind, model, "split", **given | changes)

    model = net("split")
    first = part_of(model)
    walk(model, first, 2)
    saved = dcp_state.get_optimizer_state_dict(model, first)
    assert "last.weight" in saved["state"]  # by name
    results = []
    for way in ("memory", "folder"):
        fresh = net("split")
        second = part_of(fresh, seed=8)
        state = copy.deepcopy(saved)
        if way == "folder":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about a single process
                dcp.save({"sampler": saved}, checkpoint_id=tmp_path / "saved")
                there = {"sampler": dcp_state.get_optimizer_state_dict(fresh, second)}
                dcp.load(there, checkpoint_id=tmp_path / "saved")
            state = there["sampler"]
        dcp_state.set_optimizer_state_dict(fresh, second, state)
        fresh.load_state_dict(model.state_dict())
        walk(fresh, second, 2)
        results.append(everything(fresh, second))
    walk(model, first, 2)
    assert all(same(everything(model, first), result) for result in results)
