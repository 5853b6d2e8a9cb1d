"""Which elements of an optimizer's parameters move, and what counts their noise."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from .. import masks
from ..errors import ArgumentError, ArgumentTypeError
from ..functional import plain_name
from ..tiles import unpack
from ..types import Box, Selection, Tile


def chosen_boxes(group: Mapping[str, Any], selection: Selection | None) -> dict[Tensor, tuple[Box, ...]]:
    """The selected boxes of a group's parameters; those without any are left out."""
    if selection is None:
        return {}
    names = group.get("param_names")
    if names is None:
        raise ArgumentError("params has no names, which selection needs: give model.named_parameters()")
    found = {}
    for name, p in zip(names, group["params"], strict=True):
        boxes = selection.boxes.get(plain_name(name))
        if boxes:
            shape = selection.shapes[plain_name(name)]
            if tuple(p.shape) != tuple(shape):
                raise ArgumentError(
                    f"selection is of a model whose {name!r} has shape {tuple(shape)}, here it is "
                    f"{tuple(p.shape)}: select from this model"
                )
            found[p] = boxes
    return found


def tensor_ids(groups: Sequence[Mapping[str, Any]], selection: Selection | None) -> list[list[int]]:
    """The tensor_id of every parameter, group by group."""
    sizes = [len(group["params"]) for group in groups]
    names = [plain_name(n) for group in groups for n in group.get("param_names", [])]
    flat = list(range(sum(sizes)))
    if len(names) == len(flat):
        if len(set(names)) != len(names):
            raise ArgumentError("params has a name twice: give each parameter once, under its own name")
        rank: Mapping[str, int] = {name: i for i, name in enumerate(sorted(names))}
        if selection is not None:
            rank = selection.tensor_ids
            unknown = [name for name in names if name not in rank]
            if unknown:
                raise ArgumentError(f"selection knows no {unknown[0]!r}: select from this model")
        flat = [rank[name] for name in names]
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    return [flat[end - size : end] for end, size in zip(ends, sizes, strict=True)]


def given_masks(mask: Any, params: Sequence[Tensor]) -> list[Tensor | None]:
    """One boolean mask a parameter, None for all of it."""
    if mask is None:
        return [None] * len(params)
    given = [mask] if isinstance(mask, Tensor) else list(mask) if isinstance(mask, Iterable) else None
    if given is None:
        raise ArgumentTypeError(f"mask is a {type(mask).__name__}: give one boolean tensor a parameter")
    if len(given) != len(params):
        raise ArgumentError(f"mask has {len(given)} entries for {len(params)} params: give one each")
    pairs = enumerate(zip(given, params, strict=True))
    return [None if m is None else masks.check(f"mask[{i}]", m, p) for i, (m, p) in pairs]


def moving_tiles(
    params: Sequence[Tensor], boxes: Sequence[Sequence[Box]] | None, packed: Sequence[Tensor | None]
) -> tuple[list[Tile] | None, list[Tensor | None] | None]:
    """What moves of these parameters: tiles, and bits where masks take too many of them; None for everything."""
    if boxes is not None:
        return [Tile.of(i, box) for i, own in enumerate(boxes) for box in own], None
    if all(bits is None for bits in packed):
        return None, None
    given = [
        None
        if bits is None
        else unpack(bits, Tile(0, 1, p.numel(), 0, p.numel(), 0, p.numel())).view(p.shape)
        for bits, p in zip(packed, params, strict=True)
    ]
    return masks.tiles(params, given)
