"""`llc-fast` on a tiny model: what it prints and writes, exit codes, and that nothing heavy loads early."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("typer")
import cli_tiny
from typer.testing import CliRunner

import llc_fast
from llc_fast import backends, cli, data, models, selection
from llc_fast.cli.app import app
from llc_fast.estimate import estimate_llc

PROGRAM = [sys.executable, "-c", "from llc_fast.cli import main; main()"]
ALONE = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cli_tiny.make(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return cli_tiny.texts(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def done(model: Path, text: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One finished run of two components on two datasets."""
    out = tmp_path_factory.mktemp("run") / "deep" / "out"
    both = [f"{name}={file}" for name, file in text.items()]
    result = CliRunner().invoke(app, cli_tiny.command(model, out, *both))
    assert result.exit_code == 0, result.output
    return {"out": out, "stdout": result.stdout, "json": json.loads((out / "result.json").read_text("utf-8"))}


def test_a_cell_is_what_estimate_llc_gives(model: Path, text: dict[str, Path], done: dict[str, Any]) -> None:
    loaded = models.load(model)
    pool = data.make_pool(data.Source("code", (text["code"],)), loaded.tokenizer, length=16, max_sequences=16)
    expected = estimate_llc(
        loaded.model,
        models.sequence_losses,
        pool.batches(4),
        component="l1 mlp",
        lr=1e-3,
        nbeta=10.0,
        localization=100.0,
        num_chains=2,
        num_draws=8,
        num_burnin_steps=2,
    )
    (cell,) = (c for c in done["json"]["cells"] if (c["component"], c["dataset"]) == ("l1 mlp", "code"))
    assert cell["llc_mean"] == expected.llc_mean
    assert cell["mcse"] == expected.mcse
    arrays = np.load(done["out"] / "arrays.npz")
    np.testing.assert_array_equal(arrays["loss_trace"][1, 0], expected.loss_trace.astype(np.float32))
    np.testing.assert_array_equal(arrays["llc_per_chain"][1, 0], expected.llc_per_chain)


def test_json_says_what_made_it(model: Path, text: dict[str, Path], done: dict[str, Any]) -> None:
    result = done["json"]
    assert [(c["component"], c["dataset"]) for c in result["cells"]] == [
        ("l0h0", "code"),
        ("l0h0", "prose"),
        ("l1 mlp", "code"),
        ("l1 mlp", "prose"),
    ]
    # A head: 3 x 8 rows of 16 and their biases, 8 columns of 16. The MLP: 16 -> 32 -> 16 with biases.
    assert [c["weights"] for c in result["cells"][::2]] == [24 * 16 + 24 + 16 * 8, 2 * 16 * 32 + 32 + 16]
    expected = {
        "lr": 1e-3,
        "nbeta": 10,
        "localization": 100,
        "chains": 2,
        "draws": 8,
        "context": 16,
        "seed": 0,
    }
    assert expected.items() <= result["settings"].items()
    assert result["versions"]["llc_fast"] == llc_fast.__version__
    assert result["versions"]["torch"] == torch.__version__
    assert result["model"]["sha256"] == models.digest(model)
    assert result["datasets"]["prose"]["documents"] == 40
    assert result["datasets"]["code"]["files"] == [str(text["code"].resolve())]
    assert len({d["sha256"] for d in result["datasets"].values()}) == 2
    assert all(c["settings"]["backend"] for c in result["cells"])


def test_arrays_agree_with_the_json(done: dict[str, Any]) -> None:
    arrays = np.load(done["out"] / "arrays.npz", allow_pickle=False)
    assert arrays["components"].tolist() == ["l0h0", "l1 mlp"]
    assert arrays["datasets"].tolist() == ["code", "prose"]
    assert arrays["loss_trace"].shape == (2, 2, 2, 10)
    assert arrays["llc_mean"].ravel().tolist() == [c["llc_mean"] for c in done["json"]["cells"]]
    np.testing.assert_allclose(arrays["llc_per_chain"].mean(-1), arrays["llc_mean"], rtol=1e-12)


