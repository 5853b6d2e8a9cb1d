"""Fuzzed steps: seeded cases of every layout and value, run by any backend, compared bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

import llc_fast
from llc_fast import Tile

MAX_LENGTH = 5001
MAX_TILES = 30  # of a tensor
GUARD = 5  # elements before and after every tensor, which nothing may touch
WRAP = 4 * 2**32  # the first element whose block index needs more than 32 bits
SPECIAL = np.array(
    [
        0x00000000,  # +0, -0
        0x80000000,
        0x00000001,  # subnormals: the smallest, the largest, some
        0x80000001,
        0x007FFFFF,
        0x807FFFFF,
        0x00012345,
        0x00800000,  # the smallest normal
        0x7F7FFFFF,  # the largest
        0xFF7FFFFF,
        0x7F7F8000,  # rounds to infinity in bf16
        0x7F800000,  # infinities
        0xFF800000,
        0x7FC00000,  # NaN, with several payloads
        0xFFC00000,
        0x7F800001,
        0x3F808000,  # ties of bf16
        0x3F818000,
    ],
    dtype=np.uint32,
)


@dataclass
class Slot:
    """A tensor somewhere within a buffer."""

    buffer: Tensor
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    def on(self, device: str) -> tuple[Tensor, Tensor]:
        """A fresh copy of the buffer, and the tensor in it."""
        buffer = self.buffer.to(device, copy=True)
        return buffer, torch.as_strided(buffer, self.shape, self.stride, self.offset)


@dataclass
class Case:
    """The arguments of one step, and the number of threads it runs on; sums, thermostat: what the last run gave."""

    params: list[Slot]
    grads: list[Slot | None]
    anchors: list[Slot] | None
    remainders: list[Slot | None]
    settings: dict[str, Any]
    tiles: list[Tile] | None = None
    threads: int = 1
    label: str = field(default="", repr=False)
    sampler: str = "sgld"
    buffers: list[Slot | None] = field(default_factory=list)
    friction: float | None = None  # at which a thermostat stands
    wants_sums: bool = False
    sums: Tensor | None = None
    thermostat: Tensor | None = None

    def run(self, backend: str, device: str = "cpu", **changes: Any) -> list[Tensor]:
        """The memory of all params, remainders and buffers after a step; elements around tensors included."""

        def there(slots: list[Any] | None) -> list[Any]:
            return [(None, None) if slot is None else slot.on(device) for slot in slots or []]

        params, remainders, buffers = there(self.params), there(self.remainders), there(self.buffers)
        arguments = self.settings | {"tiles": self.tiles, "backend": backend} | changes
        if self.sampler != "sgld":
            own = {"rmsprop_sgld": "square_avgs", "sghmc": "velocities", "sgnht": "velocities"}
            if buffers:
                arguments[own.get(self.sampler, "buffers")] = [t for _, t in buffers]
        if self.friction is not None:
            chains = {t.chain for t in self.tiles or []} or {None}
            arguments["thermostat"] = self.thermostat = torch.full(
                (len(chains),), self.friction, dtype=torch.float64, device=device
            )
        if self.wants_sums:
            self.sums = torch.full((len(params), 24), float("nan"), dtype=torch.float64, device=device)
            arguments["sums"] = self.sums
        with threads(self.threads):
            STEPS.get(self.sampler, partial(_custom_step, self.sampler))(
                [t for _, t in params],
                [t for _, t in there(self.grads)],
                None if self.anchors is None else [t for _, t in there(self.anchors)],
                remainders=[t for _, t in remainders],
                **arguments,
            )
        return [buffer.cpu() for buffer, _ in params + remainders + buffers if buffer is not None]

    def before(self) -> list[Tensor]:
        """What `run` returns, as it is before the step."""
        kept = [*self.params, *self.remainders, *self.buffers]
        return [slot.buffer for slot in kept if slot is not None]

    def touched(self) -> list[Tensor]:
        """For each buffer that `run` returns, true where the tiles are."""
        masks = []
        given = self.settings.get("masks")
        for slots in (self.params, self.remainders, self.buffers):
            for i, slot in enumerate(slots):
                if slot is None:
                    continue
                inside = torch.zeros(slot.shape, dtype=torch.bool)
                if self.tiles is None:
                    inside.copy_(torch.ones_like(inside) if given is None or given[i] is None else given[i])
                for tile in self.tiles or []:
                    if tile.tensor == i:
                        box = (tile.rows, tile.cols), (tile.stride, 1), tile.offset
                        inside.view(-1).as_strided(*box).fill_(True)
                mask = torch.zeros(slot.buffer.shape, dtype=torch.bool)
                mask.as_strided(slot.shape, slot.stride, slot.offset).copy_(inside)
                masks.append(mask)
        return masks


def differing(a: Tensor, b: Tensor) -> int:
    """How many elements differ in their bits; two fp32 or fp64 NaNs count as equal, bf16 and int16 ones do not."""
    assert a.dtype == b.dtype
    assert a.shape == b.shape
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    unequal = a.contiguous().view(bits) != b.contiguous().view(bits)
    if a.dtype in (torch.float32, torch.float64, torch.float16):
        unequal &= ~(a.isnan() & b.isnan())
    return int(unequal.sum())


@contextmanager
def threads(n: int) -> Iterator[None]:
    """PyTorch's number of threads, which is the step's, for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def draw(seed: int, dtype: torch.dtype, terms: int | None = None, *, length: int | None = None) -> Case:
    """The case of a seed. terms: which of the sixteen combinations; length: one tensor of so many elements."""
    rng = np.random.default_rng([seed, dtype.itemsize])
    terms = int(rng.integers(16)) if terms is None else terms
    tiled = length is None and bool(rng.random() < 0.7)
    count = 1 if length else int(rng.integers(1, 5))
    shapes = [(length,)] if length else [_shape(rng) for _ in range(count)]
    params = [_slot(rng, shape, dtype, gaps=not tiled and length is None) for shape in shapes]
    split = dtype == torch.bfloat16
    case = Case(
        params=params,
        grads=[None if rng.random() < 0.15 else _slot(rng, shape, dtype) for shape in shapes],
        anchors=[_near(rng, slot) for slot in params] if terms & 10 or rng.random() < 0.5 else None,
        remainders=[_remainder(rng, shape) if split else None for shape in shapes],
        settings=_settings(rng, terms, count),
        tiles=[tile for i, shape in enumerate(shapes) for tile in _tiles(rng, i, shape)] if tiled else None,
        threads=int(rng.integers(1, 4)),
    )
    case.label = f"draw({seed}, {dtype}, {terms}, length={length}): {shapes}, {case.settings}, {case.tiles}"
    return case


