"""Runs that are killed, whose disk fills up, that are started twice, or stopped by Ctrl-C: what is left of them.

Every run is resumed until it ends, and its store compared with an unbroken one's file by file. Kills are SIGKILL, at a
random moment of the time that the run takes, or before a random one of the operations that bring a file to the disk,
into its place or away, a part of them those with which a run ends; half of the resumed runs are killed again.
"""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import xarray  # noqa: F401  what children need is imported before they are forked
import zarr  # noqa: F401
from disk import full_disk
from frame import Row, main
from rows import Between, Is
from runs import CASES, CHAINS, SAVED, files, left, run, same
from workers import Ended, Worker, counting, moment

# --- killed ---


class Killed:
    """A case, its unbroken store, and how long a run of it takes."""

    def __init__(self, folder: Path, name: str, case: Mapping[str, Any]) -> None:
        self.folder, self.case = folder / name.replace(" ", "_"), case
        stores = [self._path(f"unbroken{i}") for i in range(2)]
        for store in stores:
            start = time.monotonic()
            ended = Worker(counting(partial(run, store, case))).wait()
            self.seconds = time.monotonic() - start
            if ended.status:
                raise RuntimeError(f"{name}: {ended.said}")
        self.operations, self.start = int(ended.said["operations"]), ended.said["first"]
        self.expected = files(stores[0])
        self.repeats = files(stores[1]) == self.expected
        self.dead = sum(1 for name in self.expected if name.startswith("dead/llc_fast/loss/c/"))

    def _path(self, name: str) -> Path:
        (self.folder / name).mkdir(parents=True)
        return self.folder / name / "run.zarr"

    def once(self, number: int, choice: random.Random) -> tuple[bool, list[str], int]:
        """Kill a run and resume it, maybe more than once.

        Whether its store is the unbroken one, how far each kill left it, and how often it began anew after a
        checkpoint was there.
        """
        store, kills, anew = self._path(str(number)), [], 0
        while True:
            again = not kills or choice.random() < 0.5
            ended = self._attempt(store, choice if again else None)
            anew += bool(kills) and kills[-1] == SAVED and ended.said.get("first") == self.start
            if ended.killed:
                kills.append(left(store))
            elif kills or ended.status:
                break
            else:  # it was over before the kill
                shutil.rmtree(store)
        right = ended.status == 0 and same(store, self.expected)
        shutil.rmtree(store.parent)
        return right, kills, anew

    def _attempt(self, store: Path, choice: random.Random | None) -> Ended:
        """A run, killed at a random moment if it gets there."""
        job = partial(run, store, self.case)
        if choice is None:
            return Worker(job).wait()
        how, when = moment(choice, seconds=self.seconds, operations=self.operations)
        if how == "operation":
            return Worker(counting(job, int(when))).wait()
        worker = Worker(job)
        worker.kill(when)
        return worker.wait()


def killed(folder: Path, count: int) -> Iterator[Row | str]:
    choice = random.Random(0)
    names = list(CASES)
    cases = {}
    for name in names:
        cases[name] = Killed(folder, name, CASES[name])
        yield Is(f"{name}: unbroken runs alike", True, cases[name].repeats)
        if "die" in name:
            dead = cases[name].dead
            yield Between(f"{name}: dead of {CHAINS}", 1, CHAINS - 1, dead)
    where: Counter[str] = Counter()
    right: Counter[str] = Counter()
    restarts = 0
    tried = Counter(names[i % len(names)] for i in range(count))
    for i in range(count):
        name = names[i % len(names)]
        ok, kills, anew = cases[name].once(i, choice)
        right[name] += ok
        where.update(kills)
        restarts += anew
    for name in names:
        yield Is(
            f"{name}: identical after kill -9",
            f"{tried[name]} of {tried[name]}",
            f"{right[name]} of {tried[name]}",
        )
    for what, times in where.most_common():
        yield f"  killed {what}: {times}"
    yield Between("kills in all", count, float("inf"), where.total())
    yield Is("checkpoints that a resumed run did not take up", 0, restarts)


# --- two writers, Ctrl-C ---


def two_writers(folder: Path) -> Iterator[Row | str]:
    case = CASES["stacked, traces, pool_check"]
    unbroken, store = folder / "one" / "run.zarr", folder / "two" / "run.zarr"
    for path in (unbroken, store):
        path.parent.mkdir(parents=True)
    Worker(partial(run, unbroken, case)).wait()
    first = Worker(partial(run, store, case, progress=lambda step: time.sleep(0.01)))
    while not (store / "zarr.json").exists() and time.monotonic() < first.began + 60:
        time.sleep(0.001)
    second = Worker(partial(run, store, case)).wait()
    ended = first.wait()
    error = second.said.get("error", "it was let in")
    yield f"  the second of two writers: {error}"
    refused = second.said.get("type") == "OutputError" and f"process {first.pid}" in error
    yield Is("a second writer is refused with the first one's pid", True, refused)
    yield Is(
        "the first one's store is that of a run alone",
        True,
        ended.status == 0 and same(store, files(unbroken)),
    )


INTERRUPTED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {here!r})
import torch, runs
torch.set_num_threads(1)
model, steps = [], 0
def progress(step):
    global steps
    steps += 1
    if steps == {at}:
        os.kill(os.getpid(), signal.SIGINT)
try:
    runs.run(Path({store!r}), runs.CASES[{name!r}], progress=progress, keep=model.append)
finally:
    fresh = runs.problem()[0]
    same = all(torch.equal(a, b) for a, b in zip(model[0].parameters(), fresh.parameters()))
    print(steps, same, flush=True)
"""


def interrupted(folder: Path, name: str, at: int) -> Iterator[Row | str]:
    """SIGINT to a process of its own at the at-th step that it makes."""
    case = CASES[name]
    unbroken, store = folder / f"whole {name}" / "run.zarr", folder / f"stopped {name}" / "run.zarr"
    for path in (unbroken, store):
        path.parent.mkdir(parents=True)
    Worker(partial(run, unbroken, case)).wait()
    text = INTERRUPTED.format(here=str(Path(__file__).parent), store=str(store), name=name, at=at)
    # A shell gives the exit code that a user sees.
    ended = subprocess.run(
        ["sh", "-c", '"$0" -c "$1"; exit $?', sys.executable, text],
        capture_output=True,
        text=True,
        check=False,
    )
    made, _, restored = ended.stdout.strip().rpartition("\n")[2].partition(" ")
    yield Is(f"{name}: Ctrl-C, exit code", 130, ended.returncode)
    together = 1 if CASES[name].get("stacked") is False else CHAINS  # of which each is told of a step
    yield Is(f"{name}: no step after the current one", str(-(-at // together) * together), made)
    yield Is(f"{name}: the model is as it was", "True", restored)
    resumed = Worker(partial(run, store, case)).wait()
    yield Is(f"{name}: resumed, identical", True, resumed.status == 0 and same(store, files(unbroken)))


def rows(quick: bool) -> Iterator[Row | str]:
    torch.set_num_threads(1)  # threads do not outlive a fork
    with tempfile.TemporaryDirectory(prefix="llc_fast_kill_") as place:
        folder = Path(place)
        yield from killed(folder / "killed", 12 if quick else 50)
        yield "A full disk"
        yield from full_disk(folder, [40] if quick else [0, 7, 40, 92])
        yield "Two writers"
        yield from two_writers(folder / "writers")
        yield "Ctrl-C"
        for name, at in (("stacked, traces, pool_check", 30), ("single, moments, SGNHT", 150)):
            yield from interrupted(folder, name, at)


if __name__ == "__main__":
    main(__doc__ or "", rows)
