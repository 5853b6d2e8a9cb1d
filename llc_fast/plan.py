"""The operands of a chain's steps: checked and located in memory once, then stepped."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from . import backends
from .checks import (
    as_list,
    check_bits,
    check_buffers,
    check_count,
    check_like,
    check_noise,
    check_param,
    check_remainders,
    check_state,
    check_stored,
    check_tensors,
    check_thermostat,
)
from .errors import ArgumentError
from .group import Backend, Gradients, Group, Storage, storage_of
from .noise import chain_key
from .overflow import Overflow
from .samplers import find
from .scalars import Scalars, check_integer, check_stream
from .steady import GradientCheck, Operands, Still
from .sums import COLUMNS, INDEX
from .tiles import check_memory, check_tiles, locate, whole
from .types import Tile


class Plan:
    """The operands of a chain's steps, checked and located once; arguments as for `sgld_step_`.

    buffers: the sampler's fp32 state of each parameter. masks: what `tiles.pack` gave, of all of a parameter, whose
    tiles then move only where a bit is set. thermostat: fp64, the friction of each chain of the tiles in ascending
    order, moved by each step. sums: whether a step leaves `totals`. reduce: sums a tensor over the ranks that hold
    the other shards, None without shards.
    """

    def __init__(
        self,
        params: Sequence[Tensor],
        anchors: Sequence[Tensor] | None,
        *,
        sampler: str = "sgld",
        remainders: Sequence[Tensor | None] | None = None,
        buffers: Sequence[Tensor | None] | None = None,
        masks: Sequence[Tensor | None] | None = None,
        tensor_ids: Sequence[int] | None = None,
        tiles: Sequence[Tile] | None = None,
        seed: int,
        chain: int = 0,
        state: str = "split",
        noise: str = "gaussian",
        thermostat: Tensor | None = None,
        sums: bool = False,
        backend: str = "auto",
    ) -> None:
        self.backend = backends.check_name(backend)
        self.sampler = find(sampler)
        self.state, self.noise = check_state(state), check_noise(noise)
        self.seed, self.chain, _ = check_stream(seed=seed, chain=chain)
        self.params = check_tensors("params", params)
        self._given_anchors = None if anchors is None else check_tensors("anchors", anchors)
        if self._given_anchors is not None:
            self._same_count("anchors", self._given_anchors)
        none: list[Tensor | None] = [None] * len(self.params)
        self.remainders = none if remainders is None else as_list("remainders", remainders)
        self.buffers = none if buffers is None else as_list(self._buffers, buffers)
        self.masks = none if masks is None else as_list("masks", masks)
        for name, values in (
            ("remainders", self.remainders),
            (self._buffers, self.buffers),
            ("masks", self.masks),
        ):
            self._same_count(name, values)
        self.thermostat = thermostat
        self.sums = bool(sums) or self.sampler.thermostat
        self.origin: object = None  # whatever its maker wants to know it by
        self.reduce: Callable[[Tensor], Tensor] | None = None
        self.tensor_ids = self._check_tensor_ids(tensor_ids, tiles is not None)
        self._given_tiles = None if tiles is None else as_list("tiles", tiles)
        self._place()

    @property
    def _buffers(self) -> str:
        return f"{self.sampler.buffer or 'buffer'}s"

    def _place(self) -> None:
        """Check the tensors as they are now, and find the tiles in them."""
        self._still: Still | None = None  # so that what is broken off here is begun anew
        for i, p in enumerate(self.params):
            check_param(i, p)
            check_stored(f"params[{i}]", p)
        check_remainders(self.remainders, self.params, self.state)
        check_buffers(self._buffers, self.buffers, self.params, self.sampler)
        read: list[tuple[str, Tensor]] = []
        self.anchors: list[Tensor] | None = None
        self._copies: list[tuple[Tensor, Tensor]] = []  # of anchors in pieces, which each step copies anew
        if self._given_anchors is not None:
            read = [(f"anchors[{i}]", a) for i, a in enumerate(self._given_anchors)]
            with torch.inference_mode(False):  # later steps may be outside of it
                self.anchors = [
                    check_like(name, a, p) for (name, a), p in zip(read, self.params, strict=True)
                ]
            pairs = zip(self.anchors, self._given_anchors, strict=True)
            self._copies = [pair for pair in pairs if pair[0] is not pair[1]]
        for i, bits in enumerate(self.masks):
            if bits is not None:
                check_bits(f"masks[{i}]", bits, self.params[i])
                read.append((f"masks[{i}]", bits))
        tiles = self._given_tiles
        if tiles is None:
            tiles = [whole(i, p) for i, p in enumerate(self.params)]
        self.tiles = check_tiles(tiles, self.params)
        kept = (("remainders", self.remainders), (self._buffers, self.buffers))
        for name, tensors in (("params", self.params), *kept):
            for tile in self.tiles:
                t = tensors[tile.tensor]
                if t is not None and locate(t, tile) is None:
                    raise ArgumentError(
                        f"{name}[{tile.tensor}] has strides {t.stride()} for shape {tuple(t.shape)}, in which "
                        "a tile is no box of memory: make it contiguous"
                    )
        written = [(f"params[{i}]", p) for i, p in enumerate(self.params)]
        for name, tensors in kept:
            written += [(f"{name}[{i}]", r) for i, r in enumerate(tensors) if r is not None]
        self.chains = sorted({self.chain if t.chain is None else t.chain for t in self.tiles})
        self._check_thermostat()
        if self.thermostat is not None:
            written.append(("thermostat", self.thermostat))
        check_memory(written, read)
        self.groups = self._group()
        beside = [t for _, t in (*written[len(self.params) :], *read)]
        self._gradients = GradientCheck(self.params, written)
        self.operands = Operands(self.params, written, read)
        self._still = Still(self.params, beside)

    def step(self, grads: Sequence[Tensor | None], scalars: Scalars, step: int) -> None:
        """One update with the given gradients; raises before anything is written."""
        self.run(self.check(grads, scalars), scalars, step)

    def check(self, grads: Sequence[Tensor | None], scalars: Scalars) -> Gradients:
        """The gradients as `run` takes them; raises if the step cannot be made."""
        if self._still is None or not self._still.holds(self.params):
            self._place()  # a tensor was moved or changed, as by p.data = ...
        if self._copies:
            with torch.no_grad():
                for copy, anchor in self._copies:
                    copy.copy_(anchor)
        if (scalars.needs_anchor or self.sums) and self.anchors is None:
            raise ArgumentError(
                "anchors is None: localization, box, sums and SGNHT need them, give copies of the weights"
            )
        return self._gradients.check(grads)

    def run(self, grads: Gradients, scalars: Scalars, step: int) -> None:
        """One update with what `check` has returned since the last one."""
        with torch.no_grad():
            for backend, group in self.groups:
                if group.sums is not None:
                    group.sums.zero_()
                backend.sgld_step(group, grads, scalars, step)
                if backend.name != "reference":  # which PyTorch itself counts
                    self._count(group)
            if self.sampler.thermostat:
                self._move_thermostat(scalars)
            self._overflow.watch()

    def next_step(self) -> int:
        """The least number that a step may have, which is above 0 only where CUDA graphs have made steps."""
        return max(
            (getattr(backend, "next_step", lambda _: 0)(group) for backend, group in self.groups), default=0
        )

    def _count(self, group: Group) -> None:
        """Tell autograd what was written."""
        params, moved = self.params, group.moved
        written = params if len(moved) == len(params) else [params[i] for i in moved]
        torch.autograd.graph.increment_version([*written, *group.beside])

    def totals(self) -> Tensor:
        """The sums of the last step by parameter, fp64 (params, 24), on the first parameter's device."""
        return self.chain_totals().sum(dim=0)

    def chain_totals(self) -> Tensor:
        """The same for each of `chains`, fp64 (chains, params, 24)."""
        if not self.sums:
            raise ArgumentError("sums were not asked for: give sums=True")
        chains, count = len(self.chains), len(self.params)
        if len(self.groups) == 1 and self.groups[0][1].ordered:  # several times faster than to add them up
            table = self.groups[0][1].sums
            assert table is not None
            return table.clone().view(chains, count, COLUMNS)
        out = torch.zeros((chains * count, COLUMNS), dtype=torch.float64, device=self.params[0].device)
        for _, group in self.groups:
            if group.sums is not None and group.row_tensors is not None and group.row_chains is not None:
                rows = group.row_chains * count + group.row_tensors
                out.index_add_(0, rows.to(out.device), group.sums.to(out.device))
        return out.view(chains, count, COLUMNS)

    def _move_thermostat(self, scalars: Scalars) -> None:
        """xi + mean(v^2) - lr, over the selected weights of each chain."""
        assert self.thermostat is not None
        if not self.chains:
            return
        sums = torch.zeros((len(self.chains), 2), dtype=torch.float64, device=self.thermostat.device)
        for _, group in self.groups:
            assert group.sums is not None
            assert group.row_chains is not None
            v2, n = INDEX["v2"], INDEX["n"]
            seen = torch.stack((group.sums[:, v2], group.sums[:, n]), dim=1)
            sums.index_add_(0, group.row_chains, seen)
        if self.reduce is not None:
            sums = self.reduce(sums)
        moved = torch.where(sums[:, 1] > 0, sums[:, 0] / sums[:, 1] - scalars.lr, 0.0)
        self.thermostat += moved.view_as(self.thermostat)

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        return type(None), ()  # addresses mean nothing elsewhere: a copy is None, and rebuilt

    @property
    def backend_names(self) -> list[str]:
        """What runs the step, one name a device and dtype."""
        return sorted({backend.name for backend, _ in self.groups})

    def _group(self) -> list[tuple[Backend, Group]]:
        kinds: dict[tuple[torch.device, Storage], list[Tile]] = {}
        for tile in self.tiles:
            p = self.params[tile.tensor]
            kinds.setdefault((p.device, storage_of(p, self.remainders[tile.tensor])), []).append(tile)
        keys = {chain: chain_key(self.seed, chain) for chain in self.chains}
        groups = []
        for (device, storage), tiles in kinds.items():
            chains = [self.chain if t.chain is None else t.chain for t in tiles]
            owners = [(t.tensor, chain) for t, chain in zip(tiles, chains, strict=True)]
            slots = list(dict.fromkeys(owners))
            moved = sorted({tile.tensor for tile in tiles})
            beside = [t[i] for i in moved for t in (self.remainders, self.buffers)]
            group = Group(
                device=device,
                storage=storage,
                sampler=self.sampler,
                noise=self.noise,
                tiles=tiles,
                params=self.params,
                anchors=self.anchors,
                remainders=self.remainders,
                buffers=self.buffers,
                masks=self.masks,
                tensor_ids=self.tensor_ids,
                keys=[keys[chain] for chain in chains],
                owners=slots,
                moved=[i for i in moved if not self.params[i].is_inference()],
                beside=[t for t in beside if t is not None and not t.is_inference()],
            )
            if self.sums:
                position = {owner: i for i, owner in enumerate(slots)}
                group.slots = [position[owner] for owner in owners]
                with torch.inference_mode(False):
                    group.sums = torch.zeros((len(slots), COLUMNS), dtype=torch.float64, device=device)
                    rows = [(tensor, self.chains.index(chain)) for tensor, chain in slots]
                    group.row_tensors, group.row_chains = torch.tensor(rows, device=device).unbind(1)
                    everyone = [
                        (tensor, k) for k in range(len(self.chains)) for tensor in range(len(self.params))
                    ]
                    group.ordered = rows == everyone
            if self.thermostat is not None:
                entries = self.thermostat.view(-1)
                group.xi = [entries[self.chains.index(chain)] for chain in chains]
            groups.append((backends.resolve(self.backend, device.type, storage, self.sampler), group))
        halves = [
            self.params[i]
            for i in sorted({t.tensor for t in self.tiles})
            if self.params[i].dtype == torch.float16
        ]
        self._overflow = Overflow(halves)
        return groups

    def _same_count(self, name: str, values: Sequence[object]) -> None:
        check_count(name, values, self.params)

    def _check_thermostat(self) -> None:
        t = self.thermostat
        if not self.sampler.thermostat:
            if t is not None:
                raise ArgumentError(f"thermostat is given, but {self.sampler.name} has none: give None")
            return
        t = check_thermostat(t)
        if (self.chains and t.numel() != len(self.chains)) or not t.is_contiguous():
            raise ArgumentError(
                f"thermostat has shape {tuple(t.shape)}, the tiles {len(self.chains)} chains: give one entry each"
            )
        devices = {self.params[tile.tensor].device for tile in self.tiles} | {t.device}
        if len(devices) > 1:
            names = ", ".join(sorted(str(d) for d in devices))
            raise ArgumentError(
                f"thermostat and its parameters are on {names}: give each device a group of its own"
            )

    def _check_tensor_ids(self, tensor_ids: Sequence[int] | None, tiled: bool) -> list[int]:
        ids = list(range(len(self.params))) if tensor_ids is None else as_list("tensor_ids", tensor_ids)
        self._same_count("tensor_ids", ids)
        ids = [check_integer(f"tensor_ids[{i}]", v, maximum=2**32 - 1) for i, v in enumerate(ids)]
        if not tiled and len(set(ids)) != len(ids):
            raise ArgumentError("tensor_ids repeats a number: two parameters would share their noise")
        return ids
