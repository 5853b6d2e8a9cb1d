"""The tests that need a GPU, as they are in the checkout, alone and under NVIDIA's compute-sanitizer.

Both write pytest's own output to a log, and a table that says what came of it; a row with `bad` is a failure.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ._gpu_device import Bench
from ._gpu_process import STOP, ended, started
from ._table import Column, Table

NAMED = 12  # failed tests that the table names
RESULT = Column("result", "result", ".0f")
OUTCOMES = ("passed", "failed", "errors", "skipped")
# pytest arguments of the sanitizers' processes. Graphs need PyTorch's own allocator, which hides accesses between
# tensors, so they go apart; sizes in the millions and more take hours there.
LARGE = "not large and not ten_million and not 31_bits and not 3000001 and not dropped and not two_chains"
GRAPHS = "graph or replays or captured"
SHARES: dict[str, list[str]] = {
    "kinds": ["tests/test_cuda_device.py", "-k", f"{LARGE} and not ({GRAPHS})"],
    "graphs": ["tests/test_cuda_device.py", "-k", GRAPHS],
    "steps": ["tests/test_step.py", "tests/test_noise.py", "-k", f"cuda-cuda and {LARGE}"],
    "samplers": ["tests/test_samplers.py", "tests/test_library.py", "-k", f"cuda-cuda and {LARGE}"],
}
TOOLS = ("memcheck", "racecheck")
PLUGINS = ("xdist.plugin", "_hypothesis_pytestplugin")  # of pytest, where they are installed
FINDINGS = re.compile(r"=+ (?:ERROR SUMMARY: (\d+) error|RACECHECK SUMMARY: (\d+) hazard)")


@dataclass(frozen=True)
class Place:
    """source: the checkout, whose tests run against what is installed. out: where logs go."""

    source: Path
    out: Path


def counts(text: str) -> dict[str, int]:
    """What the last summary line of pytest says: {"passed": 12, "failed": 1, ...}."""
    found = re.findall(r"^(?:=+ )?((?:\d+ \w+,? ?)+)(?:in [\d.]+s.*)$", text, re.M)
    pairs = re.findall(r"(\d+) (\w+)", found[-1]) if found else []
    plural = {"error": "errors", "warning": "warnings"}
    return {plural.get(word, word): int(n) for n, word in pairs}


def command(arguments: Sequence[str], workers: int = 0) -> list[str]:
    """pytest on tests that need a GPU; it leaves nothing in the checkout. `_in` has its environment."""
    run = [sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", "-q", "-rfE"]
    run += ["--continue-on-collection-errors"]  # a module that cannot be loaded is a failure, the others run
    for plugin in PLUGINS:
        if importlib.util.find_spec(plugin.partition(".")[0]):
            run += ["-p", plugin]
    if workers > 1 and importlib.util.find_spec("xdist"):
        run += ["-n", str(workers), "--dist", "worksteal"]
    return [*run, *arguments]


def tests(bench: Bench, place: Place) -> Iterator[Table]:
    """Every test marked gpu; without a GPU they are collected only."""
    table = Table(
        "gpu-tests",
        "Tests that need a GPU" + ("" if bench.cuda else ", collected only"),
        [RESULT],
        "Bits of CUDA and Triton against the reference in every dtype, graphs, streams, devices.",
    )
    arguments = ["tests"] if bench.cuda else ["tests", "--collect-only"]
    log = place.out / "tests.log"
    workers = max(1, min(14, (os.cpu_count() or 1) - 2)) if bench.cuda else 1
    began = time.monotonic()
    with log.open("w") as to, started(command(arguments, workers), to, **_in(place)) as run:
        (whole,) = ended([run], bench.deadline.left - STOP - 5)
    text = log.read_text(errors="replace")
    found = counts(text)
    if bench.cuda:
        for name in OUTCOMES:
            bad = (
                found.get(name, 0) > 0
                if name in ("failed", "errors")
                else name == "passed" and not found.get(name)
            )
            table.add(name, result=found.get(name, 0), bad=bad)
    else:
        collected = re.findall(r"(\d+)(?:/\d+)? tests collected", text)
        table.add("collected", result=int(collected[-1]) if collected else 0, bad=not collected)
    table.add("devices", result=torch.cuda.device_count())
    table.add("seconds", result=time.monotonic() - began)
    if not whole:
        table.add("all of them", "ours", "stopped: no time left, the log has those that ran", bad=True)
    elif run.returncode:
        table.add("pytest's exit code", result=run.returncode, bad=True)
    for line in re.findall(r"^(?:FAILED|ERROR) (\S+)", text, re.M)[:NAMED]:
        table.add(f"failed: {line}", result=1)
    yield table


def _in(place: Place, **env: str) -> dict[str, Any]:
    """Where and with what environment tests run.

    pytest loads no plugin by itself: one that does not load, as that of a package without what it needs, would stop it.
    """
    own = {"OMP_WAIT_POLICY": "passive", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    return {"cwd": place.source, "env": {**os.environ, **own, **env}}


# --- compute-sanitizer ---


def sanitizer() -> str | None:
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    places = [f"{home}/{folder}" for home in homes if home for folder in ("bin", "compute-sanitizer")]
    return shutil.which("compute-sanitizer") or shutil.which(
        "compute-sanitizer", path=os.pathsep.join(places)
    )


def sanitize(bench: Bench, place: Place) -> Iterator[Table]:
    """memcheck and racecheck on the CUDA backend's tests, all processes at once; without a GPU they are collected."""
    table = Table(
        "gpu-sanitize",
        "compute-sanitizer on the CUDA backend's tests",
        [
            Column("result", "findings", ".0f"),
            Column("passed", "tests passed", ".0f"),
            Column("failed", "failed", ".0f"),
        ],
        "memcheck: accesses out of bounds or misaligned, with each tensor in an allocation of its own but for graphs; "
        "racecheck: hazards in shared memory. Tests of millions of elements are left out.",
    )
    log = place.out / "sanitize.log"
    log.write_text("")
    tool = sanitizer()
    if bench.cuda and tool is None:
        table.add("compute-sanitizer", absent="not installed (compute-sanitizer)", bad=True)
        yield table
        return
    jobs = [(t, share) for t in TOOLS for share in SHARES] if bench.cuda else [("collect", s) for s in SHARES]
    with ExitStack() as stack:
        running, logs = [], Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for kind, share in jobs:
            own = logs / f"{kind}-{share}"
            to = stack.enter_context(own.open("w"))
            run = stack.enter_context(started(_sanitized(kind, share, tool), to, **_in(place)))
            running.append((kind, share, own, run))
        ends = ended([run for *_, run in running], bench.deadline.left - STOP - 5)
        for (kind, share, own, run), whole in zip(running, ends, strict=True):
            text = own.read_text(errors="replace")
            with log.open("a") as all_of_them:
                all_of_them.write(f"\n##### {kind}, {share}: {' '.join(SHARES[share])}\n{text}")
            _judge(table, kind, share, text, run.returncode, whole)
    yield table


