"""The GPU suite's targets, judged on planted numbers."""

from __future__ import annotations

import math
from typing import Any

import pytest

from llc_fast.benchmarks._gpu_device import NO_TIME
from llc_fast.benchmarks._gpu_targets import TARGETS, judge
from llc_fast.benchmarks._table import Report, Table

LARGE = {"64M": 2**26, "256M": 2**28, "1M": 2**20}


def table(key: str, rows: list[dict[str, Any]]) -> Table:
    return Table(
        key, key, [], rows=[{"name": f"{key} {i}", "role": "ours", **row} for i, row in enumerate(rows)]
    )


def planted(triton: float = 1.0) -> dict[str, Table]:
    """A run that meets every target; triton: what its shares are multiplied by."""
    both = (("cuda", 1.0), ("triton", triton))
    shares = {"fp32": 0.93, "split": 0.88, "sr": 0.72, "sr ih4": 0.86}
    bandwidth = [
        {"kind": k, "backend": b, "numel": n, "share": (share if n >= 2**26 else 0.3) * times}
        for k, share in shares.items()
        for b, times in both
        for n in LARGE.values()
    ]
    noise = [
        {"kind": k, "backend": b, "numel": 2**26, "cost": cost}
        for k, cost in (("fp32", 0.04), ("split", 0.09), ("sr", 0.5))
        for b, _ in both
    ]
    launches = [
        {"kind": k, "backend": b, "tensors": n, "kernels": 1, "ratio": 1 + n / 2e5}
        for k in ("fp32", "split")
        for b, _ in both
        for n in (1, 100, 10_000)
    ]
    peers = [
        {"name": "llc_fast, cuda", "ns": 1.0},
        {"name": "llc_fast, triton", "ns": 1.1},
        {"name": "PyTorch eager", "ns": 6.0, "gain": 6.2, "mine": "cuda"},
        {"name": "devinterp SGMCMC.sgld", "ns": 12.0, "gain": 12.1, "mine": "cuda"},
    ]
    graph = [{"backend": "cuda", "kind": kind, "bits": "equal"} for kind in ("eager", "captured")]
    tables = {
        "gpu-tests": [{"name": "passed", "bad": False}, {"name": "failed", "bad": False}],
        "gpu-sanitize": [{"bad": False}],
        "gpu-bandwidth": bandwidth,
        "gpu-noise": noise,
        "gpu-launches": launches,
        "gpu-7b": [{"backend": b, "floors": 1.12} for b, _ in both],
        "gpu-peers-64M": peers,
        "gpu-peers-256M": [dict(row) for row in peers],
        "gpu-graph": graph,
    }
    return {key: table(key, rows) for key, rows in tables.items()}


def judged(tables: dict[str, Table], dry: bool = False) -> dict[str, dict[str, Any]]:
    found = judge(Report("c", {}, list(tables.values())), dry)
    return {row["name"]: row for row in found.rows}


def verdict(tables: dict[str, Table], name: str) -> str:
    (row,) = (row for key, row in judged(tables).items() if key.startswith(name))
    return str(row["verdict"])


def test_a_run_that_meets_them_all():
    found = judged(planted())
    assert len(found) == len(TARGETS) == 14
    assert {row["verdict"] for row in found.values()} == {"met"}
    assert found["fp32, share of a copy's bandwidth, from 64M"]["cuda"] == "93.0%"
    faster = found["faster than PyTorch eager, fp32"]
    assert (faster["cuda"], faster["triton"]) == ("6.2x", "5.5x")  # of the same rounds; of two medians


# Target, table, which rows, what is planted in them.
MISSES = [
    ("tests", "gpu-tests", {"name": "failed"}, {"bad": True}),
    ("compute-sanitizer", "gpu-sanitize", {}, {"bad": True}),
    ("fp32, share", "gpu-bandwidth", {"kind": "fp32", "numel": 2**28}, {"share": 0.89}),
    ("split, share", "gpu-bandwidth", {"kind": "split", "numel": 2**26}, {"share": 0.84}),
    ("sr with gaussian", "gpu-bandwidth", {"kind": "sr", "numel": 2**28}, {"share": 0.69}),
    ("sr with ih4", "gpu-bandwidth", {"kind": "sr ih4", "numel": 2**28}, {"share": 0.84}),
    ("noise costs, fp32", "gpu-noise", {"kind": "fp32"}, {"cost": 0.051}),
    ("noise costs, split", "gpu-noise", {"kind": "split"}, {"cost": 0.11}),
    ("launches", "gpu-launches", {"tensors": 10_000, "kind": "split"}, {"kernels": 2}),
    ("10,000 tensors", "gpu-launches", {"tensors": 10_000}, {"ratio": 1.11}),
    ("7B", "gpu-7b", {}, {"floors": 1.19}),
    ("faster than PyTorch", "gpu-peers-256M", {"name": "PyTorch eager"}, {"ns": 5.4, "gain": 4.9}),
    ("faster than devinterp", "gpu-peers-64M", {"name": "devinterp SGMCMC.sgld"}, {"ns": 9.9, "gain": 9.8}),
    ("captured", "gpu-graph", {"kind": "captured"}, {"bits": "differ"}),
]


