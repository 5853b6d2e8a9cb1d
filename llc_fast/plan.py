"""The operands of a chain's steps: checked and located in memory once, then stepped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import backends
from .errors import ArgumentError, ArgumentTypeError
from .group import STORAGES, Backend, Group, Storage
from .noise import chain_key
from .scalars import Scalars, check_integer, check_stream
from .tiles import check_memory, check_tiles, expanded, locate, spans, touches, whole
from .types import Tile


class Plan:
    """The operands of a chain's steps, checked and located once; arguments as for `sgld_step_`."""

    def __init__(
        self,
        params: Sequence[Tensor],
        anchors: Sequence[Tensor] | None,
        *,
        remainders: Sequence[Tensor | None] | None = None,
        tensor_ids: Sequence[int] | None = None,
        tiles: Sequence[Tile] | None = None,
        seed: int,
        chain: int = 0,
        backend: str = "auto",
    ) -> None:
        self.backend = backends.check_name(backend)
        self.seed, self.chain, _ = check_stream(seed=seed, chain=chain)
        self.params = _tensors("params", params)
        self.anchors = None if anchors is None else _tensors("anchors", anchors)
        if self.anchors is not None:
            self._same_count("anchors", self.anchors)
        none: list[Tensor | None] = [None] * len(self.params)
        self.remainders = none if remainders is None else as_list("remainders", remainders)
        self._same_count("remainders", self.remainders)
        self.tensor_ids = self._check_tensor_ids(tensor_ids, tiles is not None)
        self._given_tiles = None if tiles is None else as_list("tiles", tiles)
        self._place()

    def _place(self) -> None:
        """Check the tensors as they are now, and find the tiles in them."""
        for i, p in enumerate(self.params):
            check_param(i, p)
        self._check_remainders()
        read: list[tuple[str, Tensor]] = []
        if self.anchors is not None:
            read = [(f"anchors[{i}]", a) for i, a in enumerate(self.anchors)]
            self.anchors = [_check_like(name, a, p) for (name, a), p in zip(read, self.params, strict=True)]
        tiles = self._given_tiles
        if tiles is None:
            tiles = [whole(i, p) for i, p in enumerate(self.params)]
        self.tiles = check_tiles(tiles, self.params)
        for name, tensors in (("params", self.params), ("remainders", self.remainders)):
            for tile in self.tiles:
                t = tensors[tile.tensor]
                if t is not None and locate(t, tile) is None:
                    raise ArgumentError(
                        f"{name}[{tile.tensor}] has strides {t.stride()} for shape {tuple(t.shape)}, in which "
                        "a tile is no box of memory: make it contiguous"
                    )
        written = [(f"params[{i}]", p) for i, p in enumerate(self.params)]
        written += [(f"remainders[{i}]", r) for i, r in enumerate(self.remainders) if r is not None]
        check_memory(written, read)
        self._written, self._spans = written, spans([t for _, t in written])
        self._sizes = np.array([p.nbytes for p in self.params], dtype=np.uint64)
        self.groups = self._group()
        self._stamp = self._now()

    def step(self, grads: Sequence[Tensor | None], scalars: Scalars, step: int) -> None:
        """One update with the given gradients; raises before anything is written."""
        self.run(self.check(grads, scalars), scalars, step)

    def check(self, grads: Sequence[Tensor | None], scalars: Scalars) -> list[Tensor | None]:
        """The gradients as `run` takes them; raises if the step cannot be made."""
        if self._now() != self._stamp:  # a tensor was moved or changed, as by p.data = ...
            self._place()
        if scalars.needs_anchor and self.anchors is None:
            raise ArgumentError("anchors is None: localization and box need them, give copies of the weights")
        return self._check_grads(grads)

    def run(self, grads: Sequence[Tensor | None], scalars: Scalars, step: int) -> None:
        """One update with what `check` has returned since the last one."""
        with torch.no_grad():
            for backend, group in self.groups:
                backend.sgld_step(group, grads, scalars, step)
                if backend.name != "reference":  # which PyTorch itself counts
                    moved = [self.params[i] for i in {tile.tensor for tile in group.tiles}]
                    torch.autograd.graph.increment_version([p for p in moved if not p.is_inference()])

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        return type(None), ()  # addresses mean nothing elsewhere: a copy is None, and rebuilt

    @property
    def backend_names(self) -> list[str]:
        """What runs the step, one name a device and dtype."""
        return sorted({backend.name for backend, _ in self.groups})

    def _now(self) -> list[object]:
        stamp: list[object] = [(p.data_ptr(), p.shape, p.stride(), p.dtype) for p in self.params]
        stamp += [r.data_ptr() for r in self.remainders if r is not None]
        return stamp + ([] if self.anchors is None else [a.data_ptr() for a in self.anchors])

    def _group(self) -> list[tuple[Backend, Group]]:
        kinds: dict[tuple[torch.device, Storage], list[Tile]] = {}
        for tile in self.tiles:
            p = self.params[tile.tensor]
            kinds.setdefault((p.device, STORAGES[p.dtype]), []).append(tile)
        chains = {self.chain if t.chain is None else t.chain for t in self.tiles}
        keys = {chain: chain_key(self.seed, chain) for chain in chains}
        return [
            (
                backends.resolve(self.backend, device.type, storage),
                Group(
                    device,
                    storage,
                    tiles,
                    self.params,
                    self.anchors,
                    self.remainders,
                    self.tensor_ids,
                    [keys[self.chain if t.chain is None else t.chain] for t in tiles],
                ),
            )
            for (device, storage), tiles in kinds.items()
        ]

    def _same_count(self, name: str, values: Sequence[object]) -> None:
        if len(values) != len(self.params):
            raise ArgumentError(
                f"{name} has {len(values)} entries for {len(self.params)} params: give one each"
            )

    def _check_grads(self, grads: Sequence[Tensor | None]) -> list[Tensor | None]:
        values: list[Tensor | None] = as_list("grads", grads)
        self._same_count("grads", values)
        pairs = zip(values, self.params, strict=True)
        values = [None if g is None else _check_like(f"grads[{i}]", g, p) for i, (g, p) in enumerate(pairs)]
        if touches(self._spans, values, self._sizes):
            check_memory(self._written, [(f"grads[{i}]", g) for i, g in enumerate(values) if g is not None])
        return values

    def _check_remainders(self) -> None:
        for i, (r, p) in enumerate(zip(self.remainders, self.params, strict=True)):
            if p.dtype != torch.bfloat16:
                if r is not None:
                    raise ArgumentError(f"remainders[{i}] is given, but params[{i}] is {p.dtype}: give None")
                continue
            if r is None:
                raise ArgumentError(
                    f"params[{i}] is bfloat16 without a remainder, which would freeze the chain: give "
                    "remainders=[torch.zeros_like(p, dtype=torch.int16) for p in params], and keep them"
                )
            if not isinstance(r, Tensor) or r.dtype != torch.int16:
                raise ArgumentTypeError(f"remainders[{i}] must be an int16 tensor")
            if r.shape != p.shape or r.device != p.device:
                raise ArgumentError(
                    f"remainders[{i}] has shape {tuple(r.shape)} on {r.device}, expected {tuple(p.shape)} "
                    f"on {p.device}"
                )
            if expanded(r):
                raise ArgumentError(f"remainders[{i}] is expanded: give a tensor with memory of its own")

    def _check_tensor_ids(self, tensor_ids: Sequence[int] | None, tiled: bool) -> list[int]:
        ids = list(range(len(self.params))) if tensor_ids is None else as_list("tensor_ids", tensor_ids)
        self._same_count("tensor_ids", ids)
        ids = [check_integer(f"tensor_ids[{i}]", v, maximum=2**32 - 1) for i, v in enumerate(ids)]
        if not tiled and len(set(ids)) != len(ids):
            raise ArgumentError("tensor_ids repeats a number: two parameters would share their noise")
        return ids