def test_the_picture_is_a_png_of_some_size(done: dict[str, Any]) -> None:
    raw = (done["out"] / "heatmap.png").read_bytes()
    assert raw.startswith(b"\x89PNG\r\n\x1a\n")
    assert raw.endswith(b"IEND\xaeB`\x82")
    width, height = (int.from_bytes(raw[i : i + 4], "big") for i in (16, 20))
    assert min(width, height) > 300


def test_the_table_shows_every_cell_with_its_error(done: dict[str, Any]) -> None:
    for cell in done["json"]["cells"]:
        assert f"{cell['llc_mean']:.3f} ± {cell['mcse']:.3f}" in done["stdout"]
    assert "the pool has 16 samples, fewer than 20 nbeta = 200" in done["stdout"]
    assert cli_tiny.leftovers(done["out"].parent) == []
    assert sorted(p.name for p in done["out"].iterdir()) == ["arrays.npz", "heatmap.png", "result.json"]


def test_another_sampler_is_taken_by_name(model: Path, text: dict[str, Path], tmp_path: Path) -> None:
    arguments = cli_tiny.command(
        model, tmp_path / "out", f"code={text['code']}", sampler="sgnht", friction=0.2
    )
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    cells = json.loads((tmp_path / "out" / "result.json").read_text("utf-8"))["cells"]
    assert {(c["settings"]["sampler"], c["settings"]["friction"]) for c in cells} == {("sgnht", 0.2)}
    assert all(math.isfinite(c["llc_mean"]) for c in cells)
    refused = CliRunner().invoke(
        app, cli_tiny.command(model, tmp_path / "no", f"code={text['code']}", alpha=0.9)
    )
    assert refused.exit_code == 2
    assert not (tmp_path / "no").exists()


def test_bfloat16_weights_are_sampled_in_split_storage(
    model: Path, text: dict[str, Path], tmp_path: Path
) -> None:
    arguments = cli_tiny.command(
        model, tmp_path / "out", f"code={text['code']}", dtype="bfloat16", components="l0h1"
    )
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    (cell,) = json.loads((tmp_path / "out" / "result.json").read_text("utf-8"))["cells"]
    assert cell["settings"]["dtypes"] == ["bfloat16"]
    assert math.isfinite(cell["llc_mean"])


def test_a_cell_whose_chains_all_die_is_none_and_the_rest_is_kept(
    model: Path, text: dict[str, Path], tmp_path: Path
) -> None:
    from llc_fast.cli import estimate
    from llc_fast.errors import ChainError

    real = estimate.estimate_llc

    def dying(*arguments: Any, **options: Any) -> Any:
        if options["component"] == "l0h1":
            raise ChainError("every chain died (chain 0: loss nan at step 3): lower lr")
        return real(*arguments, **options)

    arguments = cli_tiny.command(model, tmp_path / "out", f"code={text['code']}", components="l0h*")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(estimate, "estimate_llc", dying)
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 1
        assert "every chain died (chain 0: loss nan at step 3)" in result.stdout
        assert "1 of 2 cells have no estimate" in result.stderr
        cells = json.loads((tmp_path / "out" / "result.json").read_text("utf-8"))["cells"]
        assert cells[0]["llc_mean"] is not None
        assert cells[1]["llc_mean"] is None
        assert "loss nan" in cells[1]["error"]
        arguments = cli_tiny.command(model, tmp_path / "none", f"code={text['code']}", components="l0h1")
        result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert not (tmp_path / "none").exists()


def test_ctrl_c_leaves_nothing_and_exits_130(model: Path, text: dict[str, Path], tmp_path: Path) -> None:
    arguments = cli_tiny.command(model, tmp_path / "out", f"code={text['code']}", draws=10**6)
    process = subprocess.Popen(
        [*PROGRAM, *arguments], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ALONE
    )
    assert process.stderr
    line = process.stderr.readline()  # the first progress line: chains are running
    assert "l0h0 on code, chain 1/2" in line
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "interrupted: nothing was written"
    assert "Traceback" not in errors
    assert list(tmp_path.iterdir()) == []


def test_the_program_itself(tmp_path: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*PROGRAM, *arguments], capture_output=True, text=True, check=False, cwd=tmp_path
        )

    version = run("--version")
    assert (version.returncode, version.stdout) == (0, f"llc-fast {llc_fast.__version__}\n")
    refused = run(*cli_tiny.command(tmp_path / "nowhere", tmp_path / "out", "x=a.txt"))
    assert refused.returncode == 2
    assert refused.stderr == "error: data 'x': there is no file a.txt\n"
    assert run("estimate").returncode == 2


