"""From one word or part of a layer to the boxes of the parameters that it means."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ..errors import ComponentError
from ..types import Box
from .anatomy import Anatomy
from .attention import heads
from .boxes import whole
from .grammar import Part
from .mlp import experts, neurons
from .names import Tree, is_adapter


def of_model(model: Anatomy, word: str) -> Iterable[str]:
    """Names of the parameters that a word without a layer means."""
    every = set(model.tree.smallest.values())
    if word == "full":
        return every
    if word == "norms":
        return model.norms()
    if word == "lora":
        return filter(is_adapter, every)
    return model.embedding(word)


def of_layer(model: Anatomy, part: Part) -> Iterator[tuple[str, tuple[Box, ...]]]:
    """Boxes by parameter of a layer or a part of it; a parameter may come twice."""
    yield from (piece for piece in _of_layer(model, part) if not part.lora or is_adapter(piece[0]))


def _of_layer(model: Anatomy, part: Part) -> Iterator[tuple[str, tuple[Box, ...]]]:
    layers = model.layers
    if not layers:
        raise model.unknown(f"{part}: no list of transformer layers was found in this model", ComponentError)
    if part.layer >= len(layers):
        last = len(layers) - 1
        raise ComponentError(f"{part}: layer {part.layer} is out of range, the model has layers 0 to {last}")
    layer = layers[part.layer]
    if len(part.kind) == 1:
        yield from ((name, (box,)) for name, box in _counted(model, layer, part))
        return
    paths = [layer]
    if part.kind == "attn":
        paths = [path] if (path := model.attention(layer)) else []
    elif part.kind in ("mlp", "router"):
        paths = model.mlp(layer) if part.kind == "mlp" else model.router(layer)
    names = model.norms(layer) if part.kind == "norms" else [n for p in paths for n in model.tree.inside(p)]
    if not names:
        parts = ", ".join(child.rpartition(".")[2] for child in model.tree.children(layer)) or "no modules"
        raise ComponentError(f"{part}: {layer} has no such part; it has {parts}")
    yield from (all_of(model.tree, name) for name in names)


def _counted(model: Anatomy, layer: str, part: Part) -> Iterator[tuple[str, Box]]:
    """Boxes of heads, groups, experts or neurons."""
    which = range(part.index, part.stop)
    found: Iterator[tuple[str, Box]]
    if part.kind in "hg":
        own = model.once(heads, layer)
        word, count = ("head", own.count) if part.kind == "h" else ("group", own.groups)
        one = own.head if part.kind == "h" else own.group
        found = (piece for index in which for piece in one(index))
    elif part.kind == "e":
        those = model.once(experts, layer)
        word, count, found = "expert", those.count, those.boxes(which)
    else:
        some = model.once(neurons, layer)
        word, count, found = "neuron", some.count, some.boxes(which)
    if not which or part.stop > count:
        wrong = f"{word} {part.stop - 1} is out of range" if which else "the range is empty"
        raise ComponentError(f"{part}: {wrong}, {layer} has {word}s 0 to {count - 1}")
    return found


def all_of(tree: Tree, name: str) -> tuple[str, tuple[Box, ...]]:
    """Every element of a parameter."""
    return name, whole(tree.parameters[name].shape)
