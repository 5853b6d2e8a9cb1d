"""The benchmark questions about noise, memory and growth: every row has values or a reason, and the figures mean it."""

from __future__ import annotations

import builtins
import math
import os
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from llc_fast.benchmarks import (
    _growth,
    _machine,
    _memory_row,
    _pairs,
    _parts,
    _rotate,
    _variants,
    memory,
    noise,
)
from llc_fast.benchmarks._fit import fit
from llc_fast.benchmarks._memory_row import Job, Resident
from llc_fast.benchmarks._table import Table
from llc_fast.benchmarks._work import Setting, Work, gpt2_shapes
from llc_fast.benchmarks.run import PACES

TINY = Setting(scale="tiny", pace=PACES["tiny"])
RESIDENT = pytest.mark.skipif(Resident.missing() is not None, reason=str(Resident.missing()))


@pytest.fixture(autouse=True)
def small_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few copies everywhere, whatever the machine."""
    monkeypatch.setattr(_machine, "cache", lambda device: 1 << 16)


def ask(question: str, setting: Setting = TINY) -> dict[str, Table]:
    module = import_module(f"llc_fast.benchmarks.{question}")
    return {table.key: table for table in module.tables(setting)}


def check_rows(table: Table) -> None:
    """Every row is full or says why not; what it says is a number that can be."""
    assert table.rows
    assert len({row["name"] for row in table.rows}) == len(table.rows)
    for row in table.rows:
        if "absent" in row:
            assert row["absent"], row
            continue
        values = [row[c.key] for c in table.columns if row.get(c.key) is not None]
        assert values, row
        for value in values:
            if isinstance(value, str):
                assert value.startswith(("below ", "beyond ")), row
            else:
                assert math.isfinite(value), row
        for key in ("ns", "us", "ms"):
            assert row.get(key, 1) > 0, row
        if table.plot is not None:
            assert table.plot.y in row, row
    assert table.reading
    assert table.text()


# --- all of it, at the scale that only tries the code ---


def test_noise_runs() -> None:
    found = ask("noise")
    assert list(found) == ["noise-generators", "noise-in-a-step"]
    for table in found.values():
        check_rows(table)
    steps = found["noise-in-a-step"].rows
    assert [row["name"] for row in steps] == [name for name, *_ in noise.STORAGES]
    for row in steps:
        assert row["more"] == pytest.approx(row["ns"] / row["without"] - 1)


@RESIDENT
def test_memory_runs() -> None:
    (table,) = ask("memory").values()
    check_rows(table)
    assert [row["name"] for row in table.rows] == [row.job.name for row in memory.ROWS]
    ours = [row for row in table.rows if row["role"] == "ours"]
    assert ours
    assert not any("absent" in row for row in ours)
    for row in table.rows:
        if "absent" in row:
            continue
        assert row["total"] == pytest.approx(row["model"] + row["state"] + row["peak"])
        # JAX's resident memory has its program in it, which is not 7 billion parameters' to multiply
        assert row.get("seven") == (None if "JAX" in row["name"] else pytest.approx(7 * row["total"]))


def test_curves_run() -> None:
    found = ask("curves")
    for table in found.values():
        check_rows(table)
    sizes = found["curve-parameters"]
    ours = [row["n"] for row in sizes.rows if row["series"] == "llc_fast fp32"]
    assert ours == [64, 256, 1024]
    assert {row["series"] for row in sizes.rows} >= {c.name for c in _growth.PEERS}
    lines = {row["name"]: row for row in found["curve-lines"].rows}
    assert set(lines) == {row["series"] for row in sizes.rows}
    folded = [row for row in found["curve-chains"].rows if row["series"] == "folded"]
    assert [row["chains"] for row in folded] == [1, 3]
    for row in folded:
        assert row["each"] == pytest.approx(row["us"] / row["chains"])


def test_threads_are_put_back() -> None:
    before = torch.get_num_threads()
    table = _variants.threads(TINY)
    assert torch.get_num_threads() == before
    assert {row["threads"] for row in table.rows} == set(_variants.thread_counts(TINY))


# --- what is counted ---


def test_heads_and_layers_are_the_models() -> None:
    """The boxes that the selection's curve moves are those of `llc_fast.select` on GPT-2 itself."""
    transformers = pytest.importorskip("transformers", reason="needs transformers, of the dev extra")
    from llc_fast import select

    config = transformers.GPT2Config(n_layer=2, n_embd=128, n_head=2, vocab_size=50, n_positions=8)
    model = transformers.GPT2LMHeadModel(config)
    names, shapes = zip(*((n, tuple(p.shape)) for n, p in model.named_parameters()), strict=True)
    assert list(shapes) == gpt2_shapes(2, 128, 50, 8)
    for component, found in (
        ("l1h1", _parts.head_boxes(shapes, 1, 1)),
        ("l1", _parts.layer_boxes(shapes, range(1, 2))),
        ("l0 + l1", _parts.layer_boxes(shapes, range(2))),
    ):
        expected = {names.index(name): set(b) for name, b in select(model, component).boxes.items() if b}
        assert {i: set(b) for i, b in found.items()} == expected, component


