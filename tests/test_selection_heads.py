"""Heads against the real forward pass of each family: what a head selects is what its output depends on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from llc_fast.selection import create_param_masks, select

transformers = pytest.importorskip("transformers")

LAYER = 1
TEXT = {"vocab_size": 23, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


@dataclass(frozen=True)
class Family:
    """A tiny model: its class, its config, where layer `{}`'s output projection is, and its heads."""

    model: str
    config: dict[str, Any]
    output: str
    heads: int
    groups: int
    dim: int

    def build(self) -> torch.nn.Module:
        torch.manual_seed(0)
        name = (
            self.config.get("config")
            or self.model.replace("ForCausalLM", "").replace("LMHeadModel", "") + "Config"
        )
        config = getattr(transformers, name)(**{k: v for k, v in self.config.items() if k != "config"})
        config._attn_implementation = "eager"
        model = getattr(transformers, self.model)(config).double().eval()
        for p in model.parameters():  # zero biases and unit norms would hide mistakes
            torch.nn.init.normal_(p, std=0.3)
        return model


def llama_like(name: str, heads: int, groups: int, dim: int, hidden: int = 24, **more: Any) -> Family:
    size = {"hidden_size": hidden, "intermediate_size": 20, "num_hidden_layers": 2}
    shape = {"num_attention_heads": heads, "num_key_value_heads": groups, "head_dim": dim}
    config = {**TEXT, **size, **shape, "max_position_embeddings": 32, **more}
    return Family(f"{name}ForCausalLM", config, "model.layers.{}.self_attn.o_proj", heads, groups, dim)


def other(name: str, output: str, heads: int, groups: int, dim: int, **config: Any) -> Family:
    return Family(name, {**TEXT, **config}, output, heads, groups, dim)


BIG = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2}
GPT2 = {"n_embd": 24, "n_head": 3, "n_layer": 2, "n_positions": 32}
BLOOM = {"hidden_size": 24, "n_head": 3, "n_layer": 2}
FALCON = {**BIG, "bias": True, "alibi": False}
FALCON_GQA = {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2}
NEOX_AT, OPT_AT = "gpt_neox.layers.{}.attention.dense", "model.decoder.layers.{}.self_attn.out_proj"
GPT2_AT, BLOOM_AT = "transformer.h.{}.attn.c_proj", "transformer.h.{}.self_attention.dense"
FAMILIES = {
    "gpt_neox": other("GPTNeoXForCausalLM", NEOX_AT, 4, 4, 8, **BIG, intermediate_size=20),
    "gpt2": other("GPT2LMHeadModel", GPT2_AT, 3, 3, 8, **GPT2),
    "llama": llama_like("Llama", 4, 2, 6),
    "llama_mqa": llama_like("Llama", 4, 1, 10, attention_bias=True),
    "qwen2": llama_like("Qwen2", 4, 2, 6),
    "qwen3": llama_like("Qwen3", 6, 2, 10),
    "gemma3": llama_like("Gemma3", 4, 2, 10, config="Gemma3TextConfig", hidden=20),
    # Found by structure alone.
    "mistral": llama_like("Mistral", 6, 3, 10),
    "starcoder2": llama_like("Starcoder2", 4, 2, 6, use_bias=True),
    "phi3": llama_like("Phi3", 4, 2, 6),
    "phi": other("PhiForCausalLM", "model.layers.{}.self_attn.dense", 4, 4, 8, **BIG, intermediate_size=20),
    "opt": other("OPTForCausalLM", OPT_AT, 4, 4, 8, **BIG, ffn_dim=20, word_embed_proj_dim=32),
    "gptj": other("GPTJForCausalLM", "transformer.h.{}.attn.out_proj", 3, 3, 8, **GPT2, rotary_dim=4),
    "bloom": other("BloomForCausalLM", BLOOM_AT, 3, 3, 8, **BLOOM),
    "falcon_mqa": other("FalconForCausalLM", BLOOM_AT, 4, 1, 8, **FALCON),
    "falcon_gqa": other("FalconForCausalLM", BLOOM_AT, 4, 2, 8, **FALCON_GQA),
    "bigcode_mqa": other("GPTBigCodeForCausalLM", GPT2_AT, 3, 1, 8, **GPT2),
    "bigcode_mha": other("GPTBigCodeForCausalLM", GPT2_AT, 3, 3, 8, **GPT2, multi_query=False),
}
IDS = torch.randint(3, 23, (2, 7), generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=FAMILIES, scope="module")
def case(request: pytest.FixtureRequest) -> tuple[Family, torch.nn.Module]:
    family = FAMILIES[request.param]
    return family, family.build()


def head_outputs(model: torch.nn.Module, output: str) -> torch.Tensor:
    """What the output projection of the layer reads: (batch, token, heads, dim) when cut up."""
    seen = []
    handle = model.get_submodule(output).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    try:
        model(input_ids=IDS)
    finally:
        handle.remove()
    return seen[0]


def masks_of(model: torch.nn.Module, component: str) -> dict[str, torch.Tensor]:
    found = create_param_masks(model, component)
    parameters = dict(model.named_parameters())
    return {n: torch.ones_like(parameters[n], dtype=torch.bool) if m is None else m for n, m in found.items()}


