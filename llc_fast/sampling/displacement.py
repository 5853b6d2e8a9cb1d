"""How far chains are from where they started, measured at their draws."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..reference import chunks, join
from ..shard import Ranks, gradient, local
from ..tiles import view
from ..types import Tile


class Displacement:
    """How far the selected weights are from their anchors, and the pool's gradient there.

    params, anchors, remainders, box: as a step takes them. tiles: of local shards; over all ranks that hold the
    others, every element once. ranks: these, None for one.
    """

    def __init__(
        self,
        params: Sequence[Tensor],
        anchors: Sequence[Tensor],
        remainders: Sequence[Tensor | None],
        tiles: Sequence[Tile],
        *,
        box: float | None,
        ranks: Ranks | None = None,
    ) -> None:
        self.params, self.anchors, self.remainders, self.box = params, anchors, remainders, box
        self.ranks = ranks
        self.numel = int(self._total([float(sum(tile.numel for tile in tiles))])[0])
        # On a CPU a piece and its temporaries stay in the cache.
        size = 1 << 17 if all(p.device.type == "cpu" for p in params) else 1 << 22
        self.pieces = [piece for tile in tiles for piece in chunks(tile, size)]
        self.gradient = [
            torch.zeros(t.rows, t.cols, device=params[t.tensor].device, dtype=_wide(params[t.tensor]))
            for t in self.pieces
        ]
        self.count = 0
        self.squares = 0.0

    @torch.no_grad()
    def add_gradient(self, grads: Sequence[Tensor | None]) -> None:
        """Count the gradient of one batch at the anchor."""
        squares = []
        grads = [
            gradient(f"grads[{i}]", g, p) for i, (g, p) in enumerate(zip(grads, self.params, strict=True))
        ]
        for piece, total in zip(self.pieces, self.gradient, strict=True):
            if (g := grads[piece.tensor]) is not None:
                part = view(g.contiguous(), piece)
                total += part
                squares.append((part.double() ** 2).sum())
        self.squares += self._total([_sum(squares)])[0]
        self.count += 1

    def gradient_noise(self, pool: int) -> float:
        """Trace of the covariance, over a pool of batches, of the gradients counted so far; needs 2, or all."""
        if pool == 1:
            return 0.0
        (square_of_sum,) = self._total([_sum([(total.double() ** 2).sum() for total in self.gradient])])
        spread = max(0.0, self.squares - square_of_sum / self.count)
        return spread / (self.count - 1) * (pool - 1) / pool

    @torch.no_grad()
    def measure(self) -> tuple[float, float, float]:
        """|w - w0|^2, g0.(w - w0) with g0 the mean gradient counted, and the fraction of weights at the box.

        Products are summed in the dtype of w (fp32 for bf16) within a piece, in float64 over pieces.
        """
        distance, dot, boxed = [], [], []
        for piece, total in zip(self.pieces, self.gradient, strict=True):
            w, w0 = (view(local(x[piece.tensor]), piece) for x in (self.params, self.anchors))
            if (lo := self.remainders[piece.tensor]) is not None:
                rest = view(local(lo), piece)
                w, w0 = join(w, rest) if w.dtype == torch.bfloat16 else rest, w0.float()
            rounded = lo is None and w.dtype == torch.bfloat16
            if rounded:
                w, w0 = w.float(), w0.float()
            if self.box is not None:
                low, high = w0 - self.box, w0 + self.box
                if rounded:  # from the box by less than the last bit, to either side
                    low, high = -_below(-low), _below(high)
                boxed.append(((w <= low) | (w >= high)).sum())
            d = (w - w0).view(-1)
            distance.append(torch.dot(d, d))
            dot.append(torch.dot(d, total.view(-1)))
        squared, along, outside = self._total([_sum(distance), _sum(dot), _sum(boxed)])
        return squared, along / max(self.count, 1), outside / self.numel

    def _total(self, values: list[float]) -> list[float]:
        """Sums over all ranks."""
        if self.ranks is None:
            return values
        return [float(value) for value in self.ranks.sum(torch.tensor(values, dtype=torch.float64))]


def _below(x: Tensor) -> Tensor:
    """The largest bf16 that is not above x, as fp32."""
    bits = x.contiguous().view(torch.int32)
    cut = bits & -0x10000
    return torch.where((x < 0) & (cut != bits), cut + 0x10000, cut).view(torch.float32)


def _wide(t: Tensor) -> torch.dtype:
    return torch.float64 if t.dtype == torch.float64 else torch.float32


def _sum(parts: Sequence[Tensor]) -> float:
    """Sum in float64, with one synchronisation for each device."""
    total = 0.0
    for device in dict.fromkeys(part.device for part in parts):
        total += float(torch.stack([p.double() for p in parts if p.device == device]).sum())
    return total
