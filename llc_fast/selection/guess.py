"""The entry that the names of an unknown model's modules suggest; what they leave open stays empty."""

from __future__ import annotations

from .families import Family
from .names import Tree

# A fused projection is never guessed: families use the same name for different orders of heads.
_SEPARATE = (
    ("q_proj", "k_proj", "v_proj"),
    ("query", "key", "value"),
    ("wq", "wk", "wv"),
    ("q_lin", "k_lin", "v_lin"),
)
_NORMS = (("q_norm", "k_norm"), ("q_layernorm", "k_layernorm"))
_OUTPUT = ("o_proj", "out_proj", "dense", "c_proj", "wo", "out_lin")
_ATTENTION = ("self_attn", "attn", "attention", "self_attention")
_MLP = ("mlp", "feed_forward", "ffn", "ff", "block_sparse_moe", "moe", "shared_mlp", "fc1", "fc2")
_NEURONS = (
    (("gate_proj", "up_proj"), "down_proj"),
    (("up_proj",), "down_proj"),
    (("w1", "w3"), "w2"),
    (("w1",), "w2"),
    (("fc1",), "fc2"),
    (("c_fc",), "c_proj"),
    (("fc_in",), "fc_out"),
    (("lin1",), "lin2"),
    (("dense_h_to_4h",), "dense_4h_to_h"),
)
_ROUTER = ("gate", "router")
HEADS = ("num_heads", "num_attention_heads", "n_head", "n_heads")
OUTSIDE = {
    "embed": "embed_tokens wte embed_in word_embeddings tok_embeddings embedding embed",
    "pos_embed": "wpe embed_positions position_embeddings pos_embed pos_emb",
    "unembed": "lm_head embed_out output unembed",
    "final_norm": "norm ln_f final_layer_norm final_layernorm final_norm norm_f ln_final",
}


def family(tree: Tree, layers: list[str]) -> Family:
    """An entry with the usual names that these layers have."""
    found: dict[str, dict[str, None]] = {}
    for layer in layers:
        for field, path in _parts(tree, layer):
            found.setdefault(field, {})[path.removeprefix(f"{layer}.")] = None
    return Family(**{field: " ".join(names) for field, names in found.items()})


def attentions(tree: Tree, layer: str) -> list[str]:
    """Modules of a layer called like attention, else those with the projections of one inside."""
    children = tree.children(layer)
    named = [child for child in children if _last(child) in _ATTENTION]
    return named or [child for child in children if any(_projections(tree, p) for p in tree.below(child))]


def _parts(tree: Tree, layer: str) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for top in attentions(tree, layer):
        found.append(("attn", top))
        roles = next((r for p in tree.below(top) if (r := _projections(tree, p))), {})
        found += roles.items()
    own = _children(tree, layer)
    mlps = [own[name] for name in _MLP if name in own]
    found += [("mlp", path) for path in mlps]
    for path in (layer, *mlps):
        inner = _children(tree, path)
        for ups, down in _NEURONS:
            if down in inner and all(name in inner for name in ups):
                found += [*(("up", inner[name]) for name in ups), ("down", inner[down])]
                break
        if path != layer and "experts" in inner:
            found.append(("experts", inner["experts"]))
            found += [("router", inner[name]) for name in _ROUTER if name in inner]
    return found


def _projections(tree: Tree, path: str) -> dict[str, str]:
    """Paths of what a module has by role: q, k, v, o and norms. Empty where it has no q, k and v."""
    own = _children(tree, path)
    for names in _SEPARATE:
        if all(name in own for name in names):
            out = next(({"o": own[name]} for name in _OUTPUT if name in own), {})
            norms = next((ns for ns in _NORMS if all(name in own for name in ns)), ())
            out |= {role: own[name] for role, name in zip(("q_norm", "k_norm"), norms, strict=False)}
            return dict(zip("qkv", (own[name] for name in names), strict=True)) | out
    return {}


def _children(tree: Tree, path: str) -> dict[str, str]:
    return {_last(child): child for child in tree.children(path)}


def _last(path: str) -> str:
    return path.rpartition(".")[2]
