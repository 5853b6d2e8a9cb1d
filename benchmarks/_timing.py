"""Timing that holds on a noisy machine: calls taken in turn, medians and the middle half of them.

On a CPU a sample is wall-clock time, on a GPU the time between two CUDA events. A call too short for the clock is
repeated within a sample. Whoever measures what memory gives rotates among copies of its operands (`rotation`).
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

Call = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """Seconds a call: the median of all samples, and the quartiles about it; how many, of how many calls each."""

    median: float
    low: float
    high: float
    samples: int = 1
    calls: int = 1

    @classmethod
    def of(cls, seconds: Sequence[float], calls: int = 1) -> Timing:
        if len(seconds) < 4:
            low, median, high = min(seconds), statistics.median(seconds), max(seconds)
        else:
            low, median, high = statistics.quantiles(seconds, n=4)
        return cls(median, low, high, len(seconds), calls)


@dataclass(frozen=True)
class Pace:
    """How long to measure. budget: seconds for each of the calls, kept to within `least` and `most` samples.

    sample: the least seconds of a sample.
    """

    budget: float = 4.0
    least: int = 5
    most: int = 41
    sample: float = 2e-3


def interleave(
    calls: Mapping[str, Call], pace: Pace, device: torch.device | str = "cpu"
) -> tuple[dict[str, Timing], dict[str, str]]:
    """Times of each call, taken in turn so that a slow moment of the machine falls on all; and why one has none.

    Each is first called twice, which is not counted: the second call says how many a sample needs, and how many
    samples there is time for. A call that raises is left out and the others go on.
    """
    device = torch.device(device)
    absent: dict[str, str] = {}
    inner: dict[str, int] = {}
    samples: dict[str, int] = {}
    for name, call in calls.items():
        try:
            call()
            once = _sample(call, 1, device)()
            inner[name] = max(1, math.ceil(pace.sample / max(once, 1e-9)))
            samples[name] = min(
                pace.most, max(pace.least, int(pace.budget / max(once * inner[name], pace.sample)))
            )
        except Exception as e:
            absent[name] = reason(e)
    seconds: dict[str, list[float]] = {name: [] for name in samples}
    for turn in range(max(samples.values(), default=0)):
        pending = {}
        for name in [n for n, most in samples.items() if turn < most and n not in absent]:
            try:
                pending[name] = _sample(calls[name], inner[name], device)
            except Exception as e:
                absent[name] = reason(e)
        for name, read in pending.items():
            seconds[name].append(read())
    timings = {n: Timing.of(values, inner[n]) for n, values in seconds.items() if values and n not in absent}
    return timings, absent


def _sample(call: Call, calls: int, device: torch.device) -> Callable[[], float]:
    """Make the calls; the seconds of one of them, once they are known."""
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(calls):
            call()
        end.record()

        def read() -> float:
            end.synchronize()
            return float(start.elapsed_time(end)) / 1e3 / calls

        return read
    begin = time.perf_counter()
    for _ in range(calls):
        call()
    elapsed = (time.perf_counter() - begin) / calls
    return lambda: elapsed


def host_seconds(call: Call, calls: int) -> float:
    """What a call costs the thread that makes it, waiting for no device: the median of so many calls."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    times = []
    for _ in range(calls):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def rotation(calls: Sequence[Call]) -> Call:
    """One call after the other, over and over: so that none finds in the cache what it left there."""
    turn = itertools.cycle(calls)
    return lambda: next(turn)()


def reason(e: BaseException) -> str:
    """An error as half a line of a table."""
    if isinstance(e, ModuleNotFoundError):
        return f"not installed ({e.name})"
    text = str(e).strip().splitlines()
    if isinstance(e, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(e):
        return "out of memory"
    return f"{type(e).__name__}: {text[0] if text else ''}"[:100]
