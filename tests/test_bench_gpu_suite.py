"""The GPU suite's run without a GPU: parts that break, time that is up, what is written, and the dry run."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from test_bench_gpu import bench as bench
from test_bench_gpu import broken, rows

from llc_fast.benchmarks import (
    _gpu_compile,
    _gpu_part,
    _gpu_process,
    _gpu_targets,
    _gpu_tests,
    chain,
    gpu,
    run,
)
from llc_fast.benchmarks._gpu_device import NO_TIME, Bench, Deadline
from llc_fast.benchmarks._gpu_part import LOST, Book
from llc_fast.benchmarks._gpu_tests import Place
from llc_fast.benchmarks._table import WIDTH, Report, Table
from llc_fast.benchmarks._work import Setting

ROOT = Path(__file__).resolve().parent.parent
FACTS = {
    "cpu": "a CPU",
    "threads": 1,
    "cores": 1,
    "isa": None,
    "date": "today",
    "commit": "abc",
    "versions": {"torch": "2"},
    "gpu": {"name": "a card", "cuda": "13.0", "multiprocessors": 132},
}


def test_a_program_that_takes_too_long_is_stopped(tmp_path: Path):
    waits = "print('begun', flush=True); time.sleep(99)"
    said = f"import time\ntry: {waits}\nexcept KeyboardInterrupt: print('so far')"
    log = tmp_path / "log"
    with log.open("w") as to, _gpu_process.started([sys.executable, "-c", said], to) as run:
        while "begun" not in log.read_text():
            time.sleep(0.02)
        assert _gpu_process.ended([run], 0.0) == [False]
    assert "so far" in log.read_text()
    with log.open("w") as to, _gpu_process.started([sys.executable, "-c", "1"], to) as run:
        assert _gpu_process.ended([run], 60.0) == [True]


# --- the suite ---


class Planted:
    """Parts that end as told. statuses: of each start, 0 if not said. seconds: that each takes."""

    def __init__(self, statuses: dict[str, list[int]], seconds: float = 1.0) -> None:
        self.statuses, self.seconds, self.now = statuses, seconds, 0.0
        self.started: list[tuple[str, dict[str, str]]] = []

    def __call__(self, part: str, seconds: float, lost: dict[str, str]) -> int:
        self.started.append((part, dict(lost)))
        self.now += self.seconds
        planned = self.statuses.get(part, [])
        return planned.pop(0) if planned else 0

    def suite(self, out: Path, dry: bool = False, until: float = 1e9) -> gpu.Suite:
        book = Book(out / "gpu.json", "bash benchmarks/gpu.sh OUT", FACTS)
        book.report.write(book.path)
        return gpu.Suite(out, book, dry, self, until, clock=lambda: self.now)


def states(suite: gpu.Suite) -> dict[str, str]:
    return {row["name"]: row["state"] for row in suite.states.rows}


def test_a_part_that_crashes_stops_no_other(tmp_path: Path):
    planted = Planted({"noise": [-signal.SIGSEGV], "peers": [gpu.STOPPED], "tests": [1]})
    suite = planted.suite(tmp_path)
    assert not suite.run(gpu.WHOLE)
    assert [part for part, _ in planted.started] == gpu.WHOLE
    assert [name for name, state in states(suite).items() if state == "done"] == [
        "bandwidth",
        "launches",
        "graph",
        "chain",
    ]
    assert "SIGSEGV" in states(suite)["noise"]
    assert "time" in states(suite)["peers"]
    assert Planted({}).suite(tmp_path).run(gpu.WHOLE)


def test_a_lost_device_is_tried_again_without_cuda(tmp_path: Path):
    planted = Planted({"bandwidth": [LOST]})
    suite = planted.suite(tmp_path)
    assert not suite.run(["bandwidth", "noise"])
    assert [(part, list(lost)) for part, lost in planted.started] == [
        ("bandwidth", []),
        ("bandwidth", ["cuda"]),
        ("noise", []),
    ]


def test_what_there_is_no_time_for_is_not_begun(tmp_path: Path):
    planted = Planted({}, seconds=100.0)
    suite = planted.suite(tmp_path, until=250.0)
    assert suite.run(gpu.WHOLE)
    assert [part for part, _ in planted.started] == gpu.WHOLE[:3]
    assert {states(suite)[part] for part in gpu.WHOLE[3:]} == {NO_TIME}
    suite.finish(250.0)
    short = " ".join((tmp_path / "summary.txt").read_text().split())
    assert f"{NO_TIME} for: noise costs, fp32; noise costs, split; launches more" in short
    assert "compute-sanitizer: runs with findings at most 0 - not measured" in short


def test_parts_that_hold_targets_leave_time_for_the_build():
    held = {t.part for t in _gpu_targets.TARGETS} - {"sanitize"}
    assert held == set(gpu.WHOLE) - {"chain"}
    assert gpu.WHOLE[-1] == "chain"
    script = (ROOT / "benchmarks" / "gpu.sh").read_text()
    seconds = {k: int(v) for k, v in re.findall(r"^(WHOLE|PART)_SECONDS=(\d+)", script, re.M)}
    assert sum(gpu.BUDGETS[part] for part in held) + gpu.GRACE <= seconds["WHOLE"] - 75
    assert seconds["WHOLE"] + _gpu_process.STOP <= 480
    assert seconds["PART"] + _gpu_process.STOP + 20 < 600
    assert re.search(r'^PARTS="(.*)"', script, re.M)[1].split() == ["build", *gpu.WHOLE, "sanitize"]


def test_a_chain_knows_what_time_is_left(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    asked: list[Setting] = []
    monkeypatch.setattr(run, "ask", lambda names, setting: asked.append(setting) or iter(()))
    assert list(_gpu_part.chain(replace(bench, deadline=Deadline(7.0, clock=lambda: 0.0)))) == []
    assert asked[0].backends == ("cpu",)
    assert asked[0].left() == 7.0


def test_results_of_a_part_that_is_run_again_are_written_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    assert run_main(tmp_path, monkeypatch, "noise") == 0
    Book(tmp_path / "gpu.json", "c", FACTS).put(Table("gpu-noise", "Noise", []))
    assert run_main(tmp_path, monkeypatch, "noise", noise=[1]) == 1
    keys = [t.key for t in Report.read(tmp_path / "gpu.json").tables]
    assert keys == ["gpu-noise", "gpu-run", "gpu-targets"]
    heads = re.findall("^## (.*)", (tmp_path / "gpu.md").read_text(), re.M)
    assert heads == ["Noise", "Parts", "Targets"]
    assert "FAILED" in (tmp_path / "gpu.md").read_text().partition("## Parts")[2]


def test_the_summary_has_all_of_a_long_heading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(FACTS, "cpu", "a CPU with quite a name " * 5)
    monkeypatch.setitem(FACTS, "commit", "0123456789ab+")
    assert run_main(tmp_path, monkeypatch, "all") == 0
    lines = (tmp_path / "summary.txt").read_text().splitlines()
    assert "commit 0123456789ab+" in " ".join(lines)
    assert max(map(len, lines)) <= WIDTH
    assert len(lines) <= 40


def test_a_part_writes_what_it_has_before_it_breaks(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def part(bench: Bench, place: Place) -> Iterator[Table]:
        yield Table("first", "first", [])
        raise ZeroDivisionError

    monkeypatch.setattr(_gpu_part, "measure", lambda name: part)
    book = Book(tmp_path / "gpu.json", "c", FACTS)
    assert _gpu_part.run("x", bench, Place(ROOT, tmp_path), book) == 1
    assert [t.key for t in Report.read(book.path).tables] == ["first"]
    monkeypatch.setattr(bench.device, "synchronize", lambda: broken(None))
    assert _gpu_part.run("x", bench, Place(ROOT, tmp_path), book) == LOST


def test_tables_are_kept_for_the_next_part_on_the_same_machine(tmp_path: Path):
    path = tmp_path / "gpu.json"
    for name in ("a", "b", "a"):
        book = Book(path, "c", FACTS)
        book.put(Table(name, f"{name} {len(book.report.tables)}", []))
    assert [t.title for t in Report.read(path).tables] == ["a 2", "b 1"]
    for changed in ({"gpu": FACTS["gpu"] | {"name": "another"}}, {"commit": "def"}):
        assert len(Book(path, "c", FACTS | changed).report.tables) == 2  # a part of a run that is under way
        assert Book(path, "c", FACTS | changed, begins=True).report.tables == []
    assert len(Book(path, "c", FACTS, begins=True).report.tables) == 2


def run_main(out: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str, **statuses: list[int]) -> int:
    planted = Planted(statuses)
    monkeypatch.setattr(gpu, "processes", lambda *_: planted)
    monkeypatch.setattr(gpu, "facts_of", lambda device, commit: dict(FACTS))
    monkeypatch.setattr(gpu, "state", lambda device: {})
    return gpu.main([*arguments, "--out", str(out)])


def test_exit_status_and_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "run.log").write_bytes(b"x" * (20 << 20))
    (tmp_path / "curves.png").write_text("of an earlier run")
    assert run_main(tmp_path, monkeypatch, "all") == 0
    assert run_main(tmp_path, monkeypatch, "all", peers=[-11]) == 1
    assert run_main(tmp_path, monkeypatch, "all", "--build-failed") == 1
    assert run_main(tmp_path, monkeypatch, "tests", tests=[1]) == 1
    printed = capsys.readouterr().out.rstrip().splitlines()
    short = (tmp_path / "summary.txt").read_text().splitlines()
    assert len(short) <= 40
    assert printed[-len(short) :] == short
    files = list(tmp_path.iterdir())
    assert {f.name for f in files} <= set(gpu.FILES)
    assert len(gpu.FILES) <= 8
    assert sum(f.stat().st_size for f in files) < 16 << 20
    assert not (tmp_path / "curves.png").exists()


def test_a_part_by_its_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(_gpu_part, "signal", SimpleNamespace(signal=lambda *_: None, SIGTERM=None))
    run = ["noise", "--out", str(tmp_path), "--dry", "--lost", "triton=no=t here", "--commit", "abc"]
    assert _gpu_part.main(run) == 0
    (table,) = Report.read(tmp_path / "gpu.json").tables
    assert {row["absent"] for row in rows(table, backend="triton")} == {"no=t here"}
    assert _gpu_part.main(["nonsense", *run[1:]]) == 1


# --- what pytest and the sanitizers said ---


def test_counts_of_pytest_s_last_line():
    text = "3 passed in 1.0s\n=== 2 failed, 10 passed, 1 skipped, 3 warnings, 1 error in 12.30s (0:01:02) ==="
    assert _gpu_tests.counts(text) == {"failed": 2, "passed": 10, "skipped": 1, "warnings": 3, "errors": 1}
    assert _gpu_tests.counts("5 passed, 2 deselected in 3.21s\n") == {"passed": 5, "deselected": 2}
    assert _gpu_tests.counts("Segmentation fault") == {}


@pytest.mark.parametrize(
    ("text", "code", "whole", "bad"),
    [
        ("4 passed in 1.0s\n========= ERROR SUMMARY: 0 errors", 0, True, False),
        ("4 passed in 1.0s\n========= ERROR SUMMARY: 2 errors", 86, True, True),
        (
            "4 passed in 1.0s\n========= RACECHECK SUMMARY: 1 hazard displayed (0 errors, 1 warning)",
            0,
            True,
            True,
        ),
        ("1 failed, 3 passed in 1.0s\n========= ERROR SUMMARY: 0 errors", 1, True, True),
        ("2 passed in 1.0s\n========= ERROR SUMMARY: 0 errors", 2, False, True),
        ("========= ERROR SUMMARY: 0 errors", 0, True, True),
        ("Device not supported", 1, True, True),
    ],
)
def test_findings_of_a_sanitizer(text: str, code: int, whole: bool, bad: bool):
    table = Table("t", "t", [])
    _gpu_tests._judge(table, "memcheck", "kinds", text, code, whole)
    assert table.rows[0]["bad"] is bad


# --- gpu.sh ---


def test_a_plugin_that_does_not_load_does_not_stop_pytest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    info = tmp_path / "broken-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[pytest11]\nbroken = not_to_be_found\n")
    file = tmp_path / "test_planted.py"
    file.write_text("import pytest\n@pytest.mark.gpu\ndef test_one(): pass\n")
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = gpu\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    where = _gpu_tests._in(Place(tmp_path, tmp_path))
    workers = 2 if importlib.util.find_spec("xdist") else 0
    found = subprocess.run(
        _gpu_tests.command([str(file)], workers), capture_output=True, text=True, timeout=120, **where
    )
    assert _gpu_tests.counts(found.stdout) == {"passed": 1}, found.stdout + found.stderr
    del where["env"]["PYTEST_DISABLE_PLUGIN_AUTOLOAD"]
    stopped = subprocess.run(
        _gpu_tests.command([str(file)]), capture_output=True, text=True, timeout=120, **where
    )
    assert "not_to_be_found" in stopped.stderr


def test_logs_of_processes_are_not_left_in_the_results(bench: Bench, tmp_path: Path):
    place = Place(ROOT, tmp_path / "out")
    place.out.mkdir()
    seen: set[str] = set()

    def ended(runs: list[subprocess.Popen[bytes]], seconds: float) -> list[bool]:
        seen.update(f.name for f in place.out.iterdir())
        return [False for _ in runs]

    with pytest.MonkeyPatch.context() as patch:
        for module, run in ((_gpu_tests, _gpu_tests.sanitize), (_gpu_compile, _gpu_compile.compiled)):
            patch.setattr(module, "ended", ended)
            assert len(list(run(bench, place))) == 1
    assert seen == {"sanitize.log"}
    assert {f.name for f in place.out.iterdir()} == {"sanitize.log"}


def gpu_sh(*arguments: object, **env: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(ROOT / "benchmarks" / "gpu.sh"), *map(str, arguments)]
    where = {"PATH": "/usr/bin:/bin:/usr/local/bin", "HOME": "/", "PYTHON": sys.executable, **env}
    return subprocess.run(command, capture_output=True, text=True, env=where, cwd="/")


def test_gpu_sh_refuses_what_it_does_not_know(tmp_path: Path):
    run = gpu_sh(tmp_path, "everything")
    assert run.returncode == 2
    assert "'everything'" in run.stderr
    assert all(part in run.stderr for part in (*gpu.WHOLE, "build", "sanitize"))
    assert gpu_sh().returncode == gpu_sh(tmp_path, "noise", "more").returncode == 2
    (tmp_path / "file").write_text("")
    assert "cannot write" in gpu_sh(tmp_path / "file" / "out").stderr
    assert gpu_sh(tmp_path, WHEELS=str(tmp_path / "none")).returncode == 2
    assert gpu_sh(tmp_path, PYTHON="/none").returncode == 1
    assert gpu_sh("--help").stdout.startswith("The benchmarks and tests that need a GPU")


def digest(wheels: Path) -> str:
    script = f". {ROOT}/benchmarks/gpu.sh; PY=python CARD=90 WHEELS=$1; digest"
    found = subprocess.run(
        ["bash", "-c", script, "-", str(wheels)], capture_output=True, text=True, check=True
    )
    assert len(found.stdout.strip()) == 16
    return found.stdout


def test_the_same_wheels_elsewhere_are_no_other_build(tmp_path: Path):
    for i, (name, text) in enumerate((("a", "1"), ("b", "1"), ("longer", "12"))):
        (tmp_path / name).mkdir()
        wheel = tmp_path / name / "x-1-py3-none-any.whl"
        wheel.write_text(text)
        os.utime(wheel, (i * 10**8, i * 10**8))
    a, b, longer = (digest(tmp_path / name) for name in ("a", "b", "longer"))
    assert a == b != longer
    (tmp_path / "b" / "y-1-py3-none-any.whl").write_text("")
    assert digest(tmp_path / "b") != a


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU it is no dry run")
def test_the_whole_dry_run(tmp_path: Path):
    out = tmp_path / "a folder"
    run = gpu_sh(out)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "no GPU: a dry run" in run.stdout
    files = {f.name: f.stat().st_size for f in out.iterdir()}
    assert set(files) == set(gpu.FILES)
    assert sum(files.values()) < 16 << 20
    tables = {t.key: t for t in Report.read(out / "gpu.json").tables}
    for key in ("gpu-bandwidth", "gpu-noise", "gpu-launches", "gpu-7b", "gpu-graph"):
        assert all("absent" not in row for row in tables[key].rows), key
        assert {row["backend"] for row in tables[key].rows} == {"cpu", "triton"}, key
    assert {row["state"] for row in tables["gpu-run"].rows} == {"done"}
    assert {row["name"] for row in tables["gpu-run"].rows} == set(gpu.DRY)
    assert {
        "gpu-peers-64M",
        "gpu-peers-256M",
        *(f"chain-{case.model}" for case in chain.questions(Setting(scale="tiny"))[0]),
        "gpu-sanitize",
        "gpu-tests",
        "gpu-roofline",
    } <= set(tables)
