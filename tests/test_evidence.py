"""One analysis of chains, wherever they come from: its numbers by hand, and what it says where something is missing."""

import dataclasses
import math

import numpy as np
import pytest

from llc_fast.audit.reading import after
from llc_fast.dropin import sample
from llc_fast.errors import ChainError
from llc_fast.evidence import Evidence, assess
from llc_fast.tree_llc import result_of

CHAINS, DRAWS, POOL = 4, 400, 4


def evidence(seed=0, **changes):
    """Settled chains of 10,000 weights on a pool of 4 batches, every quantity known; gains are about 0.1."""
    rng = np.random.default_rng(seed)
    baseline = np.array([1.9, 2.0, 2.0, 2.1])
    batch = rng.permuted(np.tile(np.arange(POOL), (CHAINS, DRAWS // POOL, 1)), axis=-1).reshape(CHAINS, DRAWS)
    gains = rng.normal(0.1, 0.02, (CHAINS, DRAWS))
    gains[:, 0] = 0.0  # where chains start
    known = {
        "nbeta": 30.0,
        "lr": 1e-3,
        "localization": 10.0,
        "num_burnin_steps": 0,
        "num_steps_bw_draws": 1,
        "loss": gains + baseline[batch],
        "gains": gains,
        "paired": True,
        "init_loss": 2.0,
        "batch": batch,
        "baseline": baseline,
        "distance": rng.normal(900.0, 10.0, (CHAINS, DRAWS)),
        "dot": rng.normal(0.0, 1e-4, (CHAINS, DRAWS)),
        "boxed": np.zeros((CHAINS, DRAWS)),
        "virial": rng.normal(1.0, 0.01, (CHAINS, DRAWS)),
        "epoch": POOL,
        "weights": 10_000,
        "pool_batches": POOL,
        "pool_samples": 640,
        "gradient_noise": 1e-3,
        "gradient_batches": POOL,
        "half_gains": rng.normal(0.1, 0.02, (CHAINS, DRAWS)),
        "loss_eps": 1e-7,
    }
    return Evidence(**(known | changes))


def test_all_is_well_with_good_chains():
    result = assess(evidence())
    assert [check.name for check in result.verdict if not check.ok] == []
    assert result.notes == ()
    assert result.settled
    assert result.at_minimum
    assert result.llc_mean == pytest.approx(3.0, rel=0.02)


def test_numbers_by_hand():
    e = evidence()
    r = assess(e)
    np.testing.assert_allclose(r.llc_per_chain, 30 * e.gains.mean(axis=1))
    assert r.llc_mean == pytest.approx(30 * e.gains.mean())
    assert r.llc_scalar == pytest.approx(30 * (e.loss.mean() - 2.0))
    assert r.gradient_term == pytest.approx(30 * e.dot.mean())
    assert r.llc_without_gradient == pytest.approx(r.llc_mean - r.gradient_term)
    assert r.temperature == pytest.approx(e.virial.mean())
    assert r.mcse == pytest.approx(30 * 0.02 / 1600**0.5, rel=0.5)
    assert r.order_bias == pytest.approx(1e-3 * 30**2 * 1e-3 / 4)  # lr nbeta^2 tr(C) / 4 over whole epochs
    assert r.pool_bias == pytest.approx(30 * (e.gains.mean() - e.half_gains.mean()))
    pairs = e.half_gains.reshape(2, -1).mean(axis=1)
    assert r.pool_bias_error == pytest.approx(math.hypot(r.mcse, 30 * abs(pairs[0] - pairs[1]) / 2))
    assert r.basis == "100 whole epochs of 4 draws"
    assert "loss of the pool itself (4 batches, 640 samples), at the lr used, 0.001" in r.target
    assert "disjoint pools" in assess(evidence(disjoint_pools=True)).target


def test_batches_of_a_step_share_the_order_bias():
    """Steps of 2 of 4 batches: their means have (4 - 2)/(3 x 2) of a batch's variance, and epochs are 2 steps."""
    whole = evidence()
    pairs = np.stack([whole.batch, whole.batch], axis=2)
    r = assess(evidence(batch=pairs, epoch=2, batches_per_step=2))
    assert r.order_bias == pytest.approx(1e-3 * 30**2 * 1e-3 / 4 / 3)
    assert assess(evidence(fresh_batches=True)).order_bias == 0
    assert math.isnan(assess(evidence(epoch=None)).order_bias)
    assert math.isnan(assess(evidence(epoch=None, pool_batches=None)).order_bias)
    assert assess(evidence(epoch=1, pool_batches=1)).order_bias == 0
    for count in (4, 8):
        assert assess(evidence(epoch=1, batches_per_step=count)).order_bias == 0


def passes(rng, pool, per_step, steps, chains):
    """Batches of each step, of passes that are shuffled one by one, (chains, steps, per_step)."""
    count = -(-steps * per_step // pool)
    order = rng.permuted(np.tile(np.arange(pool), (chains, count, 1)), axis=-1)
    return order.reshape(chains, -1)[:, : steps * per_step].reshape(chains, steps, per_step)


@pytest.mark.parametrize("friction", [None, 0.3])
@pytest.mark.parametrize(("pool", "per_step"), [(10, 2), (10, 3), (7, 4), (4, 6), (5, 7), (3, 6)])
def test_order_bias_where_passes_end_within_steps(pool, per_step, friction):
    """Chains on linear losses without noise, against the mean of 20,000 over the steps of a few passes: 5 standard
    errors, and these are small."""
    rng = np.random.default_rng(0)
    c = rng.standard_normal((pool, 3))
    c -= c.mean(axis=0)
    steps = 2 * pool
    gradient = c[passes(rng, pool, per_step, steps, 20_000)].mean(axis=2)
    w, v = np.zeros((20_000, 3)), np.zeros((20_000, 3))
    gains = np.empty((20_000, steps))
    for step in range(steps):
        gains[:, step] = (gradient[:, step] * w).sum(axis=1)
        if friction is None:
            w = w - 0.1 / 2 * 7 * gradient[:, step]
        else:
            v = (1 - friction) * v - 0.1 * 7 * gradient[:, step]
            w = w + v
    of_chain = 7 * gains.mean(axis=1)
    e = evidence(
        nbeta=7.0, lr=0.1, friction=friction, gains=evidence().gains[:, :steps], pool_batches=pool,
        batches_per_step=per_step,
        epoch=1 if per_step % pool == 0 else None if pool % per_step else pool // per_step,
        gradient_noise=float((c**2).sum()) / pool,
    )  # fmt: skip
    error = of_chain.std() / 20_000**0.5
    assert abs(assess(e).order_bias - of_chain.mean()) < max(5 * error, 1e-12)
    if per_step % pool:
        assert of_chain.mean() > 20 * error


@pytest.mark.parametrize(
    ("count", "basis"), [(3, "16 whole epochs"), (6, "16 whole epochs"), (2, "8 blocks")]
)
def test_steps_of_whole_passes_make_epochs_and_no_order_bias(count, basis):
    """6 batches a step of a pool of 3: every step takes the whole pool twice; 2 of 3 end passes within steps."""
    trees = pytest.importorskip("audit_trees", reason="needs xarray and zarr: pip install 'llc-fast[store]'")
    tree = sample(
        trees.LM(), trees.tokens(12), lr=1e-2, n_beta=10.0, localization=20.0, num_chains=2, num_draws=16,
        batch_size=4, gradient_accumulation_steps=count,
    )  # fmt: skip
    r = result_of(tree)
    assert r.basis.startswith(basis)
    assert math.isfinite(r.order_bias)
    assert (r.order_bias == 0) == (count % 3 == 0)
    assert r.verdict["order bias"].ok is not None


def test_epochs_of_fresh_batches_are_found_after_a_cut():
    """Draws on batches of passes of their own, of which the first 30 are cut: a pass of 4 begins at draw 2."""
    e = evidence(fresh_batches=True, num_burnin_steps=5)
    assert e.rhythm == (4, 0)
    later = after(e, 35)
    assert (later.num_burnin_steps, later.cut_draws, later.rhythm) == (35, 30, (4, 2))
    assert after(later, 36).rhythm == (4, 1)
    noise = np.array([0.5, -0.2, 0.1, -0.4])[e.batch]  # of batches, which cancels over a pass
    noisy = dataclasses.replace(e, gains=e.gains + noise)
    # Two draws before the first whole pass add a quarter; at passes found two draws off it is 3.7 times.
    assert assess(after(noisy, 35)).mcse < 1.5 * assess(later).mcse


def test_equal_chains_from_other_sources_give_equal_numbers():
    """Batches as micro-batches, dead rows or none, settings from elsewhere: the numbers are the same."""
    e = evidence()
    first = assess(e)
    nan = np.full((1, DRAWS), math.nan)
    rows = {
        name: np.concatenate([getattr(e, name)[:2], nan, getattr(e, name)[2:]])
        for name in ("loss", "gains", "distance", "dot", "boxed", "virial")
    }
    rows["batch"] = np.concatenate([e.batch[:2], np.full((1, DRAWS), -1), e.batch[2:]])[:, :, None]
    other = assess(dataclasses.replace(e, **rows, dead={2: "loss nan at step 0"}, settings={"seed": 7}))
    same = {"llc_per_chain", "loss_trace", "settings", "dead_chains", "verdict", "remarks"}
    for field in dataclasses.fields(first):
        if field.name not in same:
            assert getattr(other, field.name) == getattr(first, field.name), field.name
    assert np.isnan(other.llc_per_chain[2])
    assert other.settings["seed"] == 7
    assert [check.name for check in other.verdict.failed] == ["dead chains"]
    assert "chain 2 died and is not counted: loss nan at step 0." in other.notes


def test_what_is_missing_is_not_known_and_says_why():
    """As of another library's store: losses and their mean at w0, and nothing else."""
    e = evidence()
    bare = Evidence(
        nbeta=30.0,
        lr=1e-3,
        localization=10.0,
        num_burnin_steps=0,
        num_steps_bw_draws=1,
        loss=e.loss,
        gains=e.loss - 2.0,
        paired=False,
        init_loss=2.0,
        shared_order=True,
    )
    r = assess(bare)
    unknown = {check.name: check.advice for check in r.verdict.unknown}
    assert set(unknown) == {
        "R-hat of |w - w0|^2",
        "drift of |w - w0|^2",
        "temperature",
        "distance",
        "order bias",
        "pool size",
        "pool bias",
        "gradient at w0",
        "half the weights",
        "rounding of losses",
        "repeatable losses",
    }
    assert all(unknown.values())
    for name in ("r_hat_distance", "order_bias", "pool_bias", "gradient_term", "temperature"):
        assert math.isnan(getattr(r, name)), name
    assert r.controlled is None
    assert r.llc_mean == pytest.approx(30 * (e.loss.mean() - 2.0))
    assert any("compared with the mean loss at w0" in note for note in r.notes)
    assert any("in one order" in note for note in r.notes)
    assert "not known" in str(r)
    assert r.to_dict()["order_bias"] is None


def test_controls_are_used_where_they_help():
    rng = np.random.default_rng(1)
    e = evidence()
    controls = rng.standard_normal((CHAINS, DRAWS, 2))
    gains = 0.1 + 0.02 * controls[..., 1] + 0.001 * rng.standard_normal((CHAINS, DRAWS))
    r = assess(dataclasses.replace(e, gains=gains, controls=controls))
    assert r.controlled == pytest.approx(3.0, abs=4 * 30 * 0.02 / 1600**0.5 / 5)
    assert r.controlled_mcse < r.mcse / 5
    assert f"{r.controlled:.5g}" in str(r)
    useless = assess(dataclasses.replace(e, controls=controls))
    assert (useless.controlled, useless.controlled_mcse, useless.controlled_dof) == (None, None, None)


def test_burn_in_is_suggested_in_steps():
    """Losses that come from 0 over 200 of 1000 steps, of which none is left out."""
    rng = np.random.default_rng(0)
    gains = 0.1 * (1 - np.exp(-np.arange(1000) / 60)) + rng.normal(0, 0.005, (CHAINS, 1000))
    e = Evidence(
        nbeta=30.0,
        lr=1e-3,
        localization=10.0,
        num_burnin_steps=0,
        num_steps_bw_draws=1,
        loss=gains + 2.0,
        gains=gains,
        paired=True,
        init_loss=2.0,
    )
    r = assess(e)
    assert 100 <= r.burnin_suggested <= 400
    assert {"drift", "burn-in"} <= {check.name for check in r.verdict.failed}
    assert not r.settled
    late = dataclasses.replace(e, num_burnin_steps=400, gains=gains[:, 400:])
    assert assess(late).burnin_suggested == r.burnin_suggested
    assert assess(late).settled


def test_losses_of_noise_at_the_start_are_not_held_against_w0():
    e = evidence()
    moved = dataclasses.replace(e, loss=e.loss + 0.1)
    assert assess(moved).verdict["repeatable losses"].ok is False
    assert assess(dataclasses.replace(moved, init_noise=0.1)).verdict["repeatable losses"].ok is None


def test_no_live_chain_is_an_error():
    with pytest.raises(ChainError, match=r"every chain died .chain 0: box; chain 1: box"):
        assess(evidence(dead=dict.fromkeys(range(CHAINS), "box")))
