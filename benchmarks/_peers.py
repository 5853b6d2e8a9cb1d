"""What people use otherwise, imported as it is, on the same tensors.

Each builder takes a `Work` and gives the call that makes one step; it raises ModuleNotFoundError where the package is
not installed. All target the same posterior: weight nbeta on the gradient, localization towards the anchors. All read
the work's gradients; PyTorch by hand and devinterp move its weights where they are, devinterp with its own copy of the
anchors; posteriors and blackjax end a step with weights in new memory, from the work's.
"""

from __future__ import annotations

import importlib
import logging
import math
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ._timing import Call
from ._work import LOCALIZATION, LR, NBETA, OWN, Work

SCALE = math.sqrt(LR)


# --- PyTorch by hand ---


def eager(work: Work) -> Call:
    """The step as one writes it down."""

    @torch.no_grad()
    def step() -> None:
        for w, g, w0 in zip(work.params, work.grads, work.anchors, strict=True):
            drift = NBETA * g + LOCALIZATION * (w - w0)
            w.copy_(w - LR / 2 * drift + SCALE * torch.randn_like(w))

    return step


def in_place(work: Work) -> Call:
    """The step as one tunes it by hand: in place, one scratch buffer."""
    largest = max(work.params, key=Tensor.numel)
    scratch = torch.empty_like(largest).view(-1)

    @torch.no_grad()
    def step() -> None:
        for w, g, w0 in zip(work.params, work.grads, work.anchors, strict=True):
            z = scratch[: w.numel()].view(w.shape).normal_()
            w.lerp_(w0, LR / 2 * LOCALIZATION).add_(g, alpha=-LR / 2 * NBETA).add_(z, alpha=SCALE)

    return step


def foreach(work: Work) -> Call:
    """The step over lists of tensors, as PyTorch's own optimizers are written."""
    z = [torch.empty_like(p) for p in work.params]

    @torch.no_grad()
    def step() -> None:
        for t in z:
            t.normal_()
        torch._foreach_lerp_(work.params, work.anchors, LR / 2 * LOCALIZATION)
        torch._foreach_add_(work.params, work.grads, alpha=-LR / 2 * NBETA)
        torch._foreach_add_(work.params, z, alpha=SCALE)

    return step


def compiled(work: Work) -> Call:
    """The step of all tensors as torch.compile fuses it: one function, compiled for their shapes in its first call.

    On a CPU with PyTorch's own noise, as that which it would compile takes ten times as long.
    """

    def update(ws: list[Tensor], gs: list[Tensor], w0s: list[Tensor]) -> None:
        for w, g, w0 in zip(ws, gs, w0s, strict=True):
            w.copy_(w - LR / 2 * (NBETA * g + LOCALIZATION * (w - w0)) + SCALE * torch.randn_like(w))

    torch._dynamo.reset()
    options: dict[str, Any] = {"fallback_random": work.params[0].device.type == "cpu"}
    fused = torch.compile(update, dynamic=False, options=options)

    @torch.no_grad()
    def step() -> None:
        fused(work.params, work.grads, work.anchors)

    return step


def adamw(work: Work) -> Call:
    """PyTorch's fused AdamW: no sampler, but the yardstick of a step that only waits for memory."""
    return torch.optim.AdamW(leaves(work), lr=LR, fused=True).step


def normal(work: Work) -> Call:
    """PyTorch's noise alone."""
    largest = max(work.params, key=Tensor.numel)
    scratch = torch.empty_like(largest).view(-1)
    return lambda: [scratch[: p.numel()].normal_() for p in work.params] and None


def leaves(work: Work) -> list[torch.nn.Parameter]:
    """Parameters in the same memory, with the gradients."""
    found = [torch.nn.Parameter(p) for p in work.params]
    for leaf, g in zip(found, work.grads, strict=True):
        leaf.grad = g
    return found


# --- libraries ---


@dataclass(frozen=True)
class Own:
    """A step on weights of its own, which `weights` gives."""

    step: Call
    weights: Callable[[], list[Tensor]]

    def __call__(self) -> None:
        self.step()


def devinterp(work: Work, method: str = "sgld", **options: Any) -> Call:
    """devinterp's own optimizer, which takes for anchors what its parameters are when it is built."""
    from devinterp.optim.sgmcmc import SGMCMC

    params = leaves(work)
    for leaf, w0 in zip(params, work.anchors, strict=True):
        leaf.data = w0
    sampler = getattr(SGMCMC, method)(params, lr=LR, nbeta=NBETA, localization=LOCALIZATION, **options)
    for leaf, w in zip(params, work.params, strict=True):
        leaf.data = w
    step: Call = sampler.step
    return step


