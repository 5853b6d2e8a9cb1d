"""The step and its noise as functions of their arguments: validate, locate, dispatch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import backends
from .errors import ArgumentError
from .noise import STEP_NOISE, chain_key
from .plan import Plan
from .scalars import Scalars, check_integer, check_stream
from .tiles import MAX_ELEMENTS
from .types import Tile


def normal(
    numel: int,
    *,
    seed: int,
    chain: int = 0,
    step: int,
    tensor_id: int,
    start: int = 0,
    noise: str = "gaussian",
    device: torch.device | str = "cpu",
    backend: str = "auto",
) -> Tensor:
    """The noise z of elements start, ..., start + numel - 1 of a parameter at a step, fp32 of shape (numel,).

    seed, chain: unsigned 64-bit; step, tensor_id: unsigned 32-bit; start: below 2^58. The same arguments give
    the same bits on every backend and device. noise: "gaussian" is the only kind. Raises ArgumentError,
    ArgumentTypeError, BackendError.

    >>> normal(3, seed=0, step=0, tensor_id=0)
    tensor([-1.6013,  0.3784,  1.1379])
    """
    return _normal(numel, seed, chain, step, tensor_id, start, noise, device, backend, STEP_NOISE)


def _normal(
    numel: int,
    seed: int,
    chain: int,
    step: int,
    tensor_id: int,
    start: int,
    noise: str,
    device: torch.device | str,
    backend: str,
    domain: int,
) -> Tensor:
    numel = check_integer("numel", numel, maximum=MAX_ELEMENTS)
    start = check_integer("start", start, maximum=MAX_ELEMENTS - numel)
    tensor_id = check_integer("tensor_id", tensor_id, maximum=2**32 - 1)
    seed, chain, step = check_stream(seed=seed, chain=chain, step=step)
    if noise != "gaussian":
        raise ArgumentError(f"noise is {noise!r}: use 'gaussian'")
    try:
        device = torch.device(device)
    except (RuntimeError, TypeError) as e:
        raise ArgumentError(f"device is {device!r}: give a torch device such as 'cpu' or 'cuda'") from e
    if device.type == "meta":
        raise ArgumentError("device is 'meta': noise needs memory, give a real device")
    chosen = backends.resolve(backends.check_name(backend), device.type, "float32")
    try:
        out = torch.empty(numel, dtype=torch.float32, device=device)
    except (RuntimeError, AssertionError) as e:
        raise ArgumentError(f"device {device} cannot hold {numel} elements: {e}") from e
    if numel:
        key = chain_key(seed, chain)
        chosen.normal(out, start=start, key=key, step=step, tensor_id=tensor_id, domain=domain)
    return out


def sgld_step_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    anchors: Sequence[Tensor] | None,
    *,
    lr: float,
    nbeta: float,
    localization: float = 0.0,
    weight_decay: float = 0.0,
    noise_level: float = 1.0,
    seed: int,
    chain: int = 0,
    step: int,
    tensor_ids: Sequence[int] | None = None,
    tiles: Sequence[Tile] | None = None,
    box: float | None = None,
    remainders: Sequence[Tensor | None] | None = None,
    backend: str = "auto",
) -> None:
    """One SGLD step in place; a pure function of its arguments, with the same bits on every backend.

    w <- w - lr/2 (nbeta g + weight_decay w + localization (w - w0)) + sqrt(lr) noise_level z, then w is
    clamped to w0 +- box if a box is given (Welling & Teh 2011; Lau et al. 2023, arXiv 2308.12108).

    params: fp32, bf16 or fp64 tensors of any shape, made of rows of adjacent elements. grads: same shapes and
    dtypes, None for +0. anchors: w0, same shapes and dtypes; None if neither localization nor box is used.
    remainders: for each bf16 parameter an int16 tensor of its shape, its lower half (zeros at the start), None
    for others. tensor_ids: counts the noise of each parameter, unsigned 32-bit; the position in the list if not
    given. tiles: the boxes to update, everything if not given; elements outside stay untouched. seed, chain:
    unsigned 64-bit; step: unsigned 32-bit, 0 for a chain's first update.
    Raises ArgumentError, ArgumentTypeError or BackendError before anything is written.
    """
    scalars = Scalars.check(
        lr=lr,
        nbeta=nbeta,
        localization=localization,
        weight_decay=weight_decay,
        noise_level=noise_level,
        box=box,
    )
    seed, chain, step = check_stream(seed=seed, chain=chain, step=step)
    plan = Plan(
        params,
        anchors,
        remainders=remainders,
        tensor_ids=tensor_ids,
        tiles=tiles,
        seed=seed,
        chain=chain,
        backend=backend,
    )
    plan.step(grads, scalars, step)
