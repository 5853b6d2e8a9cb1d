"""The step and its noise as ops of `torch.library`: what `torch.compile` sees of them, one opaque call each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from . import once
from .errors import ArgumentError, ArgumentTypeError
from .samplers import find
from .types import Tile

# The numbers of a step in the op's tensor of scalars; whether there is a box, and the step's number, come last.
NUMBERS = ("lr", "nbeta", "localization", "weight_decay", "noise_level", "alpha", "eps", "friction", "box")
# The numbers of a tile in a row of the op's table; whether it has a chain of its own, and which, come last.
TILE = ("tensor", "rows", "cols", "offset", "stride", "start", "global_stride")
WRITTEN = ("params", "remainders", "buffers", "thermostat", "sums")

# --- what is traced ---


def trace_step(
    sampler: str,
    numbers: Mapping[str, Any],
    params: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    anchors: Sequence[Tensor] | None,
    *,
    step: Any,
    seed: int,
    chain: int,
    tensor_ids: Sequence[int] | None,
    tiles: Sequence[Tile] | None,
    masks: Sequence[Tensor | None] | None,
    remainders: Sequence[Tensor | None] | None,
    state: str,
    noise: str,
    sums: Tensor | None,
    backend: str,
    buffers: Sequence[Tensor | None] | None = None,
    thermostat: Tensor | None = None,
) -> None:
    """Call the op. Runs in Dynamo's interpreter, so it is plain; what it does not look at, the op checks."""
    lists = {
        "anchors": anchors,
        "tensor_ids": tensor_ids,
        "masks": masks,
        "remainders": remainders,
        "square_avgs" if sampler == "rmsprop_sgld" else "velocities": buffers,
    }
    for name, values in lists.items():  # where an empty list would be taken for None
        if values is not None and len(values) != len(params):
            raise ArgumentError(f"{name} has {len(values)} entries for {len(params)} params: give one each")
    box = numbers["box"]
    scalars = [_scalar(name, numbers.get(name, 0.0)) for name in NUMBERS[:-1]]
    scalars += [_scalar("box", 0.0 if box is None else box), _scalar("box", 0 if box is None else 1)]
    table = None
    if tiles is not None:
        rows = []
        for i, tile in enumerate(tiles):
            if not isinstance(tile, Tile):
                raise ArgumentTypeError(f"tiles[{i}] is a {type(tile).__name__}: give llc_fast.Tile records")
            has_chain, chain_of = int(tile.chain is not None), _uint64(f"tiles[{i}].chain", tile.chain or 0)
            rows.append([*[getattr(tile, name) for name in TILE], has_chain, chain_of])
        table = torch.tensor(rows, device="cpu").view(-1, len(TILE) + 2)
    left = [] if remainders is None else list(remainders)
    kept = [] if buffers is None else list(buffers)
    with torch.no_grad():
        torch.ops.llc_fast.langevin_step(
            list(params),
            list(grads),
            [] if anchors is None else list(anchors),
            [t for t in left if t is not None],
            [i for i, t in enumerate(left) if t is not None],
            [t for t in kept if t is not None],
            [i for i, t in enumerate(kept) if t is not None],
            [] if masks is None else list(masks),
            thermostat,
            sums,
            table,
            torch.stack([*scalars, _scalar("step", step)]),
            [] if tensor_ids is None else list(tensor_ids),
            _uint64("seed", seed),
            _uint64("chain", chain),
            sampler,
            state,
            noise,
            backend,
        )


def trace_normal(
    numel: int,
    seed: int,
    chain: int,
    step: Any,
    tensor_id: int,
    start: int,
    noise: str,
    device: torch.device | str,
    backend: str,
) -> Tensor:
    """Call the op."""
    out: Tensor = torch.ops.llc_fast.normal(
        numel,
        _uint64("seed", seed),
        _uint64("chain", chain),
        _scalar("step", step),
        tensor_id,
        start,
        noise,
        torch.device(device),
        backend,
    )
    return out


