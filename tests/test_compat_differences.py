"""What docs/devinterp.md says of devinterp and of ours, measured on both."""

from __future__ import annotations

import math
from collections.abc import Iterator

import differences
import pytest
import torch

sampler = pytest.importorskip(
    "devinterp.slt.sampler", reason="needs devinterp 2.0.1: pip install 'llc-fast[dev]'"
)
pytest.importorskip("datasets", reason="needs datasets")


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    from tqdm.auto import trange

    monkeypatch.setitem(differences.SETTINGS, "num_draws", 50)
    monkeypatch.setattr(sampler, "trange", lambda *a, **k: trange(*a, **(k | {"disable": True})))
    return


def test_a_dead_chain_is_not_averaged():
    found = differences.dead_chain()
    assert len(found["theirs"]) == 4
    assert all(math.isfinite(value) for value in found["theirs"])
    assert len(found["ours"]) == 3


def test_seeds_do_not_overlap():
    assert differences.overlapping_seeds() == {"theirs": True, "ours": False}


def test_the_baseline_is_of_unperturbed_weights():
    found = differences.initial_noise()
    ids = torch.arange(differences.SAMPLES)[:, None]
    plain = float(differences.loss(differences.Regression(), ids).detach().mean())
    assert found["ours"][0] == pytest.approx(plain, rel=0.01)
    assert found["theirs"][0] > 1.1 * plain
    assert found["theirs"][1] < 0.2 * found["ours"][1]


def test_dropout_is_off():
    found = differences.dropout()
    assert found["theirs"][0] > 2 * found["ours"][0]


def test_bf16_chains_are_those_of_fp32():
    found = differences.bf16(draws=300)
    assert found["ours"] == pytest.approx(found["ours, fp32"], rel=0.02)
    assert found["theirs"] > 2 * found["ours"]


def test_a_head_has_all_rows_of_its_keys():
    found = differences.head_masks()
    assert found["ours"] == list(range(16))  # heads 0 and 1 read KV head 0
    assert found["theirs"] == list(range(8, 16))


@pytest.mark.slow
def test_errors_are_those_of_repeats(monkeypatch: pytest.MonkeyPatch):
    """Of 20 repeats the standard deviation is known within a factor of .76 to 1.46 (95 %)."""
    monkeypatch.setitem(differences.SETTINGS, "num_draws", 200)
    found = differences.repeats()
    assert 0.7 < found["ours"][2] / found["ours"][1] < 1.5
    assert found["theirs"][2] / found["theirs"][1] < 0.8
