"""`llc-fast audit`: what it prints and writes, and its exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("typer")
audit_trees = pytest.importorskip(
    "audit_trees", reason="needs xarray and zarr: pip install 'llc-fast[store]'"
)

from audit_trees import cycled, made  # noqa: E402
from typer.testing import CliRunner  # noqa: E402

from llc_fast.audit import audit  # noqa: E402
from llc_fast.cli.app import app  # noqa: E402


def fine() -> Any:
    """A run of which nothing bad is known: many passes over a large pool, equal chains."""
    rng = np.random.default_rng(0)
    ids = cycled(4, 600, 30, 7)
    w0 = np.concatenate([[0], 3 + rng.standard_normal(210)])
    loss = w0[ids] + 0.2 + 0.05 * rng.standard_normal((4, 600, 1))
    loss[:, 0] = w0[ids[:, 0]]
    return made(loss, ids, [w0[1:].mean()] * 4, batch_size=7, num_init_loss_batches=30, n_beta=10.0)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("stores")
    trees = {"fine": fine()}
    bad = fine().dataset.copy(deep=True)
    bad["sampling_loss_micro"][2, 100:] = np.nan
    trees["bad"] = audit_trees.xr.DataTree(bad)
    gone = fine().dataset.copy(deep=True)
    gone["sampling_loss_micro"][:] = np.nan
    trees["gone"] = audit_trees.xr.DataTree(gone)
    for name, tree in trees.items():
        tree.to_zarr(folder / f"{name}.zarr", consolidated=False)
    return {name: folder / f"{name}.zarr" for name in trees}


def called(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["audit", *map(str, arguments)])


def test_a_fine_run(stores: dict[str, Path]) -> None:
    done, found = called(stores["fine"]), audit(stores["fine"])
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[-1] == found.line
    assert found.llc == pytest.approx(2, abs=0.05)
    assert lines[-2] == f"verdict: no check failed, {len(found.unknown)} not known"
    assert found.reported is not None
    row = next(line for line in lines if line.split()[:1] == ["LLC"])
    assert row.split()[1:] == [f"{found.reported.llc_mean:.5g}", f"{found.llc:.5g}"]
    for check in found.verdict:
        assert any(check.name in line for line in lines), check.name
    for why in found.unknown.values():
        assert any(why in line for line in lines), why


def test_exit_codes_and_the_last_line(stores: dict[str, Path], tmp_path: Path) -> None:
    bad = called(stores["bad"])
    assert bad.exit_code == 1
    assert "FAILED     dead chains" in bad.stdout
    assert "chain 2 died" in bad.stdout
    assert bad.stdout.splitlines()[-1] == audit(stores["bad"]).line
    gone = called(stores["gone"])
    assert gone.exit_code == 1
    assert gone.stdout.splitlines()[-2] == "verdict: no estimate"
    assert gone.stdout.splitlines()[-1].startswith("no estimate: every chain died (chain 0: ")
    none = called(tmp_path / "none.zarr")
    assert none.exit_code == 2
    assert none.stderr.startswith("error: ")
    assert "does not exist" in none.stderr
    assert not none.stdout


def test_json_and_a_file(stores: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "audit.json"
    done = called(stores["bad"], "--json", "--out", out)
    assert done.exit_code == 1
    found = audit(stores["bad"])
    assert json.loads(done.stdout) == json.loads(out.read_text()) == json.loads(json.dumps(found.to_dict()))
    assert json.loads(out.read_text())["corrected"]["llc"] == found.llc
    assert json.loads(called(stores["gone"], "--json").stdout)["corrected"] is None
    assert called(stores["fine"], "--out", out).exit_code == 0  # written over
    assert json.loads(out.read_text())["ok"] is True


def test_where_the_file_cannot_go(stores: dict[str, Path], tmp_path: Path) -> None:
    before = sorted(stores["fine"].rglob("*"))
    for out, why in (
        (stores["fine"] / "audit.json", "inside the store"),
        (tmp_path, "a directory"),
        (tmp_path / "deep" / "audit.json", "is no directory"),
    ):
        done = called(stores["fine"], "--out", out)
        assert done.exit_code == 2
        assert why in done.stderr
    assert sorted(stores["fine"].rglob("*")) == before


def test_the_program_needs_no_devinterp(stores: dict[str, Path]) -> None:
    program = (
        "import sys; sys.modules['devinterp'] = None; sys.argv = ['llc-fast', 'audit', sys.argv[1]];"
        "from llc_fast.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(stores["fine"])], capture_output=True, text=True, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == audit(stores["fine"]).line