def change(tables: dict[str, Table], key: str, which: dict[str, Any], values: dict[str, Any]) -> None:
    found = [row for row in tables[key].rows if all(row.get(k) == v for k, v in which.items())]
    assert found
    for row in found:
        row |= values


@pytest.mark.parametrize(("name", "key", "which", "values"), MISSES, ids=[miss[0] for miss in MISSES])
def test_each_target_can_be_missed_and_be_absent(name, key, which, values):
    tables = planted()
    change(tables, key, which, values)
    found = judged(tables)
    missed = [target for target, row in found.items() if row["verdict"].startswith("MISSED")]
    assert len(missed) == 1
    assert missed[0].startswith(name)
    del tables[key]
    if not key.startswith("gpu-peers"):
        assert verdict(tables, name) == "not measured"


def test_small_sizes_are_not_judged_and_triton_stands_beside():
    tables = planted()
    change(tables, "gpu-bandwidth", {"numel": 2**20}, {"share": 0.01})
    assert verdict(tables, "fp32, share") == "met"
    assert verdict(planted(triton=0.9), "fp32, share") == "met; Triton MISSED"


def test_what_is_missing_among_the_measured_is_counted():
    tables = planted()
    change(tables, "gpu-bandwidth", {"kind": "fp32", "numel": 2**28, "backend": "cuda"}, {"share": None})
    assert verdict(tables, "fp32, share") == "met (1 of 2 measured); Triton met"
    change(tables, "gpu-bandwidth", {"kind": "fp32", "backend": "cuda"}, {"share": math.nan})
    assert verdict(tables, "fp32, share") == "not measured; Triton met"
    change(tables, "gpu-launches", {"tensors": 100, "backend": "cuda"}, {"kernels": None})
    assert verdict(tables, "launches") == "not measured; Triton met"
    change(tables, "gpu-graph", {}, {"bits": "gradients are not deterministic here"})
    assert verdict(tables, "captured") == "not measured"


def test_gains_are_of_the_backend_that_was_timed_beside_the_peer():
    tables = planted()
    for key in ("gpu-peers-64M", "gpu-peers-256M"):
        change(tables, key, {"name": "PyTorch eager"}, {"gain": 5.2, "mine": "triton"})
    found = judged(tables)["faster than PyTorch eager, fp32"]
    assert (found["cuda"], found["triton"]) == ("6.0x", "5.2x")
    change(tables, "gpu-peers-64M", {"name": "PyTorch eager"}, {"gain": math.nan})
    assert verdict(tables, "faster than PyTorch") == "met; Triton met (1 of 2 measured)"
    assert "different" in judge(Report("c", {}, list(tables.values())), dry=False).reading


def test_what_there_was_no_time_for_is_said():
    tables = planted()
    for key in ("gpu-7b", "gpu-noise", "gpu-graph", "gpu-sanitize"):
        del tables[key]
    states = [{"name": "bandwidth", "state": NO_TIME}, {"name": "graph", "state": "done"}]
    tables["gpu-run"] = table("gpu-run", states)
    rows = [{"kind": "fp32", "backend": "cuda", "absent": NO_TIME}, {"backend": "triton", "absent": "other"}]
    tables["gpu-noise"] = table("gpu-noise", rows)
    assert verdict(tables, "7B") == NO_TIME
    assert verdict(tables, "fp32, share") == "met"  # of an earlier part
    assert verdict(tables, "noise costs, fp32") == f"{NO_TIME}; Triton not measured"
    assert verdict(tables, "captured") == verdict(tables, "compute-sanitizer") == "not measured"
    late = [name for name, row in judged(tables).items() if row["late"]]
    assert late == [
        "noise costs, fp32",
        "noise costs, split",
        "7B split step against its floor (aim 1.11)",
    ]


def test_a_dry_run_judges_nothing():
    found = judged(planted(), dry=True)
    assert {row["verdict"] for row in found.values()} == {"not measured"}
    assert {row["cuda"] for row in found.values()} == {"-"}
