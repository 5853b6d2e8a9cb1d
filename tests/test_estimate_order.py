"""The order in which chains take their batches, and what it adds to an estimate."""

import numpy as np
import pytest
import torch
from test_estimate import RUN, Vector

from llc_fast.estimate import estimate_llc
from llc_fast.sampling import batch_order


def test_order_bias_is_exact_where_the_loss_is_linear():
    """Batch gradients c_b that sum to 0 and no noise: over whole epochs the estimate is lr nbeta^2 tr(C)/4, no more."""
    c = torch.randn(10, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    c -= c.mean(dim=0)
    result = estimate_llc(
        Vector(*[0.0] * 6),
        lambda m, b: b @ m.w,
        list(c),
        lr=0.1,
        nbeta=7.0,
        localization=0.0,
        noise_level=0.0,
        num_draws=80,
        num_burnin_steps=20,
    )
    expected = 0.1 * 7.0**2 * float(c.square().sum()) / 10 / 4
    assert expected > 0
    assert result.order_bias == pytest.approx(expected, rel=1e-6)
    np.testing.assert_allclose(result.llc_per_chain, expected, rtol=1e-9)
    assert any("add" in note and "100.0%" in note for note in result.notes)


def test_order_bias_of_part_of_an_epoch():
    """The same for the first 4 of 10 batches, averaged over 300 orders: 5 standard errors."""
    c = torch.randn(10, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    c -= c.mean(dim=0)
    run = {
        "lr": 0.1,
        "nbeta": 7.0,
        "localization": 0.0,
        "noise_level": 0.0,
        "num_chains": 300,
        "num_draws": 4,
    }
    result = estimate_llc(Vector(*[0.0] * 6), lambda m, b: b @ m.w, list(c), **run)
    assert 5 * result.llc_std / 300**0.5 < 0.5 * result.order_bias
    assert abs(result.llc_mean - result.order_bias) < 5 * result.llc_std / 300**0.5


def test_order_bias_of_a_larger_pool_comes_from_64_batches():
    c = torch.randn(200, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    result = estimate_llc(Vector(*[0.0] * 30), lambda m, b: b @ m.w, list(c), **{**RUN, "num_draws": 200})
    trace_of_c = float((c - c.mean(dim=0)).square().sum()) / 200
    # tr(C) from 64 of 200 batches, each term chi-squared-like: 5 standard errors of 3 %.
    assert result.order_bias == pytest.approx(1e-3 * 20.0**2 * trace_of_c / 4, rel=0.15)
    assert result.settings["gradient_batches"] == 64
    assert any("64 of the pool's 200 batches" in note for note in result.notes)


def test_every_chain_and_epoch_has_an_order_of_its_own():
    orders = [tuple(batch_order(3, chain, epoch, 20)) for chain in range(5) for epoch in range(5)]
    assert all(sorted(order) == list(range(20)) for order in orders)
    assert len(set(orders)) == 25
    assert batch_order(3, 1, 1, 20) != batch_order(4, 1, 1, 20)
    # Which batch comes first is uniform: chi-squared with 7 degrees of freedom, above 40 in one of 800,000 seeds.
    first = np.bincount([batch_order(0, chain, 0, 8)[0] for chain in range(800)], minlength=8)
    assert ((first - 100) ** 2 / 100).sum() < 40


def test_fresh_batches_have_no_order_bias():
    """A linear loss without noise: draws on batches drawn apart read 0 over whole epochs of both orders."""
    c = torch.randn(10, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    c -= c.mean(dim=0)
    run = {
        "lr": 0.1,
        "nbeta": 7.0,
        "localization": 0.0,
        "noise_level": 0.0,
        "num_draws": 400,
        "num_chains": 40,
    }
    result = estimate_llc(Vector(*[0.0] * 6), lambda m, b: b @ m.w, list(c), fresh_batches=True, **run)
    biased = estimate_llc(Vector(*[0.0] * 6), lambda m, b: b @ m.w, list(c), **run)
    assert result.order_bias == 0.0
    assert biased.llc_mean == pytest.approx(biased.order_bias, rel=1e-9)
    assert abs(result.llc_mean) < 0.05 * biased.llc_mean


def test_pool_check_runs_on_halves():
    x = torch.randn(12, 5, 3, generator=torch.Generator().manual_seed(0))
    run = RUN | {"num_draws": 40, "num_chains": 4}
    model = torch.nn.Linear(3, 1)
    loss = lambda m, b: m(b).square()  # noqa: E731
    plain = estimate_llc(model, loss, list(x), **run)
    checked = estimate_llc(model, loss, list(x), pool_check=True, **run)
    assert np.isnan(plain.pool_bias)
    assert np.isfinite(checked.pool_bias)
    assert checked.pool_bias_error > 0
    assert checked.llc_mean == plain.llc_mean
