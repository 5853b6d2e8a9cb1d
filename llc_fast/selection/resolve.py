"""From component names to selections, and to masks in devinterp's form."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from ..errors import ComponentError
from ..types import Box, Selection
from .anatomy import Anatomy
from .boxes import union
from .grammar import JOIN, parse
from .listing import is_glob, matches, terms
from .names import Tree, table
from .parts import all_of, of_layer, of_model

Component = str | Sequence[str]


def select(model: nn.Module, component: Component) -> Selection:
    """The elements of a model's parameters that a component consists of.

    component: a name, a glob, or a list of these (their union; duplicates count once).

    - `full`: every parameter, frozen ones too.
    - `l3`: every parameter of decoder layer 3, its layer norms too. `l3 attn`: its self-attention
      module, so with output bias and query and key norms, without the layer norms around it.
      `l3 mlp`: its MLP or experts, without layer norms. `l3 norms`: its layer norms, and its norms of
      queries and keys. `l3 router`: what chooses between its experts.
    - `l3h5` (or `L3 H5`): of query head 5 of layer 3 the query rows, the key and value rows that it
      reads, their biases, and its columns of the output projection. Where query heads share a KV head
      (GQA), that KV head belongs to each of them: such heads overlap. What all heads share (the
      output bias, query and key norms with one weight for all) belongs to none.
    - `l3g1`: KV head 1 of layer 3 with all the query heads that read it.
    - `l3e5`: expert 5 of layer 3. `l3n17`: neuron 17 of its MLP: its rows of the projections up (and
      of the gate), their biases, and its column of the projection down.
    - `l3n0:64`: neurons 0 to 63; ranges of heads, groups and experts likewise.
    - `embed`: the token embedding; `pos_embed`: that of positions; `unembed`: the output head with its
      bias. Tied, embed and unembed are the same tensor. `norms`: every norm; `final_norm`: the last.
    - `lora`: every LoRA adapter; `l3 lora`, `l3h5 lora`: those of a part. Without that word a part
      consists of its own weights and their adapters, of a head its rows of B for queries, keys and
      values and its columns of A for the output.
    - a parameter's name, under any of its names. It goes before the other meanings.
    - a glob over component names or over parameter names: see `expand`.

    The selection is named canonically: the members of a union in natural order, joined by " + ",
    which `select` accepts too.

    Raises ComponentError where a component is unknown, out of range or empty, or where `full` is
    combined with others; ModelError where the model's structure cannot be told, with the entry for
    `register_family` that would tell it; ArgumentTypeError where the component is neither a string nor
    a list of strings.
    """
    anatomy = Anatomy.of(model)
    tree = anatomy.tree
    members = terms(anatomy, component)
    found: dict[str, list[Box]] = {}
    for term in members:
        for name, boxes in _pieces(anatomy, term):
            found.setdefault(name, []).extend(boxes)
    component = JOIN.join(members)
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


def _pieces(model: Anatomy, term: str) -> Iterator[tuple[str, tuple[Box, ...]]]:
    """Boxes by parameter of one term, which may come several times and overlap."""
    tree = model.tree
    if (name := tree.canonical(term)) is not None:
        yield all_of(tree, name)
    elif is_glob(model, term):
        for match in matches(model, term):
            yield from _pieces(model, match)
    elif (part := parse(term)) is not None:
        yield from of_layer(model, part)
    else:
        yield from (all_of(tree, name) for name in of_model(model, term))