def _scalar(name: str, value: Any) -> Tensor:
    """A number as a float64 tensor on the CPU, exact; Dynamo takes it as an input rather than as a constant."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", torch.float64).reshape(())
    if (
        value is None
        or isinstance(value, (bool, str, bytes))
        or (name == "step" and isinstance(value, float))
    ):
        kind = "an integer" if name == "step" else "a number"
        raise ArgumentTypeError(f"{name} is {value!r}: give {kind}")
    # A product, because that is what Dynamo can do with a float that is not constant: torch.tensor() is not.
    product: Tensor = torch.ones((), dtype=torch.float64, device="cpu") * value
    return product


def _uint64(name: str, value: int) -> int:
    """The int64 of the same bits: ops know no others."""
    if isinstance(value, bool) or not 0 <= value < 2**64:
        raise ArgumentError(f"{name} is {value}: give an integer >= 0 and < 2^64")
    return value - 2**64 if value >= 2**63 else value


# --- the ops ---


def _langevin_step(
    params: list[Tensor],
    grads: list[Tensor | None],
    anchors: list[Tensor],
    remainders: list[Tensor],
    remainder_at: list[int],
    buffers: list[Tensor],
    buffer_at: list[int],
    masks: list[Tensor | None],
    thermostat: Tensor | None,
    sums: Tensor | None,
    tiles: Tensor | None,
    scalars: Tensor,
    tensor_ids: list[int],
    seed: int,
    chain: int,
    sampler: str,
    state: str,
    noise: str,
    backend: str,
) -> None:
    *values, boxed, number = scalars.tolist()
    numbers = dict(zip(NUMBERS, values, strict=True))
    own = {"alpha", "eps", "friction"} - set(find(sampler).settings)
    given: dict[str, Any] = {name: value for name, value in numbers.items() if name not in own}
    once.step(
        sampler,
        given | {"box": numbers["box"] if boxed else None},
        params,
        grads,
        anchors or None,
        step=_whole(number),
        sums=sums,
        tiles=None if tiles is None else _tiles(tiles),
        masks=masks or None,
        remainders=_spread(remainders, remainder_at, len(params)),
        buffers=_spread(buffers, buffer_at, len(params)),
        thermostat=thermostat,
        tensor_ids=tensor_ids or None,
        seed=seed % 2**64,
        chain=chain % 2**64,
        state=state,
        noise=noise,
        backend=backend,
    )


def _whole(number: float) -> Any:
    """A number that should be an integer, as one if it is."""
    return int(number) if number.is_integer() else number


def _spread(tensors: list[Tensor], at: list[int], count: int) -> list[Tensor | None]:
    """One entry a parameter, from those that there are."""
    out: list[Tensor | None] = [None] * count
    for i, t in zip(at, tensors, strict=True):
        out[i] = t
    return out


def _tiles(table: Tensor) -> list[Tile]:
    if table.numel() and table.dtype != torch.int64:
        raise ArgumentTypeError(
            "tiles has numbers that are no integers: give llc_fast.Tile records of integers"
        )
    rows = table.tolist()
    return [
        Tile(**dict(zip(TILE, row, strict=False)), chain=row[-1] % 2**64 if row[-2] else None) for row in rows
    ]


def _normal(
    numel: int,
    seed: int,
    chain: int,
    step: Tensor,
    tensor_id: int,
    start: int,
    noise: str,
    device: torch.device,
    backend: str,
) -> Tensor:
    return once.normal(
        numel, seed % 2**64, chain % 2**64, _whole(float(step)), tensor_id, start, noise, device, backend
    )


torch.library.custom_op(
    "llc_fast::langevin_step",
    _langevin_step,
    mutates_args=WRITTEN,
    # No optional tensors in the lists that are written, which functionalization cannot take: they come with places.
    schema="(Tensor(a0!)[] params, Tensor?[] grads, Tensor[] anchors, Tensor(a3!)[] remainders, int[] remainder_at, "
    "Tensor(a5!)[] buffers, int[] buffer_at, Tensor?[] masks, Tensor(a8!)? thermostat, Tensor(a9!)? sums, "
    "Tensor? tiles, Tensor scalars, SymInt[] tensor_ids, SymInt seed, SymInt chain, str sampler, str state, "
    "str noise, str backend) -> ()",
).register_fake(lambda *arguments: None)

torch.library.custom_op(
    "llc_fast::normal",
    _normal,
    mutates_args=(),
    schema="(SymInt numel, SymInt seed, SymInt chain, Tensor step, SymInt tensor_id, SymInt start, str noise, "
    "Device device, str backend) -> Tensor",
).register_fake(
    lambda numel, seed, chain, step, tensor_id, start, noise, device, backend: torch.empty(
        numel, dtype=torch.float32, device=device
    )
)
