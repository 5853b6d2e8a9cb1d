"""Arbitrary boolean masks: boxes where they are few, a bit an element where they are many."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .errors import ArgumentError, ArgumentTypeError
from .tiles import locate, pack, whole
from .types import Box, Tile

CAP = 1024  # boxes of a tensor, above which its elements are told apart by bits


def boxes(mask: Tensor, cap: int = CAP) -> list[Box] | None:
    """The disjoint boxes whose elements are exactly those where the mask is true, or None if there are more than cap.

    mask: boolean, of any shape; rows run along its last dimension.
    """
    flat = mask.detach().cpu().contiguous()
    cols = flat.shape[-1] if flat.dim() else 1
    table = flat.reshape(-1, cols).numpy() if flat.numel() else np.zeros((0, 1), dtype=bool)
    if table.all():
        return [Box(0, 1, table.size, table.size)] if table.size else []
    # A new band begins where a row differs from the one above it.
    change = np.ones(len(table), dtype=bool)
    change[1:] = (table[1:] != table[:-1]).any(axis=1)
    tops = np.flatnonzero(change)
    bottoms = np.append(tops[1:], len(table))
    edges = np.diff(np.pad(table[tops], ((0, 0), (1, 1))).astype(np.int8), axis=1)
    if int((edges == 1).sum()) > cap:
        return None
    found = []
    for top, bottom, edge in zip(tops.tolist(), bottoms.tolist(), edges, strict=True):
        for left, right in zip(
            np.flatnonzero(edge == 1).tolist(), np.flatnonzero(edge == -1).tolist(), strict=True
        ):
            width = right - left
            found.append(Box(top * cols + left, bottom - top, width, cols if bottom - top > 1 else width))
    return found


def check(name: str, mask: object, p: Tensor) -> Tensor:
    """A boolean mask of the parameter's shape; numbers count as true where they are 1 and false where they are 0."""
    if not isinstance(mask, Tensor):
        raise ArgumentTypeError(f"{name} is a {type(mask).__name__}: give a boolean tensor")
    if mask.shape != p.shape:
        raise ArgumentError(
            f"{name} has shape {tuple(mask.shape)}, its parameter {tuple(p.shape)}: make them equal"
        )
    if mask.dtype != torch.bool:
        if mask.is_complex() or not bool(((mask == 0) | (mask == 1)).all()):
            raise ArgumentError(f"{name} holds values other than 0 and 1: give a boolean tensor")
        mask = mask != 0
    return mask.detach()


def tiles(
    params: Sequence[Tensor], masks: Sequence[Tensor | None], cap: int = CAP
) -> tuple[list[Tile], list[Tensor | None]]:
    """Tiles of the masked parameters, and packed bits for those whose mask takes more than `cap` boxes.

    masks: one a parameter, None for all of it.
    """
    found: list[Tile] = []
    bits: list[Tensor | None] = []
    for i, (p, given) in enumerate(zip(params, masks, strict=True)):
        bits.append(None)
        if given is None:
            found.append(whole(i, p))
            continue
        mask = check(f"masks[{i}]", given, p)
        if mask.numel() and bool(mask.all()):
            found.append(whole(i, p))
            continue
        parts = boxes(mask, cap)
        apart = parts is None or any(locate(p, Tile.of(i, box)) is None for box in parts)
        if parts is None or (apart and not hasattr(p, "device_mesh")):
            bits[-1] = pack(mask.to(p.device))
            found.append(whole(i, p))
        else:
            found += [Tile.of(i, box) for box in parts]
    return found, bits
