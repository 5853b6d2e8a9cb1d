"""The directory of results: whole or not there, whatever happens."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("typer")
import cli_tiny
from typer.testing import CliRunner

from llc_fast import report
from llc_fast.cli.app import app
from llc_fast.errors import OutputError

FILES = ("result.json", "arrays.npz", "heatmap.png")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    cli_tiny.make(folder / "model")
    cli_tiny.texts(folder / "text")
    return folder


def run(made: Path, out: Path, *more: str) -> Any:
    data = f"code={made / 'text' / 'code.txt'}"
    arguments = cli_tiny.command(made / "model", out, data, components="l0h0", draws=2, burnin=0)
    return CliRunner().invoke(app, [*arguments, *more])


def contents(folder: Path) -> Mapping[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_an_earlier_result_is_replaced_only_by_force(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()  # an empty directory is taken
    assert run(made, out).exit_code == 0
    before = contents(out)
    again = run(made, out)
    assert again.exit_code == 2
    assert "holds an earlier result: give a new directory, or --force" in again.stderr
    assert contents(out) == before
    assert run(made, out, "--force", "--seed", "5").exit_code == 0
    assert contents(out).keys() == before.keys() == set(FILES)
    assert contents(out)["arrays.npz"] != before["arrays.npz"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("force", [(), ("--force",)])
def test_other_peoples_files_are_never_replaced(made: Path, tmp_path: Path, force: tuple[str, ...]) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    (tmp_path / "file").write_text("a file")
    refused = run(made, tmp_path / "out", *force)
    assert refused.exit_code == 2
    assert "holds other files (thesis.tex)" in refused.stderr
    refused = run(made, tmp_path / "file", *force)
    assert refused.exit_code == 2
    assert "is a file: give a directory" in refused.stderr
    assert contents(tmp_path) == {"out/thesis.tex": b"years of work", "file": b"a file"}


@pytest.mark.parametrize("where", [".", "..", "/"])
def test_the_working_directory_is_no_place(
    where: str, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "is the working directory or above it" in run(made, Path(where), "--force").stderr


@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize("fails_at", [1, 2, 3])
def test_a_disk_that_fills_up_while_writing_leaves_nothing(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: int, existing: bool
) -> None:
    out = tmp_path / "new" / "out"
    if existing:
        assert run(made, out).exit_code == 0
    before = contents(tmp_path)
    calls = 0

    def fsync(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls == fails_at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)
    result = run(made, out, *(["--force"] if existing else []))
    assert calls == fails_at
    assert result.exit_code == 2
    assert "could not be written" in result.stderr
    assert "No space left on device" in result.stderr
    assert "l0h0" in result.stdout  # the numbers are not lost
    assert contents(tmp_path) == before
    assert [p.name for p in tmp_path.iterdir()] == (["new"] if existing else [])
    assert not existing or cli_tiny.leftovers(tmp_path / "new") == []


def test_a_swap_that_fails_puts_the_earlier_result_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    report.write(out, {"result.json": b"old"})
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if target == out and not self.name.endswith(".old"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OutputError, match="Input/output error"):
        report.write(out, {"result.json": b"new"})
    assert contents(tmp_path) == {"out/result.json": b"old"}


def test_room_and_permission_are_asked_before_work(made: Path, tmp_path: Path, monkeypatch: Any) -> None:
    def no_work(*_: Any, **__: Any) -> None:
        raise AssertionError("work began")

    monkeypatch.setattr("llc_fast.models.load", no_work)
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 5000}))
        full = run(made, tmp_path / "a" / "out")
    assert full.exit_code == 2
    assert "has 0.0 MB free: make room" in full.stderr
    with monkeypatch.context() as patch:

        def read_only(self: Path, *_: Any, **__: Any) -> None:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

        patch.setattr(Path, "mkdir", read_only)
        refused = run(made, tmp_path / "out")
    assert refused.exit_code == 2
    assert "cannot be written to (Read-only file system)" in refused.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_directory_has_the_users_permissions(tmp_path: Path) -> None:
    mask = os.umask(0o022)
    try:
        report.write(tmp_path / "out", {"result.json": b"{}"})
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o755
    assert stat.S_IMODE((tmp_path / "out" / "result.json").stat().st_mode) == 0o644


@pytest.mark.parametrize(
    ("components", "datasets"),
    [
        (["full"], ["code"]),
        (["l0h0", "l0h1", "l1h1"], ["code", "prose"]),
        (["embed", "l0 mlp"], ["a", "b", "c"]),
        ([f"l{i}h{j}" for i in range(2) for j in range(26)], ["code", "prose"]),
    ],
)
def test_heat_maps_of_any_shape_show_least_and_greatest(components: list[str], datasets: list[str]) -> None:
    """viridis ends at (68, 1, 84) and (253, 231, 36), the scale starts at 0; what is unknown is grey."""
    import io

    from matplotlib.image import imread

    values = np.linspace(0, 5, len(components) * len(datasets)).reshape(len(components), len(datasets))
    if values.size > 1:
        values[0, 0] = 0.0
    errors = np.full(values.shape, 0.1)
    marks = np.full(values.shape, "")
    unknown = len(components) > 2
    if unknown:
        values[1, 0] = errors[1, 0] = np.nan
        marks[1, 0] = "†"
    png = report.heatmap(components, datasets, values, errors, marks, title="t", footer="f " * 200)
    image = (imread(io.BytesIO(png))[..., :3] * 255).round().astype(int).reshape(-1, 3)
    colours = {tuple(c) for c in np.unique(image, axis=0)}
    assert (68, 1, 84) in colours
    assert values.size == 1 or (253, 231, 36) in colours or (253, 231, 37) in colours
    assert not unknown or (230, 230, 230) in colours
