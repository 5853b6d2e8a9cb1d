"""Masks of parameters, as devinterp has them, as a selection."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from .errors import ArgumentError, ArgumentTypeError
from .masks import boxes, check
from .selection import Component, canonical_name, named_parameters, parameter_table, select
from .types import Box, Selection

MAX_BOXES = 1 << 20  # of a mask: more would take more memory than the weights


def selection_of(
    model: nn.Module, component: Component | Selection, masks: Mapping[str, Tensor | None] | None
) -> Component | Selection:
    """The component, or the weights that masks select: name -> boolean tensor of its shape, None for all of it."""
    if masks is None:
        return component
    if component != "full":
        raise ArgumentError("component and param_masks are both given: give one of them")
    if isinstance(masks, str) or not isinstance(masks, Mapping):
        raise ArgumentTypeError(
            f"param_masks is a {type(masks).__name__}: give a dictionary name -> mask (llc_fast.create_param_masks), "
            "or the name as component"
        )
    parameters = named_parameters(model)
    found: dict[str, tuple[Box, ...]] = {}
    for raw, mask in masks.items():
        name = canonical_name(model, raw)
        if name not in parameters:
            raise ArgumentError(f"param_masks names {raw!r}: the model has no such parameter")
        p = parameters[name]
        whole = [Box(0, 1, p.numel(), p.numel())]
        parts = whole if mask is None else boxes(check(f"param_masks[{raw!r}]", mask, p), MAX_BOXES)
        if parts is None:
            raise ArgumentError(f"param_masks[{raw!r}] has more than {MAX_BOXES} pieces: select whole rows")
        if name in found and found[name] != tuple(parts):
            raise ArgumentError(f"param_masks names {raw!r} twice, as its weights are tied: give one mask")
        found[name] = tuple(parts)
    if not any(found.values()):
        raise ArgumentError("param_masks selects no weight: give a mask that is true somewhere")
    chosen = {name: found[name] for name in sorted(found) if found[name]}
    shapes = {name: tuple(parameters[name].shape) for name in chosen}
    full = select(model, "full")
    if (
        all(Selection("", chosen, shapes, {}).covers(name) for name in chosen)
        and chosen.keys() == full.boxes.keys()
    ):
        return full
    return Selection("param_masks", chosen, shapes, parameter_table(model))