def posteriors(work: Work, method: str = "sgld", **options: Any) -> Call:
    """posteriors' transform, in place; its gradient is given, and only the localization is computed for it.

    In place there means that its tensors are given the memory of the new ones, so they must be its own.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own imports, about its dependencies
        transform = importlib.import_module(f"posteriors.sgmcmc.{method}")
    names = [str(i) for i in range(len(work.params))]

    class Given(torch.autograd.Function):
        """A log posterior that costs nothing but its gradient."""

        generate_vmap_rule = False

        @staticmethod
        def forward(*params: Tensor) -> Tensor:
            return params[0].new_zeros(())

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            ctx.save_for_backward(*inputs)

        @staticmethod
        def backward(ctx: Any, *_: Tensor) -> tuple[Tensor, ...]:
            operands = zip(ctx.saved_tensors, work.grads, work.anchors, strict=True)
            return tuple((w0 - w).mul_(LOCALIZATION).sub_(g, alpha=NBETA) for w, g, w0 in operands)

    def log_posterior(params: dict[str, Tensor], batch: object) -> tuple[Tensor, Tensor]:
        return Given.apply(*(params[n] for n in names)), torch.empty(0)

    built = transform.build(log_posterior, temperature=1.0, **POSTERIORS[method], **options)
    params = {n: p.detach() for n, p in zip(names, work.params, strict=True)}
    state = built.init(params)

    def step() -> None:
        nonlocal state
        state, _ = built.update(state, None, inplace=True)

    return Own(step, lambda: list(params.values()))


# Its SGLD makes steps of lr grad + N(0, 2 lr): half of our lr. Its SGHMC moves weights by lr * momentum, so that our
# velocity is lr times its momentum, our lr is the square of its lr, and our friction lr times its alpha.
POSTERIORS: dict[str, dict[str, Any]] = {
    "sgld": {"lr": LR / 2},
    "sghmc": {"lr": SCALE, "alpha": OWN["sghmc"]["friction"] / SCALE, "momenta": 0.0},
}


def blackjax(work: Work) -> Call:
    """blackjax's SGLD kernel, compiled by JAX for the work's device, its weights donated."""
    jax, device = jax_on(work.params[0].device.type)
    import blackjax as library
    import numpy as np

    def arrays(tensors: list[Tensor]) -> list[Any]:
        # copied by numpy: JAX may use a tensor's memory where it is, and a donated one for the next weights
        return [jax.device_put(t.float().cpu().numpy().copy(), device) for t in tensors]

    position, given = arrays(work.params), (arrays(work.grads), arrays(work.anchors))

    def gradient(w: list[Any], batch: tuple[list[Any], list[Any]]) -> list[Any]:
        operands = zip(w, *batch, strict=True)
        return [-NBETA * g - LOCALIZATION * (p - w0) for p, g, w0 in operands]

    kernel = jax.jit(library.sgld(gradient).step, donate_argnums=1)
    key = jax.device_put(jax.random.key(0), device)

    def step() -> None:
        nonlocal position, key
        key, now = jax.random.split(key)
        position = jax.block_until_ready(kernel(now, position, given, LR / 2))

    return Own(step, lambda: [torch.from_numpy(np.array(p)) for p in position])


def jax_on(kind: str) -> tuple[Any, Any]:
    """JAX and its device of a kind, "cpu" or "cuda"; all that uses JAX imports it here, so that a GPU is shared."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # or JAX takes most of a GPU's memory
    logging.getLogger("jax._src.xla_bridge").setLevel(logging.ERROR)  # of GPUs that it was not built for
    import jax

    try:
        return jax, jax.devices(kind)[0]
    except RuntimeError:
        raise RuntimeError(f"this JAX has no {kind}") from None


# Name of the row, builder, role, bytes a parameter of fp32 that it must move (0: not compared with a copy).
Peer = tuple[str, Callable[[Work], Call], str, int]
STEP: list[Peer] = [
    ("devinterp SGMCMC.sgld", devinterp, "peer", 16),
    ("posteriors sgmcmc.sgld", posteriors, "peer", 16),
    ("blackjax sgld (JAX)", blackjax, "peer", 16),
    ("PyTorch eager", eager, "peer", 16),
    ("PyTorch in place (normal_, lerp_, add_)", in_place, "peer", 16),
    ("PyTorch _foreach", foreach, "peer", 16),
    ("PyTorch torch.compile", compiled, "peer", 16),
    ("PyTorch normal_ alone", normal, "peer", 4),
    ("PyTorch fused AdamW (no sampler)", adamw, "yardstick", 28),
]