def test_a_head_is_what_its_output_depends_on(case):
    family, model = case
    output = family.output.format(LAYER)
    attention = {
        n: p
        for n, p in model.named_parameters()
        if n.startswith(output.rpartition(".")[0]) and "norm" not in n
    }
    x = head_outputs(model, output).unflatten(-1, (family.heads, family.dim))
    weight = torch.randn(x.shape[:2] + x.shape[3:], generator=torch.Generator().manual_seed(2), dtype=x.dtype)
    for head in range(family.heads):
        total = (x[:, :, head] * weight).sum()
        grads = torch.autograd.grad(total, list(attention.values()), retain_graph=True, allow_unused=True)
        masks = masks_of(model, f"l{LAYER}h{head}")
        for (name, parameter), grad in zip(attention.items(), grads, strict=True):
            if name.startswith(output + "."):
                assert grad is None  # the output projection comes after
                continue
            used = torch.zeros_like(parameter, dtype=torch.bool) if grad is None else grad != 0
            mask = masks.get(name, torch.zeros_like(used))
            if parameter.ndim == 2:
                assert torch.equal(used, mask), name
            else:  # attention may not depend on a key bias, but never on a bias outside the head
                assert not (used & ~mask).any(), name
                assert (used | ~mask).sum() >= mask.numel() - family.dim, name


def test_zeroing_a_head_silences_it_and_no_other(case):
    family, model = case
    output = family.output.format(LAYER)
    parameters = dict(model.named_parameters())
    size = family.heads // family.groups

    def changed(masks: dict[str, torch.Tensor], value: float) -> tuple[torch.Tensor, list[bool]]:
        saved = {n: parameters[n].detach().clone() for n in masks}
        with torch.no_grad():
            before = head_outputs(model, output)
            for n, mask in masks.items():
                parameters[n].mul_(1 + (value - 1) * mask)
            after = head_outputs(model, output)
            for n, old in saved.items():
                parameters[n].copy_(old)
        moved = (after - before).unflatten(-1, (family.heads, family.dim)).abs().amax(dim=(0, 1, 3))
        return after.unflatten(-1, (family.heads, family.dim)), (moved > 1e-10).tolist()

    for head in range(family.heads):
        group = head // size
        mine = {n: m for n, m in masks_of(model, f"l{LAYER}h{head}").items() if not n.startswith(output)}
        after, moved = changed(mine, 0.0)
        assert not after[:, :, head].any()  # values are zero, so the output is
        assert moved == [h // size == group for h in range(family.heads)]
        if size > 1:  # what the head does not share with its group moves it alone
            other = masks_of(model, f"l{LAYER}h{group * size + (head + 1) % size}")
            query = {n: m & ~other[n] if n in other else m for n, m in mine.items()}
            assert changed(query, 2.0)[1] == [h == head for h in range(family.heads)]


def test_output_columns_read_only_their_head(case):
    family, model = case
    module = model.get_submodule(family.output.format(LAYER))
    with torch.no_grad():
        x = head_outputs(model, family.output.format(LAYER))
        old = module.weight.clone()
        for head in range(family.heads):
            mask = masks_of(model, f"l{LAYER}h{head}")[family.output.format(LAYER) + ".weight"]
            assert family.output.format(LAYER) + ".bias" not in masks_of(model, f"l{LAYER}h{head}")
            only = torch.zeros(family.heads, family.dim, dtype=x.dtype)
            only[head] = 1
            alone, rest = x * only.flatten(), x * (1 - only.flatten())
            want = module(alone), module(rest)
            module.weight[mask] = 0
            bias = 0 if getattr(module, "bias", None) is None else module.bias
            assert torch.equal(module(rest), want[1])
            assert torch.equal(module(alone), torch.zeros_like(want[0]) + bias)
            assert (want[0] - bias).abs().max() > 0.01
            module.weight.copy_(old)


def test_heads_make_up_the_attention(case):
    family, model = case
    output = family.output.format(LAYER)
    attention, every = masks_of(model, f"l{LAYER} attn"), masks_of(model, f"l{LAYER}h*")
    assert all(mask.all() for mask in every.values())
    left = {name.removeprefix(output.rpartition(".")[0] + ".") for name in attention.keys() - every.keys()}
    bias = output.rpartition(".")[2] + ".bias"
    assert left <= {bias, "q_norm.weight", "k_norm.weight"}
    assert (bias in left) == (f"{output}.bias" in dict(model.named_parameters()))
    assert every.keys() <= attention.keys()

    heads = [select(model, f"l{LAYER}h{h}").numel for h in range(family.heads)]
    groups = [select(model, f"l{LAYER}g{g}").numel for g in range(family.groups)]
    union = select(model, f"l{LAYER}h*").numel
    hidden = model.get_input_embeddings().weight.shape[1]
    projections = [n for n in every if not n.startswith(output)]
    biased = sum(every[n].numel() for n in projections if every[n].ndim == 1) > 0
    row = family.dim * (hidden + biased)
    assert heads == [3 * row + family.dim * hidden] * family.heads
    assert sum(groups) == union
    assert union == family.heads * (row + family.dim * hidden) + family.groups * 2 * row


def test_boxes_are_few(case):
    family, model = case
    for name, boxes in select(model, f"l{LAYER}h0").boxes.items():
        assert len(boxes) <= (1 if f"{family.output.format(LAYER)}." in name else 3)
    assert all(len(boxes) == 1 for boxes in select(model, f"l{LAYER}h*").boxes.values())


def test_nested_language_model():
    text = {k: v for k, v in FAMILIES["gemma3"].config.items() if k != "config"}
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
