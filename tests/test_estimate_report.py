"""What an estimate says of itself: notes, settings, digests, text and JSON."""

import doctest
import importlib
import json
import math

import numpy as np
import pytest
import torch
from test_estimate import RUN, Vector, batches, losses, network
from torch import nn

from llc_fast import select
from llc_fast.estimate import estimate_llc
from llc_fast.types import Box, Selection


def test_controls_give_zero_and_say_so():
    for control in ({"lr": 0.0}, {"nbeta": 0.0}):
        result = estimate_llc(network(), losses, batches(), **{**RUN, **control})
        assert result.llc_mean == 0.0
        assert any("a control" in note for note in result.notes)


def test_too_few_draws_give_no_diagnostics_and_say_so():
    result = estimate_llc(network(), losses, batches(), num_chains=1, **{**RUN, "num_draws": 7})
    for value in (result.mcse, result.r_hat, result.r_hat_distance, result.ess, *result.interval()):
        assert math.isnan(value)
    assert any(note == "no R-hat and no ESS: 7 draws are fewer than 8." for note in result.notes)
    assert any(note.startswith("no standard error") for note in result.notes)


def test_what_makes_a_loss_doubtful_is_noted():
    model = nn.Sequential(network(), nn.Dropout(0.5))
    assert not any("other values" in n for n in estimate_llc(model, losses, batches(), **RUN).notes)
    random = estimate_llc(model, losses, batches(), eval_mode=False, **RUN)
    assert any("other values at the same weights" in note for note in random.notes)
    coarse = estimate_llc(network(), lambda m, b: losses(m, b).mean().bfloat16(), batches(), **RUN)
    assert any("losses are rounded" in note for note in coarse.notes)
    uneven = estimate_llc(network(), losses, [*batches(), *batches(1, 2)], **RUN)
    assert any("hold 2 to 3 samples" in note for note in uneven.notes)
    unused = estimate_llc(network(), lambda m, b: m[0](b[:, :3]).square(), batches(), **RUN)
    assert any(note.startswith("without a gradient") and "2.bias, 2.weight" in note for note in unused.notes)


def test_chains_that_have_not_settled_are_noted():
    """|w - w0|^2 of a free random walk grows for ever."""
    result = estimate_llc(
        Vector(*[0.0] * 50),
        lambda m, b: 1e-3 * (m.w**2).sum(),
        [0],
        lr=1e-3,
        nbeta=1.0,
        localization=0.0,
        num_draws=400,
    )
    assert result.r_hat_distance > 1.5
    assert any("R-hat of |w - w0|^2" in note for note in result.notes)
    assert result.ess < 20
    assert any(note.startswith("ESS is") for note in result.notes)


def test_settings_say_what_made_the_result():
    result = estimate_llc(network(), losses, batches(), bounding_box_size=9.0, seed=2**64 - 1, **RUN)
    s = result.settings
    for name, value in {
        **RUN,
        "bounding_box_size": 9.0,
        "seed": 2**64 - 1,
        "num_chains": 4,
        "component": "full",
    }.items():
        assert s[name] == value
    assert (s["weights"], s["pool_batches"], s["pool_samples"], s["gradient_batches"]) == (32, 4, 12, 4)
    assert s["backend"].startswith("cpu:") or s["backend"] == "reference"
    assert s["versions"]["torch"] == torch.__version__
    assert s["dtypes"] == ["float32"]


def test_digests_change_with_weights_component_and_data():
    def digests(model, pool, component="full"):
        s = estimate_llc(model, losses, pool, component=component, **{**RUN, "num_draws": 1}).settings
        return s["weights_sha256"], s["data_sha256"]

    base = digests(network(), batches())
    assert base == digests(network(), batches())
    changed = network()
    with torch.no_grad():
        changed[2].bias[1] += 1e-6
    assert digests(changed, batches())[0] != base[0]
    assert digests(network(), batches(), "0.weight")[0] != base[0]
    assert digests(network(), batches()[::-1])[1] != base[1]
    other = batches()
    other[0][0, 0] += 1e-6
    assert digests(network(), other)[1] != base[1]


