"""`llc-fast bench`: what it refuses before any work, what it hands on, and how it ends."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

pytest.importorskip("typer")
from typer.testing import CliRunner

from llc_fast.benchmarks import run
from llc_fast.benchmarks._table import Column, Report, Table
from llc_fast.benchmarks._work import Setting
from llc_fast.cli import app as cli_app
from llc_fast.cli import bench


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Setting]]:
    """Makes every question answer with two tables, or raise after the first; gives the settings it was asked with."""

    def fake(error: BaseException | None = None) -> list[Setting]:
        settings: list[Setting] = []

        def tables(setting: Setting) -> Iterator[Table]:
            settings.append(setting)
            for key in ("first", "second"):
                table = Table(key, f"The {key} table", [Column("ns", "ns")])
                table.add("row", ns=1.5)
                yield table
                if error is not None:
                    raise error

        module = ModuleType("fake")
        module.tables = tables  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "llc_fast.benchmarks._fake", module)
        monkeypatch.setattr(run, "QUESTIONS", dict.fromkeys(run.QUESTIONS, "_fake"))
        return settings

    return fake


def invoke(monkeypatch: pytest.MonkeyPatch, *words: str) -> Any:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/llc-fast", "bench", *words])
    threads = torch.get_num_threads()
    try:
        return CliRunner().invoke(cli_app.app, ["bench", *words])
    finally:
        torch.set_num_threads(threads)


def test_questions_are_those_of_the_benchmarks() -> None:
    assert [q.value for q in cli_app.Question] == [*run.QUESTIONS, "all"]


def test_what_is_asked_reaches_the_question(asked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = asked()
    words = ["noise", "--quick", "--threads", "1", "--backend", "cpu:generic", "--backend", "reference"]
    done = invoke(monkeypatch, *words, "--device", "cpu", "--json", "deep/it is.json", "--out", "tables")
    assert done.exit_code == 0, done.output
    (setting,) = settings
    assert (setting.scale, setting.device) == ("quick", "cpu")
    assert setting.backends == ("cpu:generic", "reference")
    report = Report.read(Path("deep/it is.json"))
    assert report.machine["threads"] == 1
    given = "llc-fast bench noise --quick --threads 1 --backend cpu:generic --backend reference --device cpu"
    assert report.command == given + " --json 'deep/it is.json' --out tables"
    assert [(t.key, t.question) for t in report.tables] == [("first", "noise"), ("second", "noise")]
    assert [p.name for p in Path("tables").iterdir()] == ["bench.md"]
    assert "The first table" in done.stdout
    assert "wrote deep/it is.json" in done.stdout.replace("\n", " ")


def test_by_default_all_is_asked_at_full_size(asked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = asked()
    done = invoke(monkeypatch)
    assert done.exit_code == 0, done.output
    assert len(settings) == len(run.QUESTIONS)
    assert {s.scale for s in settings} == {"full"}
    assert {s.backends for s in settings} == {("auto",)}
    assert {s.device for s in settings} == {"cuda" if torch.cuda.is_available() else "cpu"}
    assert sorted(p.name for p in Path("bench_out").iterdir()) == ["bench.json", "bench.md"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--device", "tpu"], "device is 'tpu': give auto, cpu, cuda or cuda:N"),
        (["--device", "cuda:99"], "device is 'cuda:99'"),
        (["--threads", "0"], "threads is 0"),
        (["--threads", "-3"], "threads is -3"),
        (["--backend", "cpux"], "unknown backend 'cpux' (did you mean 'cpu'?)"),
        (["--backend", "cpu:mmx"], "mmx"),
        (["--backend", "cuda", "--device", "cpu"], "cuda"),
        (["--json", "folder"], "--json folder is a folder: give a file"),
        (["--out", "file"], "--out file is a file: give a folder"),
        (["--out", "file/out"], "cannot be written to"),
        (["--json", "file/r.json"], "cannot be written to"),
        (["--from", "nothing.json"], "--from nothing.json cannot be read (No such file or directory)"),
        (["--from", "folder"], "--from folder cannot be read"),
        (["--from", "file"], "file is no report of llc-fast bench"),
        (["--from", "file", "--quick"], "--from shows what was measured before"),
        (["step", "--from", "file"], "--from shows what was measured before"),
    ],
)
def test_bad_input_is_refused_before_any_work(
    words: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("folder").mkdir()
    Path("file").write_text("years of work")

    def no_work(*_: Any, **__: Any) -> None:
        raise AssertionError("work began")

    monkeypatch.setattr(bench, "measure", no_work)
    monkeypatch.setattr(bench, "render", no_work)
    refused = invoke(monkeypatch, *words)
    assert refused.exit_code == 2, refused.output
    assert message in refused.stderr
    assert "Traceback" not in refused.output
    assert sorted(p.name for p in Path().iterdir()) == ["file", "folder"]
    assert Path("file").read_text() == "years of work"


def test_an_unknown_question_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = invoke(monkeypatch, "speed")
    assert refused.exit_code == 2
    assert "'speed'" in refused.stderr


def test_a_place_that_takes_no_files_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", read_only)
    refused = invoke(monkeypatch, "step")
    assert refused.exit_code == 2
    assert "--out bench_out" in refused.stderr
    assert "cannot be written to (Permission denied)" in refused.stderr


def test_a_disk_that_fills_up_is_one_message(asked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked()

    def full(self: Path, *_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_text", full)
    stopped = invoke(monkeypatch, "step")
    assert stopped.exit_code == 2
    assert "could not be written (No space left on device)" in stopped.stderr
    assert "The first table" in stopped.stdout  # the numbers are not lost


def test_ctrl_c_keeps_what_was_finished(asked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked(KeyboardInterrupt())
    stopped = invoke(monkeypatch, "step")
    assert stopped.exit_code == 130
    assert stopped.stderr.splitlines()[-1] == "interrupted"
    assert "finished: first" in stopped.stdout
    assert [t.key for t in Report.read(Path("bench_out/bench.json")).tables] == ["first"]


def test_a_question_that_fails_is_exit_code_1(asked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked(ValueError("a bug"))
    done = invoke(monkeypatch, "step")
    assert done.exit_code == 1
    assert "error: not finished: step" in done.stderr
    assert "not run: ValueError: a bug" in done.stdout


def test_from_shows_an_earlier_report_and_measures_nothing(
    asked: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = asked()
    first = invoke(monkeypatch, "memory", "--json", "kept.json", "--out", "one")
    assert first.exit_code == 0
    before = Path("kept.json").read_bytes()
    again = invoke(monkeypatch, "--from", "kept.json", "--out", "two")
    assert again.exit_code == 0, again.output
    assert len(settings) == 1
    assert "llc-fast bench memory --json kept.json --out one" in again.stdout
    assert "The second table" in again.stdout
    assert Path("two/bench.md").read_bytes() == Path("one/bench.md").read_bytes()
    assert Path("two/bench.json").read_bytes() == before == Path("kept.json").read_bytes()
    assert json.loads(before)["tables"][0]["rows"] == [{"name": "row", "role": "ours", "ns": 1.5}]
