"""Which slices of the attention's parameters make up one head, or one group of heads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from ..errors import ComponentError, ModelError
from ..types import Box
from .anatomy import Anatomy, number
from .guess import HEADS
from .projections import Axis, Projection

_KV_HEADS = ("num_key_value_heads", "num_kv_heads", "n_kv_heads", "n_kv_head", "n_key_value_heads")
_HEAD_DIM = ("head_dim", "head_size", "d_head")
_WANTED = "query, key, value (or one fused) and output projections of a known name"


@dataclass(frozen=True)
class Cut:
    """Where on one axis the heads start, by query head or by KV head, and how much each takes."""

    axis: Axis
    size: int
    query: tuple[int, ...] = ()
    kv: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True)
class Heads:
    """The heads of one layer: `count` query heads, `groups` KV heads."""

    count: int
    groups: int
    cuts: list[Cut] = field(default_factory=list)

    def boxes(self, heads: range, group: int) -> Iterator[tuple[str, Box]]:
        """Slices of these query heads and of this KV head."""
        for cut in self.cuts:
            starts = [cut.query[head] for head in heads if cut.query]
            starts += cut.kv[group] if cut.kv else ()
            yield from (cut.axis.cut(start, start + cut.size) for start in starts)

    def head(self, head: int) -> Iterator[tuple[str, Box]]:
        return self.boxes(range(head, head + 1), head * self.groups // self.count)

    def group(self, group: int) -> Iterator[tuple[str, Box]]:
        size = self.count // self.groups
        return self.boxes(range(group * size, (group + 1) * size), group)

    def by_query(self, axes: Iterable[Axis], size: int) -> None:
        """Cut axes along which the query heads lie one after the other."""
        starts = tuple(h * size for h in range(self.count))
        self.cuts.extend(Cut(axis, size, query=starts) for axis in axes)

    def by_kv(self, axes: Iterable[Axis], size: int) -> None:
        """Cut axes along which the KV heads lie one after the other."""
        starts = tuple((g * size,) for g in range(self.groups))
        self.cuts.extend(Cut(axis, size, kv=starts) for axis in axes)


def heads(model: Anatomy, layer: str) -> Heads:
    """The heads of a layer, from the sizes of its projections, checked against what the model declares.

    Raises ComponentError where the layer has no attention, ModelError where its projections are not
    known or their sizes do not fit together.
    """
    top = model.attention(layer)
    if top is None:
        parts = ", ".join(c.rpartition(".")[2] for c in model.tree.children(layer)) or "nothing"
        reason = f"{layer} has no attention and so no heads; it has {parts}"
        if model.entry is None and not model.family.attn:
            raise model.unknown(reason)
        raise ComponentError(reason)
    roles = {role: paths[0] for role in ("q", "k", "v", "qkv", "o") if (paths := model.present(layer, role))}
    fused = not {"q", "k", "v"} <= roles.keys()
    if "o" not in roles or (fused and "qkv" not in roles):
        raise model.unknown(f"{top} has no {_WANTED}; it has {_contents(model, top)}")
    roles = {role: path for role, path in roles.items() if role == "o" or (role == "qkv") == fused}
    if fused and not model.family.layout:
        raise ModelError(f"how {roles['qkv']} lays out its heads is not known; select by layer")
    sides = {role: Projection.of(model.tree, path) for role, path in roles.items()}
    if all(len(side.shape) == 3 for side in sides.values()):
        return _stacked(top, sides)

    module, config = model.tree.modules[roles["o"].rpartition(".")[0]], model.config(top)
    count = _number(model.family.heads, HEADS, module, config)
    if count is None:
        reason = f"neither {top} nor a config says how many heads there are ({', '.join(HEADS)})"
        raise model.unknown(reason)
    width = sides["o"].into
    dim = _number(model.family.head_dim, _HEAD_DIM, module, config) or width // count
    if width != count * dim:
        raise _misfit(top, sides, f"{count} heads of {dim} elements make {count * dim}")
    kv_width = (sides["qkv"].out - width) // 2 if fused else sides["k"].out
    groups = kv_width // dim
    inner = groups * dim
    expected = {"qkv": width + 2 * inner} if fused else {"q": width, "k": inner, "v": inner}
    fits = all(sides[role].out == size for role, size in expected.items())
    if not fits or groups < 1 or count % groups:
        raise _misfit(top, sides, f"{count} query heads of {dim} elements do not fit")
    if (declared := _declared_groups(model.family.kv_heads, count, module, config)) not in (None, groups):
        raise _misfit(top, sides, f"the model declares {declared} KV heads of {dim} elements")

    found = Heads(count, groups)
    if fused:
        query, kv = _fused(model.family.layout, count, groups, dim)
        found.cuts.extend(Cut(axis, dim, query, kv) for axis in sides["qkv"].outputs())
    else:
        found.by_query(sides["q"].outputs(), dim)
        found.by_kv(sides["k"].outputs(), dim)
        found.by_kv(sides["v"].outputs(), dim)
    found.by_query(sides["o"].inputs(), dim)
    found.by_query(_own_norms(model, layer, "q_norm", count, dim), dim)
    found.by_kv(_own_norms(model, layer, "k_norm", groups, dim), dim)
    return found


def _stacked(top: str, sides: dict[str, Projection]) -> Heads:
    """Parameters with the heads on their first axis."""
    count, groups = (sides[role].shape[0] for role in "qk")
    if sides["o"].shape[0] != count or sides["v"].shape[0] != groups or count % groups:
        raise _misfit(top, sides, "their first axes are no numbers of heads")
    found = Heads(count, groups)
    first = {role: [side.along(side.weight, 0)] for role, side in sides.items()}
    for role in "qkv":
        side = sides[role]
        first[role] += [side.along(side.bias, 0)] if side.bias in side.tree.parameters else []
    found.by_query(first["q"] + first["o"], 1)
    found.by_kv(first["k"] + first["v"], 1)
    return found


def _own_norms(model: Anatomy, layer: str, which: str, count: int, dim: int) -> list[Axis]:
    """Axes of those norms' parameters that hold elements for each head, not the same for all heads."""
    found = []
    for path in model.present(layer, which):
        for name in model.tree.inside(path):
            shape = tuple(model.tree.parameters[name].shape)
            if count > 1 and shape == (count * dim,):
                found.append(Axis(name, shape, 0))
            elif shape == (count, dim):
                # The heads lie one after the other in memory, as in a vector.
                found.append(Axis(name, (count * dim,), 0))
    return found


