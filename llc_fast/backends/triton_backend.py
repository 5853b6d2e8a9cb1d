"""The Triton kernels: on CUDA devices, or in Triton's interpreter on the CPU, which is for tests."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..errors import BackendError
from ..group import (
    AUX,
    AUX_STRIDE,
    COLS,
    G_STRIDE,
    GLOBAL_STRIDE,
    LO,
    LO_STRIDE,
    ROWS,
    SLOT,
    START,
    STORAGE_CODES,
    W0,
    W0_STRIDE,
    W_STRIDE,
    Backend,
    Gradients,
    Group,
    Storage,
    W,
)
from ..samplers import Sampler
from ..scalars import Scalars
from ..sums import COLUMNS as SUMS

VECTORS_PER_ROW, RECIPROCAL, FLAGS = 13, 14, 15  # columns of the geometry table that only these kernels read
ALIGNED, FULL = 1, 2  # flags
_LO_SIZES: dict[Storage, int] = {"split": 2, "float16": 4}


@dataclass
class Geometry:
    """Where chunks of vectors of 16 bytes lie; built once a chain.

    table: `Group.rows()` with three more columns, and with the place of a tile's first sums as its slot. first_chunk:
    of each tile. buckets: the tile of every 2^shift-th chunk, then the last tile. chunks: how many there are.
    bounds: where each slot's sums begin, then their end.
    """

    table: npt.NDArray[np.int64]
    first_chunk: npt.NDArray[np.int32]
    buckets: npt.NDArray[np.int32]
    shift: int
    chunks: int
    bounds: npt.NDArray[np.int64]


def geometry(group: Group, vectors: int) -> Geometry:
    """Cut the tiles into chunks of `vectors` vectors (a power of two up to 8192); a chunk may hold several rows."""
    table = group.rows()
    size = 4 if group.storage == "float32" else 2
    width = 16 // size
    unit = 8 if group.storage == "sr" else 4  # elements that share random words
    rows, cols, start, stride = (table[:, i] for i in (ROWS, COLS, START, GLOBAL_STRIDE))
    # Whether all rows start at the same place in their first Philox block.
    steady = (rows == 1) | (stride % unit == 0)
    phase = np.where(steady, start % unit, unit - 1)
    per_row = (phase + cols + width - 1) // width
    table[:, VECTORS_PER_ROW] = per_row

    # Within a chunk i < 2 * vectors, for which factor = ceil(2^shift / per_row) gives exact quotients.
    short = (rows > 1) & (per_row < vectors)
    divisor = np.where(short, per_row, 1)
    shifts = vectors.bit_length() + np.ceil(np.log2(divisor)).astype(np.int64)
    factors = -(-(np.int64(1) << shifts) // divisor)
    table[:, RECIPROCAL] = np.where(short, factors | shifts << 32, 0)

    aligned = steady & ((rows == 1) | (table[:, G_STRIDE] * size % 16 == 0))
    operands = [(W, W_STRIDE, size)]
    operands += [(W0, W0_STRIDE, size)] if group.anchors is not None else []
    operands += [(LO, LO_STRIDE, _LO_SIZES[group.storage])] if group.storage in _LO_SIZES else []
    operands += [(AUX, AUX_STRIDE, 4)] if group.sampler.buffer is not None else []
    for address, row, each in operands:
        aligned &= (table[:, address] - phase * each) % 16 == 0
        aligned &= (rows == 1) | (table[:, row] * each % 16 == 0)
    last = start + (rows - 1) * stride + cols - 1
    full = aligned & (phase == 0) & (cols % width == 0) & (start >> 34 == last >> 34)
    table[:, FLAGS] = np.where(aligned, ALIGNED, 0) | np.where(full, FULL, 0)

    counts = -(-rows * per_row // vectors)
    ends = np.cumsum(counts)
    first_chunk = np.concatenate(([0], ends[:-1]))
    chunks = int(ends[-1])
    bounds = _sort_sums(table, counts)
    shift = max(0, (chunks // (4 * len(table))).bit_length())
    sampled = np.arange(0, chunks, 1 << shift)
    buckets = np.searchsorted(first_chunk, sampled, side="right") - 1
    buckets = np.concatenate((buckets, [len(table) - 1]))
    return Geometry(table, first_chunk.astype(np.int32), buckets.astype(np.int32), shift, chunks, bounds)


def _sort_sums(table: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Give the chunks of a slot places side by side: the bounds of the slots; a tile's slot becomes its first place."""
    slots = table[:, SLOT].copy()
    order = np.argsort(slots, kind="stable")
    table[order, SLOT] = np.cumsum(counts[order]) - counts[order]
    each = np.bincount(slots, weights=counts).astype(np.int64)
    return np.concatenate(([0], np.cumsum(each)))


@dataclass
class Launch:
    """What a group keeps on its device between steps."""

    table: Tensor
    first_chunk: Tensor
    buckets: Tensor
    shift: int
    chunks: int
    grads: tuple[npt.NDArray[np.int64], Tensor]  # their addresses, here and on the device
    masked: bool
    bounds: Tensor | None = None
    partials: Tensor | None = None


