"""Reports of benchmarks: what a reader is shown, what is kept of a run, and the pictures."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from llc_fast.benchmarks import _machine, _table, run
from llc_fast.benchmarks._table import Column, Report, Table, count, size_text
from llc_fast.benchmarks._work import Setting

MACHINE = {
    "cpu": "Abacus",
    "threads": 2,
    "cores": 2,
    "isa": "avx2",
    "clock_mhz": 2600,
    "load": [0.1, 0.1, 0.1],
    "date": "today",
    "commit": None,
    "versions": {"llc_fast": "0", "jax": None},
}


def a_table() -> Table:
    return Table("t", "A title", [Column("ns", "ns"), Column("gain", "ours is faster by", ".1f", "x")])


# --- text ---


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (0, "0"),
        (4464, "4,464"),
        (999_400, "999,400"),
        (999_600, "1M"),
        (124_439_808, "124M"),
        (7.24e9, "7.24B"),
    ],
)
def test_counts(number: float, expected: str) -> None:
    assert count(number) == expected


def test_sizes() -> None:
    sizes = [size_text(n) for n in (12, 53_568, 999_600, 1.49328e9, 4.2e12)]
    assert sizes == ["12 B", "53.6 kB", "1 MB", "1.49 GB", "4,200 GB"]


def wide_table() -> Table:
    columns = [Column(k, f"a head that is long, {k}", ".3f") for k in "abcd"]
    table = Table("wide", "A title of many words " * 6, columns, "How to read it, in many words. " * 12)
    table.add("a short name", a=1.0, b=22.0, c=333.0, d=4444.0)
    table.add("a name of many words that needs some room (normal_, add_)", "peer", a=1.0, b=float("nan"))
    table.add(
        "another name of many words", "peer", "a reason that is told in a good many words, in full, too"
    )
    return table


@pytest.mark.parametrize("width", [60, 80, 118, 300])
def test_a_table_fits_the_terminal(width: int) -> None:
    text = wide_table().text(width)
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    words = " ".join(text.split())
    for phrase in ("a short name", "4444.000", "a head"):
        assert phrase in words
    rows = [line for line in lines if line.startswith(("a short name", "a name"))]
    ends = [
        [i for i, (c, d) in enumerate(itertools.pairwise(line + " ")) if c != " " and d == " "]
        for line in rows
    ]
    assert rows[0].rstrip().endswith("4444.000")
    assert rows[1].rstrip().endswith("-")  # NaN; what has no value is left empty
    assert set(ends[1][-2:]) <= set(ends[0])  # numbers stand under each other
    assert all(word in words for word in ("another", "not", "run:", "reason", "told", "full,", "too"))


def test_the_width_is_the_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "70")
    assert wide_table().text() == wide_table().text(70)
    assert wide_table().text() != wide_table().text(118)


def test_markdown_has_the_same_cells_in_every_line() -> None:
    table = Table("m", "M", [Column("ns", "ns | a"), Column("b", "b")])
    table.add("normal_ | <b>_foreach_</b> `x`", ns=1.0)
    table.add("gone", absent="a | b\nc")
    lines = table.markdown().replace("\\|", "").splitlines()
    assert {line.count("|") for line in lines} == {4}
    assert table.markdown().splitlines()[2] == (r"| normal\_ \| \<b>\_foreach\_\</b> \`x\` | 1 |  |")
    assert table.markdown().splitlines()[3] == r"| gone | not run: a \| b c |  |"


# --- reports ---


def a_report(*tables: Table, **facts: Any) -> Report:
    return Report("llc-fast bench step", {**MACHINE, **facts}, list(tables), 12.0)


def refuse(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


def test_a_report_is_valid_json_and_comes_back_whole(tmp_path: Path) -> None:
    table = a_table()
    table.plot = _table.Plot("curves", "ns", "time", "n", log="xy", lines={"limit": 2.0})
    table.add("fine", ns=1.25, gain=3.0)
    table.add("odd", "peer", ns=float("nan"), gain=float("inf"))
    table.add("gone", "peer", "not installed (x)")
    report = a_report(table, clock_mhz=float("nan"))
    report.write(tmp_path / "new" / "r.json")
    text = (tmp_path / "new" / "r.json").read_text("utf-8")
    json.loads(text, parse_constant=refuse)
    again = Report.read(tmp_path / "new" / "r.json")
    assert again.tables[0].rows[0] == table.rows[0]
    assert again.tables[0].rows[2] == table.rows[2]
    assert (again.tables[0].columns, again.tables[0].plot) == (table.columns, table.plot)
    assert again.tables[0].text(80) == table.text(80)
    assert again.tables[0].rows[1] == {"name": "odd", "role": "peer", "ns": None, "gain": None}
    again.write(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_text("utf-8") == text


def test_a_report_that_cannot_be_written_leaves_the_earlier_one(tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "r.json"
    a_report(a_table()).write(path)
    before = path.read_bytes()
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk")))
    with pytest.raises(OSError, match="disk"):
        a_report().write(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"schema": 0, "tables": []}', '{"schema": 1, "tables": [{}]}']
)
def test_other_files_are_no_reports(tmp_path: Path, text: str) -> None:
    (tmp_path / "f").write_text(text)
    with pytest.raises(ValueError, match="is no report of llc-fast bench"):
        Report.read(tmp_path / "f")


def test_other_work_on_the_machine_is_a_warning() -> None:
    assert a_report().warnings() == []
    assert a_report(load=[0.5, 0, 0], after={"load": [2.5, 0, 0]}).warnings() == []  # its own threads
    busy = a_report(load=[3.2, 0, 0], after={"load": [2.6, 0, 0], "clock_mhz": 2100})
    assert busy.warnings() == [
        "WARNING: load 3.2 on 2 cores before the run: timings are not to be trusted",
        "WARNING: load 2.6 on 2 cores after it: timings are not to be trusted",
    ]
    for text in (busy.heading(), busy.markdown()):
        assert "load 3.2 to 2.6" in text
        assert "2600 to 2100 MHz" in text
        assert "WARNING" in text
    assert "jax" not in busy.heading()


def test_this_machine_has_a_heading() -> None:
    report = Report("c", _machine.machine())
    assert f"torch {torch.__version__}" in report.heading()
    report.machine["after"] = _machine.state()
    json.dumps(report.machine, allow_nan=False)


# --- runs ---


@pytest.fixture
def questions(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets the questions: each a name and what its `tables` yields, or raises."""

    def ask(**answers: Sequence[Table | BaseException]) -> None:
        monkeypatch.setattr(run, "QUESTIONS", {name: f"_fake_{name}" for name in answers})
        for name, answer in answers.items():
            module = ModuleType(name)

            def tables(setting: Setting, answer: Sequence[Table | BaseException] = answer) -> Iterator[Table]:
                for each in answer:
                    if isinstance(each, BaseException):
                        raise each
                    yield each

            module.tables = tables  # type: ignore[attr-defined]
            monkeypatch.setitem(sys.modules, f"llc_fast.benchmarks._fake_{name}", module)

    return ask


