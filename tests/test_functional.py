"""init and update: the same trajectories as the op's, restricted by name, by selection and by requires_grad."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import llc_fast
from llc_fast import functional
from llc_fast.types import Box, Selection

DTYPES = [torch.float32, torch.bfloat16]
SCALARS: dict[str, Any] = {"lr": 1e-3, "nbeta": 30.0, "localization": 50.0, "weight_decay": 0.1, "box": 0.5}


class Net(nn.Module):
    """Names whose sorted order is not their order here; two of them are one tensor."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.last = nn.Linear(4, 6)
        self.first = nn.Linear(6, 4)
        self.tied = nn.Linear(4, 6, bias=False)
        self.tied.weight = self.last.weight
        self.to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.tied(self.first(self.last(x)).tanh())

    def loss(self) -> Tensor:
        x = torch.linspace(-1, 1, 20, dtype=self.last.weight.dtype).view(5, 4)
        return self(x).square().mean()


def gradients(model: nn.Module) -> dict[str, Tensor]:
    names, params = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(model.loss(), params), strict=True))


def chain(model: nn.Module, steps: int, state: functional.State) -> functional.State:
    for _ in range(steps):
        state = functional.update(gradients(model), state, dict(model.named_parameters()), **SCALARS)
    return state


def equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_trajectory_is_the_op_s(dtype):
    one, other = Net(dtype), Net(dtype)
    chain(one, 5, functional.init(one.named_parameters(), seed=3, chain=2))
    params = dict(other.named_parameters())
    anchors = {name: p.detach().clone() for name, p in params.items()}
    split = {
        n: torch.zeros_like(p, dtype=torch.int16) if dtype == DTYPES[1] else None for n, p in params.items()
    }
    ids = {name: i for i, name in enumerate(sorted(params))}
    assert ids["first.bias"] == 0
    for step in range(5):
        g = gradients(other)
        for name, p in params.items():  # one at a time, in another order
            llc_fast.sgld_step_(
                [p],
                [g[name]],
                [anchors[name]],
                remainders=[split[name]],
                tensor_ids=[ids[name]],
                seed=3,
                chain=2,
                step=step,
                **SCALARS,
            )
    assert equal(one, other)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_pickled_state_continues_bit_for_bit(dtype):
    one, other = Net(dtype), Net(dtype)
    chain(one, 6, functional.init(one.named_parameters(), seed=3))
    state = chain(other, 3, functional.init(other.named_parameters(), seed=3))
    saved = pickle.dumps((state, other.state_dict()))
    state, weights = pickle.loads(saved)
    assert state.plan is None
    fresh = Net(dtype)
    fresh.load_state_dict(weights)
    state = chain(fresh, 3, state)
    assert state.step == 6
    assert equal(one, fresh)


def test_order_and_wrappers_do_not_matter():
    one, other = Net(), Net()
    chain(one, 2, functional.init(one.named_parameters(), seed=3))
    state = functional.init(
        [(f"_orig_mod.{n}", p) for n, p in reversed(list(other.named_parameters()))], seed=3
    )
    for _ in range(2):
        named = {f"_orig_mod.{n}": p for n, p in other.named_parameters()}
        grads = {f"_orig_mod.{n}": g for n, g in gradients(other).items()}
        state = functional.update(grads | {"unknown": torch.ones(1)}, state, named, **SCALARS)
    assert equal(one, other)


def test_sequences_are_in_the_order_of_the_state():
    one, other = Net(), Net()
    chain(one, 1, functional.init(one.named_parameters()))
    state = functional.init(other.named_parameters())
    params, g = dict(other.named_parameters()), gradients(other)
    functional.update([g[n] for n in state.names], state, [params[n] for n in state.names], **SCALARS)
    assert equal(one, other)


def test_tied_weights_move_once_under_their_smallest_name():
    model = Net()
    state = functional.init(model.named_parameters(remove_duplicate=False))
    assert "last.weight" in state.names
    assert "tied.weight" not in state.names
    assert dict(zip(state.names, state.tensor_ids, strict=True)) == {
        "first.bias": 0,
        "first.weight": 1,
        "last.bias": 2,
        "last.weight": 3,
    }
    before = model.last.weight.detach().clone()
    chain(model, 1, state)
    assert model.tied.weight is model.last.weight
    assert not torch.equal(model.last.weight, before)


def test_every_name_of_a_tied_weight_counts():
    # As the table of the model's names does, from which selections count.
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(2, 2, bias=False)
            self.a_head = nn.Linear(2, 2, bias=False)
            self.a_head.weight = self.body.weight
            self.b_norm = nn.LayerNorm(2)

    model = Tied()
    state = functional.init(model.named_parameters(remove_duplicate=False))
    full = functional.init(model.named_parameters(), llc_fast.select(model, "full"))
    ids = {"a_head.weight": 0, "b_norm.bias": 1, "b_norm.weight": 2}
    assert dict(zip(state.names, state.tensor_ids, strict=True)) == ids
    assert dict(zip(full.names, full.tensor_ids, strict=True)) == {"body.weight": 0} | {
        name: i for name, i in ids.items() if i
    }


