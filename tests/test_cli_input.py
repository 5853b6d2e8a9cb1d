"""What `llc-fast` refuses: one clear message, exit code 2, nothing written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("typer")
import cli_tiny
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from llc_fast.cli.app import app


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    cli_tiny.make(folder / "model")
    cli_tiny.texts(folder / "text")
    return folder


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with `model`, `code.txt` and `prose.jsonl`, free to be spoiled."""
    shutil.copytree(made / "model", tmp_path / "model")
    for file in (made / "text").iterdir():
        shutil.copy(file, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(*data: str, **options: Any) -> str:
    """The message of a command that must fail with exit code 2 and write nothing."""
    before = sorted(p.name for p in Path().iterdir())
    arguments = cli_tiny.command(Path("model"), Path("out"), *(data or ["code=code.txt"]), **options)
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert sorted(p.name for p in Path().iterdir()) == before
    assert "Traceback" not in result.output
    return result.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"components": "l0h2"}, "head 2 is out of range"),
        ({"components": "l2"}, "layer 2 is out of range"),
        ({"components": "unembd"}, "unknown component 'unembd'; near it: 'unembed'"),
        ({"components": "x*"}, "'x*' matches no component"),
        ({"components": "l0,,l1"}, "a name is empty"),
        ({"lr": "nan"}, "lr is nan: give a finite number"),
        ({"lr": -1}, "lr is -1.0: give a number >= 0"),
        ({"nbeta": "inf"}, "nbeta is inf: give a finite number"),
        ({"localization": -2}, "localization is -2.0"),
        ({"lr": 1e30}, "every chain died"),
        ({"chains": 0}, "chains is 0: give an integer >= 1"),
        ({"draws": 0}, "draws is 0: give an integer >= 1"),
        ({"burnin": -1}, "burnin is -1: give an integer >= 0"),
        ({"seed": -1}, "seed is -1: give an integer >= 0"),
        ({"threads": 0}, "threads is 0: give an integer >= 1"),
        ({"context": 1}, "context is 1: give an integer >= 2"),
        ({"context": 33}, "context is 33: this model takes at most 32 tokens"),
        ({"batch_size": 17}, "max_sequences is 16: a batch has 17"),
        ({"backend": "cpuu"}, "unknown backend 'cpuu' (did you mean 'cpu'?)"),
        ({"backend": "cpu:sse9"}, "backend 'cpu:sse9' cannot run here"),
        ({"device": "gpu"}, "device is 'gpu': give auto, cpu, cuda or cuda:N"),
        ({"device": "meta"}, "device is 'meta': give auto, cpu, cuda or cuda:N"),
        ({"device": "cuda:99"}, "CUDA devices are here"),
        ({"dtype": "float16"}, "float16"),
        ({"lr": None}, "--lr"),
        ({"nbeta": None}, "--nbeta"),
    ],
)
def test_refused_options(here: Path, options: dict[str, Any], message: str) -> None:
    assert message in refused(**options)


def test_refused_data(here: Path) -> None:
    (here / "short.txt").write_text("def add")
    (here / "few.txt").write_text(cli_tiny.CODE)
    (here / "latin.txt").write_bytes(b"caf\xe9")
    (here / "empty.txt").touch()
    assert "Missing option '--data'" in CliRunner().invoke(app, ["estimate", "model", "--out", "out"]).stderr
    assert "there is no file none.txt" in refused("x=none.txt")
    assert "empty.txt is empty" in refused("x=empty.txt")
    assert "data 'x' is shorter than one sequence" in refused("x=short.txt")
    assert "sequences of 16 tokens, a batch needs 4: give more text" in refused("x=few.txt")
    assert "byte 0xe9 at position 3 (line 1)" in refused("x=latin.txt")
    assert "no text under 'body' (it has: 'text'): give --text-field" in refused(
        "x=prose.jsonl", text_field="body"
    )
    assert "has token" in refused_after(lambda: cli_tiny.make(here / "model", vocabulary=270))


def refused_after(spoil: Callable[[], Any]) -> str:
    spoil()
    return refused()


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def only_pickles() -> None:
    torch.save(load_file("model/model.safetensors"), "model/pytorch_model.bin")
    Path("model/model.safetensors").unlink()


def weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file("model/model.safetensors")
    change(tensors)
    save_file(tensors, "model/model.safetensors", {"format": "pt"})


def poison(tensors: dict[str, torch.Tensor]) -> None:
    tensors["gpt_neox.layers.1.mlp.dense_h_to_4h.bias"][3] = torch.nan


def own_tokenizer_code() -> None:
    edit(Path("model/tokenizer_config.json"), auto_map={"AutoTokenizer": ["code.py", None]})


MODEL = Path("model")
QKV = "gpt_neox.layers.0.attention.query_key_value.weight"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda: shutil.rmtree("model"), "model directory model does not exist"),
        (lambda: (shutil.rmtree("model"), MODEL.touch()), "model directory model is a file"),
        (lambda: (MODEL / "config.json").unlink(), "has no config.json"),
        (lambda: (MODEL / "config.json").write_text("{"), "config.json is not readable JSON"),
        (lambda: edit(MODEL / "config.json", auto_map={"AutoModel": "x.Y"}), "brings its own Python code"),
        (lambda: edit(MODEL / "config.json", model_type="nonesuch"), "transformers cannot load model"),
        (lambda: edit(MODEL / "config.json", hidden_size=32), "have another shape"),
        (own_tokenizer_code, "tokenizer in model brings its own Python code"),
        (only_pickles, "as pickle files only (pytorch_model.bin)"),
        (lambda: (MODEL / "model.safetensors").unlink(), "has no weights"),
        (lambda: (MODEL / "model.safetensors").write_bytes(b"x" * 99), "not a readable safetensors file"),
        (lambda: weights(lambda t: t.pop(QKV)), f"1 tensors are missing and 0 have another shape ({QKV})"),
        (lambda: weights(poison), "layers.1.mlp.dense_h_to_4h.bias in model holds NaN"),
        (lambda: (MODEL / "tokenizer.json").unlink(), "has no tokenizer"),
        (lambda: (MODEL / "tokenizer.json").write_text("{"), "cannot load the tokenizer in model"),
    ],
)
def test_refused_models(here: Path, spoil: Callable[[], Any], message: str) -> None:
    assert message in refused_after(spoil)


def test_refused_parts_of_models(here: Path) -> None:
    single, index = MODEL / "model.safetensors", MODEL / "model.safetensors.index.json"
    single.unlink()
    index.write_text(json.dumps({"weight_map": {QKV: "model-00001-of-00002.safetensors"}}))
    assert "lacks model-00001-of-00002.safetensors, which its index names" in refused()
    index.write_text("{}")
    assert "has no weight_map" in refused()
    (MODEL / "config.json").rename(MODEL / "adapter_config.json")
    assert "holds an adapter: merge it" in refused()


def test_pickles_are_never_opened(here: Path) -> None:
    """A pickle that would make a file when it is read; beside safetensors it is passed over."""

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (here / "boom",)

    torch.save(Bomb(), MODEL / "pytorch_model.bin")
    arguments = cli_tiny.command(MODEL, here / "out", "code=code.txt", components="l0h0")
    assert CliRunner().invoke(app, arguments).exit_code == 0
    (MODEL / "model.safetensors").unlink()
    shutil.rmtree("out")
    assert "pickle files only" in refused()
    assert not (here / "boom").exists()
