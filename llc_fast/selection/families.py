"""Where a transformer keeps its layers, attention, MLP and embeddings: found by structure, a few names."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from torch import nn

from ..errors import ComponentError, ModelError
from .names import Tree

# Naming variants; a new family usually needs one more word in one of these.
SEPARATE = (
    ("q_proj", "k_proj", "v_proj"),
    ("query", "key", "value"),
    ("wq", "wk", "wv"),
    ("q_lin", "k_lin", "v_lin"),
)
FUSED = ("query_key_value", "c_attn", "qkv_proj", "Wqkv")
OUTPUT = ("o_proj", "out_proj", "dense", "c_proj", "wo", "out_lin")
ATTENTION = ("self_attn", "attn", "attention", "self_attention")
MLP = ("mlp", "feed_forward", "ffn", "ff", "block_sparse_moe", "moe", "shared_mlp", "fc1", "fc2")
EMBED = ("embed_tokens", "wte", "embed_in", "word_embeddings", "tok_embeddings", "embedding", "embed")
UNEMBED = ("lm_head", "embed_out", "output", "unembed")
LAYER_COUNT = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
# A tower beside the language model, or the encoder beside its decoder.
_ASIDE = re.compile(r"vision|visual|image|audio|encoder|tower")


def config_of(tree: Tree, path: str = "") -> Any:
    """The config of the module at a path, else of the language model, else None."""
    config = getattr(tree.modules[path], "config", None) or getattr(tree.modules[""], "config", None)
    return getattr(config, "text_config", None) or config


def number(names: Iterable[str], *sources: Any) -> int | None:
    """The first integer that one of the sources, in their order, has under one of the names."""
    for source in sources:
        for name in names:
            value = getattr(source, name, None)
            if isinstance(value, int) and not isinstance(value, bool):
                return value
    return None


def layers(tree: Tree) -> list[str]:
    """Paths of the decoder layers, in order; empty where the model has no such list.

    Raises ModelError where several lists of layers could be meant.
    """
    count = number(LAYER_COUNT, config_of(tree))
    lists = {
        path: children
        for path, module in tree.modules.items()
        if isinstance(module, nn.ModuleList)
        and (children := tree.children(path))
        and (len(children) == count or any(_attentions(tree, child) for child in children))
    }
    outer = [path for path in lists if not any(path.startswith(f"{other}.") for other in lists)]
    for better in (
        [path for path in outer if any(_attentions(tree, child) for child in lists[path])],
        [path for path in outer if not _ASIDE.search(path)],
        [path for path in outer if len(lists[path]) == count],
    ):
        # Each sieve counts only where it leaves something: BERT's only list is called an encoder.
        outer = [path for path in outer if path in better] or outer
    if len(outer) > 1:
        lists_found = ", ".join(outer)
        raise ModelError(f"the model has several lists of layers ({lists_found}); select by parameter names")
    return lists[outer[0]] if outer else []


def attention(tree: Tree, layer: str) -> str | None:
    """Path of the self-attention of a layer, None where it has none.

    Raises ModelError where it has several.
    """
    found = _attentions(tree, layer)
    if len(found) > 1:
        modules = ", ".join(found)
        raise ModelError(f"{layer} has several attention modules ({modules}); select by parameter names")
    return found[0] if found else None


def _attentions(tree: Tree, layer: str) -> list[str]:
    children = tree.children(layer)
    named = [child for child in children if child.rpartition(".")[2] in ATTENTION]
    return named or [child for child in children if any(projections(tree, p) for p in tree.below(child))]


def projections(tree: Tree, path: str) -> dict[str, str]:
    """Paths of a module's own projections by role: q, k, v or qkv, and o. Empty where it has none."""
    own = {child.rpartition(".")[2]: child for child in tree.children(path)}
    out = {"o": found[0]} if (found := [own[name] for name in OUTPUT if name in own]) else {}
    for names in SEPARATE:
        if all(name in own for name in names):
            return dict(zip("qkv", (own[name] for name in names), strict=True)) | out
    return next(({"qkv": own[name]} | out for name in FUSED if name in own), {})


def mlp(tree: Tree, layer: str) -> list[str]:
    """Paths of the modules that make up the MLP (or the mixture of experts) of a layer."""
    return [child for child in tree.children(layer) if child.rpartition(".")[2] in MLP]


def embedding(tree: Tree, which: str) -> list[str]:
    """Parameter names of the token embedding (`embed`) or of the output head (`unembed`).

    Raises ComponentError where the model has none.
    """
    method, names = {
        "embed": ("get_input_embeddings", EMBED),
        "unembed": ("get_output_embeddings", UNEMBED),
    }[which]
    try:
        module = getattr(tree.modules[""], method)()
    except (AttributeError, NotImplementedError):
        module = None
    if isinstance(module, nn.Module) and (ids := {id(p) for p in module.parameters()}):
        return [name for name, p in tree.parameters.items() if id(p) in ids and tree.smallest[name] == name]
    stacks = tuple(f"{path}." for path in layers(tree))
    for name in names:
        paths = [p for p in tree.modules if p.rpartition(".")[2] == name and not p.startswith(stacks)]
        if stacks and paths and (found := tree.inside(min(paths, key=len))):
            return found
    raise ComponentError(
        f"no {which}ding was found in this {type(tree.modules['']).__name__}; name its parameter"
    )
