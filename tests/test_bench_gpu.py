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
    fp32, split, sr, _, rmsprop = _gpu_bandwidth.KINDS[:5]
    one = [(100,)]
    assert fp32.memory(one) == 2000  # three tensors, a copy of the anchors, and what one is made from
    assert split.memory(one, 2) == 800 + 2 * 200 + 200
    assert rmsprop.memory(one, 2) == 1600 + 2 * 400 + 400
    assert sr.memory(one) == 800 + 2800
    assert sr.memory([(25,)] * 4) == 800 + 700
    assert [kind.touched(100) for kind in (fp32, split, sr, rmsprop)] == [1200, 800, 600, 1600]


def test_the_greatest_problem_is_in_tensors_that_leave_room(monkeypatch: pytest.MonkeyPatch):
    assert _gpu_bandwidth.tensors(2**30) == [(2**30,)]
    assert _gpu_bandwidth.tensors(2**32) == [(2**30,)] * 4
    assert sum(shape[0] for shape in _gpu_bandwidth.tensors(2**32 + 5)) == 2**32 + 5
    monkeypatch.setattr(_gpu_bandwidth._rotate._machine, "memory", lambda device: 139 << 30)
    largest = max(_gpu_bandwidth.SIZES.values())
    for kind in _gpu_bandwidth.KINDS:
        needed = kind.memory(_gpu_bandwidth.tensors(largest), 2) + _gpu_bandwidth.COPY
        assert _gpu_bandwidth._rotate.shortage(needed, "cuda") is None, kind.name  # of an H200


def test_copies_rotate_by_what_a_step_touches(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    seen: list[float] = []
    monkeypatch.setattr(
        _gpu_bandwidth._rotate, "copies", lambda nbytes, device, most: seen.append(nbytes) or 1
    )
    kind = _gpu_bandwidth.KINDS[2]
    _gpu_bandwidth.stepped(bench, kind, [(64,)], {"cpu": kind.options, "cpu, again": kind.options})
    assert seen == [kind.touched(64)]


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
    assert "copy of the step's scalars" in table.reading
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
    assert _peers.in_place in _gpu_peers.ASKED
    assert all(12 * _gpu_peers.TENSORS * each > 8 * 50e6 for each in _gpu_peers.SIZES.values())  # caches
    monkeypatch.setattr(_gpu_peers, "ASKED", (_peers.eager, broken))
    monkeypatch.setattr(
        _peers, "STEP", [p for p in _peers.STEP if p[1] is _peers.eager] + [("big", broken, "peer", 16)]
    )
    for table in _gpu_peers.peers(bench):
        eager = rows(table, name="PyTorch eager")[0]
        assert eager["gain"] > 0
        assert eager["mine"] == "cpu"
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
