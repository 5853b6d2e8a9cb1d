"""Which elements of a DTensor a rank holds: local tensors, gradients and masks of them, tiles with global indices."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
import torch
from torch import Tensor

from ..errors import ArgumentError, ArgumentTypeError
from ..tiles import whole
from ..types import Box, Tile
from .cut import Index, blocks, overlap

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def is_dtensor(t: object) -> TypeGuard[DTensor]:
    """Whether it is a DTensor; without one, `torch.distributed.tensor` is not imported."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(t, module.DTensor)


def local(t: Tensor) -> Tensor:
    """The shard of a DTensor that this rank holds, sharing its memory; any other tensor itself."""
    if not is_dtensor(t):
        return t
    shard: Tensor = t._local_tensor
    waiting = getattr(shard, "wait", None)  # of a collective that is under way
    return shard if waiting is None else waiting()


def gradient(name: str, g: Tensor | None, p: Tensor) -> Tensor | None:
    """The local gradient of a parameter.

    Under tensor parallelism a gradient often has other placements than its parameter (`Partial` of a replicated
    norm, `Replicate` of a sharded embedding). It is then redistributed, on all ranks, as autograd left it on all.
    """
    if g is None:
        return None
    if not is_dtensor(g) or not is_dtensor(p):
        if is_dtensor(g) or is_dtensor(p):
            kinds = ("a DTensor", "a plain tensor")[:: 1 if is_dtensor(g) else -1]
            raise ArgumentTypeError(
                f"{name} is {kinds[0]}, its parameter {kinds[1]}: give both in one layout (distribute_tensor, "
                "full_tensor)"
            )
        return g
    if g.device_mesh != p.device_mesh or g.shape != p.shape:
        raise ArgumentError(
            f"{name} has shape {tuple(g.shape)} on {g.device_mesh}, its parameter {tuple(p.shape)} on "
            f"{p.device_mesh}: make them equal"
        )
    if g.placements != p.placements:
        with torch.no_grad():
            g = g.redistribute(p.device_mesh, p.placements)
    return local(g)


def alike(name: str, t: Tensor | None, p: Tensor) -> Tensor | None:
    """The local part of what is kept beside a parameter, in its layout."""
    if t is None or not is_dtensor(p):
        return t
    if not is_dtensor(t) or (t.placements, t.device_mesh) != (p.placements, p.device_mesh):
        where = f"placed {t.placements}" if is_dtensor(t) else "a plain tensor"
        raise ArgumentTypeError(
            f"{name} is {where}, its parameter {p.placements}: give a DTensor placed like it"
        )
    return local(t)


def indices(p: DTensor) -> list[Index | None]:
    """For each dimension of a DTensor the global indices that its local shard holds, None for all; no communication."""
    from torch.distributed.tensor import Replicate, distribute_tensor

    found: list[Index | None] = []
    for d, n in enumerate(p.shape):
        mine = [_along(placement, d, p) for placement in p.placements]
        if all(m is None for m in mine):
            found.append(None)
            continue
        counted = torch.arange(n, device=p.device_mesh.device_type)
        placements = [Replicate() if m is None else m for m in mine]
        spread = distribute_tensor(counted, p.device_mesh, placements, src_data_rank=None)
        found.append(spread.to_local().cpu().numpy())
    sizes = tuple(n if i is None else len(i) for n, i in zip(p.shape, found, strict=True))
    if p.device_mesh.get_coordinate() is None:  # this rank has no part of it
        return [np.zeros(0, dtype=np.int64) for _ in sizes]
    if sizes != tuple(p._local_tensor.shape):
        raise ArgumentError(
            f"a parameter of shape {tuple(p.shape)} placed {p.placements} has a local shard of shape "
            f"{tuple(p._local_tensor.shape)}, where distribute_tensor gives {sizes}: make it by distribute_tensor"
        )
    return found


def _along(placement: Any, d: int, p: DTensor) -> Any:
    """A placement as it acts on dimension d alone, moved to dimension 0; None where it does not split that."""
    from torch.distributed.tensor import Replicate, Shard

    if isinstance(placement, Replicate):
        return None
    dim = getattr(placement, "dim", None)
    if dim is None or not (placement.is_shard() or hasattr(placement, "split_factor")):
        raise ArgumentTypeError(f"a parameter is placed {p.placements}: use Shard and Replicate")
    if dim % p.dim() != d:
        return None
    if not hasattr(placement, "split_factor"):
        return Shard(0)
    return type(placement)(0, split_factor=placement.split_factor)


def tiles(tensor: int, p: Tensor, boxes: Iterable[Box] | None = None, chain: int | None = None) -> list[Tile]:
    """The tiles of a parameter's local shard, all of it or what lies in the given boxes of the full parameter.

    Few tiles: whole stretches where the layout allows it. boxes must be disjoint.
    """
    if not is_dtensor(p):
        if boxes is None:
            return [replace(whole(tensor, p), chain=chain)]
        return [Tile.of(tensor, box, chain) for box in boxes]
    mine = blocks(tuple(p.shape), indices(p))
    if boxes is not None:
        boxes = list(boxes)
        mine = [part for block in mine for box in boxes for part in overlap(block, box)]
    return [Tile(tensor, *block, chain) for block in mine]


def local_mask(p: Tensor, mask: Tensor) -> Tensor:
    """The part of a mask of the full shape that belongs to a parameter's local shard."""
    if is_dtensor(mask):
        mask = mask.full_tensor()
    if not is_dtensor(p):
        return mask
    for d, index in enumerate(indices(p)):
        if index is not None:
            mask = mask.index_select(d, torch.from_numpy(index).to(mask.device))
    return mask


def positions(p: Tensor) -> Tensor:
    """The row-major index in the full parameter of each element of its local shard, int64 in the shard's shape."""
    shard = local(p)
    if not is_dtensor(p):
        return torch.arange(p.numel(), device=p.device).view(p.shape)
    at = torch.zeros((), dtype=torch.int64)
    for n, index in zip(p.shape, indices(p), strict=True):
        held = torch.arange(n) if index is None else torch.from_numpy(index)
        at = at.unsqueeze(-1) * n + held
    return at.to(shard.device)


def full(t: Tensor) -> Tensor:
    """The full tensor of a DTensor, gathered by all its ranks; any other tensor itself."""
    if not is_dtensor(t):
        return t
    with torch.no_grad():
        return t.full_tensor()
