"""What is timed: tensors in the shapes of real models, our step on them, the memory's own speed, and who is asked."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from llc_fast.kept import start
from llc_fast.plan import Plan
from llc_fast.samplers import find
from llc_fast.scalars import Scalars

from ._table import Column, Table, spread
from ._timing import Call, Pace, interleave, reason

LR, NBETA, LOCALIZATION = 1e-6, 30.0, 100.0
SETTINGS = {"lr": LR, "nbeta": NBETA, "localization": LOCALIZATION}
OWN = {"rmsprop_sgld": {"alpha": 0.99, "eps": 0.1}, "sghmc": {"friction": 0.1}, "sgnht": {"friction": 0.1}}
Shapes = Sequence[tuple[int, ...]]


@dataclass(frozen=True)
class Setting:
    """How a question is asked. scale: "full", "quick" or "tiny", which only tries whether the code runs.

    backends: of our own rows; peers are compared with the first. say: told what is being measured.
    """

    device: str = "cpu"
    backends: tuple[str, ...] = ("auto",)
    scale: str = "full"
    pace: Pace = field(default_factory=Pace)
    say: Callable[[str], None] = lambda text: None

    def pick(self, full: Any, quick: Any, tiny: Any) -> Any:
        return {"full": full, "quick": quick, "tiny": tiny}[self.scale]

    @property
    def backend(self) -> str:
        return self.backends[0]

    def named(self, name: str, backend: str) -> str:
        """A row's name; all backends but the first are said."""
        return name if backend == self.backend else f"{name}, {backend}"

    @property
    def cuda(self) -> bool:
        return torch.device(self.device).type == "cuda"


@dataclass
class Work:
    """Weights, gradients and anchors, all the same shapes."""

    params: list[Tensor]
    grads: list[Tensor]
    anchors: list[Tensor]

    @property
    def numel(self) -> int:
        return sum(p.numel() for p in self.params)

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for ts in (self.params, self.grads, self.anchors) for t in ts)


def gpt2_shapes(
    layers: int = 12, width: int = 768, vocabulary: int = 50257, context: int = 1024
) -> list[tuple[int, ...]]:
    """Shapes of GPT-2's parameters, 148 tensors and 124,439,808 elements at the defaults."""
    norm, wide = [(width,), (width,)], 4 * width
    block = [*norm, (width, 3 * width), (3 * width,), (width, width), (width,)]
    block += [*norm, (width, wide), (wide,), (wide, width), (width,)]
    return [(vocabulary, width), (context, width), *(block * layers), *norm]


def even_shapes(numel: int, tensors: int) -> list[tuple[int, ...]]:
    """So many elements in so many one-dimensional tensors, as equal as they can be."""
    each, rest = divmod(numel, tensors)
    return [(each + (i < rest),) for i in range(tensors)]


def make(shapes: Shapes, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0) -> Work:
    """Random tensors of a trained model's sizes; weights are a little off their anchors."""
    generator = torch.Generator(device).manual_seed(seed)

    def draw(scale: float) -> list[Tensor]:
        return [
            torch.empty(s, dtype=dtype, device=device).normal_(0, scale, generator=generator) for s in shapes
        ]

    anchors, grads = draw(0.02), draw(1e-3)
    return Work([a + 1e-3 * a for a in anchors], grads, anchors)


def ours(
    work: Work,
    backend: str = "auto",
    noise_level: float = 1.0,
    *,
    sampler: str = "sgld",
    settings: dict[str, float] = SETTINGS,
    **options: Any,
) -> Call:
    """A step through a prepared plan, as the optimizer and the estimator take it. options: Plan's."""
    scalars = Scalars.check(**settings, noise_level=noise_level, **OWN.get(sampler, {}))
    found = find(sampler)
    kept = [start("", p, found, options.get("state", "split"), 1.0, 1.0)[0] for p in work.params]
    device = work.params[0].device
    thermostat = torch.full((1,), 0.1, dtype=torch.float64, device=device) if found.thermostat else None
    plan = Plan(
        work.params,
        work.anchors,
        sampler=sampler,
        remainders=[k.get("remainder") for k in kept],
        buffers=[k.get(found.buffer or "") for k in kept],
        thermostat=thermostat,
        seed=0,
        backend=backend,
        **options,
    )
    counter = iter(range(2**31))
    return lambda: plan.step(work.grads, scalars, next(counter))


