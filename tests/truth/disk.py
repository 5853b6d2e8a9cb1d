"""A disk that fills up in the middle of a run: it stops and says so, and once there is room goes on where it was."""

from __future__ import annotations

import resource
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from frame import Row
from rows import Is
from runs import CASES, files, run, same
from workers import Worker


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[bool]:
    """A file system of this size at a folder; False where this user may not mount one."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "llc_fast", str(folder)]
    mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=False)


def fill(ballast: Path) -> None:
    """Take all the room that there is."""
    with ballast.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                pass


def limited() -> None:
    """No file may grow: what a full disk does, for a user who may not mount one."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def full_disk(folder: Path, steps: Sequence[int]) -> Iterator[Row | str]:
    """The disk fills up at each of these steps of a run."""
    for name in ("stacked, traces, pool_check", "single, moments, SGNHT"):
        whole = folder / f"whole, {name}" / "run.zarr"
        whole.parent.mkdir(parents=True)
        first = Worker(partial(run, whole, CASES[name])).wait().said["first"]
        for step in steps:
            with small_disk(folder / f"{name}, {step}", 16) as mounted:
                yield from _filled(folder / f"{name}, {step}", name, step, mounted, files(whole), first)


def _filled(
    disk: Path, name: str, step: int, mounted: bool, expected: dict[str, str], first: list[int]
) -> Iterator[Row | str]:
    store, ballast = disk / "store" / "run.zarr", disk / "ballast"
    store.parent.mkdir()

    def no_room(at: int) -> None:
        if at == step and not ballast.exists():
            ballast.touch()
            if mounted:
                fill(ballast)
            else:
                limited()

    stopped = Worker(partial(run, store, CASES[name], progress=no_room)).wait().said
    saved = (store.with_name("run.zarr.run") / "checkpoint").exists()
    ballast.unlink(missing_ok=True)
    ended = Worker(partial(run, store, CASES[name])).wait()
    error = stopped.get("error", "nothing was said").replace(str(disk), "DISK")
    how = "full" if mounted else "no file may grow, as this user may not mount a disk"
    yield f"  {how}: {error}"
    explained = stopped.get("type") == "OutputError" and "resume=True" in error
    name = f"{name}, at step {step}"
    yield Is(f"{name}: explained OutputError", True, explained)
    yield Is(f"{name}: goes on from a checkpoint", saved, ended.said.get("first") != first)
    yield Is(f"{name}: identical", True, ended.status == 0 and same(store, expected))