def _fused(
    layout: str, count: int, groups: int, dim: int
) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]:
    size = count // groups
    if layout == "stacked":
        query = list(range(count))
        kv = [(count + g, count + groups + g) for g in range(groups)]
    else:
        query = [(h // size) * (size + 2) + h % size for h in range(count)]
        kv = [(g * (size + 2) + size, g * (size + 2) + size + 1) for g in range(groups)]
    return tuple(q * dim for q in query), tuple((k * dim, v * dim) for k, v in kv)


def _number(own: int | str, usual: tuple[str, ...], *sources: Any) -> int | None:
    if isinstance(own, int):
        return own
    return number((own,) if own else usual, *sources)


def _declared_groups(own: int | str, count: int, module: Any, config: Any) -> int | None:
    if own:
        return _number(own, (), module, config)
    if (found := number(_KV_HEADS, module)) is not None:
        return found
    if (repeats := number(("num_key_value_groups",), module)) is not None:
        return count // repeats
    return number(_KV_HEADS[:1], config)


def _contents(model: Anatomy, path: str) -> str:
    modules = [child.rpartition(".")[2] for child in model.tree.children(path)]
    bare = [n.rpartition(".")[2] for n in model.tree.inside(path) if n.rpartition(".")[0] == path]
    return ", ".join(modules + bare) or "no modules"


def _misfit(path: str, sides: dict[str, Projection], reason: str) -> ModelError:
    sizes = ", ".join(f"{role}: {side.size}" for role, side in sides.items())
    return ModelError(f"the projections of {path} ({sizes}) cannot be cut into heads: {reason}")
