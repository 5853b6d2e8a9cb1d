"""The step and its noise as functions of their arguments: validate, locate, dispatch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import backends
from .errors import ArgumentError, ArgumentTypeError
from .group import STORAGES, Backend, Group, Storage
from .noise import STEP_NOISE, chain_key
from .scalars import Scalars, check_integer, check_stream
from .tiles import MAX_ELEMENTS, check_memory, check_tiles, expanded, locate, spans, touches, whole
from .types import Tile


def normal(
    numel: int,
    *,
    seed: int,
    chain: int = 0,
    step: int,
    tensor_id: int,
    start: int = 0,
    noise: str = "gaussian",
    device: torch.device | str = "cpu",
    backend: str = "auto",
) -> Tensor:
    """The noise z of elements start, ..., start + numel - 1 of a parameter at a step, fp32 of shape (numel,).

    seed, chain: unsigned 64-bit; step, tensor_id: unsigned 32-bit; start: below 2^58. The same arguments give
    the same bits on every backend and device. noise: "gaussian" is the only kind. Raises ArgumentError,
    ArgumentTypeError, BackendError.

    >>> normal(3, seed=0, step=0, tensor_id=0)
    tensor([-1.6013,  0.3784,  1.1379])
    """
    return _normal(numel, seed, chain, step, tensor_id, start, noise, device, backend, STEP_NOISE)


def _normal(
    numel: int,
    seed: int,
    chain: int,
    step: int,
    tensor_id: int,
    start: int,
    noise: str,
    device: torch.device | str,
    backend: str,
    domain: int,
) -> Tensor:
    numel = check_integer("numel", numel, maximum=MAX_ELEMENTS)
    start = check_integer("start", start, maximum=MAX_ELEMENTS - numel)
    tensor_id = check_integer("tensor_id", tensor_id, maximum=2**32 - 1)
    seed, chain, step = check_stream(seed=seed, chain=chain, step=step)
    if noise != "gaussian":
        raise ArgumentError(f"noise is {noise!r}: use 'gaussian'")
    try:
        device = torch.device(device)
    except (RuntimeError, TypeError) as e:
        raise ArgumentError(f"device is {device!r}: give a torch device such as 'cpu' or 'cuda'") from e
    if device.type == "meta":
        raise ArgumentError("device is 'meta': noise needs memory, give a real device")
    chosen = backends.resolve(backends.check_name(backend), device.type, "float32")
    try:
        out = torch.empty(numel, dtype=torch.float32, device=device)
    except (RuntimeError, AssertionError) as e:
        raise ArgumentError(f"device {device} cannot hold {numel} elements: {e}") from e
    if numel:
        key = chain_key(seed, chain)
        chosen.normal(out, start=start, key=key, step=step, tensor_id=tensor_id, domain=domain)
    return out


def sgld_step_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    anchors: Sequence[Tensor] | None,
    *,
    lr: float,
    nbeta: float,
    localization: float = 0.0,
    weight_decay: float = 0.0,
    noise_level: float = 1.0,
    seed: int,
    chain: int = 0,
    step: int,
    tensor_ids: Sequence[int] | None = None,
    tiles: Sequence[Tile] | None = None,
    box: float | None = None,
    remainders: Sequence[Tensor | None] | None = None,
    backend: str = "auto",
) -> None:
    """One SGLD step in place; a pure function of its arguments, with the same bits on every backend.

    w <- w - lr/2 (nbeta g + weight_decay w + localization (w - w0)) + sqrt(lr) noise_level z, then w is
    clamped to w0 +- box if a box is given (arXiv 2308.12108, eq. 16 of Lau et al.; Welling & Teh 2011).

    params: fp32, bf16 or fp64 tensors of any shape, made of rows of adjacent elements. grads: same shapes and
    dtypes, None for +0. anchors: w0, same shapes and dtypes; None if neither localization nor box is used.
    remainders: for each bf16 parameter an int16 tensor of its shape, its lower half (zeros at the start), None
    for others. tensor_ids: counts the noise of each parameter, unsigned 32-bit; the position in the list if not
    given. tiles: the boxes to update, everything if not given; elements outside stay untouched. seed, chain:
    unsigned 64-bit; step: unsigned 32-bit, 0 for a chain's first update.
    Raises ArgumentError, ArgumentTypeError or BackendError before anything is written.
    """
    scalars = Scalars.check(
        lr=lr,
        nbeta=nbeta,
        localization=localization,
        weight_decay=weight_decay,
        noise_level=noise_level,
        box=box,
    )
    seed, chain, step = check_stream(seed=seed, chain=chain, step=step)
    plan = Plan(
        params,
        anchors,
        remainders=remainders,
        tensor_ids=tensor_ids,
        tiles=tiles,
        seed=seed,
        chain=chain,
        backend=backend,
    )
    plan.step(grads, scalars, step)


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
            _check_param(i, p)
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


def _check_param(i: int | str, p: Tensor) -> None:
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
