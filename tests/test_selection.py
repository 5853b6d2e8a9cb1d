"""Component names: what exists, what each selects, unions, globs, errors, and agreement with devinterp."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import nn

from llc_fast.errors import ArgumentTypeError, ComponentError
from llc_fast.selection import components, create_param_masks, expand, select
from llc_fast.types import Box, Selection

transformers = pytest.importorskip("transformers")

TOKENS = {"vocab_size": 19, "bos_token_id": 1, "eos_token_id": 2}


def build(family: str, **more: object) -> nn.Module:
    size = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 20}
    if family == "gpt2":
        config = transformers.GPT2Config(**TOKENS, n_embd=24, n_layer=2, n_head=4, n_positions=16)
        return transformers.GPT2LMHeadModel(config)
    if family == "gpt_neox":
        return transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**TOKENS, **size, rotary_pct=1.0))
    config = transformers.LlamaConfig(**TOKENS, **size | {"num_key_value_heads": 2} | more)
    return transformers.LlamaForCausalLM(config)


@cache
def model_of(family: str) -> nn.Module:
    """For tests that leave the model as it is."""
    return build(family)


@pytest.fixture
def llama() -> nn.Module:
    return model_of("llama")


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.second = nn.Linear(4, 2, bias=False)
        self.scale = nn.Parameter(torch.ones(()))


def elements(selection: Selection) -> dict[str, set[int]]:
    return {name: set(selection.mask(name).view(-1).nonzero().view(-1).tolist()) for name in selection.boxes}


def test_all_names_of_a_model_exist_and_select(llama):
    names = components(llama)
    assert names[:7] == ["full", "embed", "unembed", "norms", "final_norm", "l0", "l0 attn"]
    assert [n for n in names if n.startswith("l1")] == [
        "l1", "l1 attn", "l1 mlp", "l1 norms", "l1h0", "l1h1", "l1h2", "l1h3", "l1g0", "l1g1",
    ]  # fmt: skip
    assert set(names) > {n for n, _ in llama.named_parameters()}
    for name in names:
        found = select(llama, name)
        assert found.component == name
        assert found.numel > 0
        assert list(found.boxes) == sorted(found.boxes)
    assert not [n for n in components(model_of("gpt2")) if "g0" in n]  # no group where no head shares


def test_full_is_every_element_once(llama):
    full = select(llama, "full")
    assert full.numel == sum(p.numel() for p in llama.parameters())
    assert all(full.covers(name) for name, _ in llama.named_parameters())
    assert all(len(boxes) == 1 for boxes in full.boxes.values())


def test_a_layer_and_its_parts(llama):
    prefix = "model.layers.1."
    layer, attn, mlp = (set(select(llama, name).boxes) for name in ("l1", "l1 attn", "l1 mlp"))
    norms = {f"{prefix}input_layernorm.weight", f"{prefix}post_attention_layernorm.weight"}
    assert layer == {n for n, _ in llama.named_parameters() if n.startswith(prefix)}
    assert layer - attn - mlp == norms == set(select(llama, "l1 norms").boxes)
    assert not attn & mlp
    assert select(llama, "norms").boxes.keys() == {n for n, _ in llama.named_parameters() if "norm" in n}
    assert list(select(llama, "final_norm").boxes) == ["model.norm.weight"]


def test_boxes_of_a_head(llama):
    p = "model.layers.1.self_attn."
    assert select(llama, "l1h3").boxes == {
        f"{p}k_proj.weight": (Box(6 * 24, 6, 24, 24),),
        f"{p}o_proj.weight": (Box(18, 24, 6, 24),),
        f"{p}q_proj.weight": (Box(18 * 24, 6, 24, 24),),
        f"{p}v_proj.weight": (Box(6 * 24, 6, 24, 24),),
    }
    assert select(llama, "l1g1").boxes[f"{p}q_proj.weight"] == (Box(12 * 24, 12, 24, 24),)
    assert elements(select(llama, "l1g1")) == elements(select(llama, ["l1h2", "l1h3"]))
    gpt2 = select(model_of("gpt2"), "l1h3").boxes  # Conv1D: (in, out), so the queries are columns
    assert gpt2["transformer.h.1.attn.c_attn.weight"] == tuple(Box(18 + i * 24, 24, 6, 72) for i in range(3))
    assert gpt2["transformer.h.1.attn.c_attn.bias"] == tuple(Box(18 + i * 24, 1, 6, 6) for i in range(3))
    assert gpt2["transformer.h.1.attn.c_proj.weight"] == (Box(18 * 24, 6, 24, 24),)
    neox = select(model_of("gpt_neox"), "l1h3").boxes  # q, k and v of a head are neighbours
    assert neox["gpt_neox.layers.1.attention.query_key_value.weight"] == (Box(3 * 18 * 24, 18, 24, 24),)


def test_boxes_of_neurons(llama):
    p = "model.layers.1.mlp."
    assert select(llama, "l1n3").boxes == {
        f"{p}down_proj.weight": (Box(3, 24, 1, 20),),
        f"{p}gate_proj.weight": (Box(3 * 24, 1, 24, 24),),
        f"{p}up_proj.weight": (Box(3 * 24, 1, 24, 24),),
    }
    some = select(llama, "l1n3:7")
    assert some.boxes[f"{p}up_proj.weight"] == (Box(3 * 24, 4, 24, 24),)
    assert some.boxes[f"{p}down_proj.weight"] == (Box(3, 24, 4, 20),)
    assert some.component == "l1n3:7"
    assert some.boxes == select(llama, ["l1n6", "l1n3:6"]).boxes
    assert select(llama, "L1 N 3:4") == select(llama, "l1n3")
    assert select(llama, "l1h2:4").boxes == select(llama, "l1g1").boxes == select(llama, "l1g1:2").boxes
    assert select(llama, "l1n*").boxes == select(llama, "l1 mlp").boxes


@pytest.mark.parametrize("text", ["l1h3", "L1H3", " l1 h3 ", "L1 H3", "l01h3", "l1h3 + L1 h3"])
def test_spellings_of_one_head(llama, text):
    assert select(llama, text) == select(llama, "l1h3")


def test_embeddings():
    assert list(select(model_of("llama"), "embed").boxes) == ["model.embed_tokens.weight"]
    assert list(select(model_of("llama"), "unembed").boxes) == ["lm_head.weight"]
    tied = model_of("gpt2")
    assert list(select(tied, "pos_embed").boxes) == ["transformer.wpe.weight"]
    assert list(select(tied, "final_norm").boxes) == ["transformer.ln_f.bias", "transformer.ln_f.weight"]
    with pytest.raises(ComponentError, match="no position embedding was found in this LlamaForCausalLM"):
        select(model_of("llama"), "pos_embed")
    assert list(select(tied, "embed").boxes) == list(select(tied, "unembed").boxes) == ["lm_head.weight"]
    with pytest.raises(ComponentError, match="unembedding"):
        select(model_of("llama").model, "unembed")


def test_unions_and_their_names(llama):
    both = select(llama, ["l1h3", "embed", "L1 h2", "l1h3"])
    assert both.component == "embed + l1h2 + l1h3"
    assert select(llama, both.component) == both == select(llama, ("l1h2", "embed", "l1h3"))
    assert both.numel == select(llama, "l1g1").numel + 19 * 24
    assert (
        select(llama, ["l1", "l1h0", "model.layers.1.mlp.up_proj.weight"]).boxes == select(llama, "l1").boxes
    )
    assert select(llama, ["full"]) == select(llama, "full")


def test_globs(llama):
    heads = [f"l{i}h{h}" for i in range(2) for h in range(4)]
    assert expand(llama, "l*h*") == heads
    assert expand(llama, "L0 H[12]") == ["l0h1", "l0h2"]
    assert expand(llama, "l?g1") == ["l0g1", "l1g1"]
    assert expand(llama, "*mlp*") == ["l0 mlp", "l1 mlp"]
    assert expand(llama, "l1*")[:5] == ["l1", "l1 attn", "l1 mlp", "l1 norms", "l1h0"]
    assert expand(llama, "L* Norms") == ["l0 norms", "l1 norms"]
    assert expand(llama, "l0n*") == [f"l0n{n}" for n in range(20)]
    assert expand(llama, "l?n1[89]") == ["l0n18", "l0n19", "l1n18", "l1n19"]
    assert expand(llama, "l1 H2") == ["l1h2"]
    assert expand(llama, "l1h3 + L1h2") == ["l1h2 + l1h3"]  # a union is one cell
    assert expand(llama, "*.0.mlp.*proj.weight") == [
        f"model.layers.0.mlp.{w}_proj.weight" for w in ("down", "gate", "up")
    ]
    assert select(llama, "l*h*").boxes == select(llama, heads).boxes
    assert select(llama, "L* H*").component == "l*h*"
    assert "lm_head.weight" not in select(llama, "l*h*").boxes
    assert select(llama, ["l*h*", "embed"]).numel == select(llama, "l*h*").numel + 19 * 24


def test_globs_count_layers_and_heads_as_numbers():
    with torch.device("meta"):
        model = build("llama", num_hidden_layers=11, hidden_size=24, num_attention_heads=12, head_dim=2)
    assert expand(model, "l*h*") == [f"l{i}h{h}" for i in range(11) for h in range(12)]
    assert expand(model, "*.q_proj.weight") == [
        f"model.layers.{i}.self_attn.q_proj.weight" for i in range(11)
    ]
    assert select(model, ["l10h2", "l2h10", "l2h9"]).component == "l2h9 + l2h10 + l10h2"


def test_frozen_parameters_can_be_selected():
    model = build("llama").requires_grad_(False)
    assert select(model, "l0h1") == select(model_of("llama"), "l0h1")


def test_plain_modules_have_full_and_their_parameters():
    model = Plain()
    assert components(model) == ["full", "first.bias", "first.weight", "scale", "second.weight"]
    assert select(model, "full").numel == 16 + 8 + 1
    assert select(model, "first.weight").boxes == {"first.weight": (Box(0, 4, 3, 3),)}
    assert select(model, "scale").boxes == {"scale": (Box(0, 1, 1, 1),)}
    assert list(select(model, "*.weight").boxes) == ["first.weight", "second.weight"]
    for name in ("l0", "l0h1", "l0 mlp"):
        with pytest.raises(ComponentError, match="no list of transformer layers"):
            select(model, name)
    with pytest.raises(ComponentError, match="embedding"):
        select(model, "embed")
    with pytest.raises(ComponentError, match="nothing"):
        select(nn.ReLU(), "full")


@pytest.mark.parametrize(
    ("component", "message"),
    [
        ("l2", r"layer 2 is out of range, the model has layers 0 to 1"),
        ("l0h4", r"head 4 is out of range, .* heads 0 to 3"),
        ("l1g2", r"group 2 is out of range, .* groups 0 to 1"),
        ("l1n20", r"l1n20: neuron 20 is out of range, .* neurons 0 to 19"),
        ("l1n18:21", r"l1n18:21: neuron 20 is out of range"),
        ("l1n4:4", r"l1n4:4: the range is empty, .* neurons 0 to 19"),
        ("l1 router", "no such part"),
        ("lora", "'lora' selects nothing"),
        ("l1h2 lora", "'l1h2 lora' selects nothing"),
        ("l1 atn", r"unknown component 'l1 atn'; near it: 'l1 attn'"),
        ("model.layer.0.mlp.up_proj.weight", r"near it: 'model.layers.0.mlp.up_proj.weight'"),
        ("", "unknown component ''"),
        ([], "empty list"),
        ("l7h*", "'l7h\\*' matches no component"),
        (["full", "l0"], "'full' cannot be combined"),
        (["l0", "l9"], "layer 9 is out of range"),
    ],
)
def test_errors_name_the_remedy(llama, component, message):
    with pytest.raises(ComponentError, match=message):
        select(llama, component)
    with pytest.raises(ValueError, match=message):
        create_param_masks(llama, component)


@pytest.mark.parametrize("component", [3, None, [3], [["l0"]], {"l0": 1}])
def test_wrong_types(llama, component):
    with pytest.raises(ArgumentTypeError, match="string"):
        select(llama, component)
    with pytest.raises(TypeError):
        create_param_masks(llama, component)
    with pytest.raises(ArgumentTypeError, match="string"):
        expand(llama, component)
    with pytest.raises(ArgumentTypeError, match="Module"):
        select("llama", "l0")


@pytest.mark.parametrize("family", ["gpt_neox", "gpt2", "llama"])
def test_masks_equal_devinterps(family):
    reference = pytest.importorskip("devinterp.slt.weight_restrictions", exc_type=ImportError)
    model = model_of(family)
    shapes = {name: p.shape for name, p in model.named_parameters()}
    restrictions = ["full", "embed", "l0", "l1 attn", "l1 mlp", "L1 H3", "l1h2", "l0g1", next(iter(shapes))]
    for restriction in [*restrictions, ["l0h0", "l0h1", "l1 mlp"], ["l0h0", "l0"]]:
        ours, theirs = (f(model, restriction) for f in (create_param_masks, reference.create_param_masks))
        assert ours.keys() == theirs.keys(), restriction
        for name, mask in ours.items():
            assert mask is None or (mask.dtype == torch.bool and mask.device.type == "cpu")
            dense = [
                torch.ones(shapes[name], dtype=torch.bool) if m is None else m for m in (mask, theirs[name])
            ]
            assert torch.equal(*dense), (restriction, name)