def test_digests_tell_equal_weights_in_other_places_apart():
    model = network()
    nn.init.ones_(model[0].weight)
    whole = select(model, "0.weight")
    rows = [
        Selection("row", {"0.weight": (Box(3 * i, 1, 3, 3),)}, whole.shapes, whole.tensor_ids) for i in (0, 1)
    ]
    found = [
        estimate_llc(model, losses, batches(), component=row, **RUN).settings["weights_sha256"]
        for row in rows
    ]
    assert found[0] != found[1]


def test_data_without_bytes_has_no_digest():
    class Batch:
        x = batches()[0]

    result = estimate_llc(network(), lambda m, b: losses(m, b.x), [Batch()], **RUN)
    assert result.settings["data_sha256"] is None
    assert "no digest of the data: it holds a Batch." in result.notes


def test_result_prints_and_is_json():
    result = estimate_llc(network(), losses, batches(), num_chains=2, **RUN)
    text = str(result)
    assert text.isascii() is False
    for part in ("full (32 weights)", f"{result.llc_mean:.5g}", "R-hat", "ESS", "note: "):
        assert part in text
    values = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert "loss_trace" not in values
    assert values["llc_mean"] == result.llc_mean
    assert values["interval_95"] == list(result.interval())
    assert values["settings"]["lr"] == 1e-3
    assert np.shape(result.to_dict(arrays=True)["loss_trace"]) == (2, 12)
    low, high = result.interval(0.5)
    assert low < result.llc_mean < high
    assert high < result.interval(0.9)[1]


@pytest.mark.parametrize("stacked", [False, True])
def test_progress_is_told_every_step(stacked):
    calls = []
    result = estimate_llc(
        network(),
        losses,
        batches(),
        num_chains=2,
        stacked=stacked,
        progress=lambda *a: calls.append(a),
        **RUN,
    )
    if stacked:
        assert [chain for chain, *_ in calls] == [0, 1] * 12
        calls.sort()
    assert [(chain, step, total) for chain, step, total, _ in calls] == [
        (c, i, 12) for c in range(2) for i in range(12)
    ]
    np.testing.assert_array_equal([loss for *_, loss in calls], result.loss_trace.ravel())


def test_a_loader_and_a_generator_are_pools():
    pool = batches()
    data = torch.utils.data.TensorDataset(torch.cat(pool))
    loader = torch.utils.data.DataLoader(data, batch_size=3)
    expected = estimate_llc(network(), losses, pool, **RUN).loss_trace
    for given in ((b for b in pool), tuple(pool)):
        np.testing.assert_array_equal(estimate_llc(network(), losses, given, **RUN).loss_trace, expected)
    loaded = estimate_llc(network(), lambda m, b: losses(m, b[0]), loader, **RUN)
    np.testing.assert_array_equal(loaded.loss_trace, expected)


def test_a_scalar_loss_and_losses_of_samples_are_one():
    scalar = estimate_llc(network(), lambda m, b: losses(m, b).mean(), batches(), **RUN)
    tokens = estimate_llc(network(), lambda m, b: losses(m, b)[:, None].expand(-1, 4), batches(), **RUN)
    samples = estimate_llc(network(), losses, batches(), **RUN)
    np.testing.assert_allclose(scalar.loss_trace, samples.loss_trace, rtol=1e-5)
    np.testing.assert_allclose(tokens.loss_trace, samples.loss_trace, rtol=1e-5)
    assert [r.settings["pool_samples"] for r in (scalar, tokens, samples)] == [None, 12, 12]
    assert any("12 samples, fewer than 20 nbeta = 400" in note for note in samples.notes)
    assert not any("20 nbeta" in note for note in scalar.notes)


def test_the_example_runs():
    """Its tolerance is 4 standard errors."""
    module = importlib.import_module("llc_fast.estimate")
    assert doctest.testmod(module) == (0, 6)


def test_a_value_that_no_minimum_can_have_is_called_out() -> None:
    # At lr * a = 3.2 the chain of a quadratic is stable, with five times its variance at lr = 0: LLC 2.5 a weight.
    model = nn.Linear(64, 1, bias=False)
    nn.init.zeros_(model.weight)
    x = torch.eye(64) * 8
    result = estimate_llc(
        model, lambda m, x: m(x).square() / 2, [x], lr=0.032, nbeta=100.0, localization=0.0, num_draws=200
    )
    assert result.llc_mean > 32
    assert not result.settled
    assert any(note.startswith("LLC exceeds 32") for note in result.notes)
