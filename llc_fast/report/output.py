"""A directory of results that is there whole or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path

from ..errors import OutputError


def check(out: str | Path, *, names: Collection[str], size: int, force: bool = False) -> Path:
    """The absolute path for results, if a directory with files `names` of about `size` bytes can be put there.

    Nothing is left behind. An existing directory is refused unless it is empty, or `force` is given and it
    holds files of these names only. Raises OutputError.
    """
    path = Path(os.path.abspath(Path(out).expanduser()))
    if path.is_symlink():
        path = path.resolve()
    if path == Path.cwd() or path in Path.cwd().parents:
        raise OutputError(f"--out {out} is the working directory or above it: give a new directory")
    if path.exists():
        if not path.is_dir():
            raise OutputError(f"--out {out} is a file: give a directory")
        there = sorted(p.name for p in path.iterdir())
        other = [name for name in there if name not in names]
        if other:
            raise OutputError(f"--out {out} holds other files ({', '.join(other[:3])}): give a new directory")
        if there and not force:
            raise OutputError(
                f"--out {out} holds an earlier result: give a new directory, or --force to replace it"
            )
    home = next(p for p in path.parents if p.exists())
    try:
        _fresh(home).rmdir()
        free = shutil.disk_usage(home).free
    except OSError as e:
        raise OutputError(f"--out {out}: {home} cannot be written to ({e.strerror})") from e
    if free < size:
        raise OutputError(
            f"--out {out} needs about {size / 1e6:.1f} MB, {home} has {free / 1e6:.1f} MB free: make room"
        )
    return path


def write(path: Path, files: Mapping[str, bytes]) -> None:
    """Put a directory with these files at `path`, replacing what `check` allowed to be there.

    They are written beside it, flushed to disk and renamed; on failure or interruption they are removed
    and what was at `path` before is still there. Raises OutputError.
    """
    made = [p for p in (path, *path.parents) if not p.exists()][1:]
    fresh: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = _fresh(path.parent)
        for name, data in files.items():
            with (fresh / name).open("xb") as f:
                f.write(data)
                f.flush()
                os.fsync(f.fileno())
        _swap(fresh, path)
    except BaseException as e:
        if fresh is not None:
            shutil.rmtree(fresh, ignore_errors=True)
        for p in made:
            if p.exists() and not any(p.iterdir()):
                p.rmdir()
        if isinstance(e, OSError):
            raise OutputError(
                f"the result could not be written to {path} ({e.strerror}): nothing was left"
            ) from e
        raise


def _fresh(parent: Path) -> Path:
    """A new directory with the user's usual permissions, unlike mkdtemp's."""
    path = parent / f".llc-fast-{secrets.token_hex(6)}"
    path.mkdir()
    return path


def _swap(fresh: Path, path: Path) -> None:
    if not path.exists() or not any(path.iterdir()):
        fresh.replace(path)
        return
    old = path.with_name(f"{fresh.name}.old")
    try:
        path.rename(old)
        fresh.rename(path)
    except BaseException:
        if old.exists() and not path.exists():
            old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)
