"""Heads against the real forward pass of each family: what a head selects is what its output depends on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from test_selection_families import FAMILIES, LAYER, Row, built, check_moves, masks_of, run
from torch import Tensor, nn

from llc_fast.selection import select

transformers = pytest.importorskip("transformers")


class Scaled(nn.Module):
    """A norm over all heads that keeps its scale: what is left of it is each head's own."""

    def __init__(self, norm: nn.Module, path: str, model: nn.Module) -> None:
        super().__init__()
        self.weight, seen = norm.weight, []
        handle = norm.register_forward_hook(lambda _, args, out: seen.append((out / args[0]).detach()))
        with torch.no_grad():
            run(model, path)
        handle.remove()
        self.scale = seen[0] / norm.weight.detach()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale * self.weight


@pytest.fixture(params=FAMILIES, scope="module")
def case(request: pytest.FixtureRequest) -> Iterator[tuple[Row, nn.Module]]:
    row, model = FAMILIES[request.param], built(request.param)
    attention = model.get_submodule(row.reads.format(LAYER).rpartition(".")[0])
    norms = dict(attention.named_children()) if row.coupled else {}
    for name in ("q_norm", "k_norm") if row.coupled else ():
        setattr(attention, name, Scaled(norms[name], row.reads, model))
    yield row, model
    for name in ("q_norm", "k_norm") if row.coupled else ():
        setattr(attention, name, norms[name])


def test_a_heads_weights_move_it_and_no_other(case):
    row, model = case
    size = row.heads // row.groups
    for head in range(row.heads):
        mine = masks_of(model, f"l{LAYER}h{head}")
        group = head // size
        everyone = set(range(group * size, (group + 1) * size))
        if size == 1:
            check_moves(model, row.reads, (row.heads, row.dim), mine, {head})
            continue
        # The group's key and value, which this head reads, are every head's of the group.
        others = masks_of(model, f"l{LAYER}h{group * size + (head + 1) % size}")
        own = {n: m & ~others[n] if n in others else m for n, m in mine.items()}
        check_moves(model, row.reads, (row.heads, row.dim), own, {head})
        shared = {n: m & others[n] for n, m in mine.items() if n in others}
        for masks in (shared, masks_of(model, f"l{LAYER}g{group}")):
            check_moves(model, row.reads, (row.heads, row.dim), masks, everyone)


def test_a_head_is_all_that_its_output_depends_on(case):
    """By gradients, element by element: no weight of the attention is missing and none is too many."""
    row, model = case
    prefix = row.reads.format(LAYER).rpartition(".")[0]
    modules = model.get_submodule(prefix)
    x = run(model, row.reads)[0].reshape(-1, row.heads, row.dim)
    weight = torch.randn(x.shape[0], row.dim, generator=torch.Generator().manual_seed(2), dtype=x.dtype)
    parameters = {n: p for n, p in model.named_parameters() if any(p is q for q in modules.parameters())}
    parameters = {n: p for n, p in parameters.items() if p.numel() != row.dim or "norm" not in n}
    for head in range(row.heads):
        total = (x[:, head] * weight).sum()
        grads = torch.autograd.grad(total, list(parameters.values()), retain_graph=True, allow_unused=True)
        masks = masks_of(model, f"l{LAYER}h{head}")
        for (name, parameter), grad in zip(parameters.items(), grads, strict=True):
            if grad is None:  # the output projection comes after
                continue
            used, mask = grad != 0, masks.get(name, torch.zeros_like(parameter, dtype=torch.bool))
            if "b" not in name.rpartition(".")[2]:
                assert torch.equal(used, mask), name
            else:  # attention may not depend on a key bias, but never on a bias outside the head
                assert not (used & ~mask).any(), name
                assert (used | ~mask).sum() >= mask.numel() - row.dim, name


def test_heads_make_up_the_attention(case):
    row, model = case
    attention, every = select(model, f"l{LAYER} attn"), select(model, f"l{LAYER}h*")
    assert every.boxes.keys() <= attention.boxes.keys()
    assert all(every.covers(name) for name in every.boxes)
    left = {name: attention.shapes[name] for name in attention.boxes.keys() - every.boxes.keys()}
    hidden = model.get_input_embeddings().weight.shape[1] if hasattr(model, "get_input_embeddings") else 24
    if "blocks" not in row.reads or "hook" in row.reads:  # a bridge keeps what it does not use
        assert set(left.values()) <= {(hidden,), (row.dim,)}  # the output's bias, norms that heads share
    by_head = [select(model, f"l{LAYER}h{h}").numel for h in range(row.heads)]
    by_group = [select(model, f"l{LAYER}g{g}").numel for g in range(row.groups)]
    assert len(set(by_head)) == len(set(by_group)) == 1
    assert sum(by_group) == every.numel  # disjoint
    assert (sum(by_head) == every.numel) == (row.heads == row.groups)


def test_boxes_are_few(case):
    _, model = case
    assert all(len(boxes) <= 3 for boxes in select(model, f"l{LAYER}h0").boxes.values())
    assert all(len(boxes) == 1 for boxes in select(model, f"l{LAYER}h*").boxes.values())


def test_nested_language_model():
    text = built("gemma3").config.to_dict()
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4,
              "image_size": 28, "patch_size": 14}  # fmt: skip
    config = transformers.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    with torch.device("meta"):
        model = transformers.Gemma3ForConditionalGeneration(config)
    prefix = "model.language_model.layers.1.self_attn."
    head = select(model, "l1h3")
    assert list(head.boxes) == [f"{prefix}{p}_proj.weight" for p in "koqv"]
    assert head.boxes[f"{prefix}o_proj.weight"][0].start == 30
    assert head.numel == 4 * 10 * 20
    assert select(model, "l1").boxes.keys() == {
        n for n, _ in model.named_parameters() if "language_model.layers.1." in n
    }
    assert list(select(model, "embed").boxes) == list(select(model, "unembed").boxes) == ["lm_head.weight"]