def test_devinterp_gets_the_same_elements() -> None:
    """Its mask is of the boxes that ours moves: both leave the same elements as they were."""
    pytest.importorskip("devinterp", reason="needs devinterp, of the bench extra")
    shapes = gpt2_shapes(1, 128, 8, 4)
    part = _parts.head_boxes(shapes, 0, 1)
    moved = []
    for build in (lambda t: _parts._boxed(t, "auto"), _parts._masked_peer):
        work = _growth.make(shapes, torch.float32)
        before = [p.clone() for p in work.params]
        build((work, part))()
        moved.append([p != b for p, b in zip(work.params, before, strict=True)])
    assert sum(int(m.sum()) for m in moved[0]) == sum(b.numel for bs in part.values() for b in bs)
    assert all(torch.equal(a, b) for a, b in zip(*moved, strict=True))


def test_folded_chains_are_the_single_ones() -> None:
    """A folded step and one step a chain leave the same bits."""
    one, other = (_growth.make([(3 * 40,)], torch.float32) for _ in range(2))
    _variants._folded(one, 3, "auto")()
    _variants._apart(other, 3, "auto")()
    assert torch.equal(one.params[0], other.params[0])
    chunks = one.params[0].chunk(3)
    assert not torch.equal(chunks[0], chunks[1])


# --- lines ---


@pytest.mark.parametrize(("overhead", "slope"), [(50e-6, 0.4e-9), (1e-3, 12e-9), (0.0, 1e-9), (2e-5, 0.0)])
def test_a_planted_line_is_found(overhead: float, slope: float) -> None:
    sizes = [10**4, 10**5, 10**6, 10**7, 10**8]
    line = fit([(n, overhead + slope * n) for n in sizes])
    assert line.overhead == pytest.approx(overhead, abs=1e-12)
    assert line.slope == pytest.approx(slope, abs=1e-18)
    assert line.error < 1e-6
    if slope:
        assert line.crossover == pytest.approx(overhead / slope, rel=1e-6, abs=1e-3)


def test_a_line_weighs_small_problems_as_much_as_large_ones() -> None:
    """Three percent of noise everywhere; without weights 3 % of the largest hides the overhead a hundred times over."""
    generator = torch.Generator().manual_seed(0)
    points = []
    for n in [10**4, 10**5, 10**6, 10**7, 10**8, 10**9]:
        wobble = 1 + 0.03 * float(torch.randn((), generator=generator))
        points.append((n, (80e-6 + 0.5e-9 * n) * wobble))
    line = fit(points)
    assert line.overhead == pytest.approx(80e-6, rel=0.06)
    assert line.slope == pytest.approx(0.5e-9, rel=0.06)
    assert 0 < line.error < 0.12


def test_a_line_is_never_negative() -> None:
    """A cost that grows faster than the size has no overhead that could be told."""
    line = fit([(n, 1e-12 * n**1.2) for n in (10**4, 10**5, 10**6, 10**7)])
    assert line.overhead == 0.0
    assert line.slope > 0
    assert line.error > 0.3


def test_a_line_needs_three_sizes() -> None:
    with pytest.raises(ValueError, match="2 sizes"):
        fit([(10, 1.0), (20, 2.0), (20, 2.1)])


def test_lines_are_read_off_the_curves() -> None:
    """From planted rows to the table: units, the crossover, and the cost of a tensor."""
    by_size, by_tensor = Table("a", "", []), Table("b", "", [])
    for n in (10**4, 10**6, 10**8):
        by_size.add("x", series="ours", n=n, us=100 + 0.5e-3 * n)
        by_size.add("y", "peer", **({"absent": "no room"} if n > 10**6 else {"us": 1.0}), series="peer", n=n)
    for n in (1, 10, 1000):
        by_tensor.add("x", series="ours", n=n, us=7000 + 4 * n)
    ours, peer = _growth.lines(by_size, by_tensor).rows
    assert ours["overhead"] == pytest.approx(100)
    assert ours["slope"] == pytest.approx(0.5)
    assert ours["crossover"] == pytest.approx(200_000)
    assert ours["tensor"] == pytest.approx(4)
    assert "2 sizes" in peer["absent"]


# --- rotation and room ---


