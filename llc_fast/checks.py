"""What a step may be given: each check names the argument, what came and the remedy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from .errors import ArgumentError, ArgumentTypeError
from .group import DTYPES, REMAINDERS
from .noise import KINDS
from .samplers import Sampler
from .tiles import expanded, extent


def check_state(state: object) -> str:
    if state not in ("split", "sr"):
        raise ArgumentError(f"state is {state!r}: use 'split' or 'sr'")
    return str(state)


def check_noise(noise: object) -> str:
    if noise not in KINDS:
        raise ArgumentError(f"noise is {noise!r}: use one of {', '.join(map(repr, KINDS))}")
    return str(noise)


def check_stored(name: str, t: Tensor) -> None:
    """All elements lie in memory, as those of a wrapper, of a fake tensor or of a freed storage do not."""
    if t.numel() == 0:
        return
    try:
        low, high = extent(t)
        size = t.storage_offset() * t.element_size() + high - low
        there = low != 0 and size <= t.untyped_storage().nbytes()
    except Exception:  # whatever the code of a tensor's class raises
        there = False
    if not there:
        raise ArgumentError(_NO_MEMORY.format(name=name))


def check_addresses(name: str, missing: Sequence[int]) -> None:
    """None of these has elements without an address."""
    if missing:
        raise ArgumentError(_NO_MEMORY.format(name=f"{name}[{missing[0]}]"))


_NO_MEMORY = (
    "{name} has elements that are not in memory, as those of a wrapper, of a fake tensor or of a storage that was "
    "resized: give a plain tensor that holds them"
)


def check_kept(name: str, t: object, p: Tensor, dtype: torch.dtype) -> None:
    """What is kept between steps beside a parameter, and written with it."""
    if not isinstance(t, Tensor) or t.dtype != dtype:
        raise ArgumentTypeError(f"{name} must be a tensor of {dtype}")
    if t.shape != p.shape or t.device != p.device:
        raise ArgumentError(
            f"{name} has shape {tuple(t.shape)} on {t.device}, expected {tuple(p.shape)} on {p.device}"
        )
    if expanded(t):
        raise ArgumentError(f"{name} is expanded: give a tensor with memory of its own")
    check_stored(name, t)


def check_thermostat(t: object) -> Tensor:
    if not isinstance(t, Tensor) or t.dtype != torch.float64:
        raise ArgumentTypeError(
            "thermostat must be a float64 tensor, one entry a chain: "
            "torch.full((1,), friction, dtype=torch.float64)"
        )
    check_stored("thermostat", t)
    return t


def check_bits(name: str, bits: object, p: Tensor) -> None:
    """What `tiles.pack` gave for a parameter."""
    if not isinstance(bits, Tensor) or bits.dtype != torch.uint8:
        raise ArgumentTypeError(f"{name} must be a tensor of torch.uint8: give what tiles.pack returned")
    least = -(-p.numel() // 8) + 8
    if bits.device != p.device or bits.numel() < least or not bits.is_contiguous() or bits.is_neg():
        raise ArgumentError(
            f"{name} has {bits.numel()} bytes on {bits.device}, expected {least} or more in one piece on "
            f"{p.device}: give what tiles.pack returned"
        )
    check_stored(name, bits)


def as_list(name: str, values: object) -> list[Any]:
    """The values as a list, if they are several in an order."""
    if isinstance(values, Tensor | dict | str) or not isinstance(values, Iterable):
        raise ArgumentTypeError(f"{name} is a {type(values).__name__}: give a list with one entry each")
    return list(values)


def check_count(name: str, values: Sequence[object], params: Sequence[Tensor]) -> None:
    if len(values) != len(params):
        raise ArgumentError(f"{name} has {len(values)} entries for {len(params)} params: give one each")


def check_tensors(name: str, values: Sequence[Tensor]) -> list[Tensor]:
    values = as_list(name, values)
    if not values and name == "params":
        raise ArgumentError("params is empty: give at least one tensor")
    for i, t in enumerate(values):
        if not isinstance(t, Tensor):
            raise ArgumentTypeError(f"{name}[{i}] is a {type(t).__name__}: give a tensor")
    return values


def check_param(i: int | str, p: Tensor) -> None:
    if p.is_meta:
        raise ArgumentError(f"params[{i}] is a meta tensor without weights: load the model first")
    if p.layout != torch.strided:
        raise ArgumentTypeError(f"params[{i}] has layout {p.layout}: give dense tensors")
    if p.is_nested:
        raise ArgumentTypeError(f"params[{i}] is a nested tensor: give dense tensors")
    if p.dtype not in DTYPES:
        raise ArgumentTypeError(
            f"params[{i}] is {p.dtype}: use float32, bfloat16, float16 or (slowly) float64"
        )
    if p.is_neg():
        raise ArgumentError(f"params[{i}] is a negated view of other memory: resolve it (.resolve_neg())")
    if expanded(p):
        raise ArgumentError(
            f"params[{i}] is expanded or overlaps itself: give a tensor with memory of its own"
        )


def check_like(name: str, t: Tensor, p: Tensor) -> Tensor:
    """The tensor, contiguous, if it fits its parameter."""
    if not isinstance(t, Tensor):
        raise ArgumentTypeError(f"{name} is a {type(t).__name__}: give a tensor")
    if hasattr(t, "device_mesh"):
        raise ArgumentTypeError(
            f"{name} is a DTensor, its parameter is not: give its local tensor (.to_local())"
        )
    if t.layout != torch.strided:
        raise ArgumentTypeError(f"{name} has layout {t.layout}: give a dense tensor (.to_dense())")
    if t.is_nested:
        raise ArgumentTypeError(f"{name} is a nested tensor: give a dense one (.to_padded_tensor())")
    if t.shape != p.shape:
        raise ArgumentError(
            f"{name} has shape {tuple(t.shape)}, its parameter {tuple(p.shape)}: make them equal"
        )
    if t.dtype != p.dtype:
        raise ArgumentTypeError(f"{name} is {t.dtype}, its parameter {p.dtype}: convert it (.to({p.dtype}))")
    if t.device != p.device:
        raise ArgumentError(f"{name} is on {t.device}, its parameter on {p.device}: move it there")
    check_stored(name, t)
    return straight(t)


def straight(t: Tensor) -> Tensor:
    """The tensor with its elements in memory as they are, one after the other."""
    return t if t.is_contiguous() and not t.is_neg() else t.detach().resolve_neg().contiguous()


def check_remainders(remainders: Sequence[Tensor | None], params: Sequence[Tensor], state: str) -> None:
    """What completes narrow weights: int16 for split bf16, an fp32 master for fp16."""
    for i, (r, p) in enumerate(zip(remainders, params, strict=True)):
        wanted = REMAINDERS.get(p.dtype)
        if wanted is None:
            if r is not None:
                raise ArgumentError(f"remainders[{i}] is given, but params[{i}] is {p.dtype}: give None")
            continue
        if r is None and p.dtype == torch.bfloat16 and state == "sr":
            continue
        if r is None and p.dtype == torch.bfloat16:
            raise ArgumentError(
                f"params[{i}] is bfloat16 without a remainder, which would freeze the chain: give "
                "remainders=[torch.zeros_like(p, dtype=torch.int16) for p in params] and keep them, or "
                "state='sr'"
            )
        if r is None:
            raise ArgumentError(
                f"params[{i}] is float16 without its fp32 master, which would freeze the chain: give "
                "remainders=[p.float() for p in params], and keep them"
            )
        check_kept(f"remainders[{i}]", r, p, wanted)


def check_buffers(
    prefix: str, buffers: Sequence[Tensor | None], params: Sequence[Tensor], sampler: Sampler
) -> None:
    """The sampler's own state of each parameter."""
    for i, (b, p) in enumerate(zip(buffers, params, strict=True)):
        name = f"{prefix}[{i}]"
        if sampler.buffer is None:
            if b is not None:
                raise ArgumentError(f"{name} is given, but {sampler.name} keeps none: give None")
            continue
        dtype = torch.float64 if p.dtype == torch.float64 else torch.float32
        if b is None:
            raise ArgumentError(
                f"{name} is None: give torch.zeros_like(p, dtype={dtype}) for each parameter, and keep them"
            )
        check_kept(name, b, p, dtype)
