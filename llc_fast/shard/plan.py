"""A plan of DTensor parameters: local shards, tiles with global indices, sums over the ranks."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import backends
from ..checks import as_list
from ..errors import ArgumentError
from ..group import Gradients, storage_of
from ..plan import Plan
from ..scalars import Scalars
from ..sums import INDEX
from ..tiles import pack, unpack
from ..types import Box, Tile
from .fsdp import Guard, refuse_unsharded
from .layout import alike, gradient, is_dtensor, local, local_mask, tiles
from .ranks import Ranks


def prepare(params: Sequence[Tensor], anchors: Sequence[Tensor] | None, **arguments: Any) -> Plan:
    """The plan of parameters of which any may be DTensors; arguments as for `Plan`, in terms of the full ones."""
    params = as_list("params", params)
    if any(is_dtensor(p) for p in params):
        return ShardedPlan(params, anchors, **arguments)
    refuse_unsharded(params)
    return Plan(params, anchors, **arguments)


def held(plan: Plan) -> Sequence[Tensor]:
    """The parameters that a plan was made for."""
    return plan.held if isinstance(plan, ShardedPlan) else plan.params


def spoken(plan: Plan, given: list[Tile]) -> tuple[list[Tile], Ranks | None]:
    """Tiles of a plan made of the given ones such that over its ranks every element is in one; these ranks, or None."""
    if not isinstance(plan, ShardedPlan):
        return given, None
    return [tile for tile in plan.tiles if plan.ranks.speaks[tile.tensor]], plan.ranks


class ShardedPlan(Plan):
    """A plan whose params are the local shards of those given (`held`), and so for all that is kept beside them.

    tiles, masks: of the full parameters. Sums, and a thermostat's, are over all ranks: these then step together.
    """

    def __init__(
        self,
        params: Sequence[Tensor],
        anchors: Sequence[Tensor] | None,
        *,
        remainders: Sequence[Tensor | None] | None = None,
        buffers: Sequence[Tensor | None] | None = None,
        masks: Sequence[Tensor | None] | None = None,
        tiles: Sequence[Tile] | None = None,
        chain: int = 0,
        **arguments: Any,
    ) -> None:
        self.held = list(params)
        self.guard = Guard(self.held)
        self.ranks = Ranks(self.held)
        self._tiled = tiles is not None
        self._everyone = sorted({chain if t.chain is None else t.chain for t in tiles or []} or {chain})
        super().__init__(
            [local(p) for p in self.held],
            None if anchors is None else self._alike("anchors", anchors),
            remainders=None if remainders is None else self._alike("remainders", remainders),
            buffers=None if buffers is None else self._alike("buffers", buffers),
            masks=None if masks is None else self._bits(masks),
            tiles=local_tiles(self.held, tiles),
            chain=chain,
            **arguments,
        )
        me = weakref.ref(self)  # a method of its own would keep the plan alive
        self.reduce = lambda sums: me()._over_ranks(sums)  # type: ignore[union-attr]

    def check(self, grads: Sequence[Tensor | None], scalars: Scalars) -> Gradients:
        self.guard.check()
        for i, p in enumerate(self.held):  # FSDP may have moved it since
            self.params[i] = local(p)
        values: list[Tensor | None] = as_list("grads", grads)
        self._same_count("grads", values)
        pairs = enumerate(zip(values, self.held, strict=True))
        return super().check([gradient(f"grads[{i}]", g, p) for i, (g, p) in pairs], scalars)

    def run(self, grads: Gradients, scalars: Scalars, step: int) -> None:
        super().run(grads, scalars, step)
        moved = {tile.tensor for tile in self.tiles}
        torch.autograd.graph.increment_version([self.held[i] for i in moved if is_dtensor(self.held[i])])
        self.guard.stepped()

    def chain_totals(self) -> Tensor:
        """The sums of the last step by chain and parameter, over all ranks, each of which must call it."""
        out = super().chain_totals()
        out[:, [not speaks for speaks in self.ranks.speaks]] = 0.0
        return self.ranks.sum(out)

    @property
    def backend_names(self) -> list[str]:
        """What runs the step, one name a device and dtype; also where this rank has no part of it."""
        pairs = zip(self.params, self.remainders, strict=True)
        kinds = {(p.device.type, storage_of(p, rest)) for p, rest in pairs}
        return sorted({backends.resolve(self.backend, *kind, self.sampler).name for kind in kinds})

    def _over_ranks(self, sums: Tensor) -> Tensor:
        """A thermostat's sums over all ranks, each element once; `sums` has this rank's, its copies of others too."""
        mine = torch.zeros_like(sums)
        for _, group in self.groups:
            assert group.sums is not None
            slots = group.owners
            rows = [k for k, (tensor, _) in enumerate(slots) if self.ranks.speaks[tensor]]
            owners = torch.tensor([self.chains.index(slots[k][1]) for k in rows], dtype=torch.int64)
            table = group.sums[rows][:, [INDEX["v2"], INDEX["n"]]]
            mine.index_add_(0, owners.to(mine.device), table)
        return self.ranks.sum(mine)

    def _check_thermostat(self) -> None:
        self.chains = self._everyone  # also where this rank has no tile of some chain
        super()._check_thermostat()

    def _check_tensor_ids(self, tensor_ids: Sequence[int] | None, tiled: bool) -> list[int]:
        return super()._check_tensor_ids(tensor_ids, self._tiled)

    def _alike(self, name: str, values: Sequence[Tensor | None]) -> list[Any]:
        values = as_list(name, values)
        if len(values) != len(self.held):
            return values  # Plan says what is wrong
        return [alike(f"{name}[{i}]", t, p) for i, (t, p) in enumerate(zip(values, self.held, strict=True))]

    def _bits(self, masks: Sequence[Tensor | None]) -> list[Any]:
        masks = as_list("masks", masks)
        if len(masks) != len(self.held):
            return masks
        return [_local_bits(p, bits) for p, bits in zip(self.held, masks, strict=True)]


def _local_bits(p: Tensor, bits: Tensor | None) -> Tensor | None:
    """The packed mask of a local shard, from that of the full parameter."""
    if bits is None or not is_dtensor(p):
        return bits
    mask = unpack(bits, Tile(0, 1, p.numel(), 0, p.numel(), 0, p.numel())).view(p.shape)
    return pack(local_mask(p, mask))


def local_tiles(params: Sequence[Tensor], given: Sequence[Tile] | None) -> list[Tile]:
    """Tiles of the local shards, from those of the full parameters (None: all of each)."""
    if given is None:
        return [tile for i, p in enumerate(params) for tile in tiles(i, p)]
    boxes: dict[tuple[int, int | None], list[Box]] = {}
    found = []
    for k, tile in enumerate(given):
        if (
            not isinstance(tile, Tile)
            or not 0 <= tile.tensor < len(params)
            or not is_dtensor(params[tile.tensor])
        ):
            found.append(tile)
            continue
        if tile.start != tile.offset or (tile.rows > 1 and tile.stride != tile.global_stride):
            raise ArgumentError(
                f"tiles[{k}] has other places in the local than in the full parameter: for a DTensor give tiles of "
                "the full one (Tile.of)"
            )
        box = Box(tile.start, tile.rows, tile.cols, tile.global_stride)
        boxes.setdefault((tile.tensor, tile.chain), []).append(box)
    for (tensor, chain), own in boxes.items():
        found += tiles(tensor, params[tensor], own, chain)
    return found
