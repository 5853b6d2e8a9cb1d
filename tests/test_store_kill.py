"""A writer that is killed at any point and goes on: the store of an unbroken run, byte for byte. Only one writer."""

from __future__ import annotations

import fcntl
import os
import random
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_store import SLOTS, STEPS, begin, expected, step, writer

from llc_fast.errors import OutputError
from llc_fast.store import Spec, Writer, open_tree
from llc_fast.store.lock import Lock

pytest.importorskip("zarr")
pytest.importorskip("xarray")

DYING = {1: 6, 4: 0}  # step at which a chain dies
CHANGING = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree", "os.truncate"}  # audit events


def in_turn(out: Writer, every: int) -> None:
    """Chains one after the other; what they do follows from the checkpointed state alone."""
    state = out.state or {"chain": 0, "slot": 0, "at": 0, "w": torch.ones(3, dtype=torch.bfloat16), "done": 0}
    while state["slot"] < SLOTS:
        chain, slot, at = state["chain"], state["slot"], state["at"]
        if at == 0:
            begin(out, chain, slot)
        dead = DYING.get(chain) == at
        if dead:
            out.bury(slot, chain, f"at step {at}")
        else:
            step(out, chain, slot, at)
        over = dead or at == STEPS - 1
        state = {
            "chain": chain + over,
            "slot": slot + (over and not dead),
            "at": 0 if over else at + 1,
            "w": state["w"] * 1.5 + chain,
            "done": state["done"] + 1,
        }
        if state["done"] % every == 0:
            out.checkpoint(state)
    out.finish({"llc_fast": {"w": state["w"].tolist(), "chains": [c for c in range(5) if c not in DYING]}})


def abreast(out: Writer, every: int) -> None:
    """All chains at once; the first one dies, so the others' slots move at the end."""
    state = out.state or {"at": 0}
    for at in range(state["at"], STEPS):
        for slot in range(SLOTS):
            if at == 0:
                begin(out, slot, slot)
            if slot != 0 or at < 5:
                step(out, slot, slot, at)
        if at == 5:
            out.bury(0, 0, "alone")
        if (at + 1) % every == 0:
            out.checkpoint({"at": at + 1})
    out.finish({"llc_fast": {"chains": list(out.slots)}})


