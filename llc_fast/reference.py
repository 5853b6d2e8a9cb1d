"""The same step in plain PyTorch: the oracle of every backend, and the fallback on any device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from . import noise, sums
from .samplers import Element, Sampler
from .scalars import NOISE, Scalars
from .types import Tile

CHUNK = 1 << 20  # elements at a time, which bounds what the integer temporaries of the noise take


def join(hi: Tensor, lo: Tensor) -> Tensor:
    """fp32 from its bf16 high half and int16 remainder."""
    h, r = hi.view(torch.int16).to(torch.int32), lo.to(torch.int32)
    return (((h - (r < 0).to(torch.int32)) << 16) | (r & 0xFFFF)).view(torch.float32)


def split(x: Tensor) -> tuple[Tensor, Tensor]:
    """bf16 high half and int16 remainder of an fp32, exactly; a NaN becomes 0x7fc0 and 0."""
    u = x.contiguous().view(torch.int32)
    nan = (u & 0x7FFFFFFF) > 0x7F800000
    hi = torch.where(nan, 0x7FC0, (u + 0x8000) >> 16).to(torch.int16)
    lo = torch.where(nan, 0, (u << 16) >> 16).to(torch.int16)
    return hi.view(torch.bfloat16), lo


def round_by(x: Tensor, bits: Tensor) -> Tensor:
    """bf16 of an fp32, rounded up with the probability of its lower half; bits: uniform in [0, 2^16)."""
    u = x.contiguous().view(torch.int32)
    nan = (u & 0x7FFFFFFF) > 0x7F800000
    hi = torch.where(nan, 0x7FC0, (u + bits.to(torch.int32)) >> 16).to(torch.int16)
    return hi.view(torch.bfloat16)


def chunks(tile: Tile, size: int = CHUNK) -> Iterator[Tile]:
    """The tile cut into tiles of at most `size` elements."""
    cols = min(tile.cols, size)
    rows = max(1, size // cols)
    for r in range(0, tile.rows, rows):
        for c in range(0, tile.cols, cols):
            yield Tile(
                tile.tensor,
                min(rows, tile.rows - r),
                min(cols, tile.cols - c),
                tile.offset + r * tile.stride + c,
                tile.stride,
                tile.start + r * tile.global_stride + c,
                tile.global_stride,
                tile.chain,
            )


@dataclass
class Operands:
    """(rows, cols) views of one tile in memory; mask: booleans, None for all."""

    w: Tensor
    g: Tensor | None
    w0: Tensor | None
    rest: Tensor | None
    buffer: Tensor | None
    mask: Tensor | None


def sgld_step(
    o: Operands,
    tile: Tile,
    sampler: Sampler,
    scalars: Scalars,
    *,
    key: tuple[int, int],
    tensor_id: int,
    step: int,
    kind: str = "gaussian",
    xi: float = 0.0,
    total: Tensor | None = None,
) -> None:
    """One step of one tile; writes w, and rest and buffer if there are; adds its sums to `total`, fp64 (24,)."""
    w, rest, compute = o.w, o.rest, torch.float64 if o.w.dtype == torch.float64 else torch.float32
    rows = torch.arange(tile.rows, dtype=torch.int64, device=w.device) * tile.global_stride
    index = tile.start + rows[:, None] + torch.arange(tile.cols, dtype=torch.int64, device=w.device)
    z = None
    if scalars.terms & NOISE:
        z = noise.normal_at(index, key, step=step, tensor_id=tensor_id, kind=kind).to(compute)
    if rest is None:
        full = w.to(compute)
    else:
        full = join(w, rest) if w.dtype == torch.bfloat16 else rest
    g = torch.zeros_like(full) if o.g is None else o.g.to(compute)
    anchored = scalars.needs_anchor or total is not None
    w0 = o.w0.to(compute) if o.w0 is not None and anchored else None
    buffer = None if o.buffer is None else o.buffer.to(compute)
    e = Element(full, g, w0, z, buffer, xi)
    out, after = sampler.update(e, scalars)
    if total is not None:
        _observe(total, e, after, o.mask, sampler, scalars)
    if w.dtype == torch.bfloat16 and rest is None:
        bits = noise.rounding_bits(index, key, step=step, tensor_id=tensor_id)
        _write(w, round_by(out, bits), o.mask)
    elif w.dtype == torch.bfloat16:
        assert rest is not None
        hi, lo = split(out)
        _write(w, hi, o.mask)
        _write(rest, lo, o.mask)
    else:
        _write(w, out.to(w.dtype), o.mask)
        if rest is not None:
            _write(rest, out, o.mask)
    if o.buffer is not None:
        assert after is not None
        _write(o.buffer, after.to(o.buffer.dtype), o.mask)


def _write(t: Tensor, value: Tensor, mask: Tensor | None) -> None:
    t.copy_(value if mask is None else torch.where(mask, value, t))


def _observe(
    total: Tensor, e: Element, after: Tensor | None, mask: Tensor | None, sampler: Sampler, scalars: Scalars
) -> None:
    """Add the sums of the elements that the mask selects."""
    if mask is not None:

        def picked(t: Tensor | None) -> Tensor | None:
            return None if t is None else t[mask]

        e = Element(e.w[mask], e.g[mask], picked(e.w0), picked(e.z), picked(e.buffer), e.xi)
        after = picked(after)
    G = None
    if sampler.preconditioner is not None:
        assert after is not None
        G = sampler.preconditioner(after, scalars)
    v = after if sampler.preconditioner is None else None
    total += sums.observe(e, scalars, v, G)
