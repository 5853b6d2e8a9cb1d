"""Diagnostics against ArviZ, SciPy and numbers worked out by hand; coverage by simulation.

Simulations are seeded; each states how often a right program would fail it with another seed.
"""

import functools
import warnings

import numpy as np
import pytest
from scipy import signal, stats

from llc_fast import diagnostics


@functools.cache
def arviz():
    """ArviZ; without it, as on a machine that is there for its GPU, the other tests run all the same."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("arviz", reason="compares with ArviZ: pip install 'llc-fast[dev]'")


def ar1(rng, rho, *shape):
    """Stationary first-order autoregressions of unit variance along the last axis."""
    start = rng.standard_normal((*shape[:-1], 1))
    noise = np.sqrt(1 - rho**2) * rng.standard_normal(shape)
    return signal.lfilter([1.0], [1.0, -rho], noise, axis=-1, zi=rho * start)[0]


def cases():
    """Chains that mix and chains that do not, correlated either way, with ties, short and odd lengths."""
    rng = np.random.default_rng(0)
    for _ in range(400):
        chains, draws = rng.integers(2, 7), rng.integers(4, 70)
        x = ar1(rng, rng.choice([-0.9, -0.4, 0.0, 0.5, 0.9, 0.99]), chains, draws)
        x = x + rng.choice([0.0, 1.0]) * rng.standard_normal((chains, 1))
        yield np.round(x) if rng.random() < 0.3 else x


def test_r_hat_is_arviz_s():
    compared = 0
    for x in cases():
        with np.errstate(divide="ignore", invalid="ignore"):
            expected = float(arviz().rhat(x))
        if expected > 1e6:  # ties leave no variance within chains, of which ArviZ sees the rounding
            assert diagnostics.r_hat(x) > 1e6
        elif np.isfinite(expected):
            assert diagnostics.r_hat(x) == pytest.approx(expected, rel=1e-12)
            compared += 1
    assert compared > 380


def test_ess_is_arviz_s():
    compared = 0
    for x in cases():
        if x.shape[1] >= diagnostics.MIN_ESS_DRAWS and np.ptp(x) > 0:
            for chains in (x, x[:1]):
                if np.ptp(chains) > 0:
                    assert diagnostics.ess(chains) == pytest.approx(float(arviz().ess(chains)), rel=1e-9)
                    compared += 1
    assert compared > 500


def test_what_cannot_be_said_is_nan():
    x = np.random.default_rng(0).standard_normal((4, 9))
    for bad in (
        x[:, :3],
        np.zeros((4, 9)),
        np.where(x == x.max(), np.nan, x),
        np.where(x == x.max(), np.inf, x),
    ):
        assert np.isnan(diagnostics.r_hat(bad))
        assert np.isnan(diagnostics.ess(np.tile(bad, 3) if bad.shape[1] == 9 else bad))
    assert np.isnan(diagnostics.ess(x))  # too few draws to see an autocorrelation
    assert np.isfinite(diagnostics.r_hat(x))


@pytest.mark.parametrize(("chains", "draws"), [(1, 16), (2, 12), (4, 8), (4, 16), (8, 50)])
def test_well_mixed_chains_stay_below_the_r_hat_of_chance(chains, draws):
    """1 % of 2000 exceed it by construction; more than 40 (2 %) come 1 time in 30,000 (binomial)."""
    rng = np.random.default_rng(chains * draws)
    bound = diagnostics.r_hat_chance(chains, draws)
    exceeded = sum(diagnostics.r_hat(x) > bound for x in rng.standard_normal((2000, chains, draws)))
    assert 4 <= exceeded <= 40 if chains > 1 else exceeded <= 40


def test_t_quantile_is_scipy_s():
    for p in (1e-6, 0.025, 0.3, 0.6, 0.9, 0.975, 0.995, 1 - 1e-6):
        for dof in (1, 2, 3, 4, 7, 8, 31, 1000, 10**6):
            assert diagnostics.t_quantile(p, dof) == pytest.approx(stats.t.ppf(p, dof), rel=1e-8)
    assert diagnostics.t_quantile(0.5, 3) == pytest.approx(0.0, abs=1e-12)


def test_r_hat_of_chance_is_scipy_s_f_quantile():
    for chains, draws in ((1, 8), (4, 8), (4, 25), (16, 100)):
        n = draws // 2
        f = stats.f.ppf(0.995, 2 * chains - 1, 2 * chains * (n - 1))
        assert diagnostics.r_hat_chance(chains, draws) == pytest.approx(np.sqrt((f + n - 1) / n), rel=1e-9)


def test_mcse_by_hand():
    # One chain too short for batches of ten autocorrelation times: 4 batches of 8, with means 0.5, 2.5, 4.5, 6.5.
    steps = np.repeat(np.arange(8.0), 4)[None]
    x = steps[0] - steps.mean()
    rho = np.array([x[: 32 - k] @ x[k:] for k in range(32)]) / (x @ x)
    pairs = rho[::2] + rho[1::2]
    kept = pairs[: np.flatnonzero(pairs <= 0)[0]]
    time = 2 * kept.sum() - 1
    assert diagnostics.autocorrelation_time(steps) == pytest.approx(time)
    reach = 4 * ((2 * np.arange(len(kept)) + 0.5) @ kept) / time
    shared = max(0.25, 1 - (reach - 1) / 16 * 3 / 4)
    error, dof = diagnostics.mcse(steps)
    assert (error, dof) == (pytest.approx(np.sqrt(20 / 3 / 4 / shared)), 3)
    # The time may be given; 1 leaves 3 batches of at least ten, fewer than 4.
    assert diagnostics.mcse(steps, time=1.0) == (pytest.approx(np.sqrt(20 / 3 / 4)), 3)
    # Four chains that each stay where they are: between chains, variance 20/3 over 4.
    error, dof = diagnostics.mcse(np.tile([[0.0], [2.0], [4.0], [6.0]], 8))
    assert (error, dof) == (pytest.approx(np.sqrt(20 / 3 / 4)), 3)
    # Nine chains are their own batches.
    error, dof = diagnostics.mcse(np.tile(np.arange(9.0)[:, None], 8))
    assert (error, dof) == (pytest.approx(np.sqrt(7.5 / 9)), 8)
    assert np.isnan(diagnostics.mcse(np.zeros((1, 7)))[0])


def test_autocorrelation_time_is_that_of_the_process():
    """(1 + rho)/(1 - rho) of a first-order autoregression, from 40,000 draws: within 15 %, 4 times the spread seen."""
    for rho in (0.0, 0.5, 0.9):
        x = ar1(np.random.default_rng(5), rho, 4, 10_000)
        assert diagnostics.autocorrelation_time(x) == pytest.approx((1 + rho) / (1 - rho), rel=0.15)
    apart = np.random.default_rng(0).standard_normal((4, 100)) + 10 * np.arange(4.0)[:, None]
    assert diagnostics.autocorrelation_time(apart) > 50


def held(sets, truth=0.0, **options):
    """How often 95 % intervals of sets of chains hold the true mean."""
    quantile = functools.cache(diagnostics.t_quantile)
    errors = [(abs(values.mean() - truth), *diagnostics.mcse(values, **options)) for values in sets]
    return sum(off < quantile(0.975, dof) * error for off, error, dof in errors) / len(sets)


@pytest.mark.parametrize(
    ("chains", "draws", "time"),
    [
        (1, 1000, 5),
        (2, 1000, 20),
        (4, 200, 1),
        (4, 200, 10),
        (4, 200, 50),
        (4, 1000, 5),
        (4, 1000, 50),
        (16, 50, 50),
    ],
)
def test_intervals_cover(chains, draws, time):
    """95 % intervals of 2000 sets of autoregressions, autocorrelation time `time`, hold the true mean as they say.

    6000 other sets gave 94.5 to 96 %. Allowed are 93 to 97 %: from 94.5 %, a failure in 600 seeds for each case.
    """
    rho = (time - 1) / (time + 1)
    assert 0.93 <= held(ar1(np.random.default_rng(1), rho, 2000, chains, draws)) <= 0.97


@pytest.mark.parametrize(("time", "draws"), [(50, 600), (100, 1000)])
def test_intervals_cover_where_a_slow_part_hides_in_noise(time, draws):
    """Independent noise of three times its size makes the autocorrelation time short, not what batches must outlast.

    By the time alone 92 and 90 % were held; other sets gave 94.8 and 94.1 %.
    """
    rng = np.random.default_rng(3)
    x = ar1(rng, (time - 1) / (time + 1), 2000, 4, draws)
    x += 3 * rng.standard_normal(x.shape)
    assert 0.93 <= held(x) <= 0.97


def test_intervals_of_squares_cover():
    """The same for what losses are: sums of squares, here of 4 normals, whose distribution is skew."""
    rho = np.sqrt(9 / 11)  # squares forget in 10 draws
    x = sum(ar1(np.random.default_rng(2), rho, 2000, 4, 500) ** 2 for _ in range(4))
    assert 0.93 <= held(x, 4.0) <= 0.97


@pytest.mark.parametrize(("scale", "time", "blind"), [(3, 50, (0.0, 0.935)), (10, 1, (0.99, 1.0))])
def test_intervals_count_what_epochs_cancel(scale, time, blind):
    """Noise of 25 batches that sums to 0 in whole epochs, but not in the parts at both ends: 93 to 97 % all the same.

    Not so where epochs are not known. Other sets gave 95.4 and 95.1 %, and blindly 92.5 and 100 %.
    """
    rng = np.random.default_rng(4)
    noise = rng.standard_normal(25)
    noise = scale * (noise - noise.mean())
    orders = rng.permuted(np.tile(np.arange(25), (2000, 4, 22, 1)), axis=-1).reshape(2000, 4, -1)
    x = (
        ar1(rng, (time - 1) / (time + 1), 2000, 4, 510) + noise[orders][:, :, 18:528]
    )  # draw 7 begins an epoch
    assert 0.93 <= held(x, epoch=25, skip=7) <= 0.97
    assert blind[0] <= held(x) <= blind[1]


def test_blocks_are_whole_epochs_where_there_are_eight():
    values = np.arange(2 * 30.0).reshape(2, 30)
    # Draws start at step 4, epochs of 3 at step 6: the first 2 draws and the last 1 belong to no whole epoch.
    means, basis = diagnostics.block_means(values, pool=3, burnin=4, thinning=1)
    assert basis == "9 whole epochs of 3 draws"
    np.testing.assert_allclose(means, values[:, 2:29].reshape(2, 9, 3).mean(axis=2))
    means, basis = diagnostics.block_means(values, pool=1, burnin=4, thinning=5)
    assert basis == "30 whole epochs of 1 draw"
    np.testing.assert_array_equal(means, values)


def test_blocks_are_equal_otherwise():
    values = np.arange(2 * 30.0).reshape(2, 30)
    for pool, thinning in ((4, 1), (3, 2)):  # too few epochs, and epochs that draws leave gaps in
        means, basis = diagnostics.block_means(values, pool=pool, burnin=0, thinning=thinning)
        assert basis == "8 blocks of 3 draws"
        np.testing.assert_allclose(means, values[:, 6:].reshape(2, 8, 3).mean(axis=2))
    means, basis = diagnostics.block_means(np.zeros((1, 70)), pool=50, burnin=0, thinning=1)
    assert (means.shape, basis) == ((1, 16), "16 blocks of 4 draws")
    means, basis = diagnostics.block_means(values[:, :7], pool=1, burnin=0, thinning=1)
    assert means.shape == (2, 0)
    assert basis.startswith("none: 7 draws")


def test_r_hat_of_epoch_means_sees_what_batch_noise_hides():
    """Chains 1 apart under batch noise of 20 that sums to 0 in every epoch: raw R-hat below 1.02, here above 2.5."""
    rng = np.random.default_rng(0)
    noise = rng.standard_normal(25)
    noise = 20 * (noise - noise.mean())
    orders = np.stack([[rng.permutation(25) for _ in range(16)] for _ in range(4)])
    values = noise[orders].reshape(4, 400) + np.arange(4.0)[:, None] + 0.3 * rng.standard_normal((4, 400))
    means, _ = diagnostics.block_means(values, pool=25, burnin=0, thinning=1)
    assert diagnostics.r_hat(values) < 1.02
    assert diagnostics.r_hat(means) > 2.5