def files(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


@contextmanager
def child(act: Callable[[], Any]) -> Iterator[int]:
    """A forked process that does something; killed at the end if it is still there."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        try:
            act()
            os._exit(0)
        except BaseException as e:
            os.write(2, f"{type(e).__name__}: {e}\n".encode())
            os._exit(1)
    try:
        yield pid
    finally:
        try:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass


def run(act: Callable[[], Any]) -> int:
    """The exit status of a child that does something; minus the signal's number if one killed it."""
    with child(act) as pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def killed_at(moment: int, counted: Callable[[int], None] = lambda n: None) -> None:
    """From now on, this process is killed just before its `moment`-th change of a file system, in whatever thread."""
    n = 0

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal n
        writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
        if writes or event in CHANGING:
            n += 1
            counted(n)
            if n == moment:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def unbroken(walk: Callable[[Writer, int], None], path: Path) -> tuple[dict[str, bytes], int]:
    """The files of a run without an interruption, and how often a run with checkpoints changes the file system."""
    with writer(path / "unbroken.zarr") as out:
        walk(out, 10**9)
    read, write = os.pipe()

    def act() -> None:
        last = [0]
        killed_at(-1, lambda n: last.__setitem__(0, n))
        with writer(path / "counted.zarr") as out:
            walk(out, 3)
        os.write(write, b"%d" % last[0])

    assert run(act) == 0
    reference = files(path / "unbroken.zarr")
    assert reference == files(path / "counted.zarr")
    return reference, int(os.read(read, 20))


def broken(walk: Callable[[Writer, int], None], path: Path, *moments: int) -> dict[str, bytes]:
    """The files of a run that was killed at each of these moments after it had been started (again)."""

    def act(moment: int = -1) -> None:
        killed_at(moment)
        with writer(path, resume=True) as out:
            if not out.finished:
                walk(out, 3)

    for moment in moments:
        assert run(lambda moment=moment: act(moment)) in (-signal.SIGKILL, 0)
    assert run(act) == 0
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    return files(path)


@pytest.mark.parametrize("walk", [in_turn, abreast])
def test_a_killed_run_ends_as_an_unbroken_one(walk, tmp_path):
    reference, changes = unbroken(walk, tmp_path)
    assert changes > 100
    draw = random.Random(walk.__name__)
    moments = [(draw.randrange(1, changes),) for _ in range(5)]
    moments += [tuple(draw.randrange(1, changes // 2) for _ in range(3))]  # three times
    moments += [(changes - i,) for i in range(0, 96, 12)]  # in finish, and while its traces are removed
    for i, several in enumerate(moments):
        assert broken(walk, tmp_path / str(i) / "x.zarr", *several) == reference, several


@pytest.mark.slow
@pytest.mark.parametrize("walk", [in_turn, abreast])
def test_a_run_killed_at_any_moment_ends_as_an_unbroken_one(walk, tmp_path):
    reference, changes = unbroken(walk, tmp_path)
    for moment in range(1, changes + 1):
        assert broken(walk, tmp_path / str(moment) / "x.zarr", moment) == reference, moment


def test_torn_files_are_healed(tmp_path):
    """A store whose files are not replaced at once, as zarr's before 3.1 are not, may keep halves of them."""
    with writer(tmp_path / "unbroken.zarr") as out:
        in_turn(out, 5)
    path = tmp_path / "x.zarr"

    def act() -> None:
        with writer(path) as out:
            seen = []
            out.checkpoint = lambda state: [
                seen.append(0),
                Writer.checkpoint(out, state),
                len(seen) == 4 and os.kill(0, 9),
            ]
            os.setpgid(0, 0)
            in_turn(out, 5)

    assert run(act) == -signal.SIGKILL
    for torn in ("zarr.json", "llc_fast/loss/zarr.json", "llc_fast/loss/c/1/2", "llc_fast/loss/c/2/0"):
        (path / torn).parent.mkdir(parents=True, exist_ok=True)
        (path / torn).write_bytes(b'{"torn')
    (path / "llc_fast/loss/c/1/2.0123.partial").write_bytes(b"x")
    with writer(path, resume=True) as out:
        assert out.state["done"] == 20
        assert (out.state["slot"], out.state["at"]) == (1, 5)
        seen = open_tree(path)["llc_fast/loss"].values  # nothing that the checkpoint does not vouch for
        assert np.array_equal(seen[0], expected([0])[0])
        assert np.array_equal(seen[1, :5], expected([2])[0, :5])
        assert np.isnan(seen[1, 5:]).all()
        assert np.isnan(seen[2]).all()
        in_turn(out, 5)
    assert files(path) == files(tmp_path / "unbroken.zarr")


def test_a_run_that_is_closed_goes_on(tmp_path):
    with writer(tmp_path / "unbroken.zarr") as out:
        in_turn(out, 5)
    path = tmp_path / "x.zarr"
    with writer(path) as out:
        out.put = lambda name, slot, *row: Writer.put(out, name, slot, *row) if slot < 2 else interrupt()
        with pytest.raises(KeyboardInterrupt):
            in_turn(out, 5)
    assert (tmp_path / "x.zarr.run").exists()
    with writer(path, resume=True) as out:
        assert out.state["slot"] > 0
        in_turn(out, 7)
    assert files(path) == files(tmp_path / "unbroken.zarr")


def interrupt() -> None:
    raise KeyboardInterrupt


def test_a_run_without_a_checkpoint_leaves_nothing(tmp_path):
    with writer(tmp_path / "x.zarr") as out:
        step(out, 0, 0, 0)
    assert list(tmp_path.iterdir()) == []


def test_only_one_process_writes(tmp_path):
    path = tmp_path / "x.zarr"
    ready, go = os.pipe(), os.pipe()

    def hold() -> None:
        out = writer(path)
        step(out, 0, 0, 0)
        out.checkpoint({"at": 1})
        os.write(ready[1], b"x")
        os.read(go[0], 1)

    with child(hold) as pid:
        os.read(ready[0], 1)
        for resume in (True, False):
            with pytest.raises(OutputError, match=f"is being written by process {pid} on "):
                writer(path, resume=resume)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        with writer(path, resume=True) as out:
            assert out.state == {"at": 1}


def test_a_fork_neither_writes_nor_keeps_the_lock(tmp_path):
    path = tmp_path / "x.zarr"
    ready, never = os.pipe(), os.pipe()

    def fork() -> None:
        out = writer(path)
        out.checkpoint({"at": 1})
        if os.fork() == 0:  # as a DataLoader's worker is, it outlives its parent
            for use in (
                lambda: out.put("llc_fast/loss", 0, 0, 1.0),
                lambda: out.checkpoint({}),
                lambda: out.finish({}),
            ):
                try:
                    use()
                except OutputError as e:
                    os.write(ready[1], b"fork" if "of which this is a fork" in str(e) else b"else")
            out.close()
            os.write(ready[1], b"%9d" % os.getpid())
            os.read(never[0], 1)
            os._exit(0)
        os.read(never[0], 1)

    with child(fork) as pid:
        said = b""
        while len(said) < 21:
            said += os.read(ready[0], 21 - len(said))
        assert said[:12] == b"forkforkfork"
        with pytest.raises(OutputError, match=f"by process {pid}"):  # the fork's close() was not its parent's
            writer(path, resume=True)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        try:
            os.kill(int(said[12:]), 0)  # the fork lives
            with writer(path, resume=True) as out:
                assert out.state == {"at": 1}
        finally:
            os.kill(int(said[12:]), signal.SIGKILL)


def test_a_lock_s_file_that_a_finishing_process_removes_is_not_taken(tmp_path, monkeypatch):
    folder = tmp_path / "x.zarr.run"
    first = Lock(folder, tmp_path / "x.zarr")
    flock = fcntl.flock

    def late(fd: int, how: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        first.path.unlink()  # between the second one's open and its flock
        folder.rmdir()
        first.release()
        flock(fd, how)

    monkeypatch.setattr(fcntl, "flock", late)
    second = Lock(folder, tmp_path / "x.zarr")
    with pytest.raises(OutputError, match=f"process {os.getpid()}"):
        Lock(folder, tmp_path / "x.zarr")
    second.release()


def test_readers_during_a_run_see_whole_rows(tmp_path):
    """Whatever they see is right: what a chain's slot holds is a beginning of one chain's trace."""
    path = tmp_path / "x.zarr"

    def act() -> None:
        with writer(path) as out:
            os.write(ready[1], b"x")
            in_turn(out, 2)

    ready = os.pipe()
    traces = expected(list(range(5)))
    seen = 0
    with child(act) as pid:
        os.read(ready[0], 1)
        done = False
        while not done:
            done = os.waitpid(pid, os.WNOHANG)[0] == pid
            for row in open_tree(path)["llc_fast/loss"].values:
                there = np.isfinite(row)
                seen += int(there.sum())
                assert any(np.array_equal(row[there], trace[there]) for trace in traces)
    assert seen > 0


def test_burying_slot_0_leaves_arrays_without_chains(tmp_path: Path):
    """Their chunk 0 is no slot: a run that goes on right after the burial has them still."""
    path = tmp_path / "x.zarr"
    specs = (
        Spec("ids", ("batch", "token"), (2, 3), "int64"),
        Spec("loss", ("chain", "step"), (2, 4), "float64"),
    )
    keep = {"attrs": {}, "identity": {}}
    out = Writer.create(path, specs, **keep)
    out.write("ids", np.arange(6).reshape(2, 3))
    out.write("loss", np.arange(8.0).reshape(2, 4))
    out.bury(0, 0, "died")
    out.checkpoint({"at": 1})
    out.close()
    out = Writer.create(path, specs, resume=True, **keep)
    out.finish({})
    tree = open_tree(path)
    assert tree.ids.values.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert tree["dead"].loss.values.tolist() == [[0.0, 1.0, 2.0, 3.0]]
