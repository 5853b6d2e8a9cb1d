"""Timing that holds on a noisy machine: interleaved rounds, medians, and what the machine was doing."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import llc_fast
from llc_fast.backends import cpu_backend


@dataclass(frozen=True)
class Timing:
    """Seconds a call: the median of all rounds, and the middle half of them."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, seconds: list[float]) -> Timing:
        if len(seconds) < 4:
            return cls(statistics.median(seconds), min(seconds), max(seconds))
        low, median, high = statistics.quantiles(seconds, n=4)
        return cls(median, low, high)


def interleave(calls: dict[str, Callable[[], object]], rounds: int, warmup: int = 1) -> dict[str, Timing]:
    """Times of each call, taken in turn so that a slow moment of the machine falls on all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(warmup + rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            elapsed = time.perf_counter() - start
            if turn >= warmup:
                seconds[name].append(elapsed)
    return {name: Timing.of(values) for name, values in seconds.items()}


def machine() -> dict[str, object]:
    """What a reader needs to judge a timing."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [
            x.split(":", 1)[1].strip() for x in info.read_text().splitlines() if x.startswith("model name")
        ]
        cpu = lines[0] if lines else cpu
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "isa": cpu_backend.isas()[0] if cpu_backend.isas() else None,
        "load": [round(x, 2) for x in os.getloadavg()] if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "llc_fast": llc_fast.__version__,
    }
