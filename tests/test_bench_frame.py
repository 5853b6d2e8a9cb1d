"""The frame of the benchmarks: what a median is of, and what stands in a row."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from llc_fast.benchmarks import _peers, _timing, _work, run, step
from llc_fast.benchmarks._table import Column, Table
from llc_fast.benchmarks._timing import Pace, interleave, reason
from llc_fast.benchmarks._work import Setting, Subject, compare


class Clock:
    """Time that passes only where a call says so. speed: of the whole machine."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.speed = 100.0, 1.0
        self.log: list[str] = []
        monkeypatch.setattr(_timing.time, "perf_counter", lambda: self.now)

    def call(self, *seconds: float, name: str = "") -> Callable[[], None]:
        """Takes these seconds in turn, the last ones for ever."""
        turns = itertools.chain(seconds, itertools.repeat(seconds[-1]))

        def call() -> None:
            self.log.append(name)
            self.now += next(turns) * self.speed

        return call


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


# --- timing ---


def test_median_and_quartiles_of_what_comes_after_the_first_calls(clock: Clock) -> None:
    pace = Pace(budget=0, least=7, most=41, sample=0)
    times, absent = interleave({"a": clock.call(900, 80, 5, 1, 3, 7, 2, 6, 4)}, pace)
    assert absent == {}
    timing = times["a"]
    assert (timing.low, timing.median, timing.high) == pytest.approx((2, 4, 6))
    assert (timing.samples, timing.calls) == (7, 1)


def test_few_samples_have_a_range(clock: Clock) -> None:
    times, _ = interleave({"a": clock.call(9, 9, 5, 1, 3)}, Pace(budget=0, least=3, sample=0))
    assert (times["a"].low, times["a"].median, times["a"].high) == pytest.approx((1, 3, 5))


@pytest.mark.parametrize(
    ("seconds", "calls", "samples"),
    [
        (1e-4, 20, 10),  # as many calls as fill a sample of 2 ms, as many samples as fill the budget of 20 ms
        (3e-3, 1, 6),
        (1.0, 1, 3),  # at least 3 samples, whatever the budget
        (1e-9, 1000, 10),  # a clock that hardly moves must not keep it here for ever
    ],
)
def test_short_calls_are_repeated_within_a_sample(
    clock: Clock, seconds: float, calls: int, samples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_timing, "MOST_CALLS", 1000)
    times, _ = interleave({"a": clock.call(seconds)}, Pace(budget=0.0205, least=3, most=41, sample=2e-3))
    assert times["a"].calls == calls
    assert times["a"].samples == samples
    assert times["a"].median == pytest.approx(seconds, rel=1e-4)


def test_the_number_of_samples_has_a_bound(clock: Clock) -> None:
    times, _ = interleave({"a": clock.call(1.0)}, Pace(budget=1e6, most=11))
    assert times["a"].samples == 11


def test_a_single_short_call_does_not_set_the_length_of_a_sample(clock: Clock) -> None:
    """The first timed call may find all at hand: 2000 of the others would take 200 times a sample."""
    times, _ = interleave({"a": clock.call(1e-6, 1e-6, 1e-4)}, Pace(budget=0, least=1, sample=2e-3))
    assert times["a"].calls <= 25


def test_a_call_that_was_held_up_does_not_set_the_length_of_a_sample(clock: Clock) -> None:
    """The first timed call waited for something else: samples of one call each would be of the clock."""
    times, _ = interleave({"a": clock.call(1.0, 5e-3, 2e-5)}, Pace(budget=1.0, least=1, sample=2e-3))
    assert 80 <= times["a"].calls <= 200
    assert times["a"].median == pytest.approx(2e-5)


def test_a_slow_call_is_not_tried_again(clock: Clock) -> None:
    interleave({"a": clock.call(1.0, name="a")}, Pace(budget=3.0, least=1, most=1, sample=2e-3))
    assert clock.log == ["a"] * 3


def test_slow_calls_are_spread_over_the_rounds_of_the_fast(clock: Clock) -> None:
    calls = {"a": clock.call(1.0, name="a"), "b": clock.call(2.0, name="b")}
    times, _ = interleave(calls, Pace(budget=4.0, least=1, most=41))
    assert (times["a"].samples, times["b"].samples) == (4, 2)
    assert "".join(clock.log) == "aabb" + "a" + "ab" + "a" + "ab"


