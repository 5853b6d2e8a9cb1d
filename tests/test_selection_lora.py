"""LoRA adapters: names without the wrappers, and slices of the adapters by head and by neuron."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_selection_families import FAMILIES, LAYER, Row, check_moves, masks_of
from torch import Tensor, nn

from llc_fast import functional
from llc_fast.selection import (
    canonical_name,
    components,
    create_param_masks,
    expand,
    named_parameters,
    select,
)

transformers = pytest.importorskip("transformers")

RANK = 2
LLAMA = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "down_proj")
GPT2 = ("c_attn", "c_proj", "c_fc")


class Like:
    """Classes of PEFT's own package, which is how its wrappers are told from other modules."""

    class Adapted(nn.Module):
        def __init__(self, base: nn.Module) -> None:
            super().__init__()
            self.base_layer = base
            out, into = base.weight.shape
            if not hasattr(base, "out_features"):
                out, into = into, out
            self.lora_A = nn.ModuleDict({"default": nn.Linear(into, RANK, bias=False)})
            self.lora_B = nn.ModuleDict({"default": nn.Linear(RANK, out, bias=False)})

        def forward(self, x: Tensor) -> Tensor:
            return self.base_layer(x) + self.lora_B["default"](self.lora_A["default"](x))

    class LoraModel(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

    class PeftModel(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.base_model = Like.LoraModel(model)

        def forward(self, *args: Any) -> Any:
            return self.base_model.model(*args)


for kind in (Like.Adapted, Like.LoraModel, Like.PeftModel):
    kind.__module__ = "peft.tuners.like"


def like(model: nn.Module, targets: tuple[str, ...]) -> nn.Module:
    for path, module in list(model.named_modules()):
        for name, child in list(module.named_children()):
            if name in targets:
                setattr(model.get_submodule(path), name, Like.Adapted(child))
    return Like.PeftModel(model)


def real(model: nn.Module, targets: tuple[str, ...], **more: Any) -> nn.Module:
    peft = pytest.importorskip("peft")
    return peft.get_peft_model(model, peft.LoraConfig(r=RANK, target_modules=list(targets), **more))


CASES = {
    "like_llama": ("llama", like, LLAMA),
    "like_llama_mqa": ("llama_mqa", like, LLAMA),
    "like_gpt2": ("gpt2", like, GPT2),
    "real_llama": ("llama", real, LLAMA),
    "real_gpt2": ("gpt2", lambda m, t: real(m, t, fan_in_fan_out=True), GPT2),
    "real_neox": ("gpt_neox", real, ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")),
}


@pytest.fixture(params=CASES, scope="module")
def case(request: pytest.FixtureRequest) -> tuple[Row, nn.Module, nn.Module]:
    """A row, its model with adapters, and without."""
    name, wrap, targets = CASES[request.param]
    torch.manual_seed(0)
    row = FAMILIES[name]
    model = wrap(row.build(), targets).double().eval()
    for p in model.parameters():
        nn.init.normal_(p, std=0.3)
    return row, model, row.build()


def at(row: Row) -> tuple[str, str]:
    return tuple(f"base_model.model.{path}" for path in (row.reads, row.acts))


def test_the_base_weights_keep_their_names(case):
    _, model, bare = case
    assert [n for n in named_parameters(model) if "lora_" not in n] == list(named_parameters(bare))
    raw = dict(model.named_parameters())
    assert {canonical_name(model, n) for n in raw} == set(named_parameters(model))
    assert [n for n in components(model) if "lora" not in n] == components(bare)
    for component in ("embed", "unembed", "l0", "l1 attn", "l1 mlp", "l0h1", "l1h2", "l1n3", "final_norm"):
        mine, theirs = select(model, component), select(bare, component)
        assert {n: b for n, b in mine.boxes.items() if "lora_" not in n} == theirs.boxes, component
    assert create_param_masks(model, "full").keys() == raw.keys()


def test_adapters_of_the_model_and_of_its_parts(case):
    _, model, _ = case
    every = {canonical_name(model, n) for n, _ in model.named_parameters() if "lora_" in n}
    lora = select(model, "lora")
    assert lora.boxes.keys() == every
    assert all(lora.covers(n) for n in every)
    layer = select(model, "L1 LoRA")
    assert layer.boxes.keys() == {n for n in every if ".1." in n}
    assert layer.boxes == select(model, ["l1 attn lora", "l1 mlp lora"]).boxes
    assert "l1 norms lora" not in components(model)
    assert expand(model, "l* lora") == ["l0 lora", "l1 lora"]
    assert expand(model, "l*h0 lora") == ["l0h0 lora", "l1h0 lora"]
    assert expand(model, "l*h0") == ["l0h0", "l1h0"]
    for component in components(model):
        if component.endswith(" lora"):
            found = select(model, component)
            assert found.component == component
            whole = select(model, component.removesuffix(" lora"))
            assert found.boxes == {n: b for n, b in whole.boxes.items() if "lora_" in n}


def test_a_heads_adapters_move_it_and_no_other(case):
    row, model, _ = case
    size = row.heads // row.groups
    for head in range(row.heads):
        group = head // size
        masks = masks_of(model, f"l{LAYER}h{head} lora")
        assert all("lora_" in n for n in masks)
        for component in (f"l{LAYER}g{group} lora", f"l{LAYER}g{group}"):
            everyone = set(range(group * size, (group + 1) * size))
            check_moves(model, at(row)[0], (row.heads, row.dim), masks_of(model, component), everyone)
        if size > 1:  # without what the head shares with its group
            other = masks_of(model, f"l{LAYER}h{group * size + (head + 1) % size} lora")
            masks = {n: m & ~other[n] if n in other else m for n, m in masks.items()}
        check_moves(model, at(row)[0], (row.heads, row.dim), masks, {head})


def test_a_neurons_adapters_move_it_and_no_other(case):
    row, model, _ = case
    for component, own in ((f"l{LAYER}n3 lora", {3}), (f"l{LAYER}n0:2", {0, 1})):
        check_moves(model, at(row)[1], (row.neurons, 1), masks_of(model, component), own)


def test_heads_make_up_the_adapters_that_are_not_shared(case):
    row, model, _ = case
    every, attention = select(model, f"l{LAYER}h* lora"), select(model, f"l{LAYER} attn lora")
    assert every.numel == sum(select(model, f"l{LAYER}g{g} lora").numel for g in range(row.groups))
    assert all(every.covers(n) for n in every.boxes)
    output = row.reads.format(LAYER)
    inward = {n for n in attention.boxes if n.startswith(output) == ("lora_A" in n)}
    assert every.boxes.keys() == inward


def test_adapters_of_other_kinds():
    model = real(FAMILIES["llama"].build(), (*LLAMA, "embed_tokens"), use_dora=True)
    head = select(model, "l1h3 lora")
    at = "model.layers.1.self_attn."
    assert head.boxes[f"{at}q_proj.lora_magnitude_vector.default.weight"][0].start == 18
    assert f"{at}o_proj.lora_magnitude_vector.default.weight" not in head.boxes
    assert any("lora_embedding_A" in n for n in select(model, "embed").boxes)


def test_adapters_around_one_another():
    """PEFT wraps a module of experts once for each of its parameters."""
    peft = pytest.importorskip("peft")
    targets = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    bare = FAMILIES["mixtral"].build()
    model = peft.get_peft_model(
        FAMILIES["mixtral"].build(),
        peft.LoraConfig(r=RANK, target_modules=["q_proj"], target_parameters=targets),
    )
    assert [n for n in named_parameters(model) if "lora_" not in n] == list(named_parameters(bare))
    assert select(model, "l1e2").boxes == select(bare, "l1e2").boxes
    assert select(model, "lora").numel == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_a_chain_moves_the_adapters_of_a_head_only(case):
    _, model, _ = case
    named = named_parameters(model)
    for name, p in named.items():
        p.requires_grad_("lora_" in name)
    chosen = select(model, "l1h2")
    state = functional.init(named, chosen, seed=1)
    assert set(state.names) == {n for n in chosen.boxes if "lora_" in n}
    assert sum(tile.numel for tile in state.tiles) == select(model, "l1h2 lora").numel
