"""Finished stores that lost something: nothing is estimated from what is left."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from test_sample import LM, SHORT, tokens

from llc_fast.audit import audit
from llc_fast.dropin import sample
from llc_fast.errors import DataError
from llc_fast.store import open_tree
from llc_fast.tree_llc import compute_llc

pytest.importorskip("xarray")
pytest.importorskip("zarr")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "x.zarr"
    compute_llc(sample(LM(), tokens(1), output_path=path, save_metrics=True, **SHORT))
    return path


@pytest.fixture
def path(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "x.zarr")


def chunk(path: Path, name: str) -> Path:
    """The first chunk of an array."""
    return min(p for p in (path / name / "c").rglob("*") if p.is_file())


def said(path: Path) -> str:
    """What compute_llc raises, and audit too."""
    with pytest.raises(DataError) as first:
        compute_llc(open_tree(path))
    with pytest.raises(DataError) as second:
        audit(path)
    assert str(first.value) == str(second.value)
    assert str(path) in str(first.value)
    assert "the store is damaged: take it from a copy, or sample anew at another path" in str(first.value)
    return str(first.value)


@pytest.mark.parametrize("name", ["llc_fast/gain", "llc_fast/virial", "llc_fast/baseline"])
def test_a_garbage_chunk_is_explained(name, path):
    chunk(path, name).write_bytes(b"garbage")
    assert f"{name} of " in said(path)


@pytest.mark.parametrize("name", ["loss", "gain", "batch"])
def test_a_chain_that_lacks_a_chunk_is_not_left_out(name, path):
    (path / "llc_fast" / name / "c" / "1").rename(path.parent / "away")
    assert f"llc_fast/{name} of {path} lacks rows of chain 1" in said(path)


def test_missing_losses_at_w0(path):
    chunk(path, "llc_fast/baseline").unlink()
    assert "baseline" in said(path)


def test_an_array_or_the_group_that_is_gone(path):
    shutil.rmtree(path / "llc_fast" / "distance")
    assert "has no llc_fast/distance" in said(path)
    shutil.rmtree(path / "llc_fast")
    assert "has no group /llc_fast" in said(path)


def test_a_tree_with_fewer_chains_than_it_says(path):
    tree = open_tree(path)
    with pytest.raises(DataError, match="has 2 chains, its attributes 3: give the tree as"):
        compute_llc(tree.isel(chain=[0, 1], missing_dims="ignore"))


def test_the_command_says_it_and_exits_with_2(path):
    pytest.importorskip("typer")
    from typer.testing import CliRunner

    from llc_fast.cli.app import app

    chunk(path, "llc_fast/gain").write_bytes(b"garbage")
    done = CliRunner().invoke(app, ["audit", str(path)])
    assert done.exit_code == 2
    assert done.stderr.startswith("error: llc_fast/gain of ")


def test_metrics_of_a_tree_that_is_read_as_another_program_s(path):
    tree = open_tree(path)
    del tree["llc_fast"], tree.attrs["llc_fast"]
    assert audit(tree).result is not None
    chunk(path, "metrics_distance").write_bytes(b"garbage")
    with pytest.raises(DataError, match=f"metrics_distance of {path} cannot be read"):
        audit(tree)
