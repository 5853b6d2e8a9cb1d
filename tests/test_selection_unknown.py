"""Models without an entry: the error that shows how to write one, and entries of one's own."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_selection_families import LAYER, check_moves, masks_of
from torch import Tensor, nn

import llc_fast
from llc_fast.errors import ArgumentError, ArgumentTypeError, ComponentError, ModelError
from llc_fast.selection import Family, components, expand, families, register_family, select

transformers = pytest.importorskip("transformers")

WIDE, HEADS, DIM, NEURONS = 12, 4, 3, 20


@pytest.fixture(autouse=True)
def registered() -> Iterator[dict[str, Family]]:
    """Entries that a test registers are gone after it."""
    before = dict(families._registered)
    yield families._registered
    families._registered.clear()
    families._registered.update(before)


class Mixer(nn.Module):
    def __init__(self, fused: bool) -> None:
        super().__init__()
        if fused:
            self.inward = nn.Linear(WIDE, 3 * WIDE)
        else:
            self.to_k, self.to_v, self.to_q = (nn.Linear(WIDE, WIDE) for _ in range(3))
        self.outward = nn.Linear(WIDE, WIDE)

    def forward(self, x: Tensor) -> Tensor:
        fused = hasattr(self, "inward")
        parts = self.inward(x).chunk(3, -1) if fused else (self.to_q(x), self.to_k(x), self.to_v(x))
        q, k, v = (part.unflatten(-1, (HEADS, DIM)).transpose(1, 2) for part in parts)
        z = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.outward(z.transpose(1, 2).flatten(2))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = (
            nn.Linear(WIDE, NEURONS),
            nn.Linear(NEURONS, WIDE),
            nn.Linear(WIDE, NEURONS),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.two(torch.tanh(self.one(x)) * self.three(x))


class Odd(nn.Module):
    """A transformer whose words nobody else uses, in a list that is no ModuleList."""

    def __init__(self, fused: bool = False) -> None:
        super().__init__()
        self.tok = nn.Embedding(23, WIDE)
        self.stack = nn.Sequential()
        for _ in range(2):
            block = nn.ModuleDict({"mixer": Mixer(fused), "net": Net(), "scale": nn.LayerNorm(WIDE)})
            self.stack.append(block)
        self.reader = nn.Linear(WIDE, 23)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tok(tokens)
        for block in self.stack:
            x = x + block["mixer"](block["scale"](x))
            x = x + block["net"](x)
        return self.reader(x)


def odd(fused: bool = False) -> nn.Module:
    torch.manual_seed(0)
    model = Odd(fused).double().eval()
    for p in model.parameters():
        nn.init.normal_(p, std=0.3)
    return model


def copied(error: pytest.ExceptionInfo[Exception], **filled: object) -> None:
    """Do what the error says: copy its lines and fill in what they leave open."""
    text = str(error.value)
    start = text.index("from llc_fast.selection import")
    code = text[start : text.index("))\n", start) + 2]
    for field, value in filled.items():
        assert f"{field}=...," in code
        code = code.replace(f"{field}=...,", f"{field}={value!r},")
    exec(code, {})


@pytest.mark.parametrize(("fused", "filled"), [(False, {}), (True, {"layout": "stacked"})])
def test_the_error_is_an_entry_that_works(fused, filled):
    model = odd(fused)
    for component in ("l1h2", "l1n3", "l1h*", "l1"):
        with pytest.raises(ComponentError, match=r"no list of transformer layers|matches no component") as e:
            select(model, component)
    with pytest.raises(ArgumentTypeError, match=r"'Odd' must be .*, got Ellipsis: fill it in"):
        copied(e)
    copied(e, heads=HEADS, **filled)
    for head in range(HEADS):
        masks = masks_of(model, f"l{LAYER}h{head}")
        assert sum(int(m.sum()) for m in masks.values()) == 4 * WIDE * DIM + 3 * DIM
        check_moves(model, "stack.{}.mixer.outward", (HEADS, DIM), masks, {head})
    check_moves(model, "stack.{}.net.two", (NEURONS, 1), masks_of(model, f"l{LAYER}n3"), {3})
    assert [n for n in components(model) if n.startswith("l1")][:4] == ["l1", "l1 attn", "l1 mlp", "l1 norms"]
    assert list(select(model, "embed").boxes) == ["tok.weight"]
    assert len(expand(model, "l*h*")) == 2 * HEADS


def test_what_the_error_cannot_tell_is_left_open():
    with pytest.raises(ComponentError) as e:
        select(nn.Sequential(nn.Linear(2, 2)), "l0")
    text = str(e.value)
    assert 'register_family("Sequential", Family(\n    layers=...,\n    attn=...,\n    q=..., k=...' in text
    assert text.endswith("Parameters of the model: 0.bias (2,), 0.weight (2, 2)")


def test_a_fused_projection_of_an_unknown_family_is_not_guessed():
    """The same name stands for different orders of the heads."""
    size = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 23}
    model = transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(intermediate_size=20, **size))
    want = select(model, "l1h2").boxes
    model.config.model_type = "nonesuch"
    assert select(model, "l1n3").numel == 2 * 32 + 1
    with pytest.raises(ModelError, match=r"attention has no query.*it has query_key_value, dense") as e:
        select(model, "l1h2")
    text = str(e.value)
    assert 'register_family("nonesuch", Family(\n    layers="gpt_neox.layers",\n    attn="attention",' in text
    assert "heads=" not in text  # the config says it
    assert "attention.query_key_value.weight (96, 32)" in text
    copied(e, layout="grouped")
    assert select(model, "l1h2").boxes == want
    copied(e, layout="stacked")  # a second entry replaces the first
    assert select(model, "l1h2").boxes != want
    size = {"n_embd": 32, "n_head": 4, "n_layer": 1, "rotary_dim": 4, "vocab_size": 23}
    codegen = transformers.CodeGenForCausalLM(transformers.CodeGenConfig(**size))
    assert select(codegen, "l0n1").numel == 2 * 32 + 1
    with pytest.raises(ModelError, match="qkv_proj lays out its heads is not known; select by layer"):
        select(codegen, "l0h0")


def test_an_entry_that_names_what_a_layer_lacks():
    register_family("Odd", Family(layers="stack", attn="mixer", q="mixer.query", o="mixer.outward", heads=4))
    with pytest.raises(ModelError, match=r"mixer has no query.* it has to_k, to_v, to_q, outward") as e:
        select(odd(), "l0h0")
    assert 'q="mixer.to_q", k="mixer.to_k", v="mixer.to_v"' in str(e.value)
    with pytest.raises(ModelError, match="no projections of a known name into its neurons"):
        select(odd(), "l0n0")
    register_family("Odd", Family(layers="stack", up="net.one", down="mixer.outward"))
    with pytest.raises(ModelError, match=r"net.one: 12 -> 20, .*outward: 12 -> 12.* do not meet"):
        select(odd(), "l0n0")


def test_a_registered_entry_goes_before_a_built_in_one():
    config = {"hidden_size": 24, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=23, **config))
    assert select(model, "l1n3").numel == 3 * 24
    for name in ("llama", "LlamaForCausalLM", "LlamaPreTrainedModel"):
        register_family(name, replace(families.TABLE["llama"], up="mlp.up_proj"))
        assert select(model, "l1n3").numel == 2 * 24
        families._registered.clear()
    heads = replace(families.TABLE["llama"], heads="hidden_size", kv_heads=2, head_dim=1)
    register_family("llama", heads)
    with pytest.raises(ModelError, match="the model declares 2 KV heads of 1 elements"):
        select(model, "l0h0")
    register_family("llama", replace(heads, kv_heads=""))
    assert len(expand(model, "l0h*")) == 4 * 6


@pytest.mark.parametrize(
    ("name", "family", "error", "message"),
    [
        (3, Family(), ArgumentTypeError, "name must be a model_type or a class name, got int"),
        ("x", {"attn": "a"}, ArgumentTypeError, r"must be a llc_fast\.selection\.Family, got dict"),
        ("x", Family(q=["a"]), ArgumentTypeError, r"q of 'x' must be a string, got \['a'\]: fill it in"),
        ("x", Family(heads=1.5), ArgumentTypeError, "heads of 'x' must be a number or the name"),
        ("x", Family(qkv="a"), ArgumentError, "layout of 'x' is '': give 'grouped' or 'stacked'"),
        ("x", Family(qkv="a", layout="mixed"), ArgumentError, "layout of 'x' is 'mixed'"),
        ("x", Family(layout="stacked"), ArgumentError, "'' where there is none"),
    ],
)
def test_entries_that_are_not_filled_in(name, family, error, message, registered):
    with pytest.raises(error, match=message) as e:
        register_family(name, family)
    assert isinstance(e.value, llc_fast.errors.LlcFastError)
    assert not registered


def test_the_guides_example_runs(capsys):
    guide = Path(__file__).resolve().parent.parent / "docs" / "selection.md"
    exec("\n".join(re.findall(r"```python\n(.*?)```", guide.read_text(encoding="utf-8"), re.DOTALL)), {})
    assert capsys.readouterr().out == f"{8 * 32 * 4 + 3 * 8}\n"