STEPS = {
    "sgld": llc_fast.sgld_step_,
    "rmsprop_sgld": llc_fast.rmsprop_sgld_step_,
    "sghmc": llc_fast.sghmc_step_,
    "sgnht": llc_fast.sghmc_step_,
}


def _custom_step(
    sampler: str, params: list[Tensor], grads: list[Any], anchors: list[Tensor] | None, **arguments: Any
) -> None:
    """A step of a sampler that has no function of its own."""
    own = llc_fast.samplers.find(sampler).defaults
    scalars = {
        k: arguments.pop(k) for k in ("lr", "nbeta", "localization", "weight_decay", "noise_level", "box")
    }
    step, sums = arguments.pop("step"), arguments.pop("sums", None)
    masks = arguments.pop("masks", None)
    if masks is not None:
        arguments["tiles"], arguments["masks"] = llc_fast.masks.tiles(params, masks)
    plan = llc_fast.plan.Plan(params, anchors, sampler=sampler, sums=sums is not None, **arguments)
    plan.step(grads, llc_fast.scalars.Scalars.check(**scalars, **own), step)
    if sums is not None:
        sums.copy_(plan.totals())


def vary(
    case: Case,
    seed: int,
    *,
    sampler: str = "sgld",
    state: str = "split",
    noise: str = "gaussian",
    masked: bool = False,
    sums: bool = False,
    calm: bool = False,
) -> Case:
    """A drawn case as another sampler, storage or noise takes it. masked: by booleans instead of tiles, regular or
    scattered; sums: anchors are given, and every backend leaves its sums; calm: no extreme values, so that sums
    can be compared."""
    rng = np.random.default_rng([seed, 99])
    shapes = [slot.shape for slot in case.params]
    if calm:
        kept = [*case.params, *case.grads, *(case.anchors or [])]
        for slot in [slot for slot in kept if slot is not None]:
            slot.buffer.copy_(torch.from_numpy(rng.standard_normal(slot.buffer.shape[0]) * 0.1))
    case.sampler, case.wants_sums = sampler, sums
    case.settings |= {"state": state, "noise": noise}
    if case.params[0].buffer.dtype == torch.float16:
        case.remainders = [_slot(rng, shape, torch.float32) for shape in shapes]
        for master in case.remainders:
            if calm:
                assert master is not None
                master.buffer.copy_(torch.from_numpy(rng.standard_normal(master.buffer.shape[0]) * 0.1))
    elif state == "sr":
        case.remainders = [None for _ in shapes]
    if llc_fast.samplers.find(sampler).buffer is not None:
        case.buffers = [_slot(rng, shape, torch.float32) for shape in shapes]
        for slot in [slot for slot in case.buffers if slot is not None and calm]:
            slot.buffer.copy_(torch.from_numpy(rng.standard_normal(slot.buffer.shape[0]) * 0.1))
    if sampler == "rmsprop_sgld":
        case.settings |= {
            "alpha": float(rng.choice([0.0, 0.9, 0.99])),
            "eps": float(10.0 ** rng.uniform(-8, 0)),
        }
        for slot in [slot for slot in case.buffers if slot is not None]:
            if calm or rng.random() < 0.8:  # a mean square, unless the chain has gone wrong
                slot.buffer.abs_()
    elif sampler in ("sghmc", "sgnht"):
        case.settings["friction"] = float(rng.choice([0.01, 0.1, 1.0, 1.9]))
    if sampler == "sgnht":
        case.friction = float(rng.uniform(0.0, 1.0))
    if case.anchors is None and (sums or sampler == "sgnht"):
        case.anchors = [_near(rng, slot) for slot in case.params]
    if masked:
        case.tiles, case.settings["masks"] = None, [_mask(rng, shape) for shape in shapes]
    case.label += f" {sampler} {state} {noise} masked={masked} {case.settings}"
    return case