@pytest.mark.parametrize("fails_at", [1, 2, 4])
def test_a_call_that_raises_is_left_out_and_the_others_go_on(clock: Clock, fails_at: int) -> None:
    made = itertools.count(1)

    def failing() -> None:
        if next(made) == fails_at:
            raise RuntimeError("no more\npaper")

    calls = {"bad": failing, "good": clock.call(1.0)}
    times, absent = interleave(calls, Pace(budget=0, least=5, sample=0))
    assert absent == {"bad": "RuntimeError: no more paper"}
    assert set(times) == {"good"}
    assert times["good"].samples == 5


def test_an_interrupt_is_no_reason(clock: Clock) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interleave({"a": interrupted}, Pace())


def test_a_gpus_sample_begins_after_a_call_on_an_idle_device(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            log.append("event")

        def synchronize(self) -> None:
            log.append("wait")

        def elapsed_time(self, other: object) -> float:
            return 6.0

    @contextmanager
    def device(which: torch.device) -> Iterator[None]:
        log.append(str(which))
        yield

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: log.append("idle"))
    seconds = _timing._sample(lambda: log.append("call"), 3, torch.device("cuda:1"))
    assert seconds == pytest.approx(2e-3)
    assert log == ["cuda:1", "idle", "call", "event", "call", "call", "call", "event", "wait"]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ModuleNotFoundError("No module named 'x'", name="x"), "not installed (x)"),
        (MemoryError("3 GB needed, 2 GB free"), "out of memory: 3 GB needed, 2 GB free"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried ..."), "out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "out of memory"),
        (ValueError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes"), "out of memory"),
        (ValueError(), "ValueError"),
    ],
)
def test_reasons(error: Exception, expected: str) -> None:
    assert reason(error) == expected


def test_a_long_reason_is_cut() -> None:
    text = reason(ValueError("so much to say " * 30))
    assert text.startswith("ValueError: so much to say so much")
    assert len(text) <= 100
    assert text.endswith(" ...")


# --- rows ---


def a_table() -> Table:
    return Table("t", "A title", [Column("ns", "ns"), Column("gain", "ours is faster by", ".1f", "x")])


def setting(**more: Any) -> Setting:
    return Setting(pace=Pace(budget=0, least=3, sample=0), **more)


def subjects(clock: Clock, speed: float = 1.0) -> list[Subject]:
    """Ours takes 2 s for 10 elements of 8 bytes, its floor 1 s, a copy 0.5 s, a peer 20 s; its building slows all."""

    def peer() -> Callable[[], None]:
        clock.speed = speed
        return clock.call(20.0)

    return [
        Subject("ours", lambda: clock.call(2.0), 10, 8, "ours", "floor"),
        Subject("floor", lambda: clock.call(1.0), 10, 8, "floor", "floor"),
        Subject("peer", peer, 10, 8, "peer", "floor", "ours"),
        Subject("copy of 8 bytes a parameter", lambda: clock.call(0.5), 10, 8, "floor"),
    ]


@pytest.mark.parametrize("speed", [1.0, 3.0])
def test_every_ratio_is_of_times_from_the_same_rounds(clock: Clock, speed: float) -> None:
    """The machine gets slower before the peer is timed: its ratios stay, also that to the copy."""
    table = a_table()
    compare(table, subjects(clock, speed), setting())
    ours, floor, peer, copy = table.rows
    assert [r["name"] for r in table.rows] == ["ours", "floor", "peer", "copy of 8 bytes a parameter"]
    assert ours["ns"] == pytest.approx(0.2e9)
    assert ours["gbs"] == pytest.approx(40e-9)
    assert (ours["floors"], ours["share"]) == pytest.approx((2.0, 0.25))
    assert (floor["floors"], copy["share"]) == pytest.approx((1.0, 1.0))
    assert "gain" not in ours
    assert peer["ns"] == pytest.approx(2e9 * speed)
    assert (peer["gain"], peer["floors"], peer["share"]) == pytest.approx((10.0, 20.0, 0.025))


def test_what_cannot_run_is_a_row_with_its_reason(clock: Clock) -> None:
    def missing() -> Callable[[], None]:
        raise ModuleNotFoundError("No module named 'lib'", name="lib")

    def breaks() -> None:
        raise ValueError("broken")

    table = a_table()
    rest = subjects(clock)[2:3]
    rest += [Subject("missing", missing, 1, 0, "peer"), Subject("breaks", lambda: breaks, 1, 0, "peer")]
    broken = [Subject("ours", lambda: clock.call(2.0), 10), Subject("floor", missing, 10, role="floor")]
    compare(table, [*broken, *rest], setting())
    rows = {r["name"]: r for r in table.rows}
    assert list(rows) == ["ours", "floor", "peer", "missing", "breaks"]
    assert rows["floor"]["absent"] == rows["missing"]["absent"] == "not installed (lib)"
    assert rows["breaks"]["absent"] == "ValueError: broken"
    assert rows["peer"]["gain"] == pytest.approx(10.0)
    assert not rows["peer"].keys() & {"floors", "share", "absent"}


