"""TransformerLens: a module of the tests with the parameters of its HookedTransformer, and the real ones."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from llc_fast.selection import components, create_param_masks, select
from llc_fast.types import Box

WIDE, HEADS, DIM, NEURONS, VOCABULARY = 24, 4, 6, 20, 23


class LayerNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(torch.ones(WIDE)), nn.Parameter(torch.zeros(WIDE))

    def forward(self, x: Tensor) -> Tensor:
        x = x - x.mean(-1, keepdim=True)
        return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * self.w + self.b


class Attention(nn.Module):
    """W_K and W_V are called _W_K and _W_V where query heads share them, as in TransformerLens."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.shared = "_" if groups < HEADS else ""
        for letter, count in (("Q", HEADS), ("K", groups), ("V", groups)):
            mark = "" if letter == "Q" else self.shared
            self.register_parameter(f"{mark}W_{letter}", nn.Parameter(torch.empty(count, WIDE, DIM)))
            self.register_parameter(f"{mark}b_{letter}", nn.Parameter(torch.empty(count, DIM)))
        self.W_O, self.b_O = nn.Parameter(torch.empty(HEADS, DIM, WIDE)), nn.Parameter(torch.empty(WIDE))
        self.hook_z = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        def project(letter: str) -> Tensor:
            mark = "" if letter == "Q" else self.shared
            weight, bias = getattr(self, f"{mark}W_{letter}"), getattr(self, f"{mark}b_{letter}")
            out = torch.einsum("bpm,hmd->bphd", x, weight) + bias
            return out.repeat_interleave(HEADS // len(weight), dim=2)

        scores = torch.einsum("bqhd,bkhd->bhqk", project("Q"), project("K")) / DIM**0.5
        later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        pattern = scores.masked_fill(later, float("-inf")).softmax(-1)
        z = self.hook_z(torch.einsum("bhqk,bkhd->bqhd", pattern, project("V")))
        return torch.einsum("bqhd,hdm->bqm", z, self.W_O) + self.b_O


class MLP(nn.Module):
    def __init__(self, gated: bool) -> None:
        super().__init__()
        self.W_in, self.W_out = (nn.Parameter(torch.empty(*s)) for s in ((WIDE, NEURONS), (NEURONS, WIDE)))
        self.b_in, self.b_out = nn.Parameter(torch.empty(NEURONS)), nn.Parameter(torch.empty(WIDE))
        self.W_gate = nn.Parameter(torch.empty(WIDE, NEURONS)) if gated else None
        self.hook_post = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        up = x @ self.W_in
        acts = (
            torch.tanh(up + self.b_in)
            if self.W_gate is None
            else torch.tanh(x @ self.W_gate) * up + self.b_in
        )
        return self.hook_post(acts) @ self.W_out + self.b_out


class Block(nn.Module):
    def __init__(self, groups: int, gated: bool) -> None:
        super().__init__()
        self.ln1, self.ln2 = LayerNorm(), LayerNorm()
        self.attn, self.mlp = Attention(groups), MLP(gated)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln1(x))
        return x + self.mlp(self.ln2(x))


class One(nn.Module):
    """A module with one parameter of its own, as TransformerLens has its embeddings."""

    def __init__(self, **parameters: tuple[int, ...]) -> None:
        super().__init__()
        for name, shape in parameters.items():
            self.register_parameter(name, nn.Parameter(torch.empty(shape)))