def test_rotation_cycles() -> None:
    """Each copy's first call is made where it is built, which is before anything is timed."""
    turns: list[int] = []
    build = _rotate.rotated(lambda i: lambda: turns.append(i), [3, 5, 7])
    assert turns == []
    call = build()
    assert turns == [3, 5, 7]
    turns.clear()
    for _ in range(7):
        call()
    assert turns == [3, 5, 7, 3, 5, 7, 3]


def test_copies_exceed_the_cache_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_machine, "cache", lambda device: 1000)
    monkeypatch.setattr(_machine, "memory", lambda device: 10**9)
    for nbytes in (7, 90, 1499, 10**6):
        count = _rotate.copies(nbytes, "cpu", most=10**6)
        assert count * nbytes >= 1.5 * 1000
        assert count == 1 or (count - 1) * nbytes < 1.5 * 1000
    assert _rotate.copies(7, "cpu", most=5) == 5
    monkeypatch.setattr(_machine, "memory", lambda device: 8 * 300)
    assert _rotate.copies(100, "cpu") == 3
    assert _rotate.copies(10**6, "cpu") == 1


def test_a_step_takes_the_copies_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """The column says how much is rotated, and the step does go through all of it."""
    monkeypatch.setattr(_machine, "cache", lambda device: 10_000)
    made: list[Work] = []
    make = _growth.make
    monkeypatch.setattr(_growth, "make", lambda *a, **k: made.append(make(*a, **k)) or made[-1])
    seen: list[int] = []

    def build(work: Work) -> Any:
        return lambda: seen.append(next(i for i, w in enumerate(made) if w is work))

    table = Table("t", "", [])
    curve = _growth.Curve("probe", build, 16)
    _growth._group(table, TINY, [(300,)], 300, "here", 9, torch.float32, [curve], [])
    assert len(made) == 5  # of 3,600 bytes: the least that fill 1.5 caches
    assert seen[:5] == list(range(5))[: len(seen)]
    row = next(r for r in table.rows if r["series"] == "probe")
    assert row["caches"] == pytest.approx(5 * 3600 / 10_000)


