"""Which slices of the attention's parameters make up one head, or one group of heads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..errors import ComponentError, ModelError
from ..types import Box
from . import families
from .boxes import span
from .names import Tree

_HEADS = ("num_heads", "num_attention_heads", "n_head", "n_heads")
_KV_HEADS = ("num_key_value_heads", "num_kv_heads", "n_kv_heads", "n_kv_head")
_HEAD_DIM = ("head_dim", "head_size", "d_head")
# "grouped": by KV head, its query heads, then its key, then its value; with as many KV heads as query
# heads that is q, k, v by head, with one it is all q, then k, then v. "stacked": all q, all k, all v.
_LAYOUT = {"query_key_value": "grouped", "c_attn": "stacked", "qkv_proj": "stacked", "Wqkv": "stacked"}
# Families that use one of these names for another layout; "" for one that is not supported.
_LAYOUT_OF = {
    ("gpt_bigcode", "c_attn"): "grouped",
    ("codegen", "qkv_proj"): "",
    ("chatglm", "query_key_value"): "",
}


@dataclass(frozen=True)
class Cut:
    """Where the heads start along one axis of a parameter, by query head and by KV head."""

    name: str
    shape: tuple[int, ...]
    axis: int
    query: tuple[int, ...] = ()
    kv: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True)
class Heads:
    """The heads of one layer: `count` query heads, `groups` KV heads, each `dim` elements of an axis."""

    count: int
    groups: int
    dim: int
    cuts: tuple[Cut, ...]

    def boxes(self, heads: range, group: int) -> Iterator[tuple[str, Box]]:
        """Slices of these query heads and of this KV head."""
        for cut in self.cuts:
            starts = [cut.query[head] for head in heads if cut.query]
            starts += cut.kv[group] if cut.kv else ()
            for start in starts:
                yield cut.name, span(cut.shape, cut.axis, start, start + self.dim)

    def head(self, head: int) -> Iterator[tuple[str, Box]]:
        return self.boxes(range(head, head + 1), head * self.groups // self.count)

    def group(self, group: int) -> Iterator[tuple[str, Box]]:
        size = self.count // self.groups
        return self.boxes(range(group * size, (group + 1) * size), group)


def heads(tree: Tree, layer: str) -> Heads:
    """The heads of a layer, from the sizes of its projections, checked against what the model declares.

    Raises ComponentError where the layer has no attention, ModelError where its projections are not
    known or their sizes do not fit together.
    """
    top = families.attention(tree, layer)
    if top is None:
        parts = ", ".join(child.rpartition(".")[2] for child in tree.children(layer)) or "nothing"
        raise ComponentError(f"{layer} has no attention and so no heads; it has {parts}")
    path, roles = next(((p, r) for p in tree.below(top) if (r := families.projections(tree, p))), (top, {}))
    if "o" not in roles:
        parts = ", ".join(child.rpartition(".")[2] for child in tree.children(path)) or "no modules"
        wanted = "query, key, value (or one fused) and output projections"
        raise ModelError(f"{path} has no {wanted} of a known name; it has {parts}")
    module, config = tree.modules[path], families.config_of(tree, path)
    count = families.number(_HEADS, module, config)
    if count is None:
        raise ModelError(f"neither {path} nor a config says how many heads there are ({', '.join(_HEADS)})")

    sides = {role: _Side.of(tree, child) for role, child in roles.items()}
    width = sides["o"].into
    dim = families.number(_HEAD_DIM, module, config) or width // count
    if width != count * dim:
        raise _misfit(path, sides, f"{count} heads of {dim} elements make {count * dim}")
    fused = "qkv" in sides
    kv_width = (sides["qkv"].out - width) // 2 if fused else sides["k"].out
    groups = kv_width // dim
    inner = groups * dim
    expected = {"qkv": width + 2 * inner} if fused else {"q": width, "k": inner, "v": inner}
    fits = all(sides[role].out == size for role, size in expected.items())
    if not fits or groups < 1 or count % groups:
        raise _misfit(path, sides, f"{count} query heads of {dim} elements do not fit")
    if (declared := _declared_groups(count, module, config)) not in (None, groups):
        raise _misfit(path, sides, f"the model declares {declared} KV heads of {dim} elements")

    output = sides["o"].cuts(inward=True, query=tuple(h * dim for h in range(count)))[:1]
    if fused:
        where = _fused(_layout(path, roles["qkv"], config), count, groups, dim)
        return Heads(count, groups, dim, (*sides["qkv"].cuts(**where), *output))
    query = sides["q"].cuts(query=tuple(h * dim for h in range(count)))
    shared = [cut for r in "kv" for cut in sides[r].cuts(kv=tuple((g * dim,) for g in range(groups)))]
    return Heads(count, groups, dim, (*query, *shared, *output))


@dataclass(frozen=True)
class _Side:
    """A projection's weight and bias, its sizes, and which axis of the weight its outputs lie on."""

    tree: Tree
    path: str
    axis: int

    @classmethod
    def of(cls, tree: Tree, path: str) -> _Side:
        module, weight = tree.modules[path], tree.parameters.get(f"{path}.weight")
        # Hugging Face's Conv1D, told by its `nf`, stores its weight as (in, out).
        transposed = hasattr(module, "nf") and not hasattr(module, "out_features")
        if weight is None or weight.ndim != 2 or not (transposed or hasattr(module, "out_features")):
            shape = "no weight" if weight is None else f"a weight of shape {tuple(weight.shape)}"
            kind = type(module).__name__
            raise ModelError(f"{path} is a {kind} with {shape}; heads need a Linear or a Conv1D")
        return cls(tree, path, int(transposed))

    @property
    def out(self) -> int:
        return self.tree.parameters[f"{self.path}.weight"].shape[self.axis]

    @property
    def into(self) -> int:
        return self.tree.parameters[f"{self.path}.weight"].shape[1 - self.axis]

    def cuts(self, *, inward: bool = False, **where: Any) -> list[Cut]:
        """Cuts of the weight, along its outputs or its inputs, and of the bias."""
        found = []
        for name, axis in ((f"{self.path}.weight", self.axis ^ inward), (f"{self.path}.bias", 0)):
            if (parameter := self.tree.parameters.get(name)) is not None:
                found.append(Cut(self.tree.smallest[name], tuple(parameter.shape), axis, **where))
        return found