def _sanitized(kind: str, share: str, tool: str | None) -> list[str]:
    """The program that checks a share of the tests with one of the tools, or collects them."""
    if kind == "collect":
        return command([*SHARES[share], "--collect-only"])
    options = ["--tool", kind, "--target-processes", "all", "--error-exitcode", "86"]
    options += (
        ["--report-api-errors", "no"] if kind == "memcheck" else []
    )  # PyTorch asks for what may not be there
    own = [] if share == "graphs" or kind == "racecheck" else ["PYTORCH_NO_CUDA_MEMORY_CACHING=1"]
    return ["env", *own, str(tool), *options, *command(SHARES[share])]


def _judge(table: Table, kind: str, share: str, text: str, code: int | None, whole: bool) -> None:
    found = counts(text)
    name = f"{kind}, {share}"
    if kind == "collect":
        collected = re.findall(r"(\d+)(?:/\d+)? tests collected", text)
        bad = not collected or int(collected[-1]) == 0
        table.add(name, passed=int(collected[-1]) if collected else 0, failed=0, bad=bad)
        return
    summaries = [int(a or b) for a, b in FINDINGS.findall(text)]
    if not summaries:
        last = text.strip().splitlines()[-1:] or ["it said nothing"]
        why = "no time left" if not whole else f"no summary, exit code {code}: {last[0][:80]}"
        table.add(name, absent=why, bad=True)
        return
    failed = found.get("failed", 0) + found.get("errors", 0)
    bad = sum(summaries) > 0 or failed > 0 or code != 0 or not whole or not found.get("passed")
    more = "" if whole else ", stopped: no time left"
    table.add(name + more, result=sum(summaries), passed=found.get("passed", 0), failed=failed, bad=bad)
