"""Timing that holds on a noisy machine: calls taken in turn, medians and the middle half of them.

On a CPU a sample is wall-clock time, on a GPU the time between two CUDA events. A call too short for the clock is
repeated within a sample. Whoever measures what memory gives rotates among copies of its operands (`rotation`).
"""

from __future__ import annotations

import itertools
import math
import statistics
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

Call = Callable[[], object]
OUT_OF_MEMORY = (
    "can't allocate memory",
    "out of memory",
    "RESOURCE_EXHAUSTED",
)  # PyTorch's, CUDA's and JAX's
MOST_CALLS = 10**6  # of a sample: where a clock stands still
AGAIN = 2  # times that a number of calls is tried again before it is taken


@dataclass(frozen=True)
class Timing:
    """Seconds a call: the median of all samples, and the quartiles about it; how many, of how many calls each.

    Fewer than four samples have no quartiles: then least and greatest.
    """

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

    Each is first called a few times that are not counted: they say how many calls a sample needs, and how many
    samples there is time for. Who has time for few has them spread over all rounds, so that ratios are of the same
    stretch of time. A call that raises is left out and the others go on.
    """
    device = torch.device(device)
    absent: dict[str, str] = {}
    inner: dict[str, int] = {}
    samples: dict[str, int] = {}
    for name, call in calls.items():
        try:
            call()
            inner[name], once = _calibrate(call, pace, device)
            each = max(once * inner[name], pace.sample, 1e-9)
            samples[name] = min(pace.most, max(pace.least, int(pace.budget / each)))
        except Exception as e:
            absent[name] = reason(e)
    seconds: dict[str, list[float]] = {name: [] for name in samples}
    rounds = max(samples.values(), default=0)
    for turn in range(rounds):
        for name, most in samples.items():
            if name in absent or turn * most // rounds == (turn + 1) * most // rounds:
                continue
            try:
                seconds[name].append(_sample(calls[name], inner[name], device))
            except Exception as e:
                absent[name] = reason(e)
    timings = {n: Timing.of(values, inner[n]) for n, values in seconds.items() if values and n not in absent}
    return timings, absent


def _calibrate(call: Call, pace: Pace, device: torch.device) -> tuple[int, float]:
    """How many calls fill a sample, and the seconds of one; grown tenfold at most, as one short call says little.

    Nor does one that was held up: calls are enough when they fill a sample each time, as far as there is time to see.
    """
    calls = 1
    while True:
        once = _sample(call, calls, device)
        for _ in range(AGAIN):
            if 0.8 * pace.sample <= once * calls < pace.budget / 4:
                once = min(once, _sample(call, calls, device))
        if once * calls >= 0.8 * pace.sample or calls >= MOST_CALLS:
            return calls, once
        calls = max(2 * calls, min(10 * calls, math.ceil(pace.sample / max(once, 1e-9))))


def _sample(call: Call, calls: int, device: torch.device) -> float:
    """Seconds of one of so many calls, made one after the other.

    A GPU is idle before and gets one call more in front, so that a sample is of a loop that is under way, whoever
    was timed before: its kernels where they take longer than the host needs to launch them, else the host.
    """
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.synchronize()
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            call()
            start.record()
            for _ in range(calls):
                call()
            end.record()
            end.synchronize()
        return float(start.elapsed_time(end)) / 1e3 / calls
    begin = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - begin) / calls


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
    """One call after the other, over and over: so that none finds in the cache what it left there.

    Each is made once now, as a first call may make what later ones need. A single one is its caller's to warm up.
    """
    if len(calls) > 1:
        for call in calls:
            call()
    turn = itertools.cycle(calls)
    return lambda: next(turn)()


def reason(e: BaseException) -> str:
    """An error as half a line of a table."""
    if isinstance(e, ModuleNotFoundError):
        return f"not installed ({e.name})"
    text = " ".join(str(e).split())
    if isinstance(e, (MemoryError, torch.OutOfMemoryError)) or any(sign in text for sign in OUT_OF_MEMORY):
        return f"out of memory{': ' + text if type(e) is MemoryError and text else ''}"
    return textwrap.shorten(f"{type(e).__name__}: {text}".removesuffix(": "), 100, placeholder=" ...")
