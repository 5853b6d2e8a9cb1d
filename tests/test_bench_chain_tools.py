"""What the benchmark of whole chains measures with: slopes, the peak of memory, models with random weights."""

import os

import pytest
import torch

from llc_fast.benchmarks import _chain_peak, _models
from llc_fast.benchmarks._chain_slope import Rounds, slopes
from llc_fast.benchmarks._timing import Timing


class Clock:
    """A clock that only work moves."""

    now = 0.0

    def __call__(self):
        return self.now


# --- the slope ---


def test_a_slope_is_what_one_more_step_costs():
    """Whatever a run costs besides, and although two of five rounds are three times slower."""
    clock, slow = Clock(), {"a": iter([1, 3, 1, 3, 1]), "b": iter([1, 3, 1, 3, 1])}
    speed, order = {}, []

    def run(name, once, step):
        def call(draws):
            order.append((name, draws))
            if draws == 2:
                speed[name] = next(slow[name])
            clock.now += speed[name] * (once + draws * step)

        return call

    runs = {"a": run("a", 4.0, 0.25), "b": run("b", 0.5, 2.0)}
    found, absent = slopes(runs, (2, 6), Rounds(0.0, least=5), clock)
    assert absent == {}
    assert found["a"].step == Timing(0.25, 0.25, 0.75, 5)
    assert found["b"].step == Timing(2.0, 2.0, 6.0, 5)
    assert (found["a"].once, found["b"].once) == (4.0, 0.5)
    assert order == [("a", 2), ("a", 6), ("b", 2), ("b", 6)] * 5


@pytest.mark.parametrize(("budget", "taken"), [(0.0, 3), (80.0, 5), (1e9, 15)])
def test_rounds_fill_the_time_there_is(budget, taken):
    clock, calls = Clock(), []

    def run(draws):
        calls.append(draws)
        clock.now += 2.0 * draws  # 16 seconds a round

    found, _ = slopes({"a": run}, (2, 6), Rounds(budget), clock)
    assert len(calls) == 2 * taken
    assert found["a"].step.samples == taken


def test_a_run_that_fails_in_a_late_round_is_absent_and_others_go_on():
    clock, calls = Clock(), []

    def good(draws):
        clock.now += draws

    def bad(draws):
        calls.append(draws)
        if len(calls) == 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        clock.now += draws

    found, absent = slopes({"bad": bad, "good": good}, (1, 3), Rounds(0.0), clock)
    assert absent == {"bad": "out of memory"}
    assert found["good"].step.median == 1.0
    assert len(calls) == 4


# --- memory ---


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="no high-water mark to reset")
@pytest.mark.parametrize("before", [0, 96])
def test_peak_memory_is_that_of_the_call(before):
    """Whatever was freed before it."""
    torch.ones(before << 18)
    held = []

    def call():
        torch.ones(64 << 18)  # gone again
        held.append(torch.ones(16 << 18))

    call()
    # The kernel counts pages in batches, 64 of them a thread, and other threads may be at work.
    assert 63 << 20 <= _chain_peak.peak_bytes(call) <= 72 << 20


def test_peak_memory_is_unknown_without_a_mark_to_reset(monkeypatch, tmp_path):
    monkeypatch.setattr(_chain_peak, "RESET", tmp_path / "gone" / "clear_refs")
    called = []
    assert _chain_peak.peak_bytes(lambda: called.append(1)) is None
    assert called == [1]


# --- models ---


@pytest.mark.parametrize("name", _models.NAMES)
def test_models_have_the_parameters_they_say(name):
    pytest.importorskip("transformers", reason="needs transformers, of the bench extra")
    model = _models.build(name, "meta", torch.bfloat16)
    assert sum(p.numel() for p in model.parameters()) == _models.MODELS[name].numel
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert not model.training


def test_a_model_is_its_seed():
    pytest.importorskip("transformers", reason="needs transformers, of the bench extra")
    state = torch.get_rng_state()
    first, same, other = (_models.build("gpt2-tiny", seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    for p, q, r in zip(first.parameters(), same.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)
        assert not torch.equal(p, r) or not p.std()  # biases are 0, norms 1
    assert not torch.equal(first.get_input_embeddings().weight, other.get_input_embeddings().weight)


def test_the_loss_is_the_models_own():
    pytest.importorskip("transformers", reason="needs transformers, of the bench extra")
    model, (tokens,) = _models.build("gpt2-tiny"), _models.token_batches("gpt2-tiny", 1, 2, 8)
    ours = _models.token_losses(model, tokens)
    assert ours.shape == (2, 7)
    theirs = model(tokens, labels=tokens).loss
    assert ours.mean().item() == pytest.approx(theirs.item(), rel=1e-5)
