"""The GPU suite without a GPU: its arithmetic on planted times, what it does when things break, and its dry run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from llc_fast.benchmarks import (
    _gpu_bandwidth,
    _gpu_device,
    _gpu_graph,
    _gpu_launches,
    _gpu_peers,
    _gpu_roofline,
    _peers,
    gpu,
)
from llc_fast.benchmarks._gpu_device import NO_TIME, Bench, Deadline, Host
from llc_fast.benchmarks._gpu_part import TINY
from llc_fast.benchmarks._table import Table
from llc_fast.benchmarks._timing import Timing
from llc_fast.benchmarks._work import Setting


@pytest.fixture
def bench() -> Bench:
    """The suite on the CPU, without the interpreter: Triton's rows say why they are missing."""
    return Bench(Setting("cpu", ("cpu",), "tiny", TINY), Host(), Deadline(), {"triton": "left out"})


def rows(table: Table, **want: Any) -> list[dict[str, Any]]:
    return [row for row in table.rows if all(row.get(k) == v for k, v in want.items())]


def last(tables: Iterator[Table]) -> Table:
    return list(tables)[-1]


# --- tables, at sizes that only try the code ---


def test_every_kind_and_size_has_a_row_for_each_backend(bench: Bench):
    seven, *_, table = _gpu_bandwidth.bandwidth(bench)
    sizes, kinds = len(_gpu_bandwidth.TINY), len(_gpu_bandwidth.KINDS)
    assert (
        len(rows(table, backend="cpu"))
        == len(rows(table, backend="triton", absent="left out"))
        == sizes * kinds
    )
    for row in [*rows(table, backend="cpu"), *rows(seven, backend="cpu")]:
        assert row["gbs"] == pytest.approx(row["bytes"] / row["ns"])
        assert row["share"] == pytest.approx(row["gbs"] / row["copy"])
    assert rows(seven, backend="cpu")[0]["numel"] == 3 * 64
    noise = last(_gpu_bandwidth.noise(bench))
    assert {row["kind"] for row in rows(noise, backend="cpu")} == {"fp32", "split", "sr", "sr ih4", "fp16"}
    assert all(
        row["cost"] == pytest.approx(row["ns"] / row["without"] - 1) for row in rows(noise, backend="cpu")
    )


