"""The folder beside a store: what is there and is not of a run of ours is never touched."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from test_store import step, writer
from test_store_errors import finished, refused, unfinished
from test_store_kill import files

from llc_fast.errors import OutputError

pytest.importorskip("zarr")


def test_a_store_whose_name_is_that_of_a_run_folder_is_kept(tmp_path):
    finished(tmp_path / "exp.run")
    before = files(tmp_path)
    refused(r"exp.run, where a lock and checkpoints would go, holds 'dead'", tmp_path / "exp")
    assert files(tmp_path) == before
    shutil.move(tmp_path / "exp.run", tmp_path / "away")
    finished(tmp_path / "exp")
    shutil.move(tmp_path / "away", tmp_path / "exp.run")
    with writer(tmp_path / "exp") as out:
        assert out.finished
    assert files(tmp_path / "exp.run") == {k.removeprefix("exp.run/"): v for k, v in before.items()}


@pytest.mark.parametrize(
    "name",
    [
        "precious.txt",
        "checkpoint",
        "lock",
        "run.json",
        "tree/zarr.json",
        "tree/a/c/0",
        "lock/x",
        "run.json/x",
    ],
)
def test_a_folder_that_is_not_ours_is_kept(name, tmp_path):
    file = tmp_path / "q.zarr.run" / name
    file.parent.mkdir(parents=True)
    file.write_text("precious")
    for resume in (False, True):
        refused("q.zarr.run, where a lock and checkpoints would go, h", tmp_path / "q.zarr", resume=resume)
    finished(tmp_path / "other.zarr")
    (tmp_path / "other.zarr").rename(tmp_path / "q.zarr")
    assert writer(tmp_path / "q.zarr").finished
    assert file.read_text() == "precious"


@pytest.mark.parametrize("name", ["notes.txt", "tree/notes.txt", "more/x"])
def test_what_was_put_into_our_folder_is_kept(name, tmp_path):
    path, added = tmp_path / "x.zarr", tmp_path / "x.zarr.run" / name
    unfinished(path)
    added.parent.mkdir(exist_ok=True)
    added.write_text("x")
    refused(f"holds '{name.removesuffix('/x')}'", path, resume=True)
    shutil.rmtree(path)
    refused(f"holds '{name.removesuffix('/x')}'", path)
    assert added.read_text() == "x"


def test_a_file_that_comes_while_a_run_goes_on_is_kept(tmp_path):
    path, note = tmp_path / "x.zarr", tmp_path / "x.zarr.run" / "notes.txt"
    with writer(path) as out:
        step(out, 0, 0, 0)
        note.write_text("x")
        out.finish({})
    assert [p.name for p in note.parent.iterdir()] == ["notes.txt"]


def test_a_link_is_not_followed(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "zarr.json").write_text("{}")
    unfinished(tmp_path / "x.zarr")
    (tmp_path / "x.zarr.run" / "tree").symlink_to(tmp_path / "data")
    refused("holds 'tree'", tmp_path / "x.zarr", resume=True)
    (tmp_path / "y.zarr.run").symlink_to(tmp_path / "nothing")
    refused("is a file", tmp_path / "y.zarr")


def test_a_file_in_the_folder_s_place_is_named(tmp_path):
    (tmp_path / "x.zarr.run").write_text("x")
    refused(r"x.zarr.run, where .* is a file: choose another path, or move that", tmp_path / "x.zarr")


def test_a_lock_that_was_deleted_by_hand_does_not_matter(tmp_path):
    path = tmp_path / "x.zarr"
    unfinished(path)
    (tmp_path / "x.zarr.run" / "lock").unlink()
    with writer(path, resume=True) as out:
        assert out.state == {"at": 1}


@pytest.mark.parametrize("left", [[], ["lock"], ["lock", "run.json.tmp"], ["lock", "run.json", "tree"]])
def test_what_a_process_killed_at_its_start_left_is_taken(left, tmp_path):
    folder = tmp_path / "x.zarr.run"
    folder.mkdir()
    for name in left:
        (folder / name).mkdir() if name == "tree" else (folder / name).touch()
    if "tree" in left:
        (folder / "tree" / "zarr.json").write_text("{")
        (folder / "tree" / "zarr.json.0123.partial").touch()
    finished(tmp_path / "x.zarr")
    assert [p.name for p in tmp_path.iterdir()] == ["x.zarr"]


def test_a_store_of_another_program_is_not_healed_as_ours(tmp_path):
    """It was put where a run of ours had been, whose folder is still there."""
    zarr = pytest.importorskip("zarr")
    path = tmp_path / "x.zarr"
    unfinished(path)
    shutil.rmtree(path)
    zarr.open_group(str(path), mode="w").create_array("llc_fast/loss", shape=(2, 8), dtype="f8")[:] = 1.0
    refused("a Zarr store of another program", path, resume=True)


def test_a_folder_that_another_process_removes_meanwhile_is_no_stranger(tmp_path, monkeypatch):
    folder = tmp_path / "x.zarr.run"
    folder.mkdir()
    for name in ("lock", "checkpoint"):
        (folder / name).touch()
    listed = Path.iterdir

    def late(path: Path) -> list[Path]:
        found = list(listed(path))
        if path == folder:
            monkeypatch.setattr(Path, "iterdir", listed)
            shutil.rmtree(folder)
        return found

    monkeypatch.setattr(Path, "iterdir", late)
    finished(tmp_path / "x.zarr")
    assert os.listdir(tmp_path) == ["x.zarr"]


def made(**settings: object) -> dict[str, object]:
    here = {"versions": {"torch": "1"}, "backend": "cpu:avx2", "devices": ["cpu"], "stacked_asked": None}
    return {"settings": {"lr": 1.0, **here, **settings}, "data": "abc"}


def test_a_finished_run_outlives_versions_and_machines(tmp_path, recwarn):
    path = tmp_path / "x.zarr"
    with writer(path, identity=made()) as out:
        step(out, 0, 0, 0)
        out.finish({})
    before = files(tmp_path)
    assert writer(path, identity=made()).finished
    assert not recwarn.list
    now = made(versions={"torch": "2"}, backend="cuda", devices=["cuda:0"], stacked_asked=True)
    with pytest.warns(UserWarning, match="is returned, though it was made differently") as told:
        assert writer(path, identity=now).finished
    assert str(told[0].message).splitlines()[1:] == [
        "  backend: stored 'cpu:avx2', now 'cuda'",
        "  devices: stored ['cpu'], now ['cuda:0']",
        "  stacked_asked: stored None, now True",
        "  versions.torch: stored '1', now '2'",
    ]
    said = refused("finished run that differs", path, identity=made(lr=2.0, backend="cuda"))
    assert said.splitlines()[1:] == ["  settings.lr: stored 1.0, now 2.0"]
    assert files(tmp_path) == before


def test_an_unfinished_run_goes_on_only_as_it_began(tmp_path):
    path = tmp_path / "x.zarr"
    with writer(path, identity=made()) as out:
        step(out, 0, 0, 0)
        out.checkpoint({})
    with pytest.raises(OutputError, match=r"settings.backend: stored 'cpu:avx2', now 'cuda'"):
        writer(path, identity=made(backend="cuda"), resume=True)