def test_help_and_import_load_nothing_heavy() -> None:
    heavy = ("transformers", "matplotlib", "pyarrow", "tokenizers", "triton", "scipy")
    code = (
        "import sys, llc_fast\n"
        f"early = [m for m in {(*heavy, 'typer', 'rich')} if m in sys.modules]\n"
        "sys.argv = ['llc-fast', 'estimate', '--help']\n"
        "from llc_fast.cli import main\n"
        "try:\n    main()\nexcept SystemExit as e:\n    assert e.code == 0\n"
        f"print('LOADED', early, [m for m in {heavy} if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=ALONE
    )
    assert "--localization" in result.stdout
    assert result.stdout.splitlines()[-1] == "LOADED [] []"


def test_without_the_extra_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "typer", None)
    monkeypatch.delitem(sys.modules, "llc_fast.cli.app")
    with pytest.raises(SystemExit) as e:
        cli.main()
    assert e.value.code == 2
    assert capsys.readouterr().err == "error: llc-fast needs typer: pip install 'llc-fast[cli]'\n"


def test_info_names_every_backend_and_why_one_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = json.loads(CliRunner().invoke(app, ["info", "--json"]).stdout)
    assert facts["versions"]["llc_fast"] == llc_fast.__version__
    assert facts["backends"] == {name: backends.missing(name) for name in backends.NAMES}
    assert facts["threads"] == torch.get_num_threads()
    assert facts["isa"]["in_use"] == facts["isa"]["available"][0]
    monkeypatch.setattr(backends, "missing", lambda name: f"no {name} today")
    text = CliRunner().invoke(app, ["info"]).stdout
    assert all(f"no {name} today" in text for name in backends.NAMES)
    assert facts["isa"]["in_use"] in text


def test_components_lists_names_and_sizes(model: Path) -> None:
    lines = CliRunner().invoke(app, ["components", str(model)]).stdout.splitlines()
    listed = {name: int(size.replace(",", "")) for name, size in (line.rsplit(None, 1) for line in lines)}
    whole = models.load(model)
    assert listed["full"] == whole.numel
    assert list(listed) == selection.components(whole.model)
    heads = CliRunner().invoke(app, ["components", str(model), "l*h*"]).stdout.split()[::2]
    assert heads == ["l0h0", "l0h1", "l1h0", "l1h1"]


def test_shell_expanded_data_become_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.py", "b.py", "c.txt"):
        Path(name).touch()
    given = ["estimate", "m", "--data", "code=a.py", "b.py", "--data", "x=c.txt", "x=a.py", "--lr", "b.py"]
    assert cli.gather(given) == [
        *("estimate", "m", "--data", "code=a.py", "--data", "code=b.py"),
        *("--data", "x=c.txt", "--data", "x=a.py", "--lr", "b.py"),
    ]
    assert cli.gather(["estimate", "--data=code=a.py", "b.py", "m"]) == [
        *("estimate", "--data=code=a.py", "--data", "code=b.py", "m")
    ]


def test_progress_without_a_terminal_is_lines(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    from llc_fast.cli import progress
    from llc_fast.report import Cell

    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with progress.Reporter(cells=3, chains=2) as reporter:
        reporter.begin("l0h0", "code")
        for chain in range(2):
            for step in range(50):
                now += 0.3
                reporter(chain, step, 50, 2.5)
        reporter.end(Cell("l0h0", "code", 10, 15.0, None, "every chain died"))
    lines = capsys.readouterr().err.splitlines()
    # The 35th of 3 * 100 steps is told after 10.5 s, when 34 are done: 10.5 s * 266/34 are left.
    assert lines == [
        "  0%  l0h0 on code, chain 1/2, loss 2.500, step 0/50",
        " 11%  l0h0 on code, chain 1/2, loss 2.500, step 34/50; about 82 s left",
        " 23%  l0h0 on code, chain 2/2, loss 2.500, step 18/50; about 71 s left",
        "[1/3]  l0h0 on code: every chain died",
    ]