def prepare(group: Group, addresses: npt.NDArray[np.int64], vectors: int) -> Launch:
    """Cut the group's tiles into chunks, and bring what describes them to its device."""
    g = geometry(group, vectors)
    tensors = (_upload(a, group.device) for a in (g.table, g.first_chunk, g.buckets, addresses))
    table, first_chunk, buckets, grads = tensors
    masked = any(group.masks[tile.tensor] is not None for tile in group.tiles)
    launch = Launch(table, first_chunk, buckets, g.shift, g.chunks, (addresses, grads), masked)
    if group.sums is not None:
        launch.bounds = _upload(g.bounds, group.device)
        launch.partials = torch.empty((SUMS, g.chunks), dtype=torch.float32, device=group.device)
    return launch


class Triton:
    name = "triton"

    def __init__(self, interpreted: bool) -> None:
        self.interpreted = interpreted

    def refuses(self, device_type: str, storage: Storage, sampler: Sampler) -> str | None:
        if self.interpreted and device_type != "cpu":
            return f"is interpreted (TRITON_INTERPRET=1) and updates tensors on the CPU, not on {device_type}"
        if not self.interpreted and device_type != "cuda":
            return f"updates tensors on CUDA devices, not on {device_type}"
        if storage not in STORAGE_CODES:
            return f"has no {storage} step: use backend='reference'"
        from ..kernels.launch import KEEPS_SUBNORMALS
        from ..kernels.samplers import TAKES_ROOTS, TWINS

        if sampler.kernel not in TWINS:
            return f"has no {sampler.name} step: use backend='cuda' or 'reference'"
        if sampler.kernel in TAKES_ROOTS and not KEEPS_SUBNORMALS:
            return (
                f"needs Triton 3.6 or later for {sampler.name}: before, small roots are flushed to 0. "
                "Use backend='cuda' or 'reference'"
            )
        return None

    def sgld_step(self, group: Group, grads: Gradients, scalars: Scalars, step: int) -> None:
        from ..kernels import launch as config
        from ..kernels.sgld_step import sgld_step

        sizes = config.sizes(group.storage, group.sums is not None)
        addresses = group.gradient_addresses(grads)
        launch: Launch | None = group.cache.get("triton")
        if launch is None:
            launch = group.cache["triton"] = prepare(group, addresses, sizes["VECTORS"])
        grad = launch.grads
        if addresses is not grad[0] and not np.array_equal(addresses, grad[0]):
            grad = launch.grads = addresses, _upload(addresses, group.device)
        packed = np.frombuffer(scalars.pack(step), dtype=np.int32).copy()
        with _on(group.device):
            sgld_step[(launch.chunks,)](
                launch.table,
                launch.first_chunk,
                launch.buckets,
                grad[1],
                _upload(packed, group.device),
                launch.partials,
                launch.shift,
                STORAGE=group.storage,
                SAMPLER=group.sampler.kernel,
                KIND=group.noise,
                TERMS=scalars.terms,
                MASKED=launch.masked,
                SUMS=group.sums is not None,
                **sizes,
                **config.options(),
            )
            if group.sums is not None:
                self._add_sums(launch, group.sums)

    def _add_sums(self, launch: Launch, sums: Tensor) -> None:
        from ..kernels import launch as config
        from ..kernels.sums import totals

        sizes = config.sizes("totals")
        grid = (len(sums), -(-SUMS // sizes["WIDTH"]))
        totals[grid](launch.partials, launch.bounds, sums, launch.chunks, **sizes, **config.options())

    def normal(
        self,
        out: Tensor,
        *,
        start: int,
        key: tuple[int, int],
        step: int,
        tensor_id: int,
        domain: int,
        kind: str = "gaussian",
    ) -> None:
        from ..kernels import launch as config
        from ..kernels.noise import normal

        packed = np.uint64(key[0] | key[1] << 32).astype(np.int64)
        arguments = np.array([start, out.numel(), packed, step, tensor_id, domain], dtype=np.int64)
        sizes = config.sizes("normal")
        blocks = (start % 4 + out.numel() + 3) // 4
        with _on(out.device):
            uploaded = _upload(arguments, out.device)
            grid = (-(-blocks // sizes["VECTORS"]),)
            normal[grid](out, uploaded, KIND=kind, **sizes, **config.options())


def _on(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Triton launches on the current device, which need not be the tensors' own."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def _upload(array: npt.NDArray[Any], device: torch.device) -> Tensor:
    """A device copy, without waiting: PyTorch reuses pinned memory only when the copy has been made."""
    host = torch.from_numpy(array)
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host


def load(option: str) -> Backend:
    if option:
        raise BackendError(f"backend 'triton' has no variant {option!r}: use 'triton'")
    try:
        from ..kernels.launch import INTERPRETED
    except ImportError as e:
        raise BackendError(f"backend 'triton' needs Triton ({e}): pip install 'llc-fast[triton]'") from e
    if not INTERPRETED and torch.version.hip is not None:
        raise BackendError("backend 'triton' needs an NVIDIA device: equal bits are not assured on others")
    if not INTERPRETED and not torch.cuda.is_available():
        raise BackendError(
            "backend 'triton' needs a CUDA device (for tests, its interpreter: set TRITON_INTERPRET=1 before Python)"
        )
    return Triton(INTERPRETED)