def test_shares_are_of_the_copy_of_the_same_run(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    times = {"copy": Timing(1e-3, 1e-3, 1e-3), "cpu": Timing(2e-3, 1e-3, 4e-3)}
    monkeypatch.setattr(_gpu_bandwidth, "device_times", lambda calls, bench, most: (times, {}))
    monkeypatch.setattr(_gpu_bandwidth, "copied", lambda bench: 2_000_000)
    table = Table("t", "t", [])
    _gpu_bandwidth.shares(table, bench, _gpu_bandwidth.KINDS[1], "x", [(500,), (500,)])
    row = rows(table, backend="cpu")[0]
    assert (row["ns"], row["low"], row["high"]) == (
        pytest.approx(2000),
        pytest.approx(1000),
        pytest.approx(4000),
    )
    assert row["gbs"] == pytest.approx(12 * 1000 / 2e-3 / 1e9)
    assert row["copy"] == pytest.approx(2.0)
    seven = rows(_gpu_bandwidth.seven(bench), backend="cpu")[0]
    assert seven["ms"] == pytest.approx(2.0)
    assert seven["floor_ms"] == pytest.approx(12 * 192 / 2e9 * 1e3)
    assert seven["floors"] == pytest.approx(seven["ms"] / seven["floor_ms"])


def test_memory_of_a_kind():
    fp32, split = _gpu_bandwidth.KINDS[:2]
    assert fp32.memory(100) == 1600  # three tensors, and a fourth while they are made
    assert split.memory(100, 2) == 1000
    assert _gpu_bandwidth.KINDS[4].memory(100, 2) == 2000


def test_what_does_not_fit_is_a_row(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(_gpu_bandwidth._rotate._machine, "memory", lambda device: 1000)
    table = Table("t", "t", [])
    _gpu_bandwidth.shares(table, bench, _gpu_bandwidth.KINDS[0], "x", [(500,)])
    assert "needs" in rows(table, backend="cpu")[0]["absent"]


def test_launches_and_a_captured_step(bench: Bench):
    table = last(_gpu_launches.launches(bench))
    found = rows(table, backend="cpu")
    assert [row["tensors"] for row in found] == [1, 2, 3] * 2
    assert all(row["host_us"] > 0 and row["device_us"] > 0 for row in found)
    assert [row["ratio"] for row in rows(table, backend="cpu", tensors=1)] == [1.0, 1.0]
    assert {row["absent"] for row in rows(table, backend="triton")} == {"left out"}
    graph = last(_gpu_graph.graph(bench))
    assert [row["bits"] for row in rows(graph, backend="cpu")] == ["equal", "equal"]
    assert rows(graph, backend="triton")[0]["absent"] == "left out"


def test_operators_of_a_call_are_counted(bench: Bench):
    x = torch.ones(8)
    names = _gpu_device.launched(lambda: x.add_(1).mul_(2), bench)
    assert sum(name == "aten::add_" for name in names) == sum(name == "aten::mul_" for name in names) == 1
    with pytest.raises(RuntimeError, match="saw no kernel"):
        _gpu_device.launched(lambda: None, bench)


def test_bits_are_judged_only_where_eager_steps_agree():
    a, b = [torch.zeros(2)], [torch.tensor([0.0, -0.0])]
    assert _gpu_graph.verdict(a, a, a) == "equal"
    assert _gpu_graph.verdict(a, a, b) == "differ"
    assert _gpu_graph.verdict(a, b, a) == "gradients are not deterministic here"


def broken(work: object) -> Callable[[], None]:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")


def test_peers_are_asked_and_one_without_memory_is_a_row(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    assert {peer for _, peer, *_ in _peers.STEP} >= set(_gpu_peers.ASKED)
    monkeypatch.setattr(_gpu_peers, "ASKED", (_peers.eager, broken))
    monkeypatch.setattr(
        _peers, "STEP", [p for p in _peers.STEP if p[1] is _peers.eager] + [("big", broken, "peer", 16)]
    )
    for table in _gpu_peers.peers(bench):
        assert rows(table, name="PyTorch eager")[0]["gain"] > 0
        assert rows(table, name="big")[0]["absent"] == "out of memory"
        assert rows(table, name="llc_fast, triton")[0]["absent"] == "left out"
        assert rows(table, name="llc_fast, cpu")[0]["ns"] > 0


def test_pictures_are_of_the_measured(tmp_path: Path):
    pytest.importorskip("matplotlib")
    assert gpu.draw([Table("gpu-bandwidth", "t", [])], tmp_path) == []
    table = Table("gpu-bandwidth", "t", [])
    for kind in _gpu_bandwidth.KINDS:
        facts = {"kind": kind.name, "backend": "triton", "bytes": kind.bytes, "copy": 4000.0}
        for size, numel, rate in (("64M", 2**26, 3600.0), ("1M", 2**20, 900.0)):
            table.add(kind.name, **facts, size=size, numel=numel, gbs=rate, share=rate / 4000)
    roof = _gpu_roofline.roofline(table, None)
    assert gpu.draw([table, roof], tmp_path) == ["curves", "roofline"]
    (row,) = rows(roof, kind="fp32")
    assert row["gbs"] == 3600
    assert row["intensity"] == row["instructions"] / 16
    assert row["issue"] == pytest.approx(132 * 128 * 1.98 / row["intensity"])
    assert row["share"] == pytest.approx(3600 / min(row["issue"], 4000))
    assert rows(roof, kind="split statistics")[0]["absent"] == "its instructions are not counted"
    known, _ = _gpu_roofline.instructions()
    assert {b: set(kinds) for b, kinds in known.items()} == {
        b: set(k) for b, k in _gpu_roofline.KERNELS.items()
    }


# --- time ---


def test_rows_after_the_deadline_say_so(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    late = replace(bench, deadline=Deadline(0.0))
    for part in (_gpu_bandwidth.bandwidth, _gpu_bandwidth.noise, _gpu_launches.launches, _gpu_graph.graph):
        found = rows(last(part(late)), backend="cpu")
        assert found, part
        assert {row["absent"] for row in found} == {NO_TIME}
    assert all(NO_TIME in row["absent"] for table in _gpu_peers.peers(late) for row in table.rows)
    now = [0.0]
    monkeypatch.setattr(_gpu_bandwidth, "device_times", lambda calls, bench, most: (now.append(0) or {}, {}))
    some = replace(
        bench, deadline=Deadline(3.0, clock=lambda: float(len(now)))
    )  # a second for each that is timed
    found = rows(last(_gpu_bandwidth.noise(some)), backend="cpu")
    assert [row["absent"] for row in found] == ["no sample was taken"] * 3 + [NO_TIME] * 7


class Event:
    """Half a second between two of them; in the past once `tries` were made."""

    tries, made = 0, 0

    def __init__(self, enable_timing: bool) -> None:
        Event.made += 1

    def record(self) -> None:
        pass

    def query(self) -> bool:
        return Event.made <= 2 * Event.tries

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, other: Event) -> float:
        return 500.0


def test_the_device_sleeps_until_the_host_is_ahead(monkeypatch: pytest.MonkeyPatch):
    slept: list[int] = []
    monkeypatch.setattr(Event, "made", 0)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "_sleep", slept.append, raising=False)
    monkeypatch.setattr(Event, "tries", 2)
    device = _gpu_device.Cuda()
    assert device.queued(lambda: None, 5) == pytest.approx(0.1)
    assert slept == [2_000_000, 8_000_000, 32_000_000]
    assert device.queued(lambda: None, 5) == pytest.approx(0.1)
    assert slept[3:] == [32_000_000]
    monkeypatch.setattr(Event, "tries", 1000)
    with pytest.raises(RuntimeError, match="did not get ahead"):
        device.queued(lambda: None, 5)
