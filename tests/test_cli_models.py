"""Loading a model directory, its digest, and the loss of its sequences."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

pytest.importorskip("transformers")
import cli_tiny
import torch

from llc_fast import lm, models, selection
from llc_fast.errors import ArgumentError


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cli_tiny.make(tmp_path_factory.mktemp("model"))


def test_losses_are_those_of_transformers(directory: Path) -> None:
    loaded = models.load(directory)
    tokens = torch.arange(60).reshape(4, 15) * 7 % 290
    losses = models.sequence_losses(loaded.model, tokens)
    expected = [loaded.model(input_ids=t[None], labels=t[None]).loss for t in tokens]
    torch.testing.assert_close(losses, torch.stack(expected))
    assert losses.dtype == torch.float32
    assert models.sequence_losses(loaded.model.bfloat16(), tokens).dtype == torch.float32


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_pieces_of_a_large_vocabulary_change_nothing(
    directory: Path, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = models.load(directory).model
    tokens = torch.arange(60).reshape(4, 15) * 11 % 290
    whole = models.sequence_losses(model, tokens)
    gradients = torch.autograd.grad(whole.mean(), list(model.parameters()))
    monkeypatch.setattr(lm, "CHUNK", rows * 15 * 300)
    pieces = models.sequence_losses(model, tokens)
    assert torch.equal(pieces, whole)
    for a, b in zip(torch.autograd.grad(pieces.mean(), list(model.parameters())), gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_what_is_loaded(directory: Path) -> None:
    loaded = models.load(directory, dtype="bfloat16")
    assert (loaded.family, loaded.vocabulary, loaded.max_length) == ("gpt_neox", 300, 32)
    assert {p.dtype for p in loaded.model.parameters()} == {torch.bfloat16}
    assert not loaded.model.training
    assert loaded.tokenizer.decode(loaded.tokenizer(cli_tiny.CODE)["input_ids"]) == cli_tiny.CODE
    with pytest.raises(ArgumentError, match="dtype is 'float16': give one of float32, bfloat16"):
        models.load(directory, dtype="float16")


def test_structure_is_the_model_without_weights(directory: Path) -> None:
    bare, loaded = models.structure(directory), models.load(directory, tokenizer=False).model
    assert all(p.is_meta for p in bare.parameters())
    assert {n: p.shape for n, p in bare.named_parameters()} == {
        n: p.shape for n, p in loaded.named_parameters()
    }
    assert selection.parameter_table(bare) == selection.parameter_table(loaded)


def test_a_digest_changes_with_weights_configuration_and_tokenizer(directory: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(directory, copy)
    (copy / "README.md").write_text("not part of the model")
    seen = {models.digest(directory)}
    assert models.digest(copy) in seen
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        raw = bytearray((copy / name).read_bytes())
        raw[-1] ^= 1
        (copy / name).write_bytes(raw)
        seen.add(models.digest(copy))
    assert len(seen) == 4
