"""Parameter names: wrappers, ties, and the table that counts them."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from llc_fast.errors import ArgumentTypeError, ComponentError
from llc_fast.selection import (
    canonical_name,
    components,
    create_param_masks,
    named_parameters,
    parameter_table,
    select,
)

transformers = pytest.importorskip("transformers")


def gpt2() -> nn.Module:
    """Its output head is tied to its token embedding."""
    config = transformers.GPT2Config(
        vocab_size=19, bos_token_id=1, eos_token_id=2, n_embd=12, n_layer=2, n_head=3, n_positions=8
    )
    return transformers.GPT2LMHeadModel(config)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.z = nn.Linear(2, 2, bias=False)
        self.layers = nn.ModuleList(nn.Linear(2, 2, bias=False) for _ in range(11))
        self.B = nn.Linear(2, 2)
        self.a = nn.Linear(2, 2, bias=False)
        self.a.weight = self.z.weight


def ddp(model: nn.Module) -> nn.Module:
    """DistributedDataParallel without a process group, which its names do not need."""
    wrapped = nn.parallel.DistributedDataParallel.__new__(nn.parallel.DistributedDataParallel)
    nn.Module.__init__(wrapped)
    wrapped.module = model
    return wrapped


def inner_wrappers(model: nn.Module) -> nn.Module:
    for i, layer in enumerate(model.transformer.h):
        model.transformer.h[i] = torch.compile(checkpoint_wrapper(layer)) if i else checkpoint_wrapper(layer)
    model.transformer.h[0]._checkpoint_wrapped_module.attn = nn.DataParallel(model.transformer.h[0].attn)
    return model


class Fsdp(nn.Module):
    """The names that FSDP1 makes."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._fsdp_wrapped_module = model


WRAPPERS = {
    "compile": torch.compile,
    "data_parallel": nn.DataParallel,
    "ddp": ddp,
    "ddp_of_compile": lambda model: ddp(torch.compile(model)),
    "compile_of_ddp": lambda model: torch.compile(ddp(model)),
    "checkpoint": checkpoint_wrapper,
    "fsdp": Fsdp,
    "inner": inner_wrappers,
}


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_a_wrapped_model_has_the_same_names_and_selections(wrap):
    bare, wrapped = gpt2(), WRAPPERS[wrap](gpt2())
    assert parameter_table(wrapped) == parameter_table(bare)
    assert list(named_parameters(wrapped)) == list(named_parameters(bare))
    assert components(wrapped) == components(bare)
    for component in ("full", "embed", "unembed", "l1", "l0 attn", "l1 mlp", "l0h2", "l1h1", "l*h*"):
        assert select(wrapped, component) == select(bare, component), component
    raw = [name for name, _ in wrapped.named_parameters()]
    assert list(create_param_masks(wrapped, "full")) == raw
    stripped = [canonical_name(wrapped, name) for name in raw]
    assert stripped == [canonical_name(bare, name) for name, _ in bare.named_parameters()]
    assert select(wrapped, raw[3]) == select(bare, stripped[3])


def test_module_is_kept_where_the_parent_is_no_wrapper():
    model = nn.Sequential()
    model.module = nn.Linear(2, 2, bias=False)
    assert list(parameter_table(model)) == ["module.weight"]
    assert list(parameter_table(nn.DataParallel(model))) == ["module.weight"]


def test_ids_count_all_names_by_code_point_and_ties_take_the_smallest():
    table = parameter_table(Tied())
    order = ["B.bias", "B.weight", "a.weight", "layers.0.weight", "layers.1.weight", "layers.10.weight"]
    order += [f"layers.{i}.weight" for i in range(2, 10)] + ["z.weight"]
    assert list(table) == order
    assert table == {name: i for i, name in enumerate(order)} | {"z.weight": 2}
    assert [n for n in order if n not in named_parameters(Tied())] == ["z.weight"]
    assert dict(select(Tied(), "a.weight").tensor_ids) == table


def test_tied_parameters_are_one():
    model = gpt2()
    assert canonical_name(model, "transformer.wte.weight") == "lm_head.weight"
    assert parameter_table(model)["transformer.wte.weight"] == parameter_table(model)["lm_head.weight"] == 0
    assert named_parameters(model)["lm_head.weight"] is model.transformer.wte.weight
    assert "transformer.wte.weight" not in components(model)
    assert select(model, "full").numel == sum(p.numel() for p in model.parameters())
    assert select(model, "transformer.wte.weight") == select(model, "lm_head.weight")
    assert select(model, ["embed", "unembed"]).numel == 19 * 12
    # devinterp reads masks by the first name that the model gives.
    assert list(create_param_masks(model, "unembed")) == ["transformer.wte.weight"]


def test_unknown_names():
    with pytest.raises(ComponentError, match=r"no parameter 'lm_heads.weight'; near it: 'lm_head.weight'"):
        canonical_name(gpt2(), "lm_heads.weight")
    with pytest.raises(ArgumentTypeError, match=r"torch\.nn\.Module, got dict"):
        parameter_table({})


def test_a_model_that_is_a_bare_list_of_modules() -> None:
    model = torch.nn.ModuleList([torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)])
    assert set(select(model, "1.*").boxes) == {"1.weight", "1.bias"}