def test_no_room_is_a_row_and_no_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is allocated, built or started where memory is short; each question says so."""
    monkeypatch.setattr(_machine, "memory", lambda device: 1000)

    def refuse(*_: object, **__: object) -> Any:
        raise AssertionError("allocated all the same")

    for module in (noise, _growth, _parts, _variants):
        monkeypatch.setattr(module, "make", refuse)
    for name in ("_torch", "_buffered", "_fresh", "_numpy", "_jax", "_zeros"):
        monkeypatch.setattr(noise, name, refuse)
    monkeypatch.setattr(memory.subprocess, "run", refuse)
    for question in ("noise", "memory", "curves"):
        for table in ask(question).values():
            assert table.rows, table.key
            for row in table.rows:
                assert "absent" in row, (table.key, row)
            if table.key != "curve-lines":
                assert all("needs" in row["absent"] for row in table.rows), table.key


def test_a_peer_without_room_leaves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_machine, "memory", lambda device: 60_000)
    built: list[str] = []
    table = Table("t", "", [])
    small = _growth.Curve("small", lambda work: built.append("small") or (lambda: None), 16, own=4)
    large = _growth.Curve("large", lambda work: built.append("large") or (lambda: None), 16, "peer", own=100)
    _growth._group(table, TINY, [(500,)], 500, "here", 1, torch.float32, [small], [large])
    rows = {row["series"]: row for row in table.rows}
    assert "ns" in rows["small"]
    assert rows["large"]["absent"].startswith("needs ")
    assert built == ["small"]


# --- missing peers ---


@pytest.fixture
def without_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def blocked(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] in ("devinterp", "jax", "blackjax"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name.partition(".")[0])
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", blocked)


@pytest.mark.usefixtures("without_peers")
def test_missing_peers_are_rows() -> None:
    rows = noise.generators(TINY).rows
    (jax,) = [row for row in rows if "jax" in row["name"]]
    assert jax["absent"] == "not installed (jax)"
    assert [row["name"] for row in rows if "absent" in row] == [jax["name"]]
    for table in (
        _parts.selection(TINY),
        _variants.statistics(TINY),
    ):
        absent = [row for row in table.rows if "absent" in row]
        assert {row["absent"] for row in absent} == {"not installed (devinterp)"}, table.key
        assert all(row["name"].startswith("devinterp") for row in absent), table.key


def test_a_pair_that_fails_is_a_row() -> None:
    def broken() -> Any:
        raise RuntimeError("planted")

    table = Table("t", "", _pairs.COLUMNS)
    pairs = [
        _pairs.Pair("a", broken, lambda: lambda: None, 1),
        _pairs.Pair("b", lambda: lambda: 1, lambda: broken, 1),
    ]
    pairs.append(_pairs.Pair("c", lambda: lambda: None, lambda: lambda: None, 1))
    _pairs.compare_pairs(table, pairs, TINY)
    assert ["absent" in row for row in table.rows] == [True, True, False]
    assert all("planted" in row["absent"] for row in table.rows[:2])


# --- memory ---


@pytest.mark.parametrize("scale", ["full", "quick", "tiny"])
def test_no_tensor_is_more_of_all_than_in_a_7b_model(scale: str) -> None:
    """What a step takes besides is often a multiple of the largest tensor, and is told for 7 billion parameters."""
    sizes = [math.prod(shape) for shape in memory.shapes_of(Setting(scale=scale))]
    assert max(sizes) <= 0.02 * sum(sizes)
    assert sum(sizes) < 2**28


PLANTED = '''
import os, signal
import torch

def known(work, kept=0, taken=0):
    """Keeps and takes so many bytes a parameter, and lets go of the anchors."""
    state, numel, held = [], work.numel, (work.params, work.grads)
    def step():
        if not state:  # in the first step, as some do
            state.append(torch.ones(kept * numel, dtype=torch.uint8))
        torch.ones(taken * numel, dtype=torch.uint8)
        return held
    return step

def anchored(work):
    return lambda: work.params + work.grads + work.anchors

def killed(work):
    return lambda: os.kill(os.getpid(), signal.SIGKILL)

def failed(work):
    raise ModuleNotFoundError("No module named 'nowhere'", name="nowhere")

def asleep(work):
    import time
    return lambda: time.sleep(100)
'''


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "planted_samplers.py").write_text(PLANTED)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)


def job(name: str, **options: Any) -> Job:
    return Job(name, f"planted_samplers:{name}", options=options)


@RESIDENT
@pytest.mark.usefixtures("planted")
def test_known_bytes_are_measured() -> None:
    """4M parameters, so that a byte for each is 4 MB; what is read is right to 1 MB, 0.25 bytes a parameter."""
    shapes = [(1000, 1000)] * 4
    jobs = [
        Job("both", "planted_samplers:known", options={"kept": 3, "taken": 5}),
        Job("none", "planted_samplers:known"),
        Job("anchors", "planted_samplers:anchored"),
        Job("halves", "planted_samplers:anchored", "bfloat16"),
    ]
    found = memory.answer(jobs, shapes)
    expected = {"both": (3, 5), "none": (0, 0), "anchors": (4, 0), "halves": (2, 0)}
    for name, (state, peak) in expected.items():
        assert found[name] == {
            "state": pytest.approx(state, abs=0.25),
            "peak": pytest.approx(peak, abs=0.25),
        }, name


@RESIDENT
def test_our_samplers_keep_what_their_definition_says() -> None:
    """To 1 MB, and a step takes less than that besides; fp16 looks for overflow and may take a byte an element."""
    rows = [row for row in memory.ROWS if row.role == "ours"]
    found = memory.answer([row.job for row in rows], [(1000, 1000)] * 4)
    for row in rows:
        values = found[row.job.name]
        assert values["state"] == pytest.approx(row.state, abs=0.25), row.job.name
        assert values["peak"] <= (1.0 if row.job.dtype == "float16" else 0.25), row.job.name


@pytest.mark.usefixtures("planted")
def test_a_process_that_dies_is_a_row() -> None:
    """Those after it have the same reason, those before it their values."""
    found = memory.answer([job("failed"), job("killed"), job("known")], [(8,)])
    assert found["failed"] == {"absent": "not installed (nowhere)"}
    assert found["killed"] == {"absent": "killed (SIGKILL, probably out of memory)"} == found["known"]


@pytest.mark.usefixtures("planted")
def test_a_process_that_hangs_is_a_row() -> None:
    assert memory.answer([job("asleep")], [(8,)], patience=0.5) == {
        "asleep": {"absent": "took more than 0 s"}
    }


def test_no_gauge_is_a_row(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As on macOS and Windows."""
    monkeypatch.setattr(_memory_row, "CLEAR", tmp_path / "proc" / "clear_refs")
    (table,) = ask("memory").values()
    assert len(table.rows) == len(memory.ROWS)
    assert all("needs Linux" in row["absent"] for row in table.rows)


def test_a_sampler_that_splits_in_spite_of_sr_is_refused() -> None:
    """The row would otherwise show the memory of another storage than it names."""
    work = _growth.make([(64, 64)], torch.bfloat16)
    for p in work.params:
        p.mul_(1e4)  # coarse enough for rounding to heat the chain
    with pytest.raises(memory.llc_fast.LlcFastError, match="kept in split"):
        memory.sampler(work, "SGLD", state="sr")