def as_list(name: str, values: object) -> list[Any]:
    """The values as a list, if they are several in an order."""
    if isinstance(values, Tensor | dict | str) or not isinstance(values, Iterable):
        raise ArgumentTypeError(f"{name} is a {type(values).__name__}: give a list with one entry each")
    return list(values)


def _tensors(name: str, values: Sequence[Tensor]) -> list[Tensor]:
    values = as_list(name, values)
    if not values and name == "params":
        raise ArgumentError("params is empty: give at least one tensor")
    for i, t in enumerate(values):
        if not isinstance(t, Tensor):
            raise ArgumentTypeError(f"{name}[{i}] is a {type(t).__name__}: give a tensor")
    return values


def check_param(i: int | str, p: Tensor) -> None:
    if p.is_meta:
        raise ArgumentError(f"params[{i}] is a meta tensor without weights: load the model first")
    if p.layout != torch.strided:
        raise ArgumentTypeError(f"params[{i}] has layout {p.layout}: give dense tensors")
    if p.dtype not in STORAGES:
        raise ArgumentTypeError(f"params[{i}] is {p.dtype}: use float32, bfloat16 or (slowly) float64")
    if expanded(p):
        raise ArgumentError(
            f"params[{i}] is expanded or overlaps itself: give a tensor with memory of its own"
        )


def _check_like(name: str, t: Tensor, p: Tensor) -> Tensor:
    """The tensor, contiguous, if it fits its parameter."""
    if not isinstance(t, Tensor):
        raise ArgumentTypeError(f"{name} is a {type(t).__name__}: give a tensor")
    if t.layout != torch.strided:
        raise ArgumentTypeError(f"{name} has layout {t.layout}: give a dense tensor (.to_dense())")
    if t.shape != p.shape:
        raise ArgumentError(
            f"{name} has shape {tuple(t.shape)}, its parameter {tuple(p.shape)}: make them equal"
        )
    if t.dtype != p.dtype:
        raise ArgumentTypeError(f"{name} is {t.dtype}, its parameter {p.dtype}: convert it (.to({p.dtype}))")
    if t.device != p.device:
        raise ArgumentError(f"{name} is on {t.device}, its parameter on {p.device}: move it there")
    return t if t.is_contiguous() else t.detach().contiguous()
