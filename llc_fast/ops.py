"""The step and its noise as functions of their arguments: validate, locate, dispatch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from . import library, once
from .once import normal as _normal
from .types import Tile


def normal(
    numel: int,
    *,
    seed: int,
    chain: int = 0,
    step: int | Tensor,
    tensor_id: int,
    start: int = 0,
    noise: str = "gaussian",
    device: torch.device | str = "cpu",
    backend: str = "auto",
) -> Tensor:
    """The noise z of elements start, ..., start + numel - 1 of a parameter at a step, fp32 of shape (numel,).

    seed, chain: unsigned 64-bit; step, tensor_id: unsigned 32-bit; start: below 2^58. The same arguments give
    the same bits on every backend and device. noise: "gaussian", or "ih4", a cheaper one of 1,021 values. Raises
    ArgumentError, ArgumentTypeError, BackendError.

    >>> normal(3, seed=0, step=0, tensor_id=0)
    tensor([-1.6013,  0.3784,  1.1379])
    """
    draw = library.trace_normal if torch.compiler.is_compiling() else _normal
    return draw(numel, seed, chain, step, tensor_id, start, noise, device, backend)


def sgld_step_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    anchors: Sequence[Tensor] | None,
    *,
    lr: float | Tensor,
    nbeta: float,
    localization: float = 0.0,
    weight_decay: float = 0.0,
    noise_level: float = 1.0,
    seed: int,
    chain: int = 0,
    step: int | Tensor,
    tensor_ids: Sequence[int] | None = None,
    tiles: Sequence[Tile] | None = None,
    masks: Sequence[Tensor | None] | None = None,
    box: float | None = None,
    remainders: Sequence[Tensor | None] | None = None,
    state: str = "split",
    noise: str = "gaussian",
    sums: Tensor | None = None,
    backend: str = "auto",
) -> None:
    """One SGLD step in place; a pure function of its arguments, with the same bits on every backend.

    w <- w - lr/2 (nbeta g + weight_decay w + localization (w - w0)) + sqrt(lr) noise_level z, then w is
    clamped to w0 +- box if a box is given (Welling & Teh 2011; Lau et al. 2023, arXiv 2308.12108).

    params: fp32, bf16, fp16 or fp64 tensors of any shape, made of rows of adjacent elements. grads: same shapes
    and dtypes, None for +0. anchors: w0, same shapes and dtypes; None if neither localization, box nor sums are
    used. remainders: for each bf16 parameter an int16 tensor of its shape, its lower half (zeros at the start), or
    None with state="sr", which rounds stochastically instead; for each fp16 parameter its fp32 master; None for
    others. tensor_ids: counts the noise of each parameter, unsigned 32-bit; the position in the list if not given.
    tiles: the boxes to update, everything if not given; elements outside stay untouched. masks: instead of tiles,
    booleans of each parameter's shape, None for all of it. seed, chain: unsigned 64-bit; step: unsigned 32-bit, 0
    for a chain's first update. noise: "gaussian" or "ih4". sums: fp64 of shape (len(params), 24), overwritten with
    `llc_fast.sums.NAMES` of this step, without waiting for a device.
    Raises ArgumentError, ArgumentTypeError or BackendError before anything is written, WeightOverflowError after.
    Under `torch.compile` it is one opaque op. Numbers given as tensors of one element are its inputs; as Python
    numbers they are constants until they change, which compiles once more, and inputs from then on.
    """
    numbers = {
        "lr": lr,
        "nbeta": nbeta,
        "localization": localization,
        "weight_decay": weight_decay,
        "noise_level": noise_level,
        "box": box,
    }
    _step(
        "sgld",
        numbers,
        params,
        grads,
        anchors,
        step=step,
        seed=seed,
        chain=chain,
        tensor_ids=tensor_ids,
        tiles=tiles,
        masks=masks,
        remainders=remainders,
        state=state,
        noise=noise,
        sums=sums,
        backend=backend,
    )


def rmsprop_sgld_step_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    anchors: Sequence[Tensor] | None,
    square_avgs: Sequence[Tensor],
    *,
    lr: float | Tensor,
    nbeta: float,
    localization: float = 0.0,
    weight_decay: float = 0.0,
    noise_level: float = 1.0,
    alpha: float = 0.99,
    eps: float = 0.1,
    seed: int,
    chain: int = 0,
    step: int | Tensor,
    tensor_ids: Sequence[int] | None = None,
    tiles: Sequence[Tile] | None = None,
    masks: Sequence[Tensor | None] | None = None,
    box: float | None = None,
    remainders: Sequence[Tensor | None] | None = None,
    state: str = "split",
    noise: str = "gaussian",
    sums: Tensor | None = None,
    backend: str = "auto",
) -> None:
    """One step of SGLD preconditioned by RMSprop, in place (Li et al. 2016, arXiv 1512.07666).

    V <- alpha V + (1 - alpha) g^2, G = 1/(sqrt(V) + eps); the drift is scaled by G and the noise by sqrt(G). V is
    of the loss gradient alone, and the term of G's derivative is left out (Hitchcock & Hoogland 2025,
    arXiv 2507.21449). square_avgs: V, fp32 of each parameter's shape (fp64 for fp64), zeros at the start.
    The other arguments are those of `sgld_step_`.
    """
    numbers = {
        "lr": lr,
        "nbeta": nbeta,
        "localization": localization,
        "weight_decay": weight_decay,
        "noise_level": noise_level,
        "box": box,
        "alpha": alpha,
        "eps": eps,
    }
    _step(
        "rmsprop_sgld",
        numbers,
        params,
        grads,
        anchors,
        buffers=square_avgs,
        step=step,
        seed=seed,
        chain=chain,
        tensor_ids=tensor_ids,
        tiles=tiles,
        masks=masks,
        remainders=remainders,
        state=state,
        noise=noise,
        sums=sums,
        backend=backend,
    )


def sghmc_step_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    anchors: Sequence[Tensor] | None,
    velocities: Sequence[Tensor],
    *,
    lr: float | Tensor,
    nbeta: float,
    localization: float = 0.0,
    weight_decay: float = 0.0,
    noise_level: float = 1.0,
    friction: float = 0.1,
    thermostat: Tensor | None = None,
    seed: int,
    chain: int = 0,
    step: int | Tensor,
    tensor_ids: Sequence[int] | None = None,
    tiles: Sequence[Tile] | None = None,
    masks: Sequence[Tensor | None] | None = None,
    box: float | None = None,
    remainders: Sequence[Tensor | None] | None = None,
    state: str = "split",
    noise: str = "gaussian",
    sums: Tensor | None = None,
    backend: str = "auto",
) -> None:
    """One step of SGHMC (Chen et al. 2014, arXiv 1402.4102), or with a thermostat of SGNHT (Ding et al. 2014).

    v <- v - (lr a + xi v) + sqrt(2 friction lr) noise_level z, w <- w + v, where a is the drift of `sgld_step_`; at
    the box w is clamped and v changes sign. lr is the square of those papers' step: friction 1 is SGLD at twice
    the lr. xi is the friction; with a thermostat, a float64 tensor with one entry a chain of the tiles in
    ascending order, xi is that, and moves by mean(v^2) - lr over the selected weights. velocities: v, fp32 of each
    parameter's shape (fp64 for fp64), zeros at the start. The other arguments are those of `sgld_step_`.
    """
    numbers = {
        "lr": lr,
        "nbeta": nbeta,
        "localization": localization,
        "weight_decay": weight_decay,
        "noise_level": noise_level,
        "box": box,
        "friction": friction,
    }
    _step(
        "sghmc" if thermostat is None else "sgnht",
        numbers,
        params,
        grads,
        anchors,
        buffers=velocities,
        thermostat=thermostat,
        step=step,
        seed=seed,
        chain=chain,
        tensor_ids=tensor_ids,
        tiles=tiles,
        masks=masks,
        remainders=remainders,
        state=state,
        noise=noise,
        sums=sums,
        backend=backend,
    )


def _step(
    sampler: str,
    numbers: Mapping[str, Any],
    params: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    anchors: Sequence[Tensor] | None,
    **arguments: Any,
) -> None:
    take = library.trace_step if torch.compiler.is_compiling() else once.step
    take(sampler, numbers, params, grads, anchors, **arguments)
