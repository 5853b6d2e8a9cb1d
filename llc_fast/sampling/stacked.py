"""Many chains of a small model at once: stacked weights, one forward and backward pass for all, one launch a step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree

from ..plan import Plan
from ..reference import join
from ..scalars import Scalars
from ..types import Tile
from .chain import seed_losses
from .displacement import Displacement
from .problem import LossFn, Problem
from .walkers import begin, kept, random_state, restore, set_random_state

MAX_WEIGHTS = 1 << 20  # of a model whose chains are stacked
MAX_STACKED = 1 << 26  # elements of all chains that walk at once


class _Loss(nn.Module):
    """loss_fn of a model, as a module whose parameters can be swapped."""

    def __init__(self, model: nn.Module, loss_fn: LossFn) -> None:
        super().__init__()
        self.model, self.loss_fn = model, loss_fn

    def forward(self, batch: Any) -> Tensor:
        return self.loss_fn(self.model, batch)


class Stacked:
    """Chains that walk at once; plan: of stacked weights, each chain's tiles in its own part of them.

    Their noise has the bits that each chain has alone; gradients agree to rounding.
    """

    def __init__(
        self,
        problem: Problem,
        plan: Plan,
        displacement: Displacement,
        chains: Sequence[int],
        *,
        init_noise: float = 0.0,
    ) -> None:
        self.problem, self.plan, self.chains, self.init_noise = problem, plan, chains, init_noise
        self.displacement = displacement
        self.weights = displacement.numel
        self._loss = _Loss(problem.model, problem.loss_fn)
        raw = {id(p): name for name, p in self._loss.named_parameters()}
        self._names = [raw[id(p)] for p in problem.params]
        self._pool = stack(problem.batches)
        self._each = vmap(self._one, in_dims=(0, 0), randomness="different")
        self._shared = vmap(self._one, in_dims=(0, None), randomness="different")
        # g0.(w - w0) of all chains at once: the pool's gradient at w0, piece by piece as `displacement` keeps it
        self._pieces = [
            (t, g.reshape(-1)) for t, g in zip(displacement.pieces, displacement.gradient, strict=True)
        ]

    def _one(self, params: tuple[Tensor, ...], batch: Any) -> Tensor:
        loss: Tensor = functional_call(self._loss, dict(zip(self._names, params, strict=True)), (batch,))
        return loss

    def start(self, scalars: Scalars) -> None:
        begin(self.plan, scalars, self.init_noise)
        seed_losses(self.plan.seed, self.chains[0])

    def losses(self, batches: Sequence[int]) -> Tensor:
        params = tuple(self.plan.params)
        with sdpa_kernel(SDPBackend.MATH):  # of which alone vmap makes one call for all chains
            if len(self.problem.batches) == 1:
                return self._shared(params, self.problem.batches[0])
            index = torch.tensor(batches)
            chosen = pytree.tree_map_only(Tensor, lambda t: t[index.to(t.device)], self._pool)
            return self._each(params, chosen)

    def evaluate(self, batch: Any) -> Tensor:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            return self._shared(tuple(self.plan.params), batch)

    def values(self, losses: Tensor) -> npt.NDArray[np.float64]:
        means: npt.NDArray[np.float64] = _means(losses.detach()).double().cpu().numpy()
        return means

    def gradients(self, losses: Tensor) -> list[Tensor | None]:
        if not losses.requires_grad:
            return [None] * len(self.plan.params)
        return list(torch.autograd.grad(_means(losses).sum(), self.plan.params, allow_unused=True))

    @torch.no_grad()
    def measure(self) -> npt.NDArray[np.float64]:
        assert self.plan.anchors is not None
        out = np.zeros((len(self.chains), 3))
        box = self.displacement.box
        for piece, g in self._pieces:
            w = _rows(self.plan.params[piece.tensor], piece)
            w0 = _rows(self.plan.anchors[piece.tensor], piece)
            if (rest := self.plan.remainders[piece.tensor]) is not None:
                w, w0 = join(w.contiguous(), _rows(rest, piece).contiguous()), w0.float()
            d = (w - w0).double()
            out[:, 0] += d.square().sum(dim=1).cpu().numpy()
            out[:, 1] += (d @ g.double()).cpu().numpy()
            if box is not None:
                out[:, 2] += ((w <= w0 - box) | (w >= w0 + box)).sum(dim=1).cpu().numpy()
        out[:, 1] /= max(self.displacement.count, 1)
        out[:, 2] /= self.weights
        return out

    def state(self) -> dict[str, Any]:
        return kept(self.plan) | {"random": random_state()}

    def load(self, state: dict[str, Any]) -> None:
        restore(self.plan, state)
        set_random_state(state["random"])


def stack(batches: Sequence[Any]) -> Any:
    """Batches of one structure and shape as one, batches first; raises where they differ."""
    leaves = [pytree.tree_flatten(batch) for batch in batches]
    if any(spec != leaves[0][1] for _, spec in leaves):
        raise ValueError("batches differ in structure")
    columns = []
    for column in zip(*(values for values, _ in leaves), strict=True):
        if isinstance(column[0], Tensor):
            columns.append(torch.stack(column))
        elif all(value == column[0] for value in column):
            columns.append(column[0])
        else:
            raise ValueError("batches differ in what is no tensor")
    return pytree.tree_unflatten(columns, leaves[0][1])


def stacked_tiles(tiles: Sequence[Tile], params: Sequence[Tensor], chains: Sequence[int]) -> list[Tile]:
    """The tiles of parameters that have a copy for each chain, chains first."""
    return [
        Tile(
            t.tensor,
            t.rows,
            t.cols,
            t.offset + i * params[t.tensor].numel(),
            t.stride,
            t.start,
            t.global_stride,
            chain,
        )
        for i, chain in enumerate(chains)
        for t in tiles
    ]


def _means(losses: Tensor) -> Tensor:
    wide = torch.float32 if losses.device.type == "mps" else torch.float64
    return losses.reshape(len(losses), -1).mean(dim=1, dtype=wide)


def _rows(stacked: Tensor, piece: Tile) -> Tensor:
    """A tile of each chain's weights, (chains, elements)."""
    numel = stacked[0].numel()
    parts = stacked.detach().view(len(stacked), numel)
    picked = parts.as_strided(
        (len(stacked), piece.rows, piece.cols),
        (numel, piece.stride, 1),
        parts.storage_offset() + piece.offset,
    )
    return picked.reshape(len(stacked), -1)
