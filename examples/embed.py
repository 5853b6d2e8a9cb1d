"""The step inside someone else's loop: four ways, the same chain.

    python examples/embed.py

1. A plain loop that owns its gradients calls `llc_fast.sgld_step_`, a pure function of its arguments.
2. A loop with an explicit state calls `functional.init` and `functional.update`.
3. posteriors' convention: a transform with `init(params)` and `update(state, batch)`, here ten lines around 2.
4. optax's convention, but for one thing: `update(grads, state, params)` returns the new weights, not differences.

Each samples a linear regression around its least squares solution, whose local learning coefficient is known in
closed form; all four print the same number, since they draw the same noise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

import llc_fast
from llc_fast import exact, functional

Params = dict[str, Tensor]

SETTINGS = {"lr": 2e-3, "nbeta": 100.0, "localization": 1.0}
STEPS, BURNIN = 4000, 500

generator = torch.Generator().manual_seed(0)
X = torch.randn(256, 5, generator=generator)
Y = X @ torch.randn(5, 2, generator=generator) + 0.1 * torch.randn(256, 2, generator=generator)
BEST = torch.linalg.lstsq(X, Y).solution.contiguous()


def loss(params: Params) -> Tensor:
    return ((X @ params["w"] - Y) ** 2).sum(dim=1).mean() / 2


def gradient(params: Params) -> tuple[float, Params]:
    """The loss and its gradients, however the surrounding code gets them."""
    leaves = {name: p.detach().requires_grad_() for name, p in params.items()}
    value = loss(leaves)
    return value.item(), dict(zip(leaves, torch.autograd.grad(value, list(leaves.values())), strict=True))


def llc(losses: list[float]) -> float:
    kept = losses[BURNIN:]
    return SETTINGS["nbeta"] * (sum(kept) / len(kept) - float(loss({"w": BEST})))


def plain() -> float:
    """A loop of one's own: weights, anchor and step number are variables of it."""
    w, anchor, losses = BEST.clone(), BEST.clone(), []
    for step in range(STEPS):
        value, grads = gradient({"w": w})
        losses.append(value)
        llc_fast.sgld_step_([w], [grads["w"]], [anchor], seed=1, step=step, **SETTINGS)
    return llc(losses)


def explicit() -> float:
    """A loop that carries a state: it knows anchors, noise and, for other samplers, their buffers."""
    params, losses = {"w": BEST.clone()}, []
    state = functional.init(params, seed=1)
    for _ in range(STEPS):
        value, grads = gradient(params)
        losses.append(value)
        state = functional.update(grads, state, params, **SETTINGS)
    return llc(losses)


class Transform(NamedTuple):
    """What posteriors calls a transform."""

    init: Callable[[Params], Any]
    update: Callable[[Any, Any], tuple[Any, float]]


class Walk(NamedTuple):
    """The state of such a transform: parameters and chain travel together."""

    params: Params
    chain: functional.State


def transform(log_posterior: Callable[[Params, Any], tuple[float, Params]], **settings: float) -> Transform:
    """Our sampler as `posteriors.sgmcmc.sgld.build` gives its own; log_posterior: loss and gradients of a batch."""

    def init(params: Params) -> Walk:
        return Walk(params, functional.init(params, seed=1))

    def update(state: Walk, batch: Any) -> tuple[Walk, float]:
        value, grads = log_posterior(state.params, batch)
        chain = functional.update(grads, state.chain, state.params, **settings)
        return Walk(state.params, chain), value

    return Transform(init, update)


def posteriors_style() -> float:
    sampler, losses = transform(lambda params, _: gradient(params), **SETTINGS), []
    state = sampler.init({"w": BEST.clone()})
    for _ in range(STEPS):
        state, value = sampler.update(state, None)
        losses.append(value)
    return llc(losses)


class GradientTransformation(NamedTuple):
    """What optax calls one."""

    init: Callable[[Params], Any]
    update: Callable[[Params, Any, Params], tuple[Params, Any]]


def langevin(**settings: float) -> GradientTransformation:
    """Our sampler as a gradient transformation: it leaves the parameters that it is given as they are."""

    def update(grads: Params, state: functional.State, params: Params) -> tuple[Params, functional.State]:
        moved = {name: p.clone() for name, p in params.items()}
        state = functional.update(grads, state, moved, **settings)
        return moved, state  # a difference of fp32 weights would lose their last bits

    return GradientTransformation(lambda params: functional.init(params, seed=1), update)


def optax_style() -> float:
    sampler, losses, params = langevin(**SETTINGS), [], {"w": BEST.clone()}
    state = sampler.init(params)
    for _ in range(STEPS):
        value, grads = gradient(params)
        losses.append(value)
        params, state = sampler.update(grads, state, params)
    return llc(losses)


def main() -> None:
    torch.set_num_threads(1)
    hessian = X.T @ X / len(X)
    eigenvalues = torch.linalg.eigvalsh(hessian).repeat(2).tolist()
    known = exact.quadratic_llc(eigenvalues, **SETTINGS)
    print(f"closed form              {known:.4f}")
    for name, run in (
        ("plain loop", plain),
        ("functional loop", explicit),
        ("posteriors-style", posteriors_style),
        ("optax-style", optax_style),
    ):
        print(f"{name:24s} {run():.4f}")


if __name__ == "__main__":
    main()
