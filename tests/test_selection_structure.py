"""Structure that is worked out from a model: families without an entry, parts that are missing or do not fit."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from test_selection import build, model_of
from torch import nn

from llc_fast.errors import ComponentError, ModelError
from llc_fast.selection import components, select
from llc_fast.types import Box


class Homemade(nn.Module):
    """A transformer of nobody's library, with its own words for things."""

    def __init__(self, **heads: int) -> None:
        super().__init__()
        self.config = SimpleNamespace(n_layers=2, **heads)
        self.tok_embeddings = nn.Embedding(11, 12)
        self.blocks = nn.ModuleList(nn.ModuleDict() for _ in range(2))
        for block in self.blocks:
            wide, narrow = nn.Linear(12, 16), nn.Linear(12, 8)
            block["mixing"] = nn.ModuleDict(
                {"wq": wide, "wk": narrow, "wv": nn.Linear(12, 8), "wo": nn.Linear(16, 12)}
            )
            block["feed_forward"] = nn.Linear(12, 12)
        self.output = nn.Linear(12, 11)


def test_a_homemade_transformer_is_found_by_structure():
    model = Homemade(n_heads=4)
    head = select(model, "l1h3")
    assert head.boxes["blocks.1.mixing.wq.weight"] == (Box(12 * 12, 4, 12, 12),)
    assert head.boxes["blocks.1.mixing.wk.bias"] == (Box(4, 1, 4, 4),)
    assert head.boxes["blocks.1.mixing.wo.weight"] == (Box(12, 12, 4, 16),)
    assert list(select(model, "unembed").boxes) == ["output.bias", "output.weight"]
    assert list(select(model, "embed").boxes) == ["tok_embeddings.weight"]
    assert list(select(model, "l0 mlp").boxes) == [
        "blocks.0.feed_forward.bias",
        "blocks.0.feed_forward.weight",
    ]


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        ({}, "how many heads"),
        ({"n_heads": 3}, r"q: 12 -> 16.*3 heads of 5"),
        ({"n_heads": 4, "head_dim": 5}, r"4 heads of 5 elements make 20"),
        ({"n_heads": 4, "num_key_value_heads": 4}, "declares 4 KV heads"),
    ],
)
def test_heads_that_do_not_fit_say_what_was_found(heads, message):
    with pytest.raises(ModelError, match=message):
        select(Homemade(**heads), "l0h0")
    with pytest.raises(ModelError, match=message):
        select(Homemade(**heads), "l*h*")
    assert "l0 mlp" in components(Homemade(**heads))


def test_a_layer_without_attention():
    model = build("llama")
    del model.model.layers[1].self_attn
    assert [n for n in components(model) if n.startswith("l1")] == ["l1", "l1 mlp", "l1 norms"]
    assert select(model, "l0h1").boxes == select(model_of("llama"), "l0h1").boxes
    with pytest.raises(ComponentError, match=r"no attention.*mlp"):
        select(model, "l1h0")
    with pytest.raises(ComponentError, match=r"no such part.*mlp"):
        select(model, "l1 attn")


def test_unknown_projections_say_what_was_found():
    model = build("llama")
    attention = model.model.layers[0].self_attn
    attention.query_stuff = attention.q_proj
    del attention.q_proj
    with pytest.raises(ModelError, match=r"self_attn has no .* it has .*query_stuff"):
        select(model, "l0h0")
    assert select(model, "l0 attn").numel > 0
    model = build("llama")
    model.model.layers[0].self_attn.q_proj = nn.Bilinear(2, 2, 2)
    with pytest.raises(ModelError, match=r"q_proj is a Bilinear with a weight of shape \(2, 2, 2\)"):
        select(model, "l0h0")
