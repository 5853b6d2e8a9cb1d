"""Where each family of models keeps its parts: one table entry a family."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace

from ..errors import ArgumentError, ArgumentTypeError

LAYOUTS = ("", "grouped", "stacked")


@dataclass(frozen=True, kw_only=True)
class Family:
    """The names under which a family of models keeps its parts, as its parameter names show them.

    A field may list several names, separated by spaces: those that a layer has count. "" means that there
    is no such part, unless said otherwise. docs/selection.md has an example.

    layers: path of the list of decoder layers, or the end of it; "" to find it. The names from `attn` to
    `router` are relative to one layer: in `model.layers.0.self_attn.q_proj.weight`, q is `self_attn.q_proj`.

    attn: the self-attention module. q, k, v, o: its projections. qkv: one projection for q, k and v, with
    its layout: "grouped" is by KV head, its query heads, then its key, then its value; "stacked" is all q,
    all k, all v. q_norm, k_norm: norms of the queries and keys; where they have a weight for each head's
    own elements, that is part of the head.
    mlp: the modules of the MLP. up: the projections into the neurons, of the gate too; gate_up: one
    projection for both, gates first; down: the projection out of the neurons.
    experts: a list of modules, or a module whose parameters have the experts on their first axis. router:
    what chooses between them.

    embed, pos_embed, unembed, final_norm: modules outside of the layers, by their paths or the ends of them.
    embed and unembed: "" asks the model (get_input_embeddings), then looks for usual names.

    heads, kv_heads, head_dim: a number, or the name of the attribute of the attention module or of the
    model's config that holds it; "" looks for usual names.

    A projection is a Linear or a Conv1D with a weight and perhaps a bias, or a bare parameter as
    TransformerLens has it: W_Q (heads, d_model, d_head), W_O (heads, d_head, d_model), W_in
    (d_model, neurons), W_out (neurons, d_model), and b_Q the bias of W_Q.
    """

    layers: str = ""
    attn: str = ""
    q: str = ""
    k: str = ""
    v: str = ""
    qkv: str = ""
    layout: str = ""
    o: str = ""
    q_norm: str = ""
    k_norm: str = ""
    mlp: str = ""
    up: str = ""
    gate_up: str = ""
    down: str = ""
    experts: str = ""
    router: str = ""
    embed: str = ""
    pos_embed: str = ""
    unembed: str = ""
    final_norm: str = ""
    heads: int | str = ""
    kv_heads: int | str = ""
    head_dim: int | str = ""


_LLAMA = Family(
    attn="self_attn",
    q="self_attn.q_proj",
    k="self_attn.k_proj",
    v="self_attn.v_proj",
    o="self_attn.o_proj",
    q_norm="self_attn.q_norm",
    k_norm="self_attn.k_norm",
    mlp="mlp",
    up="mlp.gate_proj mlp.up_proj",
    down="mlp.down_proj",
    final_norm="norm",
)
# transformers 4 calls Mixtral's module block_sparse_moe and keeps the experts in a list.
_MOE = replace(
    _LLAMA,
    mlp="mlp block_sparse_moe",
    experts="mlp.experts block_sparse_moe.experts",
    router="mlp.gate block_sparse_moe.gate",
)
_PHI = replace(
    _LLAMA,
    o="self_attn.dense",
    q_norm="self_attn.q_layernorm",
    k_norm="self_attn.k_layernorm",
    up="mlp.fc1",
    down="mlp.fc2",
    final_norm="final_layernorm",
)
_PHI3 = replace(
    _LLAMA,
    **dict.fromkeys(("q", "k", "v", "up"), ""),
    qkv="self_attn.qkv_proj",
    layout="stacked",
    gate_up="mlp.gate_up_proj",
)
_NEOX = Family(
    attn="attention",
    qkv="attention.query_key_value",
    layout="grouped",
    o="attention.dense",
    mlp="mlp",
    up="mlp.dense_h_to_4h",
    down="mlp.dense_4h_to_h",
    final_norm="final_layer_norm",
)
_BLOOM = replace(
    _NEOX,
    attn="self_attention",
    qkv="self_attention.query_key_value",
    o="self_attention.dense",
    final_norm="ln_f",
)
_PERSIMMON = replace(
    _NEOX,
    attn="self_attn",
    qkv="self_attn.query_key_value",
    o="self_attn.dense",
    final_norm="final_layernorm",
)
_GPT2 = Family(
    attn="attn",
    qkv="attn.c_attn",
    layout="stacked",
    o="attn.c_proj",
    mlp="mlp",
    up="mlp.c_fc",
    down="mlp.c_proj",
    pos_embed="wpe",
    final_norm="ln_f",
)
_GPT_NEO = Family(
    attn="attn",
    q="attn.attention.q_proj",
    k="attn.attention.k_proj",
    v="attn.attention.v_proj",
    o="attn.attention.out_proj",
    mlp="mlp",
    up="mlp.c_fc",
    down="mlp.c_proj",
    pos_embed="wpe",
    final_norm="ln_f",
)
_GPTJ = Family(
    attn="attn",
    q="attn.q_proj",
    k="attn.k_proj",
    v="attn.v_proj",
    o="attn.out_proj",
    mlp="mlp",
    up="mlp.fc_in",
    down="mlp.fc_out",
    final_norm="ln_f",
)
_OPT = replace(
    _LLAMA,
    o="self_attn.out_proj",
    mlp="fc1 fc2",
    up="fc1",
    down="fc2",
    pos_embed="embed_positions",
    final_norm="final_layer_norm",
)
_MPT = Family(
    attn="attn",
    qkv="attn.Wqkv",
    layout="stacked",
    o="attn.out_proj",
    mlp="ffn",
    up="ffn.up_proj",
    down="ffn.down_proj",
    final_norm="norm_f",
)
_LENS = Family(
    layers="blocks",
    attn="attn",
    q="attn.W_Q",
    k="attn.W_K attn._W_K",
    v="attn.W_V attn._W_V",
    o="attn.W_O",
    q_norm="attn.q_norm",
    k_norm="attn.k_norm",
    mlp="mlp",
    up="mlp.W_in mlp.W_gate",
    down="mlp.W_out",
    experts="mlp.experts",
    router="mlp.W_gate",
    embed="embed",
    pos_embed="pos_embed",
    unembed="unembed",
    final_norm="ln_final",
)
# The bridge computes with q, k and v of its own also where the model that it wraps has one for all three.
_BRIDGE = replace(
    _LENS,
    q="attn.q",
    k="attn.k",
    v="attn.v",
    o="attn.o",
    up="mlp.in mlp.gate",
    down="mlp.out",
    experts="",
    router="",
)

# By `config.model_type`, or by the name of the model's class where that has no such config.
TABLE: dict[str, Family] = {
    "bloom": _BLOOM,
    # The order of its heads depends on the TPU that it was trained on: no layout, so an error for heads.
    "codegen": replace(_GPTJ, **dict.fromkeys("qkv", ""), qkv="attn.qkv_proj"),
    "falcon": _BLOOM,
    "gemma2": _LLAMA,
    "gemma3_text": _LLAMA,
    "gpt2": _GPT2,
    "gpt_bigcode": replace(_GPT2, layout="grouped"),
    "gpt_neo": _GPT_NEO,
    "gpt_neox": _NEOX,
    "gpt_neox_japanese": _NEOX,
    "gptj": _GPTJ,
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "mixtral": _MOE,
    "mpt": _MPT,
    "olmo": _LLAMA,
    "olmo2": _LLAMA,
    "opt": _OPT,
    "persimmon": _PERSIMMON,
    "phi": _PHI,
    "phi3": _PHI3,
    "qwen2": _LLAMA,
    "qwen2_moe": _MOE,
    "qwen3": _LLAMA,
    "qwen3_moe": _MOE,
    "starcoder2": replace(_LLAMA, up="mlp.c_fc", down="mlp.c_proj"),
    "HookedTransformer": _LENS,
    "TransformerBridge": _BRIDGE,
}
_registered: dict[str, Family] = {}


def register_family(name: str, family: Family) -> None:
    """Tell `select` where the models of a family keep their parts; goes before what it knows itself.

    name: the `model_type` of the model's config, or the name of the model's class. A second entry of a name
    replaces the first. Raises ArgumentTypeError and ArgumentError for an entry that is not filled in.
    """
    if not isinstance(name, str):
        raise ArgumentTypeError(f"name must be a model_type or a class name, got {type(name).__name__}")
    if not isinstance(family, Family):
        raise ArgumentTypeError(f"family must be a llc_fast.selection.Family, got {type(family).__name__}")
    for field in fields(family):
        value, number = getattr(family, field.name), "int" in str(field.type)
        if not isinstance(value, str | int if number else str) or isinstance(value, bool):
            kind = "a number or the name of an attribute" if number else "a string"
            raise ArgumentTypeError(f"{field.name} of {name!r} must be {kind}, got {value!r}: fill it in")
    if family.layout not in LAYOUTS or bool(family.layout) != bool(family.qkv):
        wanted = "'grouped' or 'stacked' where there is a qkv, '' where there is none"
        raise ArgumentError(f"layout of {name!r} is {family.layout!r}: give {wanted}")
    _registered[name] = family


def find(names: Iterable[str]) -> Family | None:
    """The first of these names' entries, any registered one before any built-in one."""
    known = list(names)
    return next((table[n] for table in (_registered, TABLE) for n in known if n in table), None)
