"""SGLD as an optimizer: the trajectories of init and update, and everything a torch.optim user relies on."""

from __future__ import annotations

import copy
import io
import pickle
from dataclasses import replace
from typing import Any

import pytest
import torch
from cases import differing
from test_functional import Net, equal, gradients
from torch import nn

import llc_fast
from llc_fast import SGLD, Box, LlcFastError, Selection, functional

DTYPES = [torch.float32, torch.bfloat16]
SETTINGS: dict[str, Any] = {
    "lr": 1e-3,
    "nbeta": 30.0,
    "localization": 50.0,
    "weight_decay": 0.1,
    "noise_level": 0.9,
}


def sampler(model: nn.Module, **changes: Any) -> SGLD:
    return SGLD(
        model.named_parameters(), **SETTINGS | {"seed": 3, "chain": 1, "bounding_box_size": 0.5} | changes
    )


def walk(model: nn.Module, optimizer: SGLD, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        model.loss().backward()
        optimizer.step()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_trajectory_is_that_of_update(dtype):
    one, other = Net(dtype), Net(dtype)
    walk(one, sampler(one), 5)
    state = functional.init(other.named_parameters(), seed=3, chain=1)
    for _ in range(5):
        state = functional.update(
            gradients(other), state, dict(other.named_parameters()), box=0.5, **SETTINGS
        )
    assert equal(one, other)
    assert not equal(one, Net(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_parameters_without_names_count_by_position(dtype):
    one, other = Net(dtype), Net(dtype)
    walk(one, SGLD(one.parameters(), seed=3, **SETTINGS), 1)
    g, params = gradients(other), dict(other.named_parameters())
    llc_fast.sgld_step_(
        list(params.values()),
        [g[name] for name in params],
        [p.detach().clone() for p in params.values()],
        remainders=[
            torch.zeros_like(p, dtype=torch.int16) if dtype == DTYPES[1] else None for p in params.values()
        ],
        seed=3,
        step=0,
        **SETTINGS,
    )
    assert equal(one, other)
    named = Net(dtype)
    walk(named, SGLD(named.named_parameters(), seed=3, **SETTINGS), 1)
    assert not equal(one, named)


def test_names_count_without_their_wrappers_and_in_any_order():
    one, other = Net(), Net()
    walk(one, sampler(one), 2)
    wrapped = [(f"_orig_mod.{name}", p) for name, p in reversed(list(other.named_parameters()))]
    walk(other, SGLD(wrapped, seed=3, chain=1, bounding_box_size=0.5, **SETTINGS), 2)
    assert equal(one, other)


def test_groups_have_their_own_scalars_and_common_numbers():
    one, other = Net(), Net()
    named = dict(one.named_parameters())
    split = [n for n in named if n.startswith("first")], [n for n in named if n.startswith("last")]
    groups = [
        {"params": [(n, named[n]) for n in split[0]], "lr": 1e-2},
        {"params": [(n, named[n]) for n in split[1]], "nbeta": 5.0, "noise_level": 0.0},
    ]
    SGLD(groups, **SETTINGS, seed=3).step()
    params = dict(other.named_parameters())
    ids = {name: i for i, name in enumerate(sorted(params))}
    for names, change in zip(split, ({"lr": 1e-2}, {"nbeta": 5.0, "noise_level": 0.0}), strict=True):
        llc_fast.sgld_step_(
            [params[n] for n in names],
            [None] * len(names),
            [params[n].detach().clone() for n in names],
            tensor_ids=[ids[n] for n in names],
            seed=3,
            step=0,
            **SETTINGS | change,
        )
    assert equal(one, other)


def test_a_scheduler_sets_the_step_size():
    one, other = Net(), Net()
    first, second = sampler(one), sampler(other)
    scheduler = torch.optim.lr_scheduler.StepLR(first, step_size=1, gamma=0.5)
    for i in range(4):
        walk(one, first, 1)
        scheduler.step()
        second.param_groups[0]["lr"] = 1e-3 * 0.5**i
        walk(other, second, 1)
    assert equal(one, other)


def test_a_closure_is_called_with_gradients_on_and_its_loss_returned():
    one, other = Net(), Net()
    walk(one, sampler(one), 1)
    optimizer = sampler(other)

    def closure() -> torch.Tensor:
        assert torch.is_grad_enabled()
        optimizer.zero_grad()
        loss = other.loss()
        loss.backward()
        return loss

    expected = other.loss().item()
    assert optimizer.step(closure).item() == expected
    assert equal(one, other)
    assert optimizer.step() is None


# --- saving ---


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_saved_chain_continues_bit_for_bit(dtype, named):
    def start(model: nn.Module, **changes: Any) -> SGLD:
        params = model.named_parameters() if named else model.parameters()
        return SGLD(params, **SETTINGS | {"seed": 3, "bounding_box_size": 0.5} | changes)

    one, other = Net(dtype), Net(dtype)
    walk(one, start(one), 7)
    optimizer = start(other)
    walk(other, optimizer, 4)
    file = io.BytesIO()
    torch.save({"model": other.state_dict(), "sampler": optimizer.state_dict()}, file)
    walk(other, optimizer, 1)  # what comes later does not reach into what was saved
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    fresh = Net(dtype)
    nn.init.ones_(fresh.first.weight)
    again = start(fresh, seed=99, lr=1.0)
    walk(fresh, again, 1)
    fresh.load_state_dict(saved["model"])
    again.load_state_dict(saved["sampler"])
    walk(fresh, again, 3)
    assert equal(one, fresh)
    for p, q in zip(one.parameters(), fresh.parameters(), strict=True):
        assert differing(p.detach(), q.detach()) == 0
    assert again.param_groups[0]["step"] == 7


def test_loading_does_not_share_memory_with_what_was_loaded():
    model = Net(torch.bfloat16)
    optimizer = sampler(model)
    walk(model, optimizer, 1)
    saved = copy.deepcopy(optimizer.state_dict())
    keep = copy.deepcopy(saved)
    optimizer.load_state_dict(saved)
    walk(model, optimizer, 2)
    for i, state in keep["state"].items():
        assert torch.equal(saved["state"][i]["remainder"], state["remainder"])
        assert torch.equal(saved["state"][i]["anchor"], state["anchor"])


def pickled(x: Any) -> Any:
    return pickle.loads(pickle.dumps(x))


@pytest.mark.parametrize("clone", [copy.deepcopy, pickled])
def test_a_copied_optimizer_continues_on_the_copied_model(clone):
    model = Net(torch.bfloat16)
    optimizer = sampler(model, backend="reference")
    walk(model, optimizer, 2)
    other, second = clone((model, optimizer))
    walk(model, optimizer, 2)
    assert not equal(model, other)
    walk(other, second, 2)
    assert equal(model, other)
    assert second._backend == "reference"


def test_a_state_of_something_else_is_refused():
    model = Net()
    optimizer = sampler(model)
    unnamed = SGLD(Net().parameters(), nbeta=2.0)
    sgd = torch.optim.SGD(Net().named_parameters(), momentum=0.9)
    split = sampler(Net(torch.bfloat16))
    torn = copy.deepcopy(split.state_dict())
    del torn["state"][2]["remainder"]
    states: list[tuple[SGLD, Any, str]] = [
        (optimizer, 5, "state_dict is a int"),
        (optimizer, {}, "state_dict is a dict without a state"),
        (optimizer, sgd.state_dict(), "state_dict has no 'nbeta'"),
        (optimizer, unnamed.state_dict(), "state_dict names other parameters"),
        (
            optimizer,
            SGLD(reversed(list(Net().named_parameters())), nbeta=2.0).state_dict(),
            "in another order",
        ),
        (
            unnamed,
            SGLD([{"params": [p]} for p in Net().parameters()], nbeta=2.0).state_dict(),
            "state_dict: loaded state dict has a different number",
        ),
        (optimizer, optimizer.state_dict() | {"state": {}}, "no anchor that fits parameter 0"),
        (optimizer, split.state_dict(), "no anchor that fits parameter 0"),
        (split, torn, "no remainder that fits parameter 2"),
    ]
    for target, state, match in states:
        with pytest.raises(LlcFastError, match=match):
            target.load_state_dict(state)
    walk(model, optimizer, 1)
    other = Net()
    walk(other, sampler(other), 1)
    assert equal(model, other)


# --- which parameters move, and from where ---


def test_frozen_parameters_never_move_and_still_count():
    one, other = Net(), Net()
    other.first.bias.requires_grad_(False)
    before = other.first.bias.clone()
    first, second = sampler(one), sampler(other)
    walk(one, first, 1)
    walk(other, second, 1)
    assert torch.equal(other.last.weight, one.last.weight)
    other.first.bias.grad = torch.ones(4)
    second.step()
    walk(other, second, 3)
    assert torch.equal(other.first.bias, before)
    other.first.bias.requires_grad_(True)
    walk(other, second, 1)
    assert not torch.equal(other.first.bias, before)


def test_no_parameter_at_all_moves():
    model = Net().requires_grad_(False)
    optimizer = sampler(model)
    optimizer.step()
    assert equal(model, Net())


def test_without_a_gradient_prior_and_noise_move_it():
    w = nn.Parameter(torch.linspace(-1, 1, 9))
    optimizer = SGLD([("w", w)], **SETTINGS, seed=3)
    with torch.no_grad():
        w += 0.25
    start = w.detach().clone()
    optimizer.step()
    z = llc_fast.normal(9, seed=3, step=0, tensor_id=0)
    drift = 0.1 * start + 50.0 * 0.25
    expected = start - 1e-3 / 2 * drift + 1e-3**0.5 * 0.9 * z
    assert torch.allclose(w, expected, atol=1e-6, rtol=0)


def test_groups_can_be_added_until_the_first_step():
    one, other = Net(), Net()
    walk(one, sampler(one), 2)
    named = list(other.named_parameters())
    optimizer = SGLD(named[:1], seed=3, chain=1, bounding_box_size=0.5, **SETTINGS)
    optimizer.add_param_group({"params": named[1:]})
    walk(other, optimizer, 2)
    assert equal(one, other)
    extra = nn.Parameter(torch.ones(2))
    with pytest.raises(LlcFastError, match="param_group comes after the first step"):
        optimizer.add_param_group({"params": [("extra", extra)]})
    assert extra not in optimizer.state


def test_a_refused_group_leaves_nothing_behind():
    one, other = Net(), Net()
    optimizer = sampler(other)
    for group in (
        {"params": [("x", torch.ones(2)), ("y", torch.ones(2).cfloat())]},
        {"params": [("x", torch.ones(2))], "lr": -1.0},
        {"params": [("first.bias", torch.ones(2))]},
        {"params": [torch.ones(2)]},
        {"params": [("x", other.first.weight[:2])]},
        {"params": [("x", other.first.weight.detach()[:2])]},
    ):
        with pytest.raises(LlcFastError):
            optimizer.add_param_group(group)
    assert len(optimizer.param_groups) == 1
    assert len(optimizer.state) == len(list(other.parameters()))
    walk(one, sampler(one), 2)
    walk(other, optimizer, 2)
    assert equal(one, other)


def test_storage_that_moved_is_followed():
    one, other = Net(), Net()
    first, second = sampler(one), sampler(other)
    walk(one, first, 4)
    walk(other, second, 2)
    for p in other.parameters():
        p.data = p.data.clone()
    walk(other, second, 1)
    other.load_state_dict(copy.deepcopy(other.state_dict()), assign=False)
    walk(other, second, 1)
    assert equal(one, other)


def test_a_remainder_that_was_replaced_is_used():
    # As restoring a snapshot does.
    model = Net(torch.bfloat16)
    optimizer = sampler(model)
    walk(model, optimizer, 2)
    weights = copy.deepcopy(model.state_dict())
    rest = {p: s["remainder"].clone() for p, s in optimizer.state.items()}
    walk(model, optimizer, 1)
    expected = copy.deepcopy(model.state_dict())
    model.load_state_dict(weights)
    for p, remainder in rest.items():
        optimizer.state[p]["remainder"] = remainder
    optimizer.param_groups[0]["step"] = 2
    walk(model, optimizer, 1)
    assert all(torch.equal(p, expected[name]) for name, p in model.state_dict().items())


def test_another_dtype_is_refused():
    model = Net()
    optimizer = sampler(model)
    walk(model, optimizer, 1)
    model.bfloat16()
    optimizer.zero_grad()
    with pytest.raises(LlcFastError, match=r"params\[0\] is bfloat16 without a remainder"):
        optimizer.step()


def test_nothing_moves_where_one_group_is_wrong():
    model = Net()
    named = list(model.named_parameters())
    optimizer = SGLD([{"params": [p]} for p in named], nbeta=2.0)
    optimizer.param_groups[-1]["lr"] = float("nan")
    with pytest.raises(LlcFastError, match="lr is nan"):
        optimizer.step()
    optimizer.param_groups[-1]["lr"] = 0.1
    named[-1][1].grad = torch.ones_like(named[-1][1]).to_sparse()
    with pytest.raises(LlcFastError, match=r"grads\[0\] has layout"):
        optimizer.step()
    named[-1][1].grad = None
    optimizer.param_groups[-1]["localization"] = 1.0
    anchor = optimizer.state[named[-1][1]]["anchor"]
    optimizer.state[named[-1][1]]["anchor"] = torch.ones(99)
    with pytest.raises(LlcFastError, match=r"anchors\[0\] has shape"):
        optimizer.step()
    optimizer.state[named[-1][1]]["anchor"] = anchor
    data = named[-1][1].data
    named[-1][1].data = data.double()
    with pytest.raises(LlcFastError, match=r"anchors\[0\] is torch.float32"):
        optimizer.step()
    named[-1][1].data = data
    assert equal(model, Net())
    assert [group["step"] for group in optimizer.param_groups] == [0] * len(named)


def test_a_chain_ends_at_its_last_step():
    model = Net()
    optimizer = sampler(model)
    optimizer.param_groups[0]["step"] = 2**32 - 1
    optimizer.step()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(LlcFastError, match="step is 4294967296"):
        optimizer.step()
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())


# --- selections ---


def test_a_selection_moves_its_weights_alone_and_keeps_nothing_for_others():
    model = Net()
    names = {name for name, _ in model.named_parameters()}
    boxes = {"first.weight": (Box(0, 1, 3, 3),)}
    shapes = {"first.weight": tuple(model.first.weight.shape)}
    table = {name: 7 + i for i, name in enumerate(sorted(names))}
    chosen = Selection("some", boxes, shapes, table)
    optimizer = SGLD(model.named_parameters(), nbeta=2.0, lr=1e-2, selection=chosen, seed=4)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer.step()
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {"first.weight"}
    changed = (model.first.weight != before["first.weight"]).view(-1)
    assert changed[:3].all()
    assert not changed[3:].any()
    z = llc_fast.normal(3, seed=4, step=0, tensor_id=table["first.weight"])
    torch.testing.assert_close(
        model.first.weight.detach().view(-1)[:3], before["first.weight"].view(-1)[:3] + 0.1 * z
    )
    assert [len(optimizer.state[p]) for _, p in model.named_parameters()].count(0) == len(names) - 1
    other = SGLD(Net().named_parameters(), nbeta=2.0, selection=replace(chosen, component="another"))
    with pytest.raises(LlcFastError, match="state_dict has component 'some', expected 'another'"):
        other.load_state_dict(optimizer.state_dict())
    for wrong, match in (
        (replace(chosen, boxes={"none": boxes["first.weight"]}), "selects none"),
        (replace(chosen, shapes={"first.weight": (9,)}), "selection is of a model whose"),
        (replace(chosen, tensor_ids={"first.weight": 0}), "selection knows no"),
    ):
        with pytest.raises(LlcFastError, match=match):
            SGLD(Net().named_parameters(), nbeta=2.0, selection=wrong)
    with pytest.raises(LlcFastError, match="params has no names"):
        SGLD(Net().parameters(), nbeta=2.0, selection=chosen)
