"""docs/performance.md: its tables are those of the committed runs, and each section says what prints it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from llc_fast.benchmarks import page
from llc_fast.benchmarks._table import Column, Plot, Report, Table
from llc_fast.benchmarks.page import PageError, digest, fill, stale, update

TEXT = page.PAGE.read_text("utf-8") if page.PAGE.exists() else ""
COMMAND = re.compile(r"^    (make|llc-fast|python|bash|pytest) ", re.M)


def machine() -> dict[str, object]:
    facts = {"cpu": "Abacus", "threads": 1, "cores": 2, "isa": None, "clock_mhz": None, "load": None}
    return {**facts, "date": "today", "commit": "abc", "versions": {"llc_fast": "0"}}


def table(key: str, kind: str, question: str) -> Table:
    plot = Plot(kind, "ns", "ns", "n", "elements")
    made = Table(key, f"Title of {key}", [Column("ns", "ns", ".2f")], "How to read.", [], plot, question)
    made.add("ours", n=1.0, ns=1.25)
    made.add("ours", n=2.0, ns=2.5)
    return made


@pytest.fixture
def results(tmp_path: Path) -> Path:
    tables = [table("a", "bars", "one"), table("b", "curves", "two"), table("c", "curves", "two")]
    Report("llc-fast bench all", machine(), tables, 120.0).write(tmp_path / "results" / "run.json")
    return tmp_path / "results"


def marked(*markers: str) -> str:
    return "\n".join(f"## S\n\nprose\n\n<!-- {m} -->\nold\n<!-- end -->\n" for m in markers)


# --- the committed page ---


def test_the_page_is_what_the_runs_say() -> None:
    assert stale() == [], "run: python -m llc_fast.benchmarks.page"


def test_every_run_that_a_marker_names_is_committed() -> None:
    names = re.findall(r"<!-- (?:run|tables?): (\S+)", TEXT)
    assert names
    assert [n for n in names if not (page.RESULTS / n).is_file()] == []


def test_every_section_names_its_command() -> None:
    sections = re.split(r"^## ", TEXT, flags=re.M)[1:]
    assert len(sections) > 5
    assert [s.splitlines()[0] for s in sections if not COMMAND.search(s)] == []


def test_no_figure_of_a_run_is_typed_by_hand() -> None:
    """Outside of markers the only table is that of the targets."""
    rest = re.sub(r"<!-- \w+: .*?<!-- end -->", "", TEXT, flags=re.S).partition("## Targets")[0]
    assert [line for line in rest.splitlines() if line.startswith("|")] == []
    assert not re.search(r"\d (ns|ms|us|GB/s)\b", rest)


def test_pictures_are_small_and_all_are_shown() -> None:
    pictures = list((page.PAGE.parent / "performance").glob("*"))
    assert [p.name for p in pictures if p.stat().st_size > 60_000] == []
    assert [p.name for p in pictures if f"(performance/{p.name})" not in TEXT] == []


# --- how it is filled ---


def test_what_markers_ask_for(results: Path) -> None:
    text = fill(
        marked("run: run.json", "table: run.json a", "tables: run.json two", "tables: run.json three"),
        results,
    )
    run, one, two, three = text.split("## S")[1:]
    assert "`llc-fast bench all`, 2 minutes:" in run
    assert "Abacus" in run
    assert "| ours | 1.25 |\n| ours | 2.50 |" in one
    assert "How to read." in one
    assert "png" not in one
    assert [f"![Title of {k}](performance/run-{k}.png)" in two for k in "abc"] == [False, True, True]
    assert "`llc-fast bench three` prints it" in three
    assert "old" not in text
    assert text.count("prose") == 4
    assert fill(text, results) == text


def test_instructions_are_the_bounds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bounds = {
        "cpu:a": {"compiler": "gcc 1", "counts": {"x": 1.5, "y": 2.0}},
        "cpu:b": {"compiler": "gcc 1", "counts": {"x": 3.0}},
        "gpu": {"compiler": "nvcc 1", "counts": {"x": 9.0}},
    }
    (tmp_path / "i.json").write_text(json.dumps(bounds))
    monkeypatch.setattr(page, "INSTRUCTIONS", tmp_path / "i.json")
    text = fill(marked("instructions: cpu", "instructions: cpu ^y$"))
    assert "|  | cpu:a (gcc 1) | cpu:b (gcc 1) |" in text
    assert "| x | 1.50 | 3.00 |\n| y | 2.00 |  |" in text
    assert text.count("| x |") == 1
    assert "9.00" not in text
    with pytest.raises(PageError, match="no such part"):
        fill(marked("instructions: tpu"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (marked("table: gone.json a"), "there is no .*gone.json"),
        (marked("table: run.json z"), "run.json has a, b, c"),
        (marked("table: run.json"), "say which table"),
        ("<!-- table: run.json a -->\n", "1 markers, 0 ends"),
        (marked("table: run.json a") + "<!-- end -->\n", "1 markers, 2 ends"),
        ("<!-- table: run.json a -->\n" + marked("table: run.json b"), "2 markers, 1 ends"),
    ],
)
def test_a_marker_that_cannot_be_filled_is_an_error(text: str, message: str, results: Path) -> None:
    with pytest.raises(PageError, match=message):
        fill(text, results)


@pytest.fixture
def written(results: Path) -> Path:
    pytest.importorskip("matplotlib")
    path = results.parent / "docs" / "performance.md"
    path.parent.mkdir()
    path.write_text(marked("table: run.json a", "tables: run.json two"))
    update(path, results)
    return path


def test_an_updated_page_is_not_stale(written: Path, results: Path) -> None:
    assert stale(written, results) == []
    pictures = written.parent / "performance"
    assert sorted(p.name for p in pictures.iterdir()) == ["run-b.png", "run-c.png"]
    (pictures / "run-old.png").write_bytes(b"")
    update(written, results)
    assert not (pictures / "run-old.png").exists()


def test_a_changed_figure_is_found(written: Path, results: Path) -> None:
    written.write_text(written.read_text().replace("| ours | 1.25 |", "| ours | 1.20 |", 1))
    assert stale(written, results) == [f"{written} is not what the runs say"]


def test_a_changed_run_is_found_in_page_and_pictures(written: Path, results: Path) -> None:
    report = Report.read(results / "run.json")
    report.tables[1].rows[0]["ns"] = 7.0
    report.write(results / "run.json")
    found = stale(written, results)
    assert len(found) == 2
    assert "run-b.png is not of these rows" in found[0]
    assert digest(report.tables[1]) != digest(report.tables[2])


def test_a_missing_picture_is_found(written: Path, results: Path) -> None:
    shutil.rmtree(written.parent / "performance")
    assert len(stale(written, results)) == 2


def test_the_command(written: Path, results: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(page, "PAGE", written)
    monkeypatch.setattr(page, "stale", lambda: stale(written, results))
    monkeypatch.setattr(page, "update", lambda: update(written, results))
    assert page.main(["--check"]) == 0
    written.write_text(written.read_text().replace("2.50", "2.51", 1))
    before = written.read_text()
    assert page.main(["--check"]) == 1
    assert written.read_text() == before
    assert "is not what the runs say" in capsys.readouterr().out
    assert page.main([]) == 0
    assert "2.51" not in written.read_text()
    (results / "run.json").unlink()
    assert page.main(["--check"]) == 2
    assert "there is no" in capsys.readouterr().err