class HookedTransformer(nn.Module):
    """Named as the real one, which is how its entry is found."""

    def __init__(self, groups: int, gated: bool) -> None:
        super().__init__()
        self.embed = One(W_E=(VOCABULARY, WIDE))
        self.pos_embed = One(W_pos=(16, WIDE))
        self.blocks = nn.ModuleList(Block(groups, gated) for _ in range(2))
        self.ln_final = LayerNorm()
        self.unembed = One(W_U=(WIDE, VOCABULARY), b_U=(VOCABULARY,))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed.W_E[tokens] + self.pos_embed.W_pos[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.ln_final(x) @ self.unembed.W_U + self.unembed.b_U


def lens(groups: int = HEADS, gated: bool = False) -> nn.Module:
    return HookedTransformer(groups, gated)


def hooked(**more: object) -> nn.Module:
    """TransformerLens' own, which its version 4 no longer has."""
    try:
        from transformer_lens import HookedTransformer, HookedTransformerConfig
    except ImportError as e:
        pytest.skip(f"no HookedTransformer: {e}")
    size = {"n_layers": 2, "d_model": WIDE, "n_ctx": 16, "d_head": DIM, "n_heads": HEADS, "d_mlp": NEURONS}
    settings = {"d_vocab": VOCABULARY, "act_fn": "silu", "dtype": torch.float64, **more}
    return HookedTransformer(HookedTransformerConfig(**size, **settings))


def bridge(family: str) -> nn.Module:
    """TransformerLens' TransformerBridge around a model of transformers."""
    transformers = pytest.importorskip("transformers")
    sources = pytest.importorskip("transformer_lens.model_bridge.sources")
    if not hasattr(sources, "build_bridge_from_module"):
        pytest.skip("this transformer_lens cannot bridge a model that is at hand")
    size = {"vocab_size": VOCABULARY, "num_hidden_layers": 2, "num_attention_heads": HEADS}
    if family == "gpt2":
        config = transformers.GPT2Config(n_embd=WIDE, n_positions=32, bos_token_id=1, eos_token_id=2, **size)
        model = transformers.GPT2LMHeadModel(config)
    else:
        more = {"hidden_size": WIDE, "intermediate_size": NEURONS, "num_key_value_heads": 2}
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**size, **more))
    return sources.build_bridge_from_module(model, type(model).__name__, hf_config=model.config)


def test_parts_of_a_hooked_transformer():
    model = lens(groups=2, gated=True)
    names = [name for name in components(model) if "." not in name]
    assert names[:6] == ["full", "embed", "pos_embed", "unembed", "norms", "final_norm"]
    assert names[-10:] == [
        "l1", "l1 attn", "l1 mlp", "l1 norms", "l1h0", "l1h1", "l1h2", "l1h3", "l1g0", "l1g1",
    ]  # fmt: skip
    assert list(select(model, "embed").boxes) == ["embed.W_E"]
    assert list(select(model, "pos_embed").boxes) == ["pos_embed.W_pos"]
    assert list(select(model, "unembed").boxes) == ["unembed.W_U", "unembed.b_U"]
    assert list(select(model, "final_norm").boxes) == ["ln_final.b", "ln_final.w"]
    at = "blocks.1.attn."
    head = select(model, "l1h3").boxes
    assert list(head) == [f"{at}{n}" for n in ("W_O", "W_Q", "_W_K", "_W_V", "_b_K", "_b_V", "b_Q")]
    assert head[f"{at}W_Q"] == (Box(3 * WIDE * DIM, WIDE, DIM, DIM),)
    assert head[f"{at}_W_K"] == (Box(WIDE * DIM, WIDE, DIM, DIM),)
    assert select(model, "l1n3").boxes["blocks.1.mlp.W_in"] == (Box(3, WIDE, 1, NEURONS),)


@pytest.mark.parametrize("more", [{}, {"n_key_value_heads": 2, "gated_mlp": True}])
def test_the_module_of_the_tests_has_the_parameters_of_the_real_one(more):
    real = hooked(**more)
    mine = lens(groups=2, gated=True) if more else lens()
    assert {n: p.shape for n, p in mine.named_parameters()} == {
        n: p.shape for n, p in real.named_parameters()
    }


def test_experts_of_the_real_one():
    model = hooked(num_experts=4, experts_per_token=2, gated_mlp=True)
    assert list(select(model, "l1e2").boxes) == [
        f"blocks.1.mlp.experts.2.W_{w}.weight" for w in ("gate", "in", "out")
    ]
    assert list(select(model, "l1 router").boxes) == ["blocks.1.mlp.W_gate.weight"]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_bridge_has_one_name_a_parameter(family):
    model = bridge(family)
    assert select(model, "full").numel == sum(p.numel() for p in model.parameters())
    assert create_param_masks(model, "l1h3").keys() <= dict(model.named_parameters()).keys()