def _mask(rng: np.random.Generator, shape: tuple[int, ...]) -> Tensor | None:
    kind = rng.random()
    if kind < 0.15:
        return None
    if kind < 0.4:  # few boxes
        mask = torch.zeros(shape, dtype=torch.bool)
        mask[: shape[0] // 2 + 1] = True
        return mask
    return torch.from_numpy(rng.random(size=shape) < rng.choice([0.02, 0.5, 0.98]))


def _shape(rng: np.random.Generator) -> tuple[int, ...]:
    kind = rng.random()
    if kind < 0.35:
        return (int(rng.integers(1, MAX_LENGTH + 1)),)
    if kind < 0.45:  # large enough for several threads
        return (int(rng.integers(40, 90)), int(rng.integers(1700, 2100)))
    if kind < 0.55:
        return tuple(int(n) for n in rng.integers(1, 12, size=3))
    return int(rng.integers(1, 40)), int(rng.integers(1, 300))


def _bits(rng: np.random.Generator, n: int) -> np.ndarray[Any, np.dtype[np.uint32]]:
    """fp32 bits: normals of some scale, among them special values and random bits."""
    x = (rng.standard_normal(n) * 10.0 ** rng.uniform(-3, 1)).astype(np.float32).view(np.uint32)
    kind = rng.random(n)
    share = 0.04 * (rng.random() < 0.6)
    x = np.where(kind < share, SPECIAL[rng.integers(len(SPECIAL), size=n)], x)
    return np.where(kind > 1 - share, rng.integers(2**32, size=n, dtype=np.uint32), x)


def _tensor(bits: np.ndarray[Any, np.dtype[np.uint32]], dtype: torch.dtype) -> Tensor:
    if dtype == torch.bfloat16:
        return torch.from_numpy((bits >> 16).astype(np.uint16).view(np.int16)).view(torch.bfloat16)
    if dtype == torch.float16:
        with np.errstate(over="ignore"):
            return torch.from_numpy(bits.view(np.float32).astype(np.float16))
    return torch.from_numpy(bits.view(np.float32))


def _slot(
    rng: np.random.Generator, shape: tuple[int, ...], dtype: torch.dtype, *, gaps: bool = False
) -> Slot:
    """A tensor at an odd place in memory; with `gaps`, perhaps with unused elements between its rows."""
    offset = int(rng.integers(1, GUARD + 4))
    pitch = shape[-1] + (int(rng.integers(1, 40)) if gaps and len(shape) > 1 and rng.random() < 0.6 else 0)
    stride = [1]
    for n in shape[:0:-1]:
        stride.insert(0, stride[0] * n if len(stride) > 1 else pitch)
    size = offset + (shape[0] * stride[0] if len(shape) > 1 else shape[0]) + GUARD
    return Slot(_tensor(_bits(rng, size), dtype), shape, tuple(stride), offset)


def _near(rng: np.random.Generator, slot: Slot) -> Slot:
    """An anchor: the parameter a little moved, in memory of its own, with its own special values."""
    anchor = _slot(rng, slot.shape, slot.buffer.dtype)
    _, w = slot.on("cpu")
    view = torch.as_strided(anchor.buffer, anchor.shape, anchor.stride, anchor.offset)
    moved = (w.float() + torch.from_numpy(rng.normal(0, 0.02, size=slot.shape).astype(np.float32))).to(
        w.dtype
    )
    view.copy_(torch.where(torch.from_numpy(rng.random(size=slot.shape) < 0.9), moved, view))
    return anchor


def _remainder(rng: np.random.Generator, shape: tuple[int, ...]) -> Slot:
    slot = _slot(rng, shape, torch.bfloat16)
    slot.buffer = slot.buffer.view(torch.int16)
    slot.buffer.copy_(
        torch.from_numpy(rng.integers(-(2**15), 2**15, size=slot.buffer.numel()).astype(np.int16))
    )
    return slot


def _settings(rng: np.random.Generator, terms: int, count: int) -> dict[str, Any]:
    """Scalars of a combination of terms (weight decay 1, localization 2, noise 4, box 8), and a place in a chain."""

    def positive(low: float, high: float, *odd: float) -> float:
        return (
            float(rng.choice(odd)) if odd and rng.random() < 0.15 else float(10.0 ** rng.uniform(low, high))
        )

    return {
        "lr": positive(-7, 0) if terms & 4 else positive(-7, 0, 0.0, 1e-44, 1e38),
        "nbeta": positive(-1, 4, 0.0, 1e-40, 3e38),
        "weight_decay": positive(-3, 3, 1e-42, 3e38) if terms & 1 else 0.0,
        "localization": positive(-1, 3, 1e-42, 3e38) if terms & 2 else 0.0,
        "noise_level": positive(-1, 0.5, 1e-37) if terms & 4 else 0.0,
        "box": positive(-3, 0, 0.0, 1e-41, 3e38) if terms & 8 else None,
        "seed": int(rng.integers(2**64, dtype=np.uint64)),
        "chain": int(rng.integers(4) if rng.random() < 0.5 else rng.integers(2**64, dtype=np.uint64)),
        "step": int(rng.choice([0, 1, 2**32 - 1, int(rng.integers(2**32))])),
        "tensor_ids": [int(i) for i in rng.choice(2**32, size=count, replace=False)]
        if rng.random() < 0.7
        else None,
    }


def _bands(rng: np.random.Generator, n: int, widest: int) -> list[tuple[int, int]]:
    """[0, n) cut into stretches, some of which are dropped."""
    cuts, at = [], 0
    while at < n:
        width = int(rng.integers(1, min(widest, n - at) + 1))
        cuts.append((at, at + width))
        at += width
    kept = [cut for cut in cuts if rng.random() < 0.8]
    return kept or cuts[:1]


def _tiles(rng: np.random.Generator, tensor: int, shape: tuple[int, ...]) -> list[Tile]:
    """Disjoint boxes of a tensor that is itself a shard of a larger one, in any order."""
    cols = shape[-1] if len(shape) > 1 else int(rng.integers(1, shape[0] + 1))
    rows = int(np.prod(shape)) // cols
    pitch = cols + (0 if rng.random() < 0.4 else int(rng.integers(1, 1000)))  # the full tensor's row length
    reach = rows * pitch
    first = [0, int(rng.integers(1, 9)), 2**32 + int(rng.integers(9)), 2**40 + 3, 2**58 - reach]
    first += 2 * [max(0, WRAP - int(rng.integers(1, reach + 1)))]
    start = int(first[rng.integers(len(first))])
    narrow = 130 if rng.random() < 0.6 else cols
    boxes = [
        (r0, r1, c0, c1)
        for r0, r1 in _bands(rng, rows, max(1, rows if rng.random() < 0.5 else rows // 3))
        for c0, c1 in _bands(rng, cols, max(1, min(cols, narrow)))
    ]
    rng.shuffle(boxes)
    chain = int(rng.integers(2**64, dtype=np.uint64)) if rng.random() < 0.3 else None
    return [
        Tile(tensor, r1 - r0, c1 - c0, r0 * cols + c0, cols, start + r0 * pitch + c0, pitch, chain)
        for r0, r1, c0, c1 in boxes[:MAX_TILES]
    ]