def _fused(layout: str, count: int, groups: int, dim: int) -> dict[str, Any]:
    size = count // groups
    if layout == "stacked":
        query = list(range(count))
        kv = [(count + g, count + groups + g) for g in range(groups)]
    else:
        query = [(h // size) * (size + 2) + h % size for h in range(count)]
        kv = [(g * (size + 2) + size, g * (size + 2) + size + 1) for g in range(groups)]
    return {"query": tuple(q * dim for q in query), "kv": tuple((k * dim, v * dim) for k, v in kv)}


def _layout(path: str, projection: str, config: Any) -> str:
    name = projection.rpartition(".")[2]
    family = getattr(config, "model_type", None)
    layout = _LAYOUT_OF.get((str(family), name), _LAYOUT[name])
    if not layout:
        raise ModelError(f"how {family} lays out its heads in {path}.{name} is not known; select by layer")
    return layout


def _declared_groups(count: int, module: Any, config: Any) -> int | None:
    if (own := families.number(_KV_HEADS, module)) is not None:
        return own
    if (repeats := families.number(("num_key_value_groups",), module)) is not None:
        return count // repeats
    return families.number(_KV_HEADS[:1], config)


def _misfit(path: str, sides: dict[str, _Side], reason: str) -> ModelError:
    sizes = ", ".join(f"{role}: {side.into} -> {side.out}" for role, side in sides.items())
    return ModelError(f"the projections of {path} ({sizes}) cannot be cut into heads: {reason}")
