"""Count sketches of the parts of a step: short vectors whose inner products estimate those of the long ones.

Weinberger et al. 2009 (ICML). Hashes are drawn as devinterp draws them, so that sketches can be compared with its.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..noise import chain_key, normal_at
from ..plan import Plan
from ..reference import join
from ..scalars import NOISE, Scalars
from ..shard import ShardedPlan, held, positions
from ..tiles import unpack
from ..types import Tile


@dataclass
class SketchBuffer:
    """The sketch of each part of a step, fp32 of shape (sketch_dim,)."""

    QUANTITIES: ClassVar[tuple[str, ...]] = (
        "scaled_grad",
        "unscaled_grad",
        "localization",
        "weight_decay",
        "noise",
    )

    scaled_grad: Tensor
    unscaled_grad: Tensor
    localization: Tensor
    weight_decay: Tensor
    noise: Tensor


class Sketches:
    """The sketches of a sampler's last step. They cost several passes in plain PyTorch, and 12 bytes a parameter."""

    def __init__(self, groups: Sequence[dict[str, Any]], dim: int, seed: int) -> None:
        params = [p for group in groups for p in group["params"]]
        self.dim, size = dim, 0
        self.offsets: dict[Tensor, int] = {}
        for p in params:
            self.offsets[p] = size
            size += p.numel()
        generator = torch.Generator().manual_seed(seed)
        device = params[0].device
        self.bucket = torch.randint(0, dim, (size,), generator=generator).to(device)
        self.sign = (2 * torch.randint(0, 2, (size,), generator=generator) - 1).float().to(device)
        self.values = {name: torch.zeros(dim, device=device) for name in SketchBuffer.QUANTITIES}

    def buffer(self) -> SketchBuffer:
        return SketchBuffer(**{name: value.detach().cpu().clone() for name, value in self.values.items()})

    def take(self, work: Sequence[tuple[Plan, Sequence[Tensor | None], Scalars, int]]) -> None:
        """Sketch the steps that are about to be made."""
        for value in self.values.values():
            value.zero_()
        for plan, grads, scalars, step in work:
            sums = {name: torch.zeros_like(value) for name, value in self.values.items()}
            for i, p in enumerate(held(plan)):
                if isinstance(plan, ShardedPlan) and not plan.ranks.speaks[i]:
                    continue
                at = self.offsets[p] + positions(p).view(-1)
                for name, part in _parts(plan, i, grads[i], scalars, step).items():
                    sums[name].index_add_(0, self.bucket[at], self.sign[at] * part.reshape(-1).float())
            for name, value in sums.items():
                self.values[name] += plan.ranks.sum(value) if isinstance(plan, ShardedPlan) else value


def _parts(plan: Plan, i: int, grad: Tensor | None, s: Scalars, step: int) -> dict[str, Tensor]:
    """What each part of a parameter's step adds to it (to its velocity, where there is one)."""
    p, rest, buffer = plan.params[i], plan.remainders[i], plan.buffers[i]
    assert plan.anchors is not None
    w = p.detach().float() if rest is None else join(p.detach(), rest) if p.dtype == torch.bfloat16 else rest
    g = torch.zeros_like(w) if grad is None else grad.float()
    moves = _moving(plan, i)
    z = torch.zeros_like(w)
    if s.terms & NOISE:
        key = chain_key(plan.seed, plan.chain)
        z = normal_at(positions(held(plan)[i]), key, step=step, tensor_id=plan.tensor_ids[i], kind=plan.noise)
    half, scale, noise = (s.lr / 2, s.c2, z) if s.friction is None else (s.lr, s.c3, z)
    G = torch.ones_like(w)
    if plan.sampler.preconditioner is not None:
        assert buffer is not None
        G = plan.sampler.preconditioner(s.alpha * buffer + s.beta * (g * g), s)
    d = w - plan.anchors[i].float()
    raw = half * s.nbeta * g
    parts = {
        "scaled_grad": G * raw,
        "unscaled_grad": raw,
        "localization": half * s.localization * (G * d),
        "weight_decay": half * s.weight_decay * (G * w),
        "noise": scale * (G.sqrt() * noise),
    }
    return {name: torch.where(moves, part, 0.0) for name, part in parts.items()}


def _moving(plan: Plan, i: int) -> Tensor:
    """Which elements of a parameter move."""
    p, bits = plan.params[i], plan.masks[i]
    if bits is not None:
        return unpack(bits, Tile(i, 1, p.numel(), 0, p.numel(), 0, p.numel())).view(p.shape)
    moves = torch.zeros(p.shape, dtype=torch.bool, device=p.device)
    for tile in plan.tiles:
        if tile.tensor == i:
            moves.view(-1).as_strided((tile.rows, tile.cols), (tile.stride, 1), tile.offset).fill_(True)
    return moves
