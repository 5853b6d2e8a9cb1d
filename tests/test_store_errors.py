"""What is at the path where a run wants to write; disks that are full or read-only; damage."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_store import ATTRS, IDENTITY, SPECS, step, writer
from test_store_kill import files, in_turn, run

from llc_fast.errors import ArgumentError, ArgumentTypeError, OutputError
from llc_fast.store import Spec, Writer, open_tree, require, tree
from llc_fast.store import files as store_files

zarr = pytest.importorskip("zarr")
pytest.importorskip("xarray")


def unfinished(path: Path) -> None:
    """A run that stopped after a checkpoint."""
    with writer(path) as out:
        step(out, 0, 0, 0)
        out.checkpoint({"at": 1})


def finished(path: Path) -> None:
    with writer(path) as out:
        in_turn(out, 100)


def contents(folder: Path) -> dict[str, bytes]:
    """Everything but the note in a lock's file, which says who looked last."""
    return {name: data for name, data in files(folder).items() if not name.endswith("lock")}


def refused(message: str, path: Path, **changed: Any) -> str:
    """The message of an OutputError that leaves everything as it was."""
    before = contents(path.parent) if path.parent.is_dir() else None
    names = sorted(path.parent.rglob("*")) if path.parent.is_dir() else None
    with pytest.raises(OutputError, match=message) as caught:
        writer(path, **changed)
    if before is not None:
        assert contents(path.parent) == before
        assert sorted(path.parent.rglob("*")) == names
    return str(caught.value)


def test_a_finished_run_is_not_run_again(tmp_path):
    path = tmp_path / "x.zarr"
    finished(path)
    before = files(tmp_path)
    for resume in (False, True):
        with writer(path, resume=resume, attrs={"other": 1}) as out:
            assert out.finished
            assert open_tree(out.store).attrs["completed"] == 1
            with pytest.raises(OutputError, match="finished"):
                out.put("llc_fast/loss", 0, 0, 1.0)
    assert files(tmp_path) == before


def test_traces_of_a_killed_finish_are_removed(tmp_path):
    path = tmp_path / "x.zarr"
    finished(path)
    (tmp_path / "x.zarr.run").mkdir()
    (tmp_path / "x.zarr.run" / "lock").write_bytes(b"")
    (tmp_path / "x.zarr.run" / "checkpoint").write_bytes(b"half removed")
    with writer(path) as out:
        assert out.finished
    assert [p.name for p in tmp_path.iterdir()] == ["x.zarr"]


def test_another_finished_run_is_kept(tmp_path):
    path = tmp_path / "x.zarr"
    finished(path)
    said = refused(
        r"holds a finished run that differs from this one: choose another path \(or delete it if not needed\)",
        path,
        identity={**IDENTITY, "seed": 2, "data": {"digest": "d"}},
    )
    assert said.splitlines()[1:] == ["  data.digest: stored nothing, now 'd'", "  seed: stored 1, now 2"]


def test_many_differences_are_cut(tmp_path):
    path = tmp_path / "x.zarr"
    finished(path)
    said = refused("differs", path, identity={f"k{i}": "v" * 500 for i in range(20)})
    assert said.endswith("and 10 more")
    assert max(map(len, said.splitlines()[1:])) < 120


def test_an_unfinished_run_asks_for_resume(tmp_path):
    path = tmp_path / "x.zarr"
    unfinished(path)
    refused("holds this run, unfinished: resume=True continues it", path)
    with writer(path, resume=True) as out:
        assert out.state == {"at": 1}


def test_another_unfinished_run_is_kept(tmp_path):
    path = tmp_path / "x.zarr"
    unfinished(path)
    for resume in (False, True):
        said = refused("unfinished run that differs", path, identity={**IDENTITY, "seed": 2}, resume=resume)
        assert "seed: stored 1, now 2" in said
    specs = (*SPECS, Spec("more", ("x",), (1,), "int32"))
    with pytest.raises(OutputError, match="another version of llc_fast"):
        Writer.create(path, specs, attrs=ATTRS, identity=IDENTITY, resume=True)


def test_a_run_killed_before_its_first_checkpoint_begins_again(tmp_path):
    path = tmp_path / "x.zarr"

    def act() -> None:
        out = writer(path)
        step(out, 0, 0, 0)
        os._exit(7)

    assert run(act) == 7
    with writer(path, resume=True) as out:
        assert out.state is None
        in_turn(out, 100)
    finished(tmp_path / "other.zarr")
    assert files(path) == files(tmp_path / "other.zarr")


