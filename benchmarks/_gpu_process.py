"""Programs that the suite runs: each leads a group of its own, which ends when it is left."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

STOP = 25  # seconds for a program that is stopped to say what it has seen


@contextmanager
def started(
    command: Sequence[str],
    to: IO[str],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """A program whose output goes to a file."""
    run = subprocess.Popen(
        command,
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=to,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        yield run
    finally:
        _signal(run, signal.SIGKILL)
        run.wait()


def ended(
    runs: Sequence[subprocess.Popen[bytes]], seconds: float, sign: signal.Signals = signal.SIGINT
) -> list[bool]:
    """Wait so long for all of them; then stop those left, by default as from the keyboard. Which came to their end."""
    _wait(runs, seconds)
    whole = [run.poll() is not None for run in runs]
    for run, done in zip(runs, whole, strict=True):
        if not done:
            _signal(run, sign)
    _wait(runs, STOP)
    return whole


def _wait(runs: Sequence[subprocess.Popen[bytes]], seconds: float) -> None:
    until = time.monotonic() + seconds
    for run in runs:
        with suppress(subprocess.TimeoutExpired):
            run.wait(None if seconds == float("inf") else max(0.0, until - time.monotonic()))


def _signal(run: subprocess.Popen[bytes], sign: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(run.pid, sign)
