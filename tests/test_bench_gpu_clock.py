"""How the GPU suite keeps the device's queue full, on a device that exists only in its clock."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from llc_fast.benchmarks import _gpu_bandwidth, _gpu_device
from llc_fast.benchmarks._gpu_device import Bench, Cuda, Deadline
from llc_fast.benchmarks._gpu_part import TINY
from llc_fast.benchmarks._work import Setting

LAUNCH, KERNEL, HERTZ = (
    1e-5,
    5e-5,
    2e9,
)  # seconds of the host a call and of the device; cycles of its sleep a second


class Clock:
    """The host's time, and when the device is done with what it was given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.host = self.device = 0.0
        self.slept: list[int] = []
        clock = self

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                self.at = 0.0

            def record(self) -> None:
                self.at = max(clock.device, clock.host)

            def query(self) -> bool:
                return clock.host >= self.at

            def synchronize(self) -> None:
                clock.host = max(clock.host, self.at)

            def elapsed_time(self, other: Event) -> float:
                return (other.at - self.at) * 1e3

        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "synchronize", self.wait)
        monkeypatch.setattr(torch.cuda, "_sleep", self.sleep, raising=False)

    def wait(self) -> None:
        self.host = max(self.host, self.device)

    def give(self, seconds: float) -> None:
        self.device = max(self.device, self.host) + seconds

    def sleep(self, cycles: int) -> None:
        self.slept.append(cycles)
        self.give(cycles / HERTZ)

    def plan(self, waits: int = 1, launch: float = LAUNCH) -> Callable[[], None]:
        """A step whose first calls wait until the device is done with all before them."""
        made = 0

        def step() -> None:
            nonlocal made
            made += 1
            self.host += launch
            if made <= waits:
                self.wait()
            self.give(KERNEL)

        return step


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def bench(clock: Clock) -> Bench:
    return Bench(Setting("cpu", ("cuda",), "tiny", TINY), Cuda(), Deadline())


def test_first_steps_of_many_plans_wait_before_the_queue_is_timed(
    clock: Clock, bench: Bench, monkeypatch: pytest.MonkeyPatch
):
    built = []

    def ours(work: object, **options: object) -> Callable[[], None]:
        built.append(work)
        return clock.plan()

    monkeypatch.setattr(_gpu_bandwidth, "ours", ours)
    monkeypatch.setattr(_gpu_bandwidth._rotate, "copies", lambda nbytes, device, most: 12)
    times, absent = _gpu_bandwidth.stepped(bench, _gpu_bandwidth.KINDS[0], [(64,)], {"cuda": {}})
    assert absent == {}
    assert len(built) == 12
    assert times["cuda"].median == pytest.approx(KERNEL)
    assert times["cuda"].calls == 8  # 0.4 ms
    assert set(clock.slept) == {2_000_000}


def test_a_plan_that_cannot_make_its_first_step_has_no_row_and_the_others_no_longer_sleep(
    clock: Clock, bench: Bench, monkeypatch: pytest.MonkeyPatch
):
    def ours(work: object, backend: str, **options: object) -> Callable[[], None]:
        if backend == "triton":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return clock.plan()

    monkeypatch.setattr(_gpu_bandwidth, "ours", ours)
    ways = {"triton": {}, "cuda": {}}
    times, absent = _gpu_bandwidth.stepped(bench, _gpu_bandwidth.KINDS[0], [(64,)], ways)
    assert absent == {"triton": "out of memory"}
    assert times["cuda"].median == pytest.approx(KERNEL)
    assert set(clock.slept) == {2_000_000}


def test_the_device_sleeps_until_the_host_is_ahead(clock: Clock):
    device = Cuda()
    assert device.queued(clock.plan(waits=1), 5) == pytest.approx(KERNEL)
    assert clock.slept == [2_000_000] * 2  # memory that the call made is no reason to sleep for longer
    clock.slept.clear()
    slow = clock.plan(waits=0, launch=3e-3)
    assert device.queued(slow, 5) == pytest.approx(KERNEL)  # 15 ms of the host
    assert clock.slept == [2_000_000, 2_000_000, 8_000_000, 32_000_000]
    assert device.queued(slow, 5) == pytest.approx(KERNEL)
    assert clock.slept[4:] == [32_000_000]
    device.begin()
    assert device.queued(clock.plan(waits=0), 5) == pytest.approx(KERNEL)
    assert clock.slept[5:] == [2_000_000]
    with pytest.raises(RuntimeError, match="did not get ahead"):
        device.queued(clock.plan(waits=1000), 5)
    assert max(clock.slept) <= 2_000_000_000


def test_times_of_the_device_need_no_more_than_the_queue_allows(clock: Clock, bench: Bench):
    times, absent = _gpu_device.device_times({"short": clock.plan()}, bench, 3)
    assert absent == {}
    assert times["short"].calls == 3