def test_what_is_not_ours_is_kept(tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("x")
    for resume in (False, True):
        refused("a folder with other content and no zarr.json", other, resume=resume)
    theirs = zarr.open_group(str(tmp_path / "theirs"), mode="w")
    for resume in (False, True):
        said = refused(
            "a Zarr store of another program, no run of llc_fast", tmp_path / "theirs", resume=resume
        )
        assert "resume" not in said
    theirs.attrs["completed"] = 1
    refused("a finished store that llc_fast did not write", tmp_path / "theirs")
    (tmp_path / "file").write_text("x")
    refused("is a file", tmp_path / "file")
    refused(r"x.zarr cannot be made: .*/file is a file", tmp_path / "file" / "deep" / "x.zarr")


def test_paths_that_cannot_be_a_store(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path, message in {".": "working directory", "..": "above it"}.items():
        with pytest.raises(OutputError, match=message):
            writer(path)
    for path in ("s3://bucket/x.zarr", Path("s3://bucket/x.zarr"), "file:///tmp/x.zarr"):
        with pytest.raises(ArgumentError, match=r"output_path is .* no local path"):
            writer(path)
    for path in ("", "a\0b", "~nobody-of-this-name/x.zarr"):
        with pytest.raises(ArgumentError, match="output_path is "):
            writer(path)
    for path in (3, True, b"x.zarr"):
        with pytest.raises(ArgumentTypeError, match=f"output_path is a {type(path).__name__}"):
            writer(path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "empty.zarr").mkdir()
    with writer("empty.zarr") as out:
        in_turn(out, 100)
    (tmp_path / "link.zarr").symlink_to(tmp_path / "empty.zarr")
    with writer("link.zarr") as out:
        assert out.finished


def test_damage_is_explained(tmp_path):
    path = tmp_path / "x.zarr"
    unfinished(path)
    folder = tmp_path / "x.zarr.run"
    good = (folder / "checkpoint").read_bytes()
    (folder / "checkpoint").write_bytes(good[:-9] + b"?" + good[-8:])
    refused(
        r"checkpoint is damaged .* can still be read; .* another path \(or delete .*x.zarr and .*x.zarr.run",
        path,
        resume=True,
    )
    (folder / "checkpoint").write_bytes(good)
    manifest = (folder / "run.json").read_bytes()
    (folder / "run.json").write_bytes(b"{")
    refused("run.json is damaged", path, resume=True)
    (folder / "run.json").write_bytes(manifest)
    shutil.move(folder, tmp_path / "away")
    for resume in (False, True):
        refused("x.zarr.run with its checkpoint is not beside it", path, resume=resume)
    (path / "zarr.json").write_text("{")
    refused("metadata cannot be read", path, resume=True)
    (path / "zarr.json").unlink()
    refused("no zarr.json", path, resume=True)


def test_a_store_that_was_deleted_without_its_run_folder_begins_anew(tmp_path):
    path = tmp_path / "x.zarr"
    unfinished(path)
    shutil.rmtree(path)
    with writer(path, identity={"seed": 2}) as out:
        assert out.state is None
        in_turn(out, 100)
    assert [p.name for p in tmp_path.iterdir()] == ["x.zarr"]


def test_too_little_room_is_said_before(tmp_path, monkeypatch):
    monkeypatch.setattr(store_files.shutil, "disk_usage", lambda path: SimpleNamespace(free=3 * 2**20))
    refused("needs about 105.9 MB .* 3.1 MB free", tmp_path / "x.zarr", checkpoint_bytes=100 * 2**20)
    writer(tmp_path / "x.zarr", checkpoint_bytes=2**20).close()


def test_a_beginning_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(tree.Tree, "build", fail)
    with pytest.raises(OutputError, match=r"x.zarr cannot be written \(Input/output error\)"):
        writer(tmp_path / "x.zarr")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("what", ["fsync", "replace"])
def test_a_failing_checkpoint_leaves_the_one_before(what, tmp_path, monkeypatch):
    finished(tmp_path / "unbroken.zarr")
    path = tmp_path / "x.zarr"

    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with writer(path) as out:
        step(out, 0, 0, 0)
        out.checkpoint({"at": 1})
        before = (tmp_path / "x.zarr.run" / "checkpoint").read_bytes()
        step(out, 0, 0, 1)
        with monkeypatch.context() as patch:
            patch.setattr(store_files.os, what, fail)
            with pytest.raises(
                OutputError, match=r"all up to the last checkpoint is safe; free space, then resume=True"
            ) as e:
                out.checkpoint({"at": 2})
        assert e.value.errno == errno.ENOSPC
        assert (tmp_path / "x.zarr.run" / "checkpoint").read_bytes() == before
        assert not list(tmp_path.rglob("*.tmp"))
        out.checkpoint({"at": 2})  # room was made meanwhile
    with writer(path, resume=True) as out:
        assert out.state == {"at": 2}
        step(out, 0, 0, 2)


def test_a_row_that_the_disk_did_not_take_is_not_lost(tmp_path, monkeypatch):
    finished(tmp_path / "unbroken.zarr")
    path = tmp_path / "x.zarr"
    refusals = []
    with writer(path) as out:
        book = out._book
        write = book.tree.write

        def flaky(name: str, *args: Any, **options: Any) -> None:
            if name == "llc_fast/loss" and len(refusals) < 3 and refusals.append(name) is None:
                raise RuntimeError("zarr's own") from OSError(errno.ENOSPC, "No space left on device")
            write(name, *args, **options)

        monkeypatch.setattr(book.tree, "write", flaky)

        def put(*args: Any) -> None:
            with suppress(OutputError):
                Writer.put(out, *args)

        out.put = put
        in_turn(out, 100)
    assert len(refusals) == 3
    assert files(path) == files(tmp_path / "unbroken.zarr")


@pytest.mark.parametrize("name", ["xarray", "zarr"])
def test_missing_libraries_are_named_before_anything_is_done(name, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    for check in (require, lambda: writer(None), lambda: writer(tmp_path / "x.zarr")):
        with pytest.raises(ArgumentError, match=rf"stores need {name}: pip install 'llc-fast\[store\]'"):
            check()
    monkeypatch.setitem(sys.modules, name, SimpleNamespace(__version__="0.1"))
    with pytest.raises(ArgumentError, match=rf"stores need {name} .* here is 0.1: pip install -U 'llc-fast"):
        writer(tmp_path / "x.zarr")
    assert list(tmp_path.iterdir()) == []


def test_a_system_without_file_locks_imports_and_is_told(tmp_path):
    program = (
        "import os, sys, torch, xarray, zarr; sys.modules['fcntl'] = None; del os.register_at_fork\n"
        "import llc_fast.errors, llc_fast.store as s\n"
        "s.Writer.create(None, [], attrs={}, identity={})\n"
        "try: s.Writer.create(sys.argv[1] + '/x.zarr', [], attrs={}, identity={})\n"
        "except llc_fast.errors.OutputError as e: print(e)"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "no fcntl" in done.stdout, done.stderr[-1000:]
    assert list(tmp_path.iterdir()) == []


def mounted(act: Callable[[Path], None], folder: Path, size: str) -> None:
    """Do something in a small file system of one's own; skipped where the kernel does not let one mount it."""
    libc = ctypes.CDLL(None, use_errno=True)
    read, write = os.pipe()

    def inside() -> None:
        new_space = 0x00020000 | (0x10000000 if os.geteuid() else 0)  # CLONE_NEWNS, CLONE_NEWUSER
        private = 1 << 18 | 1 << 14  # MS_PRIVATE, MS_REC
        ok = libc.unshare(new_space) == 0 and libc.mount(b"none", b"/", None, private, None) == 0
        if not (ok and libc.mount(b"tmpfs", bytes(folder), b"tmpfs", 0, f"size={size}".encode()) == 0):
            os.write(write, os.strerror(ctypes.get_errno()).encode())
            os._exit(99)
        act(folder)

    status = run(inside)
    os.close(write)
    if status == 99:
        pytest.skip(f"no tmpfs can be mounted: {os.read(read, 100).decode()}")
    os.close(read)
    assert status == 0


@pytest.mark.parametrize("kibibytes", [0, 24, 64, 104, 144, 172])
def test_a_disk_that_fills_up_costs_nothing(kibibytes, tmp_path):
    finished(tmp_path / "unbroken.zarr")
    reference = files(tmp_path / "unbroken.zarr")
    folder = tmp_path / "small"
    folder.mkdir()

    def act(folder: Path) -> None:
        path, ballast = folder / "x.zarr", folder / "ballast"
        failures, left = [], kibibytes
        while not path.exists() or open_tree(path).attrs.get("completed") != 1:
            with writer(path, resume=True) as out:
                free = shutil.disk_usage(folder).free
                ballast.write_bytes(bytes(free - 1024 * left))  # leaves so much
                try:
                    in_turn(out, 2)
                except OutputError as e:
                    failures.append(e)
                    assert not [p for p in folder.rglob("*") if p.suffix in (".tmp", ".partial")]
            ballast.unlink()
            left += 16
        assert {e.errno for e in failures} == {errno.ENOSPC}
        assert files(path) == reference

    mounted(act, folder, "2m")


def test_a_read_only_disk_is_said_before(tmp_path):
    folder = tmp_path / "small"
    folder.mkdir()

    def act(folder: Path) -> None:
        unfinished(folder / "x.zarr")
        finished(folder / "done.zarr")
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.mount(b"none", bytes(folder), None, 1 << 5 | 1, None) == 0  # MS_REMOUNT, MS_RDONLY
        for name, options in {"new.zarr": {}, "x.zarr": {"resume": True}}.items():
            with pytest.raises(OutputError, match="Read-only file system"):
                writer(folder / name, **options)
        assert writer(folder / "done.zarr").finished

    mounted(act, folder, "4m")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_said_before(tmp_path):
    tmp_path.chmod(0o500)
    try:
        refused("Permission denied", tmp_path / "x.zarr")
    finally:
        tmp_path.chmod(0o700)


def test_a_manifest_says_what_run_it_is(tmp_path):
    unfinished(tmp_path / "x.zarr")
    note = json.loads((tmp_path / "x.zarr.run" / "run.json").read_bytes())
    assert note["identity"] == IDENTITY
    assert note["attrs"]["llc_fast"] == {"version": "1", "identity": IDENTITY}