def test_update_returns_a_new_state_and_leaves_the_old_one():
    model = Net()
    state = functional.init(model.named_parameters())
    following = chain(model, 1, state)
    assert (state.step, following.step) == (0, 1)
    assert all(torch.equal(a, b) for a, b in zip(state.anchors, following.anchors, strict=True))


def test_a_missing_gradient_is_zero():
    one, other = Net(), Net()
    states = [functional.init(m.named_parameters()) for m in (one, other)]
    functional.update({}, states[0], dict(one.named_parameters()), **SCALARS)
    zeros = {n: torch.zeros_like(p) for n, p in other.named_parameters()}
    functional.update(zeros, states[1], dict(other.named_parameters()), **SCALARS)
    assert equal(one, other)
    assert not equal(one, Net())


def test_frozen_parameters_stay_and_still_count():
    one, other = Net(), Net()
    other.first.bias.requires_grad_(False)
    before = other.first.bias.clone()
    for model in (one, other):
        state = functional.init(model.named_parameters())
        functional.update({}, state, dict(model.named_parameters()), **SCALARS)
    assert torch.equal(other.first.bias, before)
    assert not torch.equal(one.first.bias, before)
    assert torch.equal(one.last.weight, other.last.weight)


def test_plain_tensors_all_move():
    w = {"a": torch.ones(3), "b": torch.ones(2, 2)}
    functional.update({}, functional.init(w), w, **SCALARS)
    assert not any(torch.any(t == 1) for t in w.values())


def test_a_parameter_that_was_moved_in_memory_goes_on():
    one, other = Net(), Net()
    states = [functional.init(m.named_parameters(), seed=1) for m in (one, other)]
    states = [chain(m, 2, s) for m, s in zip((one, other), states, strict=True)]
    old = other.last.weight.data
    other.last.weight.data = old.clone()
    old.fill_(7.0)
    for p in other.first.parameters():
        p.data = p.data.clone()
    for model, state in zip((one, other), states, strict=True):
        chain(model, 2, state)
    assert equal(one, other)
    assert torch.all(old == 7)


def test_a_parameter_that_changed_its_dtype_or_shape_is_refused():
    for change in (Tensor.bfloat16, Tensor.double, lambda t: t[:1], lambda t: t.T):
        model = Net()
        state = chain(model, 1, functional.init(model.named_parameters()))
        model.last.weight.data = change(model.last.weight.data)
        before = [p.detach().clone() for p in model.parameters()]
        with pytest.raises(llc_fast.LlcFastError):
            functional.update({}, state, dict(model.named_parameters()), **SCALARS)
        assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_selection_moves_as_in_the_whole_model(dtype):
    one, other = Net(dtype), Net(dtype)
    selection = llc_fast.select(other, "first.weight")
    assert selection.numel == 24
    chain(one, 1, functional.init(one.named_parameters(), tensor_ids=selection.tensor_ids))
    state = functional.init(other.named_parameters(), selection)
    assert state.names == ("first.weight",)
    chain(other, 1, state)
    assert torch.equal(one.first.weight, other.first.weight)
    assert {n for n, p in other.named_parameters() if torch.equal(p, Net(dtype).get_parameter(n))} == {
        "first.bias",
        "last.bias",
        "last.weight",
    }


def test_a_selection_of_a_tied_weight():
    model = Net()
    state = functional.init(model.named_parameters(), llc_fast.select(model, "tied.weight"))
    assert state.names == ("last.weight",)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    chain(model, 1, state)
    assert [n for n, p in model.named_parameters() if not torch.equal(p, before[n])] == ["last.weight"]


def test_a_selection_of_boxes():
    w = {"w": torch.ones(5, 7)}
    selection = Selection(
        "corner", {"w": (Box(8, 2, 3, 7), Box(30, 1, 2, 2))}, {"w": (5, 7)}, {"u": 0, "w": 1}
    )
    functional.update({}, functional.init(w, selection), w, **SCALARS)
    assert torch.equal(w["w"] != 1, selection.mask("w"))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_head_moves_alone_and_as_in_the_whole_model(dtype):
    transformers = pytest.importorskip("transformers")
    config = transformers.GPTNeoXConfig(
        vocab_size=19, hidden_size=24, num_hidden_layers=2, num_attention_heads=4, intermediate_size=20
    )
    torch.manual_seed(0)
    models = [transformers.GPTNeoXForCausalLM(config).to(dtype) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    before = {n: p.detach().clone() for n, p in models[0].named_parameters()}
    selection = llc_fast.select(models[1], "l1h2")
    masks = llc_fast.create_param_masks(models[1], "l1h2")
    tokens = torch.arange(16).view(2, 8)
    for model, chosen in ((models[0], None), (models[1], selection)):
        model(tokens, labels=tokens).loss.backward()
        state = functional.init(model.named_parameters(), chosen, seed=5, tensor_ids=selection.tensor_ids)
        grads = {n: p.grad for n, p in model.named_parameters()}
        functional.update(grads, state, dict(model.named_parameters()), **SCALARS)
    moved = 0
    for (name, whole), (_, head) in zip(*(m.named_parameters() for m in models), strict=True):
        mask = masks[name].bool() if name in masks else torch.zeros_like(head, dtype=torch.bool)
        assert torch.equal(head[~mask], before[name][~mask])
        assert torch.equal(head[mask], whole[mask])
        moved += int(mask.sum())
    assert moved == selection.numel == 594
