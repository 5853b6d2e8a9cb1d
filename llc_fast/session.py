"""A model lent to chains: what of it moves, how, and what its loss is at w0."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .choice import choose
from .digests import data_digest
from .errors import ArgumentError
from .kept import start
from .plan import Plan
from .samplers import find
from .sampling import (
    MAX_STACKED,
    MAX_WEIGHTS,
    Baseline,
    Displacement,
    LossFn,
    Problem,
    Single,
    Stacked,
    Trace,
    Walkers,
    baseline,
    borrowed,
    kept_rng,
    pooled,
    ranks_of,
    seed_losses,
    stacked_tiles,
)
from .scalars import Scalars
from .selection import Component
from .shard import prepare, reshard, spoken
from .types import Selection, Tile

GRADIENT_BATCHES = 64  # of a larger pool, the gradients at w0 of this many are taken


@dataclass(frozen=True)
class Request:
    """How the chains of an estimate move; names and meanings as for `estimate_llc`, all checked."""

    component: Component | Selection
    scalars: Scalars
    sampler: str
    state: str
    noise: str
    seed: int
    backend: str
    eval_mode: bool
    init_noise: float = 0.0


@dataclass
class Session:
    """A model while chains use it.

    settings: of the request, for the result. refused: why tensors are not rounded stochastically, though it was
    asked for. unhashed: the type of what the pool holds that has no digest.
    """

    request: Request
    problem: Problem
    tensor_ids: Sequence[int]
    tiles: Sequence[Tile]
    anchors: Sequence[Tensor]
    remainders: Sequence[Tensor | None]
    buffers: Sequence[Tensor | None]
    thermostat: Tensor | None
    displacement: Displacement
    settings: dict[str, Any]
    refused: Sequence[str]
    unhashed: str
    settled: list[float] = field(default_factory=list)
    baseline: Baseline = field(init=False)

    def look(self, keep: Callable[[int, Tensor], None] | None = None) -> None:
        """Take the pool's losses and gradients at w0; keep(batch, losses) gets the former."""
        seed_losses(self.request.seed, 0)
        count = min(len(self.problem.batches), GRADIENT_BATCHES)
        self.baseline = baseline(self.problem, self.displacement, count, keep)

    def plan(self, chain: int) -> Plan:
        """The plan of a chain that moves the model's own weights."""
        return prepare(self.problem.params, self.anchors, sums=True, **self._arguments(chain))

    def _arguments(self, chain: int) -> dict[str, Any]:
        r = self.request
        return {
            "sampler": r.sampler,
            "remainders": self.remainders,
            "buffers": self.buffers,
            "tensor_ids": self.tensor_ids,
            "tiles": self.tiles,
            "seed": r.seed,
            "chain": chain,
            "state": r.state,
            "noise": r.noise,
            "thermostat": self.thermostat,
            "backend": r.backend,
        }

    def bundles(self, chains: Sequence[int], stacked: bool | None) -> list[list[int]]:
        """Chains that walk at once; stacked: None where they can. Raises ArgumentError for True where they cannot."""
        refusal = "there is one chain" if len(chains) == 1 else ""
        if stacked is not False and not refusal:
            refusal = self.stackable()
        if stacked and refusal:
            raise ArgumentError(f"stacked is True, but {refusal}: give stacked=None or False")
        self.settings["stacked"] = stacked is not False and not refusal
        if not self.settings["stacked"]:
            return [[chain] for chain in chains]
        size = max(2, MAX_STACKED // sum(p.numel() for p in self.problem.params))
        return [list(chains[i : i + size]) for i in range(0, len(chains), size)]

    def rebase(self, chains: Sequence[int], keep: Callable[[int, Tensor], None] | None = None) -> None:
        """Take the pool's losses at w0 as chains that walk at once compute theirs, to the last bit."""
        if not self.settings["stacked"]:
            return
        walkers = self.stacked(chains, init_noise=0.0)
        walkers.start(self.request.scalars)
        for i in range(len(self.problem.batches)):
            with torch.no_grad():
                losses = walkers.losses([i] * len(chains))
            self.baseline.losses[i] = walkers.values(losses)[0]
            if keep is not None:
                keep(i, losses[0])

    def walkers(self, chains: Sequence[int]) -> Walkers:
        """Chains of a bundle."""
        if self.settings["stacked"]:
            return self.stacked(chains)
        plan = self.plan(chains[0])
        return Single(self.problem, plan, self.displacement, init_noise=self.request.init_noise)

    @property
    def bytes(self) -> int:
        """About what the state of a chain takes."""
        tensors = (*self.problem.params, *self.remainders, *self.buffers)
        return sum(t.numel() * t.element_size() for t in tensors if t is not None)

    def settle(self, walkers: Walkers, traces: Sequence[Trace]) -> None:
        """Note where the thermostats of the chains that lived ended."""
        if walkers.plan.thermostat is not None:
            ends = walkers.plan.thermostat.tolist()
            self.settled += [xi for xi, trace in zip(ends, traces, strict=True) if trace.verdict is None]

    def stackable(self) -> str:
        """Why chains cannot walk at once, or nothing."""
        p = self.problem
        size = sum(q.numel() for q in p.model.parameters())
        if size > MAX_WEIGHTS:
            return f"the model has {size:,} weights, more than {MAX_WEIGHTS:,}"
        if p.ranks is not None or any(q.dtype == torch.float16 for q in p.params):
            return "the model is sharded or in float16"
        if any(
            q.dtype == torch.bfloat16 and r is None for q, r in zip(p.params, self.remainders, strict=True)
        ):
            return "the weights are rounded stochastically"
        if not self.request.eval_mode:
            return "eval_mode is False"
        try:
            with kept_rng():
                return self._compare()
        except Exception as e:  # whatever loss_fn does that cannot be done for several chains at once
            return f"torch.func.vmap refuses the model or loss_fn: {type(e).__name__}: {e}".split("\n")[0]

    def _compare(self) -> str:
        """How two chains at once, near w0, differ from each alone; nothing where losses and gradients agree."""
        p, pair = self.problem, self.stacked([0, 1], init_noise=0.0)
        pair.start(self.request.scalars)
        generator = torch.Generator().manual_seed(0)
        eps = max(self.baseline.eps, *(torch.finfo(q.dtype).eps for q in p.params))
        allowed = min(0.1, max(1e-10, 1000 * eps))
        try:
            with torch.no_grad():
                for (
                    stacked
                ) in pair.plan.params:  # a loss that holds weights of its own does not see that they moved
                    z = torch.randn(stacked.shape, generator=generator).to(stacked)
                    stacked += 0.02 * (stacked.std() + 0.02) * z
            place = len(p.batches) - 1
            together = pair.losses([place, place])
            values, grads = pair.values(together), pair.gradients(together)
            for i in range(2):
                with torch.no_grad():
                    for q, stacked in zip(p.params, pair.plan.params, strict=True):
                        q.copy_(stacked[i])
                loss = p.loss(place)
                value, alone = p.value(loss), p.gradients(loss)
                again = p.value(p.loss(place))
                if not any(map(math.isfinite, (value, again, values[i]))):
                    continue  # beyond where the loss is defined: nothing to compare
                if again != value:
                    return "loss_fn gives other values at the same weights"
                if not abs(values[i] - value) <= allowed * abs(value):
                    return f"under torch.func.vmap a loss is {values[i]:.6g}, of one chain alone {value:.6g}"
                size = math.sqrt(sum(float(g.double().square().sum()) for g in alone if g is not None))
                for name, one, many in zip(p.names, alone, grads, strict=True):
                    difference = _less(one, None if many is None else many[i])
                    if not difference <= allowed * size:
                        return f"under torch.func.vmap the gradient of {name!r} is another"
        finally:
            with torch.no_grad():
                for q, anchor in zip(p.params, self.anchors, strict=True):
                    q.copy_(anchor)
        return ""

    def stacked(self, chains: Sequence[int], *, init_noise: float | None = None) -> Stacked:
        """Chains that walk at once, on copies of the model's weights."""
        noise = self.request.init_noise if init_noise is None else init_noise
        many = len(chains)

        def copies(tensors: Sequence[Tensor | None]) -> list[Any]:
            return [None if t is None else t.detach().expand(many, *t.shape).clone() for t in tensors]

        params = [p.requires_grad_() for p in copies(self.problem.params)]
        arguments = self._arguments(chains[0]) | {
            "remainders": copies(self.remainders),
            "buffers": copies(self.buffers),
            "tiles": stacked_tiles(self.tiles, self.problem.params, chains),
            "thermostat": None if self.thermostat is None else self.thermostat[:1].repeat(many),
        }
        plan = prepare(params, copies(self.anchors), sums=True, **arguments)
        return Stacked(self.problem, plan, self.displacement, chains, init_noise=noise)

    @property
    def friction(self) -> float | None:
        """Of the sampler; with thermostats the mean of where chains left them."""
        return float(np.mean(self.settled)) if self.settled else self.request.scalars.friction


@contextmanager
def lent(
    model: nn.Module, loss_fn: LossFn, pool: Sequence[Any], request: Request, *, agreed: Any = None
) -> Iterator[Session]:
    """Borrow a model for chains on a pool of batches; whatever happens, it comes back as it was.

    agreed: what all ranks that hold the model together must have been given alike.
    """
    reshard(model)
    ranks = ranks_of(model)
    if ranks is not None:  # before they need each other
        ranks.agree("settings", agreed)
    names, params, ids, tiles, settings = choose(model, request.component, ranks)
    s, method = request.scalars, find(request.sampler)
    with kept_rng():
        if ranks is not None:
            settings["ranks"] = ranks.count
            ranks.agree("numbers of batches", len(pool))
        digest, unhashed = data_digest(pool)
        settings["data_sha256"], speaks = pooled(ranks, digest)
        problem = Problem(model, loss_fn, pool, params, names, ranks, speaks)
        with borrowed(model, params, eval_mode=request.eval_mode) as anchors:
            started = [
                start(name, p, method, request.state, s.lr, s.noise_level)
                for name, p in zip(names, params, strict=True)
            ]
            remainders = [kept.get("remainder") for kept, _ in started]
            xi = None
            if method.thermostat:
                xi = torch.full((1,), s.friction or 0.0, dtype=torch.float64, device=params[0].device)
            session = Session(
                request=request,
                problem=problem,
                tensor_ids=ids,
                tiles=tiles,
                anchors=anchors,
                remainders=remainders,
                buffers=[kept.get(method.buffer or "") for kept, _ in started],
                thermostat=xi,
                displacement=None,  # type: ignore[arg-type]
                settings=settings,
                refused=[note for _, note in started if note is not None],
                unhashed=unhashed,
            )
            first = session.plan(0)
            settings["backend"] = ", ".join(first.backend_names)
            mine, others = spoken(first, tiles)
            session.displacement = Displacement(params, anchors, remainders, mine, box=s.box, ranks=others)
            yield session


def _less(one: Tensor | None, other: Tensor | None) -> float:
    """The norm of the difference; an absent gradient is 0."""
    if one is None or other is None:
        there = one if other is None else other
        return 0.0 if there is None else float(there.double().norm())
    return float((one.double() - other.double()).norm())
