"""From component names to selections, and to masks in devinterp's form."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from ..errors import ComponentError
from ..types import Box, Selection
from . import families, grammar
from .attention import heads
from .boxes import union, whole
from .names import Tree, table

Component = str | Sequence[str]


def select(model: nn.Module, component: Component) -> Selection:
    """The elements of a model's parameters that a component consists of.

    component: a name, a glob, or a list of these (their union; duplicates count once).

    - `full`: every parameter, frozen ones too.
    - `l3`: every parameter of decoder layer 3, its layer norms too. `l3 attn`: its self-attention
      module, so with output bias and query and key norms, without the layer norms around it.
      `l3 mlp`: its MLP or experts, without layer norms.
    - `l3h5` (or `L3 H5`): of query head 5 of layer 3 the query rows, the key and value rows that it
      reads, their biases, and its columns of the output projection. Where query heads share a KV head
      (GQA), that KV head belongs to each of them: such heads overlap. What all heads share (the
      output bias, query and key norms) belongs to none.
    - `l3g1`: KV head 1 of layer 3 with all the query heads that read it.
    - `embed`: the token embedding; `unembed`: the output head with its bias. Tied, both are the same
      tensor.
    - a parameter's name, under any of its names. It goes before the other meanings.
    - a glob over component names or over parameter names: see `expand`.

    The selection is named canonically: the members of a union in natural order, joined by " + ",
    which `select` accepts too.

    Raises ComponentError where a component is unknown, out of range or empty, or where `full` is
    combined with others; ModelError where the model's structure cannot be told; ArgumentTypeError
    where the component is neither a string nor a list of strings.
    """
    tree = Tree.of(model)
    terms = grammar.terms(tree, component)
    found: dict[str, list[Box]] = {}
    for term in terms:
        for name, boxes in _pieces(tree, term):
            found.setdefault(name, []).extend(boxes)
    component = grammar.JOIN.join(terms)
    shapes = {name: tuple(tree.parameters[name].shape) for name in sorted(found) if found[name]}
    if not shapes:
        raise ComponentError(f"{component!r} selects nothing: the model has no such elements")
    unions = {name: union(shape, found[name]) for name, shape in shapes.items()}
    return Selection(component, unions, shapes, table(tree))


def create_param_masks(model: nn.Module, restriction: Component) -> dict[str, torch.Tensor | None]:
    """Masks of the selected parameters, as devinterp's function of this name returns them.

    Names are those of `model.named_parameters()`, wrappers included, in its order. None selects the
    whole parameter, a boolean tensor of its shape on the CPU the elements where it is true; parameters
    without a selected element are left out. restriction and errors: as for `select`.
    """
    selection, tree = select(model, restriction), Tree.of(model)
    masks: dict[str, torch.Tensor | None] = {}
    for raw, _ in model.named_parameters():
        name = tree.smallest[tree.names[raw]]
        if name in selection.boxes:
            masks[raw] = None if selection.covers(name) else selection.mask(name)
    return masks


def _pieces(tree: Tree, term: str) -> Iterator[tuple[str, tuple[Box, ...]]]:
    if (name := tree.canonical(term)) is not None:
        yield _all(tree, name)
    elif grammar.is_glob(tree, term):
        for match in grammar.matches(tree, term):
            yield from _pieces(tree, match)
    elif term == "full":
        yield from (_all(tree, name) for name in set(tree.smallest.values()))
    elif term in ("embed", "unembed"):
        yield from (_all(tree, name) for name in families.embedding(tree, term))
    elif (part := grammar.parse(term)) is not None:
        yield from _of_layer(tree, part)


def _of_layer(tree: Tree, part: grammar.Part) -> Iterator[tuple[str, tuple[Box, ...]]]:
    layers = families.layers(tree)
    if not layers:
        raise ComponentError(f"{part}: no list of transformer layers was found in this model")
    if part.layer >= len(layers):
        last = len(layers) - 1
        raise ComponentError(f"{part}: layer {part.layer} is out of range, the model has layers 0 to {last}")
    layer = layers[part.layer]
    if part.kind in ("h", "g"):
        own = heads(tree, layer)
        word, count = ("head", own.count) if part.kind == "h" else ("group", own.groups)
        if part.index >= count:
            have = f"{layer} has {word}s 0 to {count - 1}"
            raise ComponentError(f"{part}: {word} {part.index} is out of range, {have}")
        pieces = own.head(part.index) if part.kind == "h" else own.group(part.index)
        yield from ((name, (box,)) for name, box in pieces)
        return
    if part.kind == "attn":
        paths = [path] if (path := families.attention(tree, layer)) else []
    else:
        paths = families.mlp(tree, layer) if part.kind == "mlp" else [layer]
    names = [name for path in paths for name in tree.inside(path)]
    if not names:
        parts = ", ".join(child.rpartition(".")[2] for child in tree.children(layer)) or "no modules"
        raise ComponentError(f"{part}: {layer} has no such part; it has {parts}")
    yield from (_all(tree, name) for name in names)


def _all(tree: Tree, name: str) -> tuple[str, tuple[Box, ...]]:
    return name, whole(tree.parameters[name].shape)
