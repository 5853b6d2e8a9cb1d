"""One step, or some noise, from its arguments alone: checked, located, run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from . import backends
from .checks import as_list, check_noise, check_param
from .errors import ArgumentError, ArgumentTypeError
from .masks import tiles as masks_to_tiles
from .noise import STEP_NOISE, chain_key
from .scalars import Scalars, check_integer, check_stream
from .shard import prepare
from .sums import COLUMNS
from .tiles import MAX_ELEMENTS
from .types import Tile


def step(
    sampler: str,
    numbers: Mapping[str, Any],
    params: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    anchors: Sequence[Tensor] | None,
    *,
    step: Any,
    sums: Tensor | None = None,
    tiles: Sequence[Tile] | None = None,
    masks: Sequence[Tensor | None] | None = None,
    **plan: Any,
) -> None:
    """One step of a sampler: numbers are those of `Scalars.check`, plan is what else a `Plan` takes."""
    scalars = Scalars.check(**numbers)
    step = _as_integer(step)
    check_stream(seed=plan["seed"], chain=plan["chain"], step=step)
    bits = None
    if masks is not None:
        if tiles is not None:
            raise ArgumentError("tiles and masks are both given: give one of them")
        params, masks = as_list("params", params), as_list("masks", masks)
        if len(masks) != len(params):
            raise ArgumentError(
                f"masks has {len(masks)} entries for {len(params)} params: give one each, None for all of it"
            )
        for i, p in enumerate(params):
            check_param(i, p)
        tiles, bits = masks_to_tiles(params, masks)
    prepared = prepare(
        params, anchors, sampler=sampler, tiles=tiles, masks=bits, sums=sums is not None, **plan
    )
    if sums is not None and (
        not isinstance(sums, Tensor)
        or sums.dtype != torch.float64
        or sums.shape != (len(prepared.params), COLUMNS)
    ):
        raise ArgumentTypeError(f"sums must be a float64 tensor of shape ({len(prepared.params)}, {COLUMNS})")
    prepared.step(grads, scalars, step)
    if sums is not None:
        sums.copy_(prepared.totals())


def normal(
    numel: int,
    seed: int,
    chain: int,
    step: Any,
    tensor_id: int,
    start: int,
    noise: str,
    device: torch.device | str,
    backend: str,
    domain: int = STEP_NOISE,
) -> Tensor:
    """The noise of `ops.normal`, of any domain."""
    numel = check_integer("numel", numel, maximum=MAX_ELEMENTS)
    start = check_integer("start", start, maximum=MAX_ELEMENTS - numel)
    tensor_id = check_integer("tensor_id", tensor_id, maximum=2**32 - 1)
    seed, chain, step = check_stream(seed=seed, chain=chain, step=_as_integer(step))
    noise = check_noise(noise)
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
        chosen.normal(out, start=start, key=key, step=step, tensor_id=tensor_id, domain=domain, kind=noise)
    return out


def _as_integer(step: Any) -> Any:
    """The number in an integer tensor of one element; anything else as it is."""
    if isinstance(step, Tensor) and step.numel() == 1 and not step.dtype.is_floating_point:
        return step.item()
    return step
