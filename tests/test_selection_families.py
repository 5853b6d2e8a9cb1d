"""The table of families that selection is tested on, one row each, and what holds for every row."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from test_selection_lens import bridge, hooked, lens
from torch import Tensor, nn

from llc_fast.selection import components, create_param_masks, select
from llc_fast.selection.families import TABLE

transformers = pytest.importorskip("transformers")

LAYER = 1
IDS = torch.randint(3, 23, (2, 7), generator=torch.Generator().manual_seed(1))
TEXT = {"vocab_size": 23, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


@dataclass(frozen=True)
class Row:
    """A tiny model. reads, acts: the modules of layer `{}` that read the heads and the neurons."""

    build: Callable[[], nn.Module]
    reads: str
    heads: int
    groups: int
    dim: int
    acts: str = ""
    neurons: int = 0
    coupled: bool = False  # its norms of queries and keys are over all heads


def hugging(name: str, reads: str, heads: int, groups: int, dim: int, acts: str, neurons: int,
            coupled: bool = False, config: str = "", **more: Any) -> Row:  # fmt: skip
    def build() -> nn.Module:
        kind = config or name.replace("ForCausalLM", "").replace("LMHeadModel", "") + "Config"
        settings = getattr(transformers, kind)(**TEXT, **more)
        settings._attn_implementation = settings._experts_implementation = "eager"
        return getattr(transformers, name)(settings)

    return Row(build, reads, heads, groups, dim, acts, neurons, coupled)


def llama(name: str, heads: int, groups: int, dim: int, hidden: int = 24, neurons: int = 20,
          acts: str = "model.layers.{}.mlp.down_proj", **more: Any) -> Row:  # fmt: skip
    size = {"hidden_size": hidden, "intermediate_size": 20, "num_hidden_layers": 2}
    shape = {"num_attention_heads": heads, "num_key_value_heads": groups, "head_dim": dim}
    config = {**size, **shape, "max_position_embeddings": 32, **more}
    reads = "model.layers.{}.self_attn.o_proj"
    return hugging(f"{name}ForCausalLM", reads, heads, groups, dim, acts, neurons, **config)


def gpt2(name: str, reads: str, heads: int, groups: int, acts: str, **more: Any) -> Row:
    config = {"n_embd": 24, "n_head": 3, "n_layer": 2, "n_positions": 32, **more}
    return hugging(name, f"transformer.h.{{}}.attn.{reads}", heads, groups, 8,
                   f"transformer.h.{{}}.mlp.{acts}", 96, **config)  # fmt: skip


BIG = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2}
PHI = {**BIG, "intermediate_size": 20}
BLOOM = {"hidden_size": 24, "n_head": 3, "n_layer": 2}
NEO = {"hidden_size": 24, "num_layers": 2, "num_heads": 3, "attention_types": [[["global", "local"], 1]],
       "window_size": 4, "max_position_embeddings": 32}  # fmt: skip
MPT = {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 32}
FALCON = {**BIG, "bias": True, "alibi": False}
FALCON_GQA = {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12}
SHARED = {**MOE, "shared_expert_intermediate_size": 14}
MIXTRAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
NO_NEURONS = {"neurons": 0, "acts": ""}
PHI_AT, PHI_ACTS = "model.layers.{}.self_attn.dense", "model.layers.{}.mlp.fc2"
NEOX_AT, NEOX_ACTS = "gpt_neox.layers.{}.attention.dense", "gpt_neox.layers.{}.mlp.dense_4h_to_h"
BLOOM_AT, BLOOM_ACTS = "transformer.h.{}.self_attention.dense", "transformer.h.{}.mlp.dense_4h_to_h"
OPT_AT, OPT_ACTS = "model.decoder.layers.{}.self_attn.out_proj", "model.decoder.layers.{}.fc2"
NEO_AT, NEO_ACTS = "transformer.h.{}.attn.attention.out_proj", "transformer.h.{}.mlp.c_proj"
JAPANESE = {"intermediate_multiple_size": 4, **BIG}
JAPANESE_AT = "gpt_neox_japanese.layers.{}.attention.dense"
JAPANESE_ACTS = "gpt_neox_japanese.layers.{}.mlp.dense_4h_to_h"
PERSIMMON = {**PHI, "hidden_act": "gelu"}  # with relu, neurons could be dead
PERSIMMON_ACTS = "model.layers.{}.mlp.dense_4h_to_h"
MPT_AT, MPT_ACTS = "transformer.blocks.{}.attn.out_proj", "transformer.blocks.{}.ffn.down_proj"
OPT = {**BIG, "ffn_dim": 20, "word_embed_proj_dim": 32, "activation_function": "gelu"}
LENS = {"reads": "blocks.{}.attn.hook_z", "acts": "blocks.{}.mlp.hook_post", "heads": 4, "dim": 6}
BRIDGE = {"reads": "blocks.{}.attn.o", "acts": "blocks.{}.mlp.out", "dim": 6}
GATED = {"gated_mlp": True, "normalization_type": "RMS", "positional_embedding_type": "rotary"}

FAMILIES = {
    "gpt_neox": hugging("GPTNeoXForCausalLM", NEOX_AT, 4, 4, 8, NEOX_ACTS, 20, **PHI),
    "gpt2": gpt2("GPT2LMHeadModel", "c_proj", 3, 3, "c_proj"),
    "gpt_neo": hugging("GPTNeoForCausalLM", NEO_AT, 3, 3, 8, NEO_ACTS, 96, **NEO),
    "llama": llama("Llama", 4, 2, 6, mlp_bias=True),
    "llama_mqa": llama("Llama", 4, 1, 10, attention_bias=True),
    "mistral": llama("Mistral", 6, 3, 10),
    "mixtral": llama("Mixtral", 4, 2, 6, **MIXTRAL, **NO_NEURONS),
    "qwen2": llama("Qwen2", 4, 2, 6),
    "qwen2_moe": llama("Qwen2Moe", 4, 2, 6, **SHARED, **NO_NEURONS),
    "qwen3": llama("Qwen3", 6, 2, 10),
    "qwen3_moe": llama("Qwen3Moe", 6, 2, 10, **MOE, **NO_NEURONS),
    "gemma2": llama("Gemma2", 4, 2, 10, hidden=20),
    "gemma3": llama("Gemma3", 4, 2, 10, config="Gemma3TextConfig", hidden=20),
    "olmo": llama("Olmo", 4, 2, 6),
    "olmo2": llama("Olmo2", 4, 2, 6, coupled=True),
    "starcoder2": llama("Starcoder2", 4, 2, 6, use_bias=True, acts="model.layers.{}.mlp.c_proj"),
    "phi": hugging("PhiForCausalLM", PHI_AT, 4, 4, 8, PHI_ACTS, 20, **PHI),
    "phi_norms": hugging("PhiForCausalLM", PHI_AT, 4, 4, 8, PHI_ACTS, 20, **PHI, qk_layernorm=True),
    "phi3": llama("Phi3", 4, 2, 6),
    "opt": hugging("OPTForCausalLM", OPT_AT, 4, 4, 8, OPT_ACTS, 20, **OPT),
    "gptj": gpt2("GPTJForCausalLM", "out_proj", 3, 3, "fc_out", rotary_dim=4),
    "bloom": hugging("BloomForCausalLM", BLOOM_AT, 3, 3, 8, BLOOM_ACTS, 96, **BLOOM),
    "falcon_mqa": hugging("FalconForCausalLM", BLOOM_AT, 4, 1, 8, BLOOM_ACTS, 128, **FALCON),
    "falcon_gqa": hugging("FalconForCausalLM", BLOOM_AT, 4, 2, 8, BLOOM_ACTS, 128, **FALCON_GQA),
    "bigcode_mqa": gpt2("GPTBigCodeForCausalLM", "c_proj", 3, 1, "c_proj"),
    "bigcode_mha": gpt2("GPTBigCodeForCausalLM", "c_proj", 3, 3, "c_proj", multi_query=False),
    "mpt": hugging("MptForCausalLM", MPT_AT, 4, 4, 8, MPT_ACTS, 128, **MPT),
    "gpt_neox_japanese": hugging(
        "GPTNeoXJapaneseForCausalLM", JAPANESE_AT, 4, 4, 8, JAPANESE_ACTS, 128, **JAPANESE
    ),
    "persimmon": hugging("PersimmonForCausalLM", PHI_AT, 4, 4, 8, PERSIMMON_ACTS, 20, **PERSIMMON),
    # Found by the usual names alone, without an entry.
    "stablelm": llama("StableLm", 4, 2, 6, use_qkv_bias=True),
    "granite": llama("Granite", 4, 2, 6),
    "cohere_norms": llama("Cohere", 4, 2, 6, use_qk_norm=True),
    # TransformerLens: its parameters in a module of the tests, and where it is installed the real ones.
    "lens": Row(lens, groups=4, neurons=20, **LENS),
    "lens_gqa": Row(lambda: lens(groups=2, gated=True), groups=2, neurons=20, **LENS),
    "hooked": Row(hooked, groups=4, neurons=20, **LENS),
    "hooked_gqa": Row(lambda: hooked(n_key_value_heads=2, **GATED), groups=2, neurons=20, **LENS),
    "bridge_gpt2": Row(lambda: bridge("gpt2"), heads=4, groups=4, neurons=96, **BRIDGE),
    "bridge_llama": Row(lambda: bridge("llama"), heads=4, groups=2, neurons=20, **BRIDGE),
}
WITHOUT_HEADS = {"codegen"}  # its entry is for neurons and the like; test_selection_unknown.py has it


@cache
def built(name: str) -> nn.Module:
    """The model of a row, whose weights tests leave as they were."""
    torch.manual_seed(0)
    model = FAMILIES[name].build().double().eval()
    for p in model.parameters():  # zero biases and unit norms would hide mistakes
        nn.init.normal_(p, std=0.3)
    return model


def masks_of(model: nn.Module, component: str) -> dict[str, Tensor]:
    found = create_param_masks(model, component)
    parameters = dict(model.named_parameters())
    return {n: torch.ones_like(parameters[n], dtype=torch.bool) if m is None else m for n, m in found.items()}


@contextmanager
def moved(model: nn.Module, masks: dict[str, Tensor]) -> Iterator[None]:
    """The model with noise on these elements."""
    parameters = dict(model.named_parameters())
    noise = torch.Generator().manual_seed(3)
    with torch.no_grad():
        saved = {n: parameters[n].clone() for n in masks}
        for n, mask in masks.items():
            parameters[n] += 0.1 * mask * torch.randn(mask.shape, generator=noise, dtype=torch.float64)
        try:
            yield
        finally:
            for n, old in saved.items():
                parameters[n].copy_(old)


def run(model: nn.Module, reads: str, keep: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """What a module of the layer reads, and what the module that it is part of then returns.

    keep: what that module is made to read of it: 1 or 0 by element of the last axes.
    """
    read: list[Tensor] = []
    out: list[Tensor] = []

    def take(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        read.append(args[0])
        if keep is None:
            return args
        return ((args[0].reshape(-1, keep.numel()) * keep.view(-1)).view_as(args[0]), *args[1:])

    def end(_: nn.Module, __: Any, result: Any) -> None:
        out.append(result[0] if isinstance(result, tuple) else result)

    path = reads.format(LAYER)
    handles = [
        model.get_submodule(path).register_forward_pre_hook(take),
        model.get_submodule(path.rpartition(".")[0]).register_forward_hook(end),
    ]
    try:
        model(IDS)
    finally:
        for handle in handles:
            handle.remove()
    return read[0], out[0]


def check_moves(model: nn.Module, reads: str, shape: tuple[int, int], masks: dict[str, Tensor],
                own: set[int]) -> None:  # fmt: skip
    """Noise on these elements changes what is read of these units of `shape` and of no other, and the
    result through these units and through no other."""
    mine = torch.zeros(shape, dtype=torch.float64)
    mine[sorted(own)] = 1
    with torch.no_grad():
        (before, _), (_, others), (_, alone) = (run(model, reads, keep) for keep in (None, 1 - mine, mine))
        with moved(model, masks):
            after = run(model, reads)[0]
            assert torch.equal(run(model, reads, 1 - mine)[1], others)
            assert (run(model, reads, mine)[1] - alone).abs().max() > 1e-3
    changed = (before - after).abs().reshape(-1, *shape).amax(dim=(0, 2))
    assert {unit for unit in range(shape[0]) if changed[unit] != 0} == own
    assert changed[sorted(own)].min() > 1e-3


@pytest.mark.parametrize("name", [n for n, row in FAMILIES.items() if row.neurons])
def test_a_neurons_weights_move_it_and_no_other(name):
    model, row = built(name), FAMILIES[name]
    last = row.neurons - 1
    for component, own in ((f"l{LAYER}n0", {0}), (f"l{LAYER}n{last}", {last}), (f"L{LAYER} N2:5", {2, 3, 4})):
        check_moves(model, row.acts, (row.neurons, 1), masks_of(model, component), own)


@pytest.mark.parametrize("name", [n for n, row in FAMILIES.items() if row.neurons and "bridge" not in n])
def test_neurons_make_up_the_mlp(name):
    model, row = built(name), FAMILIES[name]
    every, mlp = select(model, f"l{LAYER}n0:{row.neurons}"), select(model, f"l{LAYER} mlp")
    assert every.numel == row.neurons * select(model, f"l{LAYER}n1").numel  # they do not overlap
    assert all(every.covers(n) for n in every.boxes)
    left = mlp.boxes.keys() - every.boxes.keys()
    assert every.boxes.keys() <= mlp.boxes.keys()
    assert all("b" in n.rpartition(".")[2] and mlp.shapes[n] != (row.neurons,) for n in left)  # the output's


@pytest.mark.parametrize("name", FAMILIES)
def test_attention_mlp_and_norms_make_up_a_layer(name):
    model = built(name)
    layer = select(model, f"l{LAYER}")
    parts = [part for part in ("attn", "mlp", "norms") if f"l{LAYER} {part}" in components(model)]
    assert {"attn", "mlp"} <= set(parts)
    assert ("norms" in parts) == ("norms" in components(model)) == (name != "olmo")
    assert select(model, [f"l{LAYER} {part}" for part in parts]).boxes == layer.boxes
    attn, mlp = (select(model, f"l{LAYER} {part}").boxes.keys() for part in ("attn", "mlp"))
    assert not attn & mlp


def test_every_entry_has_a_row():
    covered = set()
    for name in FAMILIES:
        if name not in ("hooked", "hooked_gqa", "bridge_gpt2", "bridge_llama"):
            model = built(name)
            covered.add(getattr(getattr(model, "config", None), "model_type", type(model).__name__))
    assert set(TABLE) - WITHOUT_HEADS - {"TransformerBridge"} <= covered
