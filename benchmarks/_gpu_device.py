"""What the GPU suite asks of a device, and a stand-in for it on the CPU: so that the day of the GPU brings little news.

`Cuda` and `Host` answer the same calls; everything else of the suite is the same code on both.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from ._rotate import shortage
from ._timing import Call, Timing, reason
from ._work import Setting

NO_TIME = "no time left"
AHEAD = 6  # steps in the queue before the device begins: the CUDA backend lets its host be 8 ahead
ROUNDS = 9
FULL_SAMPLE = 4e-4  # seconds: a longer sample needs no more calls


class OutOfTimeError(Exception):
    """The part's time is used up."""


class DeviceLostError(Exception):
    """The device answers nothing any more, as after an illegal access: this process can measure nothing."""


class Deadline:
    """When a part has to end. clock: seconds that go on."""

    def __init__(self, seconds: float = float("inf"), clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._end = clock, clock() + seconds

    @property
    def left(self) -> float:
        return self._end - self._clock()

    def check(self) -> None:
        if self.left <= 0:
            raise OutOfTimeError(NO_TIME)

    def timely(self, build: Callable[[], Call]) -> Callable[[], Call]:
        """A builder that refuses once the time is up."""

        def built() -> Call:
            self.check()
            return build()

        return built


class Cuda:
    """A CUDA device, the current one."""

    activity, categories = ProfilerActivity.CUDA, ("kernel",)

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Forget how long the device had to sleep for other calls."""
        self._cycles = 2_000_000  # about a millisecond

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def queued(self, call: Call, times: int) -> float:
        """Seconds of device that a call takes where the queue is full: the device sleeps until the host is ahead.

        A first try that fails says nothing of the sleep: the call may have made memory, for which it waits once.
        """
        for attempt in range(7):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            torch.cuda._sleep(self._cycles)
            start.record()
            for _ in range(times):
                call()
            end.record()
            ahead = not start.query()
            end.synchronize()
            if ahead:
                return float(start.elapsed_time(end)) / 1e3 / times
            if attempt:
                self._cycles = min(4 * self._cycles, 2_000_000_000)
        raise RuntimeError("the host did not get ahead of the device: its launches wait")

    def capture(self, call: Call) -> Call:
        """The replay of a CUDA graph of the call, which has been made at least once."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        return graph.replay

    @contextmanager
    def aside(self) -> Iterator[None]:
        """A stream that is not the default one, as autograd wants it before a capture."""
        here, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(here)
        with torch.cuda.stream(side):
            yield
        here.wait_stream(side)


class Host:
    """The CPU in the place of a CUDA device: calls are made at once, a graph is the call itself."""

    activity, categories = ProfilerActivity.CPU, ("cpu_op",)

    def begin(self) -> None:
        pass

    def synchronize(self) -> None:
        pass

    def queued(self, call: Call, times: int) -> float:
        begin = time.perf_counter()
        for _ in range(times):
            call()
        return (time.perf_counter() - begin) / times

    def capture(self, call: Call) -> Call:
        return call

    @contextmanager
    def aside(self) -> Iterator[None]:
        yield


@dataclass(frozen=True)
class Bench:
    """How a part measures. lost: backends that cannot be measured, and why; each of their rows says so."""

    setting: Setting
    device: Cuda | Host
    deadline: Deadline
    lost: Mapping[str, str] = field(default_factory=dict)

    @property
    def backends(self) -> tuple[str, ...]:
        return (*self.setting.backends, *self.lost)

    @property
    def cuda(self) -> bool:
        return self.setting.cuda

    def absent(self, backend: str, nbytes: float = 0.0) -> str | None:
        """Why a row of a backend that needs so much memory cannot be had now, or None."""
        if backend in self.lost:
            return self.lost[backend]
        if self.deadline.left <= 0:
            return NO_TIME
        return shortage(nbytes, self.setting.device)

    def alive(self) -> None:
        try:
            self.device.synchronize()
        except Exception as e:
            raise DeviceLostError(reason(e)) from e


def device_times(
    calls: Mapping[str, Call], bench: Bench, times: int = AHEAD
) -> tuple[dict[str, Timing], dict[str, str]]:
    """Seconds of device of each call with a full queue, taken in turn; and why one has none.

    times: how many calls may be queued at most.
    """
    bench.device.begin()
    rounds = bench.setting.pick(ROUNDS, ROUNDS, 1)
    absent: dict[str, str] = {}
    several: dict[str, int] = {}
    for name, call in calls.items():
        try:
            for _ in range(2):
                call()
            bench.device.synchronize()
            once = bench.device.queued(call, 1)
            several[name] = max(1, min(times, round(FULL_SAMPLE / max(once, 1e-9))))
        except Exception as e:  # a row, not a crash
            absent[name] = reason(e)
    seconds: dict[str, list[float]] = {name: [] for name in several}
    for _ in range(rounds):
        for name in [n for n in several if n not in absent]:
            try:
                seconds[name].append(bench.device.queued(calls[name], several[name]))
            except Exception as e:
                absent[name] = reason(e)
    return {n: Timing.of(s, several[n]) for n, s in seconds.items() if s and n not in absent}, absent


def launched(call: Call, bench: Bench) -> list[str]:
    """Names of the kernels that a call launches, as the profiler's trace has them (on a CPU: of its operators)."""
    events: Sequence[dict[str, Any]] = ()
    for _ in range(2):  # the first one sets the profiler up
        bench.device.synchronize()
        with profile(activities=[bench.device.activity]) as found:
            call()
            bench.device.synchronize()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "trace.json"
            found.export_chrome_trace(str(path))
            events = json.loads(path.read_text(encoding="utf-8", errors="replace"))["traceEvents"]
    names = [e["name"] for e in events if e.get("cat") in bench.device.categories]
    if not names:
        raise RuntimeError("the profiler saw no kernel: it cannot trace this device")
    return names
