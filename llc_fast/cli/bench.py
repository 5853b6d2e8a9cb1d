"""`llc-fast bench`: what was asked for is checked before any work, then handed to the benchmarks."""

from __future__ import annotations

import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from .. import backends
from ..benchmarks._table import Report
from ..benchmarks.run import failed, render
from ..benchmarks.run import run as measure
from ..errors import ArgumentError, OutputError
from ..scalars import check_integer
from .settings import torch_device


def run(
    question: str | None,
    *,
    quick: bool,
    json: Path | None,
    out: Path,
    device: str | None,
    threads: int | None,
    names: Sequence[str],
    earlier: Path | None,
) -> int:
    """Measure, or show an earlier report; the exit code. Raises LlcFastError before any work."""
    if earlier is not None:
        if quick or question or device or threads is not None or names:
            raise ArgumentError("--from shows what was measured before: leave out all but --out and --json")
        report = _read(earlier)
    if threads is not None:
        check_integer("threads", threads, minimum=1)
    target = torch_device(device or "auto")
    for name in names:
        backends.resolve(backends.check_name(name), target.type, "float32")
    out = _folder(out)
    if json is not None:
        json = _file(json)
    try:
        if earlier is not None:
            render(report, out=out, json=json)
            return 0
        report = measure(
            question or "all",
            scale="quick" if quick else "full",
            device=str(target),
            backends=list(dict.fromkeys(names)) or ["auto"],
            threads=threads,
            out=out,
            json=json,
            command=shlex.join(["llc-fast", *sys.argv[1:]]),
        )
    except BrokenPipeError:
        raise  # whoever read the tables has seen enough
    except OSError as e:
        raise OutputError(f"{e.filename or out} could not be written ({e.strerror or e})") from e
    unfinished = failed(report)
    if unfinished:
        print(f"error: not finished: {', '.join(unfinished)}", file=sys.stderr)
    return 1 if unfinished else 0


def _read(path: Path) -> Report:
    try:
        return Report.read(path.expanduser())
    except OSError as e:
        raise ArgumentError(f"--from {path} cannot be read ({e.strerror})") from e
    except ValueError as e:
        raise ArgumentError(f"--from: {e}") from e


def _folder(path: Path) -> Path:
    """A folder that is there or can be made, and written to."""
    folder = path.expanduser()
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"--out {path} is a file: give a folder")
    _writable(folder, f"--out {path}")
    return folder


def _file(path: Path) -> Path:
    """A file that is there or can be made, and written to."""
    file = path.expanduser()
    if file.is_dir():
        raise OutputError(f"--json {path} is a folder: give a file")
    _writable(file.parent, f"--json {path}")
    return file


def _writable(folder: Path, what: str) -> None:
    home = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    try:
        with tempfile.TemporaryFile(dir=home):
            pass
    except OSError as e:
        raise OutputError(f"{what}: {home} cannot be written to ({e.strerror})") from e
