"""Drift, burn-in, temperature, distance and odd chains, against closed forms and simulations with a known answer.

Simulations are seeded; each states how often a right program would fail it with another seed.
"""

import numpy as np
import pytest
from test_diagnostics import ar1

from llc_fast import diagnostics, exact


@pytest.mark.parametrize(
    ("chains", "size", "time"), [(2, 200, 3), (4, 16, 1), (4, 200, 10), (4, 300, 50), (8, 100, 10)]
)
def test_chains_at_rest_seldom_drift(chains, size, time):
    """1 in 100 by construction; of 1500 sets more than 36 come 1 time in 50,000, fewer than 3 in 2,500 (binomial)."""
    x = ar1(np.random.default_rng(chains * size), (time - 1) / (time + 1), 1500, chains, size)
    assert 3 <= sum(not diagnostics.drift_test(values).quiet for values in x) <= 36


def test_a_transient_is_drift():
    """Chains that come from 3 standard deviations away: found in 99 of 100 sets; 500 others gave all."""
    rng, decay = np.random.default_rng(0), np.exp(-np.arange(1000) / 100)
    for chains in (2, 4):
        x = ar1(rng, 0.5, 100, chains, 1000) - 3 * decay
        assert sum(not diagnostics.drift_test(values).quiet for values in x) >= 99
    drift = diagnostics.drift_test(x[0])
    assert drift.change == pytest.approx(x[0][:, -500:].mean() - x[0][:, :200].mean())
    assert drift.bound(0.05) < drift.bound() < drift.ratio


def test_drift_of_what_says_nothing_is_not_known():
    for values in (np.zeros((4, 50)), np.ones((4, 9)), np.full((2, 50), np.nan)):
        drift = diagnostics.drift_test(values)
        assert np.isnan(drift.ratio)
        assert np.isnan(drift.bound())
        assert drift.quiet


def test_burn_in_is_where_the_transient_ends():
    """exp(-t/50) from 5 standard deviations is below one after 80 of 1000 values; cuts are 50 apart."""
    x = ar1(np.random.default_rng(1), 0.5, 4, 1000) - 5 * np.exp(-np.arange(1000) / 50)
    assert 50 <= diagnostics.burnin(x) <= 200
    assert 50 <= diagnostics.mser(x) <= 250
    assert diagnostics.burnin(x[:, 300:]) == 0
    assert diagnostics.burnin(x + 0.05 * np.arange(1000)) is None


def test_mser_by_hand():
    step = np.r_[np.full(20, 9.0), np.tile([0.0, 1.0], 40)]
    assert diagnostics.mser(np.tile(step, (3, 1))) == 20
    assert diagnostics.mser(np.zeros((2, 9))) == 0


def walk(h, *, lr, steps, burnin=0, nbeta=1.0, localization=1.0, chains=4, seed=0, noise_level=1.0):
    """Chains on sum h w^2 / 2 from 0: mean of d.a over weights, and |d|^2, of each step, (chains, steps)."""
    rng, h = np.random.default_rng(seed), np.asarray(h)
    d = np.zeros((chains, h.size))
    virial, distance = [], []
    for step in range(burnin + steps):
        a = nbeta * h * d + localization * d
        if step >= burnin:
            virial.append((d * a).mean(axis=1))
            distance.append((d**2).sum(axis=1))
        d = d - lr / 2 * a + np.sqrt(lr) * noise_level * rng.standard_normal(d.shape)
    return np.stack(virial, axis=1), np.stack(distance, axis=1)


def test_temperature_is_that_of_the_step():
    """Mean of 1/(1 - lr a/4), within 4 of its own standard errors: a failure in 300 seeds by t with 7 degrees."""
    h = np.geomspace(1.0, 30.0, 40)
    for rate in (0.04, 1.2):
        lr = rate / 31.0
        virial, _ = walk(h, lr=lr, steps=3000, burnin=int(12 / lr) + 10)
        value, error = diagnostics.temperature(virial)
        expected = np.mean(1 / (1 - lr * (h + 1) / 4))
        assert expected == pytest.approx(np.mean((h + 1) * exact.quadratic_variance(h + 1, lr)))
        assert error < 0.02
        assert abs(value - expected) < 4 * error
    early, _ = walk(np.zeros(500), lr=0.01, steps=40)
    assert diagnostics.temperature(early)[0] < 0.3  # (1 - rho^2t) on average
    assert np.isnan(diagnostics.temperature(np.full((2, 3), np.nan))[0])


def test_distance_is_held_against_the_prior_s():
    """Free weights reach it, within 4 standard errors; pinned ones stay below, an unlocalized walk passes it."""
    weights = 400
    _, free = walk(np.zeros(weights), lr=0.2, steps=400, burnin=100, noise_level=2.0)
    options = {"weights": weights, "lr": 0.2, "noise_level": 2.0}
    value, error = diagnostics.distance_ratio(free, localization=1.0, **options)
    assert error < 0.01
    assert abs(value - 1) < 4 * error
    _, pinned = walk(np.full(weights, 3.0), lr=0.01, steps=400, burnin=400)
    expected = np.sqrt(exact.quadratic_variance(4.0, 0.01) / exact.quadratic_variance(1.0, 0.01))
    value, error = diagnostics.distance_ratio(pinned, weights=weights, localization=1.0, lr=0.01)
    assert abs(value - expected) < 4 * error
    _, loose = walk(np.zeros(weights), lr=0.2, steps=400, localization=0.0)
    assert diagnostics.distance_ratio(loose, weights=weights, localization=1.0, lr=0.2)[0] > diagnostics.FAR
    assert np.isnan(diagnostics.distance_ratio(loose, weights=weights, localization=0.0)[0])
    assert np.isnan(diagnostics.distance_ratio(loose, weights=weights, localization=21.0, lr=0.2)[0])


def test_spikes_are_counted_and_placed():
    x = ar1(np.random.default_rng(0), 0.5, 4, 500) ** 2  # the longest tail that losses near a minimum have
    assert [s.count for s in diagnostics.spikes(x)] == [0, 0, 0, 0]
    x[2, [100, 101, 350]] += 200
    assert diagnostics.spikes(x)[2] == diagnostics.Spikes(3, 100)
    assert diagnostics.odd_chains(x) == {2: "3 spikes of the loss, the first at draw 100"}
    assert diagnostics.spikes(x[:, :10])[2].count == 0
    assert diagnostics.spikes(np.ones((1, 50)))[0].count == 0


def test_half_dead_chains_are_told_from_chance():
    """Of 1000 sets of squares, of 10 draws of autocorrelation time, more than 7 in 10,000 seeds: 6000 others gave 8."""
    x = ar1(np.random.default_rng(3), np.sqrt(9 / 11), 1000, 4, 200) ** 2
    assert sum(bool(diagnostics.odd_chains(values)) for values in x) <= 7
    chains = ar1(np.random.default_rng(4), 0.5, 5, 400)
    chains[1] += 20
    chains[3, 200:] += 20
    assert diagnostics.odd_chains(chains) == {
        1: "at another level than the others",
        3: "jumped to another level",
    }
    boxed = np.zeros((5, 400))
    boxed[4] = 0.02
    assert diagnostics.odd_chains(chains, boxed)[4] == "2.0% of its weights at the box"
