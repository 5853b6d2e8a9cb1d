"""Without a GPU: every kernel compiled for sm_90 and held against the rules, in two processes at once."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from ._gpu_device import Bench
from ._gpu_process import ended, started
from ._gpu_tests import Place
from ._table import Column, Table

SKIPPED = 2  # exit status of `sass` where a compiler is missing


def compiled(bench: Bench, place: Place) -> Iterator[Table]:
    table = Table(
        "gpu-compile",
        "Kernels compiled for sm_90",
        [Column("kernels", "kernels", ".0f"), Column("rules", "rules")],
        "`python -m llc_fast.benchmarks.sass`: what they compile to, and the rules that they keep.",
    )
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    with ExitStack() as stack:
        running, logs = [], Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for language in ("cuda", "triton"):
            log = logs / language
            to = stack.enter_context(log.open("w"))
            command = [sys.executable, "-m", f"{__package__}.sass", "--language", language]
            running.append((language, log, stack.enter_context(started(command, to, env=env))))
        ends = ended([run for *_, run in running], bench.deadline.left)
        for (language, log, run), whole in zip(running, ends, strict=True):
            _add(table, language, log.read_text(errors="replace"), run.returncode, whole)
    yield table


def _add(table: Table, language: str, text: str, code: int | None, whole: bool) -> None:
    lines = text.strip().splitlines()
    if code == SKIPPED:
        table.add(language, absent=f"skipped: {lines[-1] if lines else 'a compiler is missing'}")
        return
    kernels = sum("%" in line for line in lines)
    rules = (lines[-1] if lines else "it said nothing") if whole else "stopped: no time left"
    table.add(language, kernels=kernels, rules=rules, bad=code != 0 or kernels == 0)
