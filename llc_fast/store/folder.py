"""The folder beside a store while a run goes on; nothing in it is deleted but what a run has put there."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import OutputError
from .files import PARTIAL, replaced, temporary
from .spec import Spec

FORMAT = 1


class Run(NamedTuple):
    """The files beside a store while a run goes on."""

    folder: Path

    @property
    def lock(self) -> Path:
        return self.folder / "lock"

    @property
    def manifest(self) -> Path:
        return self.folder / "run.json"

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint"

    @property
    def moved(self) -> Path:
        return self.folder / "moved"

    @property
    def tree(self) -> Path:
        return self.folder / "tree"

    def describe(self, specs: Iterable[Spec], attrs: Any, identity: Any) -> None:
        """Write down what run this is."""
        note = {"format": FORMAT, "identity": identity, "layout": layout(specs), "attrs": attrs}
        with replaced(self.manifest) as file:
            file.write(json.dumps(note).encode())

    def journal(self) -> int | None:
        """How many of the last steps are done; None if they have not begun."""
        return int(self.moved.read_text()) if self.moved.exists() else None

    def mark(self, steps: int) -> None:
        with replaced(self.moved) as file:
            file.write(b"%d" % steps)


def layout(specs: Iterable[Spec]) -> list[Any]:
    """The arrays of a run, for JSON."""
    return [spec.layout() for spec in specs]


def check(run: Run) -> None:
    """Raise OutputError if what is at the run folder's path is not of a run of ours, all of which we may delete."""
    if strange := _strange(run):
        raise OutputError(
            f"{run.folder}, where a lock and checkpoints would go, {strange}: choose another path, or move that"
        )


def empty(run: Run) -> None:
    """Delete a run's files, but for its lock; nothing else."""
    for file in (run.manifest, run.checkpoint, run.moved):
        file.unlink(missing_ok=True)
        temporary(file).unlink(missing_ok=True)
    shutil.rmtree(run.tree, ignore_errors=True)


def remove(run: Run) -> None:
    """Delete a run's files and their folder; the lock last, so that nobody takes what is half removed for a run."""
    with suppress(FileNotFoundError):
        empty(run)
        run.lock.unlink()
    with suppress(OSError):  # the next writer has just put its own lock there
        run.folder.rmdir()


def _strange(run: Run) -> str:
    """What at a run folder's path is not ours, or nothing; another process may be removing its own there."""
    while os.path.lexists(run.folder):
        if not run.folder.is_dir():
            return "is a file"
        with suppress(FileNotFoundError):
            inside = sorted(run.folder.iterdir())
            found = _stranger(run, inside)
            if not found or inside == sorted(run.folder.iterdir()):
                return found
    return ""


def _stranger(run: Run, inside: list[Path]) -> str:
    files = {run.manifest, run.checkpoint, run.moved}
    files |= {run.lock, *map(temporary, files)}
    for path in inside:
        fits = path.is_dir() if path == run.tree else path in files and path.is_file()
        if path.is_symlink() or not fits:
            return f"holds {path.name!r}, which is not of a run"
    for folder, _, names in os.walk(run.tree):
        for name in names:
            if name != "zarr.json" and not name.endswith(PARTIAL):
                path = Path(folder, name).relative_to(run.folder)
                return f"holds {str(path)!r}, which is not of a run"
    ours = _begins(run.lock, b'{"pid"', b"") or _begins(run.manifest, b'{"format"')
    return "" if ours or not inside else "has neither the lock nor the manifest of a run"


def _begins(path: Path, *words: bytes) -> bool:
    """Whether a file starts with one of these; b"" is for an empty one."""
    try:
        with path.open("rb") as file:
            start = file.read(16)
    except FileNotFoundError:
        return False
    return any(start.startswith(word) if word else not start for word in words)
