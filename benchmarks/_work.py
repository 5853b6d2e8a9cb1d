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

from ._machine import cache, memory
from ._table import Column, Table, size_text, spread
from ._timing import Call, Pace, interleave, reason

LR, NBETA, LOCALIZATION = 1e-6, 30.0, 100.0
SETTINGS = {"lr": LR, "nbeta": NBETA, "localization": LOCALIZATION}
OWN = {"rmsprop_sgld": {"alpha": 0.99, "eps": 0.1}, "sghmc": {"friction": 0.1}, "sgnht": {"friction": 0.1}}
Shapes = Sequence[tuple[int, ...]]


@dataclass(frozen=True)
class Setting:
    """How a question is asked. scale: "full", "quick" or "tiny", which only tries whether the code runs.

    backends: of our own rows; peers are compared with the first. say: told what is being measured. left: seconds until
    whoever asks has to have an answer.
    """

    device: str = "cpu"
    backends: tuple[str, ...] = ("auto",)
    scale: str = "full"
    pace: Pace = field(default_factory=Pace)
    say: Callable[[str], None] = lambda text: None
    left: Callable[[], float] = lambda: math.inf

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
    """Random tensors of a trained model's sizes; weights are a little off their anchors.

    Raises MemoryError where they do not fit: Linux would promise the memory, and kill the process later.
    """
    needed, free = 3 * sum(map(math.prod, shapes)) * dtype.itemsize, memory(device)
    if needed > free:
        raise MemoryError(f"{size_text(needed)} needed, {size_text(free)} free")
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

    bytes: what it must move an element. floor, mine: names of the subjects that it is compared with. stretch: who has
    the same is timed together, and is in memory together.
    """

    name: str
    build: Callable[[], Call]
    per: float
    bytes: float = 0.0
    role: str = "ours"
    floor: str = ""
    mine: str = ""
    stretch: str = ""


def copy_of(device: str, nbytes: int, bytes_each: float) -> Subject:
    """The memory's own speed: a copy by PyTorch, counting bytes read and bytes written.

    It copies half of nbytes, at most 1 GiB, and its row says what moving `bytes_each` an element takes at that speed.
    """
    half = max(1, min(nbytes, 2 << 30) // 2)

    def build() -> Call:
        source = torch.zeros(half, dtype=torch.uint8, device=device).random_(0, 255)
        target = torch.empty_like(source)
        return lambda: target.copy_(source)

    name = f"copy of {bytes_each:g} bytes a parameter"
    return Subject(name, build, 2 * half / bytes_each, bytes_each, "floor")


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
    "turn in one run. GB/s: bytes a step must move over its time; of copy: beside those that a plain copy moves, read "
    "and written. A CPU's copy also fetches what it overwrites, so a step in place may pass it. x floor: over our own "
    "kernel without noise, which only has to wait for memory."
)


def compare(table: Table, subjects: Sequence[Subject], setting: Setting) -> None:
    """Time the subjects and add a row for each.

    Ours and floors of a stretch are timed together with the copy; each peer then on its own with the two that it is
    compared with and the copy, so that peers need not fit into memory side by side. Every ratio, also that to the
    copy, is of times taken in the same rounds.
    """
    found: dict[str, dict[str, Any]] = {}
    absent: dict[str, str] = {}
    copies = [s for s in subjects if s.name.startswith("copy")]
    base = [s for s in subjects if s.role in ("ours", "floor") and s not in copies]
    stretches = list(dict.fromkeys(s.stretch for s in base)) or [""]
    stretch_of = {s.name: s.stretch for s in base}
    for stretch in stretches:
        together = [*(s for s in base if s.stretch == stretch), *copies]
        calls: dict[str, Call] = {}
        for subject in together:
            _build(subject, calls, absent)
        setting.say(f"{table.key}: {', '.join(filter(None, [stretch, 'ours and floors']))}")
        _measure(together, calls, found, absent, setting)
        for peer in (s for s in subjects if s not in together and s not in base):
            home = stretch_of.get(peer.mine, stretch_of.get(peer.floor, stretches[0]))
            if home == stretch:
                setting.say(f"{table.key}: {peer.name}")
                beside = [s for s in together if s.name in (peer.floor, peer.mine) or s in copies]
                group = {s.name: calls[s.name] for s in beside if s.name in calls}
                _build(peer, group, absent)
                if peer.name in group:
                    _measure([*beside, peer], group, found, absent, setting)
                group.clear()
                release(setting)
        calls.clear()
        release(setting)
    for subject in subjects:
        if subject.name in found:
            table.add(subject.name, subject.role, **found[subject.name])
        else:
            table.add(subject.name, subject.role, absent.get(subject.name, "no sample was taken"))


def _measure(
    subjects: Sequence[Subject],
    calls: dict[str, Call],
    found: dict[str, dict[str, Any]],
    absent: dict[str, str],
    setting: Setting,
) -> None:
    """Time some subjects in the same rounds; the values of those that have none yet, with their ratios."""
    times, failed = interleave(calls, setting.pace, setting.device)
    each = {s.name: times[s.name].median / s.per for s in subjects if s.name in times}
    copies = [s.bytes / each[s.name] for s in subjects if s.name.startswith("copy") and s.name in each]
    for subject in subjects:
        name = subject.name
        if name in found or name not in each:
            if name in failed and name not in found:
                absent[name] = failed[name]
            continue
        values: dict[str, Any] = dict(spread(times[name], subject.per))
        if subject.bytes:
            rate = subject.bytes / each[name]
            values["gbs"] = rate / 1e9
            if copies:
                values["share"] = rate / copies[0]
        for key, other in (("floors", subject.floor), ("gain", subject.mine)):
            if other in each:
                values[key] = each[name] / each[other]
        found[name] = values


def _build(subject: Subject, calls: dict[str, Call], absent: dict[str, str]) -> None:
    try:
        calls[subject.name] = subject.build()
    except Exception as e:  # what cannot run here is a row, not a crash
        absent[subject.name] = reason(e)


def cached(work: Work, device: str) -> str:
    """What to add to a table's reading if its tensors may stay in the cache, where memory's speed is not seen."""
    size = cache(device)
    if work.nbytes > 2 * size:
        return ""
    return (
        f" These tensors ({size_text(work.nbytes)}) may stay in the cache ({size_text(size)}): memory's speed "
        "shows on larger ones."
    )


def release(setting: Setting) -> None:
    gc.collect()
    if setting.cuda:
        torch.cuda.empty_cache()
