"""The same step in plain PyTorch: the oracle of every backend, and the fallback on any device."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from . import noise
from .scalars import BOX, LOCALIZATION, NOISE, WEIGHT_DECAY, Scalars, to_float32
from .types import Tile

CHUNK = 1 << 20  # elements at a time, which bounds what the integer temporaries of the noise take


def sgld(w: Tensor, g: Tensor, w0: Tensor | None, z: Tensor | None, s: Scalars) -> Tensor:
    """w' of one SGLD step, elementwise, in the dtype of w (fp32 or fp64).

    w <- w - lr/2 (nbeta g + weight_decay w + localization (w - w0)) + sqrt(lr) noise_level z, then the box.
    Every product and sum is rounded by itself: no alpha=, addcmul or lerp here.
    Source: Welling & Teh 2011; Lau et al. 2023 (arXiv 2308.12108).
    """
    scalar = to_float32 if w.dtype == torch.float32 else float
    terms = s.terms
    a = scalar(s.nbeta) * g
    if terms & WEIGHT_DECAY:
        a = a + scalar(s.weight_decay) * w
    if terms & LOCALIZATION:
        assert w0 is not None
        a = a + scalar(s.localization) * (w - w0)
    u = scalar(s.c1) * a
    if terms & NOISE:
        assert z is not None
        u = u + scalar(s.c2) * z
    out = w + u
    if terms & BOX:
        assert w0 is not None
        assert s.box is not None
        lo, hi = w0 - scalar(s.box), w0 + scalar(s.box)
        out = torch.where(out < lo, lo, out)
        out = torch.where(out > hi, hi, out)
    return out


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


def sgld_step(
    w: Tensor,
    g: Tensor | None,
    w0: Tensor | None,
    lo: Tensor | None,
    tile: Tile,
    key: tuple[int, int],
    tensor_id: int,
    scalars: Scalars,
    step: int,
) -> None:
    """One step of one tile, given as (rows, cols) views of the operands; writes w (and lo)."""
    z = None
    if scalars.terms & NOISE:
        rows = torch.arange(tile.rows, dtype=torch.int64, device=w.device) * tile.global_stride
        index = tile.start + rows[:, None] + torch.arange(tile.cols, dtype=torch.int64, device=w.device)
        z = noise.normal_at(index, key, step=step, tensor_id=tensor_id)
    if lo is None:
        g = torch.zeros_like(w) if g is None else g
        w.copy_(sgld(w, g, w0, z if z is None else z.to(w.dtype), scalars))
        return
    full = join(w, lo)
    g = torch.zeros_like(full) if g is None else g.float()
    hi, rest = split(sgld(full, g, None if w0 is None else w0.float(), z, scalars))
    w.copy_(hi)
    lo.copy_(rest)