def traffic(sampler: str = "sgld", storage: str = "float32") -> int:
    """Bytes a parameter that a step must move: reads of w, g and w0, the write of w, what is kept beside w."""
    weights = {"float32": 16, "split": 12, "sr": 8, "float16": 14}[storage]
    return weights + (8 if find(sampler).buffer else 0)


@dataclass(frozen=True)
class Subject:
    """Something to be timed. build: gives the call, and holds its memory. per: the elements that a call handles.

    bytes: what it must move an element. floor, mine: names of the subjects that it is compared with.
    """

    name: str
    build: Callable[[], Call]
    per: float
    bytes: float = 0.0
    role: str = "ours"
    floor: str = ""
    mine: str = ""


def copy_of(device: str, nbytes: int, bytes_each: float) -> Subject:
    """The memory's own speed: a copy by PyTorch, counting bytes read and bytes written."""
    half = max(1, min(nbytes, 2 << 30) // 2)

    def build() -> Call:
        source = torch.zeros(half, dtype=torch.uint8, device=device).random_(0, 255)
        target = torch.empty_like(source)
        return lambda: target.copy_(source)

    return Subject("copy of as many bytes", build, 2 * half / bytes_each, bytes_each, "floor")


COLUMNS = [
    Column("ns", "ns/param", ".3f"),
    Column("low", "from", ".3f"),
    Column("high", "to", ".3f"),
    Column("gbs", "GB/s", ".1f"),
    Column("share", "of copy", ".0%"),
    Column("floors", "x floor", ".2f"),
    Column("gain", "ours is faster by", ".1f", "x"),
]
READING = (
    "ns/param: median time of a step per parameter, with the middle half of the samples from .. to; rows are timed in "
    "turn in one run. GB/s: bytes a step must move over its time, beside those of a plain copy; a CPU's copy also "
    "fetches what it overwrites, so a step in place may pass it. x floor: over our own kernel without noise, which only "
    "has to wait for memory."
)


def compare(table: Table, subjects: Sequence[Subject], setting: Setting) -> None:
    """Time the subjects and add a row for each.

    Ours and floors are timed together; each peer afterwards on its own with the two that it is compared with, so
    that peers need not fit into memory side by side and every ratio is of one stretch of time.
    """
    by_name = {s.name: s for s in subjects}
    base = {s.name: s for s in subjects if s.role in ("ours", "floor")}
    calls: dict[str, Call] = {}
    absent: dict[str, str] = {}
    for subject in base.values():
        _build(subject, calls, absent)
    setting.say(table.title)
    times, failed = interleave(calls, setting.pace, setting.device)
    absent |= failed
    copies = [s for s in subjects if s.name.startswith("copy") and s.name in times]
    copy = copies[0].bytes * copies[0].per / times[copies[0].name].median if copies else math.nan
    for name, subject in by_name.items():
        known = times
        if name not in base:
            setting.say(f"{table.title}: {name}")
            group = {n: calls[n] for n in (subject.floor, subject.mine) if n in times}
            _build(subject, group, absent)
            if name in group:
                known, failed = interleave(group, setting.pace, setting.device)
                absent |= {n: why for n, why in failed.items() if n == name}
            group.clear()
            release(setting)
        if name not in known:
            table.add(name, subject.role, absent.get(name, "its neighbours did not run"))
            continue
        values: dict[str, Any] = dict(spread(known[name], subject.per))
        if subject.bytes:
            rate = subject.bytes * subject.per / known[name].median
            values |= {"gbs": rate / 1e9, "share": rate / copy}
        for key, other in (("floors", subject.floor), ("gain", subject.mine)):
            if other in known and other in by_name:
                values[key] = values["ns"] / (known[other].median / by_name[other].per * 1e9)
        values = {k: v for k, v in values.items() if not (isinstance(v, float) and math.isnan(v))}
        table.add(name, subject.role, **values)
    calls.clear()
    release(setting)


def _build(subject: Subject, calls: dict[str, Call], absent: dict[str, str]) -> None:
    try:
        calls[subject.name] = subject.build()
    except Exception as e:  # what cannot run here is a row, not a crash
        absent[subject.name] = reason(e)


def release(setting: Setting) -> None:
    gc.collect()
    if setting.cuda:
        torch.cuda.empty_cache()