def bars(key: str) -> Table:
    table = Table(key, f"Table {key}", [Column("ns", "ns")], plot=_table.Plot("bars", "ns", "ns"))
    table.add("a", ns=1.0)
    table.add("b", "peer", ns=2.0)
    return table


def test_files_of_a_run(questions: Callable[..., None], tmp_path: Path, capsys: Any) -> None:
    questions(one=[bars("a"), a_table()], two=[bars("b")])
    report = run.run("all", out=tmp_path / "out", command="the command")
    assert [(t.key, t.question) for t in report.tables] == [("a", "one"), ("t", "one"), ("b", "two")]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "a.png",
        "b.png",
        "bench.json",
        "bench.md",
    ]
    page = (tmp_path / "out" / "bench.md").read_text("utf-8")
    assert "`the command`" in page
    assert [f"![Table {k}]({k}.png)" in page for k in "ab"] == [True, True]
    assert "(t.png)" not in page
    shown = capsys.readouterr().out
    assert shown.index("Table a") < shown.index("A title") < shown.index("Table b") < shown.index("wrote")
    again = Report.read(tmp_path / "out" / "bench.json")
    assert again.machine["after"].keys() >= {"load", "clock_mhz"}
    run.render(again, out=tmp_path / "later")
    for name in ("bench.json", "bench.md", "a.png", "b.png"):
        assert (tmp_path / "later" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
    assert capsys.readouterr().out.count("Table a") == 1


def test_ctrl_c_leaves_what_was_finished(questions: Callable[..., None], tmp_path: Path, capsys: Any) -> None:
    questions(one=[bars("a"), bars("b"), KeyboardInterrupt(), bars("c")])
    with pytest.raises(KeyboardInterrupt):
        run.run("one", out=tmp_path)
    assert [t.key for t in Report.read(tmp_path / "bench.json").tables] == ["a", "b"]
    assert "finished: a, b" in capsys.readouterr().out


def test_an_interrupt_while_files_are_written_names_those_that_are(
    questions: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    questions(one=[bars("a")])
    monkeypatch.setattr(run, "write_whole", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run.run("one", out=tmp_path)
    shown = capsys.readouterr().out
    assert f"wrote {tmp_path / 'bench.json'}" in shown
    assert "bench.md" not in shown


def test_a_question_that_fails_is_a_table_and_the_others_go_on(
    questions: Callable[..., None], tmp_path: Path, capsys: Any
) -> None:
    questions(one=[bars("a"), ValueError("a bug")], two=[bars("b")])
    report = run.run("all", json=tmp_path / "r.json")
    assert [t.key for t in report.tables] == ["a", "failed-one", "b"]
    assert "not run: ValueError: a bug" in report.tables[1].text()
    assert run.failed(report) == ["one"]
    assert "Traceback" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["r.json"]


def test_without_matplotlib_there_are_no_pictures(
    questions: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    questions(one=[bars("a")])
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    run.run("one", out=tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bench.json", "bench.md"]
    assert "png" not in (tmp_path / "bench.md").read_text("utf-8")
    assert "no pictures: matplotlib is not installed" in capsys.readouterr().err


# --- pictures ---


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    kept: list[Any] = []
    monkeypatch.setattr(pyplot, "close", kept.append)
    return kept


def is_png(path: Path) -> bool:
    return path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and path.stat().st_size > 2000


def test_bars_are_the_rows(figures: list[Any], tmp_path: Path) -> None:
    from llc_fast.benchmarks._plots import draw

    table = Table("b", "B", [Column("ns", "ns")], plot=_table.Plot("bars", "ns", "us", log="x", scale=1e-3))
    table.add("ours", ns=1000.0)
    table.add("theirs", "peer", ns=5000.0)
    table.add("unknown", "peer", ns=float("nan"))
    table.add("nothing", "floor", ns=0.0)  # has no place on a logarithmic axis
    table.add("gone", "peer", "not installed (x)")
    assert draw(table, tmp_path / "b.png", note="a note")
    assert is_png(tmp_path / "b.png")
    assert b"a note" in (tmp_path / "b.png").read_bytes()
    (axes,) = figures[0].axes
    assert [b.get_width() for b in axes.patches] == pytest.approx([1.0, 5.0])
    assert [t.get_text() for t in axes.get_yticklabels()] == ["ours", "theirs"]
    assert [t.get_text() for t in axes.get_legend().get_texts()] == ["llc_fast", "others"]
    assert axes.get_xscale() == "log"


def test_curves_are_the_series(figures: list[Any], tmp_path: Path) -> None:
    from llc_fast.benchmarks._plots import draw

    plot = _table.Plot("curves", "ns", "ns", "n", "elements", log="xy", lines={"limit": 3.0})
    table = Table("c", "C", [Column("ns", "ns")], plot=plot)
    for n in (100, 10, 1000):
        table.add(f"ours {n}", series="ours", n=n, ns=n / 10)
    for n in (10, 100):
        table.add(f"theirs {n}", "peer", series="theirs", n=n, ns=float(n))
    table.add("theirs 1000", "peer", "out of memory", series="theirs", n=1000)
    assert draw(table, tmp_path / "c.png")
    assert is_png(tmp_path / "c.png")
    (axes,) = figures[0].axes
    ours, theirs, limit = axes.lines
    assert ours.get_xydata().tolist() == [[10, 1], [100, 10], [1000, 100]]
    assert theirs.get_xydata().tolist() == [[10, 10], [100, 100]]
    assert [line.get_label() for line in (ours, theirs, limit)] == ["ours", "theirs", "limit"]
    assert limit.get_ydata()[0] == 3.0
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")


def test_no_picture_without_rows_and_none_of_an_earlier_run(tmp_path: Path) -> None:
    from llc_fast.benchmarks._plots import draw

    table = bars("a")
    table.rows = [{"name": "a", "role": "ours", "absent": "why"}]
    (tmp_path / "a.png").write_bytes(b"old")
    assert not draw(table, tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()
