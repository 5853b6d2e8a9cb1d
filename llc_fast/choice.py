"""What an estimate's chains move: parameters, their numbers for the noise, and tiles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from .digests import weights_digest
from .errors import ArgumentError, ArgumentTypeError, ModelError
from .group import DTYPES
from .selection import Component, named_parameters, parameter_table, select
from .shard import Ranks, full, local, local_tiles
from .tiles import locate, view
from .types import Selection, Tile


def choose(
    model: nn.Module, component: Component | Selection, ranks: Ranks | None
) -> tuple[list[str], list[nn.Parameter], list[int], list[Tile], dict[str, Any]]:
    """Names, parameters, tensor_ids and tiles of what a chain moves, and what the settings say of them."""
    parameters = named_parameters(model)
    for name, p in parameters.items():
        if p.is_meta:
            raise ModelError(f"parameter {name!r} is a meta tensor without weights: load the model first")
    if isinstance(component, Selection):
        selection = component
        shapes = {name: tuple(p.shape) for name, p in parameters.items()}
        mine = selection.tensor_ids == parameter_table(model) and selection.boxes.keys() <= shapes.keys()
        if not mine or any(shapes[name] != selection.shapes.get(name) for name in selection.boxes):
            raise ArgumentError("component is a Selection of another model: select again from this one")
    else:
        selection = select(model, component)
    names = [name for name, boxes in selection.boxes.items() if boxes and parameters[name].requires_grad]
    frozen = [name for name, boxes in selection.boxes.items() if boxes and not parameters[name].requires_grad]
    if not names:
        raise ArgumentError(
            f"every parameter of component {selection.component!r} is frozen: set requires_grad of those that "
            "should move"
        )
    params = [parameters[name] for name in names]
    tiles = [Tile.of(i, box) for i, name in enumerate(names) for box in selection.boxes[name]]
    held = local_tiles(params, tiles)
    for i, (name, p) in enumerate(zip(names, params, strict=True)):
        _check_parameter(name, local(p), [tile for tile in held if tile.tensor == i], ranks)
    settings = {
        "component": selection.component,
        "weights": sum(tile.numel for tile in tiles),
        "frozen": frozen,
        "dtypes": sorted({str(p.dtype).removeprefix("torch.") for p in params}),
        "devices": sorted({str(p.device) for p in params}),
        "weights_sha256": weights_digest(
            (name, selection.boxes[name], full(parameters[name])) for name in names
        ),
    }
    return names, params, [selection.tensor_ids[name] for name in names], tiles, settings


def _check_parameter(name: str, p: torch.Tensor, tiles: Sequence[Tile], ranks: Ranks | None) -> None:
    if p.dtype not in DTYPES:
        raise ArgumentTypeError(f"parameter {name!r} is {p.dtype}: convert the model, as by model.float()")
    if p.layout != torch.strided:
        raise ArgumentTypeError(
            f"parameter {name!r} has layout {p.layout}: give a model with dense parameters"
        )
    if p.is_inference():
        raise ModelError(
            f"parameter {name!r} was made in inference mode and has no gradient: load the model outside"
        )
    if any(locate(p, tile) is None for tile in tiles):
        raise ArgumentError(
            f"parameter {name!r} has strides {p.stride()} for shape {tuple(p.shape)}, in which what is selected of "
            "it is no box of memory: make it contiguous"
        )
    finite = all(bool(view(p, tile).isfinite().all()) for tile in tiles)
    if not (finite if ranks is None else ranks.all(finite)):
        raise ModelError(f"parameter {name!r} holds weights that are not finite: repair the model")
