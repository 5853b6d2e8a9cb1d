"""What one sampler keeps in memory, and what its step takes besides; for a CPU measured in a process of its own.

Run as `python -P -m llc_fast.benchmarks._memory_row`, with a job in JSON on stdin: one line of JSON for each subject.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from ._peers import Own
from ._timing import Call, reason
from ._work import Shapes, make

CLEAR = Path("/proc/self/clear_refs")
SMALL = ((64, 16),)


@dataclass(frozen=True)
class Job:
    """What is measured. build: "module:function", which takes a `Work` and options and gives a step."""

    name: str
    build: str
    dtype: str = "float32"
    options: Mapping[str, Any] = field(default_factory=dict)


class Gauge(Protocol):
    """Where bytes are read. now: bytes in use; peak: the most since `reset`."""

    def now(self) -> int: ...
    def reset(self) -> None: ...
    def peak(self) -> int: ...


class Resident:
    """Memory of this process as Linux counts it, after free memory has been given back."""

    def now(self) -> int:
        gc.collect()
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
        if trim is not None:
            trim(0)
        return _status("VmRSS")

    def reset(self) -> None:
        CLEAR.write_text("5")

    def peak(self) -> int:
        return _status("VmHWM")

    @classmethod
    def missing(cls) -> str | None:
        """Why it cannot be read on this platform, or None."""
        try:
            cls().reset()
            _status("VmHWM")
        except (OSError, LookupError):
            return "needs Linux: /proc/self/clear_refs and VmHWM in /proc/self/status"
        return None


class Allocated:
    """Memory of PyTorch's allocator on a CUDA device."""

    def __init__(self, device: str) -> None:
        self.device = device

    def now(self) -> int:
        gc.collect()
        torch.cuda.synchronize(self.device)
        return int(torch.cuda.memory_allocated(self.device))

    def reset(self) -> None:
        torch.cuda.reset_peak_memory_stats(self.device)

    def peak(self) -> int:
        torch.cuda.synchronize(self.device)
        return int(torch.cuda.max_memory_allocated(self.device))


def measure(job: Job, shapes: Shapes, device: str, gauge: Gauge) -> dict[str, float]:
    """Bytes a parameter: `state`, kept beside weights and gradients, and `peak`, what a step takes besides.

    A small step is made first, so that imports, compilers and threads do not count, and two full ones before the
    state is read, as some make theirs in the first.
    """
    warm = _begin(job, SMALL, device)[1]
    warm()
    warm()
    del warm
    before, step, numel = _begin(job, shapes, device, gauge)
    step()
    step()
    kept = gauge.now()
    gauge.reset()
    step()
    return {"state": (kept - before) / numel, "peak": max(0, gauge.peak() - kept) / numel}


def _begin(job: Job, shapes: Shapes, device: str, gauge: Gauge | None = None) -> tuple[int, Call, int]:
    """Bytes in use with weights and gradients alone, the step, and the number of parameters.

    Anchors come after that reading, so that those which the step takes count as its own. What it has no use for, as
    a library with arrays of its own, is given back here.
    """
    module, _, function = job.build.partition(":")
    build: Callable[..., Call] = getattr(importlib.import_module(module), function)
    work = make(shapes, getattr(torch, job.dtype), device)
    work.anchors.clear()
    before = 0 if gauge is None else gauge.now()
    work.anchors.extend(p.clone() for p in work.params)
    numel, step = work.numel, build(work, **job.options)
    if isinstance(step, Own):  # which moves weights of its own
        work.params.clear()
    return before, step, numel


def _status(key: str) -> int:
    found = re.search(rf"^{key}:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.M)
    if found is None:
        raise LookupError(f"/proc/self/status has no {key}")
    return int(found[1]) << 10


def ask(jobs: list[Job], shapes: Shapes, threads: int) -> str:
    """The input of the process that answers for these jobs."""
    return json.dumps({"jobs": [asdict(job) for job in jobs], "shapes": list(shapes), "threads": threads})


def main() -> None:
    asked = json.load(sys.stdin)
    torch.set_num_threads(asked["threads"])
    shapes = [tuple(s) for s in asked["shapes"]]
    for job in (Job(**j) for j in asked["jobs"]):
        try:
            found: dict[str, Any] = dict(measure(job, shapes, "cpu", Resident()))
        except Exception as e:
            found = {"absent": reason(e)}
        print(json.dumps({"name": job.name, **found}), flush=True)


if __name__ == "__main__":
    main()
