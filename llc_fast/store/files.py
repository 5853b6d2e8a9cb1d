"""Files that are there whole or not at all, and what went wrong where they are not."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ..errors import LlcFastError, OutputError

PARTIAL = ".partial"  # zarr's name for a file that it has not finished


def temporary(path: Path) -> Path:
    """Where a file is written before it takes its place; one writer, so one name is enough."""
    return path.with_name(f"{path.name}.tmp")


@contextmanager
def replaced(path: Path) -> Iterator[BinaryIO]:
    """A file that takes `path`'s place once it is on the disk; removed if that fails."""
    fresh = temporary(path)
    try:
        with fresh.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise
    flush(path.parent)


def flush(path: Path) -> None:
    """Bring a file or folder to the disk, if it is there."""
    try:
        fd = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return  # a chunk that holds only the fill value has no file
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sweep(root: Path) -> None:
    """Remove what a killed process left of files that it was writing, and folders that hold nothing."""
    for folder, _, names in os.walk(root, topdown=False):
        for name in names:
            if name.endswith(PARTIAL):
                Path(folder, name).unlink(missing_ok=True)
        if Path(folder) != root and not os.listdir(folder):
            os.rmdir(folder)


def room(path: Path, need: int) -> None:
    """Raise OutputError unless `need` bytes are free where `path` will be."""
    home = next(p for p in path.parents if p.exists())
    free = shutil.disk_usage(home).free
    if free < need:
        raise OutputError(
            f"{path} needs about {need / 1e6:.1f} MB for metadata and a checkpoint, {home} has "
            f"{free / 1e6:.1f} MB free: make room or choose another path"
        )


def system_error(error: BaseException) -> OSError | None:
    """The system's error behind one that zarr may have wrapped, or None."""
    todo: list[BaseException | None] = [error]
    seen: set[int] = set()
    while todo:
        e = todo.pop(0)
        if e is None or id(e) in seen:
            continue
        seen.add(id(e))
        if isinstance(e, OSError) and not isinstance(e, LlcFastError):
            return e
        todo += [e.__cause__, e.__context__, *getattr(e, "exceptions", ())]
    return None