def test_stretches_are_in_memory_one_after_the_other(clock: Clock) -> None:
    log = clock.log

    def subject(name: str, stretch: str, role: str = "ours", mine: str = "") -> Subject:
        def build() -> Callable[[], None]:
            log.append(f"build {name}")
            return clock.call(1.0, name=name)

        return Subject(name, build, 1, 1, role, mine=mine, stretch=stretch)

    copy = subject("copy", "", "floor")
    compare(
        a_table(), [subject("a", "A"), subject("b", "B"), copy, subject("p", "", "peer", mine="b")], setting()
    )
    order = [key for key, _ in itertools.groupby(log, key=lambda line: line.startswith("build"))]
    assert order == [True, False] * 3
    groups = [
        set(names)
        for built, names in itertools.groupby(log, key=lambda s: s.startswith("build"))
        if not built
    ]
    assert groups == [{"a", "copy"}, {"b", "copy"}, {"b", "copy", "p"}]


def test_tensors_that_do_not_fit_are_refused_before_they_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_work, "memory", lambda device: 11_999)
    with pytest.raises(MemoryError, match=r"12 kB needed, 12 kB free"):
        _work.make([(1000,)])
    assert _work.make([(999,)]).nbytes == 999 * 12


def test_a_table_says_when_its_tensors_may_stay_in_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    work = _work.make([(1000,)])
    monkeypatch.setattr(_work, "cache", lambda device: 6001)
    assert "These tensors (12 kB) may stay in the cache (6 kB)" in _work.cached(work, "cpu")
    monkeypatch.setattr(_work, "cache", lambda device: 5999)
    assert _work.cached(work, "cpu") == ""


def test_the_step_has_a_row_for_everyone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Real kernels on tiny tensors; one peer that runs, one that is missing."""

    def missing(work: object) -> Callable[[], None]:
        raise ModuleNotFoundError("No module named 'lib'", name="lib")

    monkeypatch.setattr(_peers, "STEP", [("eager", _peers.eager, "peer", 16), ("lib", missing, "peer", 16)])
    monkeypatch.setattr(step, "SAMPLER_PEERS", [])
    tables = list(run.ask(["step"], Setting(scale="tiny", pace=run.PACES["tiny"])))
    assert [t.key for t in tables][:2] == ["step", "samplers"]
    assert "4,464 parameters" in tables[0].title
    rows = {r["name"]: r for r in tables[0].rows}
    assert rows["lib"]["absent"] == "not installed (lib)"
    assert {"ns", "gbs", "share", "floors", "gain"} <= rows["eager"].keys()
    samplers = [r for r in tables[1].rows if r["role"] == "ours"]
    assert [r["name"] for r in samplers] == [s[0] for s in step.SAMPLERS]
    assert all(r["floors"] > 0 for r in samplers)


def test_the_copy_counts_what_it_reads_and_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[int] = []
    monkeypatch.setattr(torch.Tensor, "copy_", lambda self, other: copied.append(self.nbytes + other.nbytes))
    for asked, each in ((16_000, 16), (12_000, 12), (1 << 40, 16)):
        subject = _work.copy_of("meta", asked, each)
        monkeypatch.setattr(torch.Tensor, "random_", lambda self, *_: self)
        subject.build()()
        assert copied[-1] == subject.per * subject.bytes == min(asked, 2 << 30)


def test_host_seconds_is_a_median(clock: Clock) -> None:
    assert _timing.host_seconds(clock.call(5.0, 1.0, 2.0), 3) == statistics.median([5.0, 1.0, 2.0])


def test_rotation_takes_turns() -> None:
    made: list[int] = []
    turn = _timing.rotation([lambda i=i: made.append(i) for i in range(3)])  # type: ignore[misc]
    for _ in range(5):
        turn()
    assert made == [0, 1, 2, 0, 1, 2, 0, 1]
    alone = _timing.rotation([lambda: made.append(7)])
    assert 7 not in made
    alone()
    assert made[-1] == 7


def test_peers_of_another_device_are_refused() -> None:
    pytest.importorskip("blackjax", reason="blackjax is in the extra bench")
    work = SimpleNamespace(params=[SimpleNamespace(device=torch.device("xpu"))])
    with pytest.raises(RuntimeError, match="this JAX has no xpu"):
        _peers.blackjax(work)  # type: ignore[arg-type]
