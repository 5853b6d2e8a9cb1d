"""A chain on a model's own weights: it starts at the anchor, steps, and can be left and taken up again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .. import noise
from ..noise import INITIAL_NOISE, chain_key
from ..plan import Plan
from ..reference import chunks, split
from ..scalars import Scalars
from ..shard import local
from ..tiles import unpack, view
from .chain import seed_losses
from .displacement import Displacement
from .problem import Problem


class Single:
    """One chain, whose weights are the model's.

    plan: of the chain's stream. init_noise: standard deviation of the perturbation of w0 that the chain starts at.
    """

    def __init__(
        self, problem: Problem, plan: Plan, displacement: Displacement, *, init_noise: float = 0.0
    ) -> None:
        self.problem, self.plan, self.displacement, self.init_noise = problem, plan, displacement, init_noise
        self.chains: Sequence[int] = [plan.chain]

    def start(self, scalars: Scalars) -> None:
        begin(self.plan, scalars, self.init_noise)
        seed_losses(self.plan.seed, self.plan.chain)

    def losses(self, batches: Sequence[int]) -> Tensor:
        return self.problem.loss(batches[0]).unsqueeze(0)

    def evaluate(self, batch: Any) -> Tensor:
        with torch.no_grad():
            return self.problem.loss_of(batch, "of an observable").unsqueeze(0)

    def values(self, losses: Tensor) -> npt.NDArray[np.float64]:
        return np.array([self.problem.value(losses)])

    def gradients(self, losses: Tensor) -> list[Tensor | None]:
        return self.problem.gradients(losses)

    def measure(self) -> npt.NDArray[np.float64]:
        return np.array([self.displacement.measure()])

    def state(self) -> dict[str, Any]:
        return kept(self.plan) | {"random": random_state(), "buffers": self.problem.kept_buffers()}

    def load(self, state: dict[str, Any]) -> None:
        restore(self.plan, state)
        self.problem.restore_buffers(state["buffers"])
        set_random_state(state["random"])


@torch.no_grad()
def begin(plan: Plan, scalars: Scalars, init_noise: float = 0.0) -> None:
    """Weights to the anchor, with noise of this size added, and what is kept beside them as at a chain's start."""
    assert plan.anchors is not None
    for p, anchor, rest in zip(plan.params, plan.anchors, plan.remainders, strict=True):
        p.copy_(anchor)
        if rest is not None and p.dtype == torch.float16:
            rest.copy_(anchor)
        elif rest is not None:
            rest.zero_()
    if init_noise:
        _perturb(plan, init_noise)
    for buffer in plan.buffers:
        if buffer is not None:
            buffer.zero_()
    if plan.thermostat is not None:
        plan.thermostat.fill_(scalars.friction or 0.0)


def _perturb(plan: Plan, size: float) -> None:
    """w0 + size z on the weights of the plan's tiles, z a stream of its own (domain 2 of the noise)."""
    for whole in plan.tiles:
        key = chain_key(plan.seed, plan.chain if whole.chain is None else whole.chain)
        for tile in chunks(whole):
            w, rest = view(plan.params[tile.tensor], tile), plan.remainders[tile.tensor]
            rows = torch.arange(tile.rows, device=w.device)[:, None] * tile.global_stride
            index = tile.start + rows + torch.arange(tile.cols, device=w.device)
            z = noise.normal_at(
                index, key, step=0, tensor_id=plan.tensor_ids[tile.tensor], domain=INITIAL_NOISE
            )
            wide = torch.float64 if w.dtype == torch.float64 else torch.float32
            moved = w.to(wide) + size * z.to(wide)
            if (mask := plan.masks[tile.tensor]) is not None:
                moved = torch.where(unpack(mask, tile), moved, w.to(wide))
            if w.dtype == torch.bfloat16:
                high, low = split(moved)
                w.copy_(high)
                if rest is not None:
                    view(rest, tile).copy_(low)
            else:
                w.copy_(moved)
                if rest is not None:
                    view(rest, tile).copy_(moved)


@torch.no_grad()
def kept(plan: Plan) -> dict[str, Any]:
    """Copies, on the CPU, of all that a plan's steps change."""

    def copies(tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
        return [None if t is None else local(t).detach().to("cpu", copy=True).contiguous() for t in tensors]

    return {
        "params": copies(plan.params),
        "remainders": copies(plan.remainders),
        "sampler": copies(plan.buffers),
        "thermostat": copies([plan.thermostat])[0],
    }


@torch.no_grad()
def restore(plan: Plan, state: dict[str, Any]) -> None:
    """What `kept` gave, put back."""
    pairs = [
        *zip(plan.params, state["params"], strict=True),
        *zip(plan.remainders, state["remainders"], strict=True),
        *zip(plan.buffers, state["sampler"], strict=True),
        (plan.thermostat, state["thermostat"]),
    ]
    for t, saved in pairs:
        if t is not None:
            t.copy_(saved)


def random_state() -> list[Tensor]:
    """PyTorch's global generators, which dropout and losses with randomness use: the CPU's, then every GPU's."""
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else ())]


def set_random_state(state: list[Tensor]) -> None:
    torch.set_rng_state(state[0])
    if len(state) > 1:
        torch.cuda.set_rng_state_all(state[1:])
