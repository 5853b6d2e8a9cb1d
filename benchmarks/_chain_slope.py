"""What one more step of a chain costs: the slope between a short run and a long one, and what is left for the start."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from ._timing import Timing, reason

Run = Callable[[int], object]  # of so many steps, from the start


@dataclass(frozen=True)
class Slope:
    """step: seconds of one more step; once: seconds of a run whatever its length. Medians over rounds."""

    step: Timing
    once: float


@dataclass(frozen=True)
class Rounds:
    """How many rounds to take: what `budget` seconds hold, from `least` to `most`."""

    budget: float
    least: int = 3
    most: int = 15


def slopes(
    runs: Mapping[str, Run],
    lengths: tuple[int, int],
    rounds: Rounds,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[dict[str, Slope], dict[str, str]]:
    """The slope of each run, and why one has none; all must have been warmed up.

    In a round each makes its short and its long run at once, so that a slow stretch of the machine, which lasts
    longer than a pair, falls on all and on both ends of a slope.
    """
    short, long = lengths
    pairs: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    absent: dict[str, str] = {}

    def seconds(run: Run, steps: int) -> float:
        begin = clock()
        run(steps)
        return clock() - begin

    start, wanted, taken = clock(), 1, 0
    while taken < wanted:
        for name in [n for n in runs if n not in absent]:
            try:
                pairs[name].append((seconds(runs[name], short), seconds(runs[name], long)))
            except Exception as e:
                absent[name] = reason(e)
        taken += 1
        if taken == 1:
            wanted = min(rounds.most, max(rounds.least, int(rounds.budget / max(clock() - start, 1e-9))))
    found = {}
    for name in [n for n in runs if n not in absent]:
        steps = [(b - a) / (long - short) for a, b in pairs[name]]
        once = statistics.median(a - short * step for (a, _), step in zip(pairs[name], steps, strict=True))
        found[name] = Slope(Timing.of(steps), once)
    return found, absent


def wall(device: torch.device | str) -> Callable[[], float]:
    """A clock that is read when the device has done all its work."""
    if torch.device(device).type != "cuda":
        return time.perf_counter

    def now() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return now
