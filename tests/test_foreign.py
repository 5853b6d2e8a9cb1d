"""Evidence from devinterp's trees against loops over their arrays and made-up losses whose gains are known."""

from __future__ import annotations

import math

import numpy as np
import pytest

audit_trees = pytest.importorskip(
    "audit_trees", reason="needs xarray and zarr: pip install 'llc-fast[store]'"
)

from audit_trees import SAMPLER, cycled, made  # noqa: E402

from llc_fast import foreign  # noqa: E402
from llc_fast.dropin import sample  # noqa: E402
from llc_fast.errors import ChainError, DataError  # noqa: E402
from llc_fast.evidence import assess  # noqa: E402
from llc_fast.foreign.metrics import metric, order_bound, virial_of  # noqa: E402
from llc_fast.tree_llc import compute_llc, evidence_of  # noqa: E402

CHAINS, POOL, SIZE = 3, 5, 3


def read(tree):
    return foreign.read(tree, foreign.read_records(tree))


def level(count=POOL * SIZE, seed=0):
    """Losses of sequences at w0, by number; 0 is none."""
    return np.concatenate([[0.0], 3 + np.random.default_rng(seed).standard_normal(count)])


def start(w0, ids, wanted, size=SIZE):
    """init_loss by devinterp's rule: the first `wanted` batches of each chain, one after another."""
    batches = ids.reshape(len(ids), -1, size)
    return np.array([np.mean([w0[b[k % len(b)]].mean() for k in range(wanted)]) for b in batches])


@pytest.mark.parametrize(
    "wanted", [32, 10, 2], ids=["more than the pool", "twice the pool", "less than the pool"]
)
@pytest.mark.parametrize("own_orders", [False, True])
def test_chains_that_gain_the_same_on_every_sequence_are_seen_through(wanted, own_orders):
    """Where a chain's losses are those at w0 plus its own constant, that constant is what each draw has gained."""
    rng = np.random.default_rng(1)
    orders = [rng.permutation(POOL * SIZE) for _ in range(CHAINS)] if own_orders else None
    ids = cycled(CHAINS, 40, POOL, orders=orders)
    w0, gained = level(), np.array([0.2, 0.3, 0.1])
    loss = w0[ids] + gained[:, None, None]
    loss[:, 0] = w0[ids[:, 0]]  # before the first update
    tree = made(
        loss, ids, start(w0, ids, wanted), num_burnin_steps=3, num_init_loss_batches=wanted,
        match_sampling_input_ids_across_chains=not own_orders,
    )  # fmt: skip
    e = evidence_of(tree)
    # The sequences' means are over all visits, of which a part of a pass gives some chains' orders more.
    exact = 1e-6 if not own_orders else 0.02
    np.testing.assert_allclose(e.gains, np.broadcast_to(gained[:, None], (CHAINS, 37)), atol=exact)
    assert e.paired
    assert (e.epoch, e.pool_batches, e.pool_samples) == (POOL, POOL, POOL * SIZE)
    assert e.shared_order is not own_orders
    assert assess(e).llc_mean == pytest.approx(10 * 0.2, abs=10 * exact)
    np.testing.assert_allclose(e.paired_trace[:, 0], 0, atol=1e-6)  # chains begin at w0
    np.testing.assert_allclose(e.paired_trace[:, 3:], e.gains, atol=1e-12)


def test_the_mean_over_whole_passes_is_that_of_losses_less_init_loss():
    ids, w0 = cycled(CHAINS, 45, POOL), level()
    loss = w0[ids] + 0.2 + 0.1 * np.random.default_rng(2).standard_normal(ids.shape)
    tree = made(loss, ids, start(w0, ids, 35), num_burnin_steps=10, num_init_loss_batches=35)
    found = read(tree)
    by_hand = 10 * (tree.sampling_loss_micro.values[:, 10:].mean() - tree.init_loss.values.mean())
    assert assess(found.evidence).llc_mean == pytest.approx(by_hand, rel=1e-5)
    assert float(compute_llc(tree).llc_mean) == pytest.approx(by_hand, rel=1e-5)
    assert found.error == pytest.approx(0, abs=1e-6)  # init_loss is of the pool's sequences in equal parts
    assert found.noiseless is None
    # Losses of batches differ by ten times what chains do: paired draws have little of it.
    assert found.evidence.gains.std() < 0.3 * loss.mean(axis=2)[:, 10:].std()


def test_other_sequences_at_w0_are_counted():
    """400 runs in which no sequence comes back: the estimate is off by its stated error, within 4 of its errors."""
    ratios = []
    ids = cycled(2, 30, 30)
    for seed in range(400):
        w0 = level(90, seed)
        tree = made(w0[ids] + 0.2, ids, start(w0, ids, 4), num_burnin_steps=6, num_init_loss_batches=4)
        found = read(tree)
        assert not found.evidence.paired
        assert found.evidence.epoch is None
        ratios.append((assess(found.evidence).llc_mean - 2.0) / found.error)
    assert np.mean(np.square(ratios)) == pytest.approx(1, abs=4 * math.sqrt(2 / 400))
    weights = np.repeat([-1 / 12, 0, 1 / 72], [12, 6, 72])  # 4 batches at w0, 2 more of burn-in, 24 of draws
    by_hand = 10 * w0[1:].std(ddof=1) * math.sqrt((weights**2).sum())
    assert found.error == pytest.approx(by_hand, rel=1e-4)
    assert found.noiseless.shape == (2, 24)
    np.testing.assert_allclose(found.noiseless, 0, atol=1e-6)


def test_sequences_at_w0_that_no_chain_took_are_counted():
    w0, ids = level(30), cycled(2, 10, 10)
    tree = made(w0[ids], ids, [3.0, 3.0], num_init_loss_batches=32)  # of 96 sequences, 30 of which were taken
    weights = np.repeat([1 / 96 - 1 / 30, 1 / 96], [30, 66])
    by_hand = 10 * w0[1:].std(ddof=1) * math.sqrt((weights**2).sum())
    assert read(tree).error == pytest.approx(by_hand, rel=1e-4)


def test_levels_of_sequences_that_were_seen_too_little_are_not_inferred():
    w0 = level()
    for chains, steps, paired in ((1, 19, False), (1, 20, True), (4, 9, False), (4, 10, True)):
        ids = cycled(chains, steps, POOL)  # the pool has 5 batches
        e = evidence_of(made(w0[ids] + 0.2, ids, start(w0, ids, POOL), num_init_loss_batches=POOL))
        assert e.paired is paired, (chains, steps)


def test_micro_batches_are_a_pool_s_batches():
    """Two batches a step: an epoch is half the pool's batches, none where they do not divide."""
    w0 = level()
    for pool, epoch in ((4, 2), (5, None)):
        ids = cycled(CHAINS, 60, pool).reshape(CHAINS, 30, 2 * SIZE)
        tree = made(
            w0[ids] + 0.2, ids, start(w0, ids, 40), gradient_accumulation_steps=2, num_init_loss_batches=20
        )
        e = evidence_of(tree)
        assert (e.epoch, e.pool_batches, e.pool_samples, e.batches_per_step) == (epoch, pool, pool * SIZE, 2)
        np.testing.assert_allclose(e.gains, 0.2, atol=1e-6)


def test_without_tokens_draws_are_compared_with_the_mean():
    ids, w0 = cycled(CHAINS, 40, POOL), level()
    tree = made(w0[ids] + 0.2, None, start(w0, ids, 40), num_init_loss_batches=40, num_burnin_steps=5)
    found = read(tree)
    assert not found.evidence.paired
    assert found.evidence.pool_batches is None
    assert not found.evidence.shared_order
    assert "not recorded" in found.unknown["pool size"]
    steps = w0[ids][0, 5:].mean(axis=1)
    assert found.error == pytest.approx(10 * steps.std(ddof=1) * math.sqrt(1 / 35 + 1 / 40), rel=1e-4)


def gone(loss, ids, chain, step):
    """A chain of which nothing is recorded from a step on."""
    loss, ids = loss.copy(), ids.copy()
    loss[chain, step:], ids[chain, step:] = math.nan, 0
    return loss, ids


@pytest.fixture
def healthy():
    ids = cycled(CHAINS, 40, POOL)
    return level()[ids] + 0.1 * np.random.default_rng(3).standard_normal(ids.shape), ids


@pytest.mark.parametrize("kind", ["logits", "nan", "inf", "one", "stuck"])
def test_dead_chains_are_found(healthy, kind):
    loss, ids = gone(*healthy, 1, 20)
    why = "at step 20"
    if kind == "logits":
        why = "from step 20 on"
    elif kind in ("nan", "inf"):  # the row of the step that fails is there
        ids[1, 20] = healthy[1][1, 20]
        loss[1, 20] = math.inf if kind == "inf" else math.nan
    elif kind == "one":
        ids, loss = healthy[1], healthy[0].copy()
        loss[1, 20, 1] = math.inf
    else:
        ids, loss = healthy[1], healthy[0].copy()
        loss[1, 20:] = 2.5
        why = "2.5, to the bit, at every step from 20 on"
    tree = made(loss, ids, [3.0] * 3, num_init_loss_batches=40)
    e = evidence_of(tree)
    assert list(e.dead) == [1]
    assert why in e.dead[1]
    by_hand = 10 * (tree.sampling_loss_micro.values[[0, 2]].mean() - 3)
    assert assess(e).llc_mean == pytest.approx(by_hand, rel=1e-5)
    assert np.isfinite(e.loss[1, :20]).all()


def test_a_stopped_run_is_no_death(healthy):
    tree = made(*gone(*healthy, 2, 17), [3.0] * 3, completed=False)
    found = read(tree)
    assert found.unfinished == 1
    assert not found.evidence.dead
    assert found.evidence.gains.shape == (2, 40)
    early = read(made(*gone(*healthy, 0, 17), [3.0] * 3, completed=False))  # chains walk one after another
    assert list(early.evidence.dead) == [0]
    assert early.unfinished == 0
    loss, ids = gone(*gone(*gone(*healthy, 0, 30), 1, 0), 2, 0)
    only = read(made(loss, ids, [3.0, math.nan, math.nan], completed=False, num_burnin_steps=4))
    assert only.unfinished == 2
    assert only.evidence.gains.shape == (1, 26)


def test_trees_of_which_nothing_can_be_said(healthy):
    loss, ids = healthy
    with pytest.raises(ChainError, match=r"every chain died.*chain 2: nothing is recorded of it from step 0"):
        evidence_of(made(np.full_like(loss, math.nan), ids * 0, [3.0] * 3))
    with pytest.raises(ChainError, match="no chain has a step after the 40 of burn-in"):
        evidence_of(made(loss, ids, [3.0] * 3, num_burnin_steps=40))
    with pytest.raises(DataError, match="init_loss is missing or not finite"):
        evidence_of(made(loss, ids, [3.0, math.nan, 3.0]))
    with pytest.raises(DataError, match="3 losses, which 2 batches cannot have given"):
        evidence_of(made(loss, ids, [3.0] * 3, gradient_accumulation_steps=2))
    with pytest.raises(DataError, match="n_beta is None"):
        evidence_of(made(loss, ids, [3.0] * 3, n_beta=None))
    with pytest.raises(DataError, match=r"no attrs\['metadata'\]"):
        evidence_of(audit_trees.xr.DataTree(audit_trees.xr.Dataset()))
    tree = made(loss, ids, [3.0] * 3)
    with pytest.raises(DataError, match="no sampling_loss_micro; variables there: init_loss, sampling_input"):
        evidence_of(audit_trees.xr.DataTree(tree.dataset.drop_vars("sampling_loss_micro")))
    with pytest.raises(DataError, match="sampling_loss_micro has dimensions"):
        evidence_of(audit_trees.xr.DataTree(tree.dataset.transpose("step", ...)))
    with pytest.raises(DataError, match="is empty"):
        evidence_of(made(loss[:, :0], ids[:, :0], [3.0] * 3))


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # of devinterp's, where a loss is infinite
@pytest.mark.parametrize("dead", [None, math.nan, math.inf])
def test_reported_is_devinterp_s(healthy, dead):
    theirs = pytest.importorskip("devinterp.slt.llc", reason="needs devinterp 2.0.1", exc_type=ImportError)
    loss, ids = healthy if dead is None else gone(*healthy, 1, 20)
    if dead == math.inf:
        loss[1, 20] = dead
    tree = made(loss, ids, [3.0, 3.1, 2.9])
    mine, old = foreign.reported(tree), theirs.compute_llc(tree)
    for name in ("llc_mean", "llc_std", "llc_scalar", "init_loss"):
        assert getattr(mine, name) == pytest.approx(float(old[name]), rel=1e-4, nan_ok=True), name
    np.testing.assert_allclose(mine.llc_per_chain, old.llc_per_chain.values, rtol=1e-4)


def test_metrics_give_what_our_own_runs_record():
    """Distances and d.a from devinterp's metrics are those that the walk itself takes, on a tree that has both."""
    tree = sample(
        audit_trees.LM(), audit_trees.tokens(24), lr=1e-2, n_beta=10.0, localization=20.0, num_chains=2, num_draws=12,
        batch_size=4, save_metrics=True, stacked=False,
    )  # fmt: skip
    ours, config = tree["llc_fast"].dataset, tree.attrs["metadata"]["config"]["sampler"]
    squared = metric(tree, "distance", 2, 12) ** 2
    np.testing.assert_allclose(squared, ours.distance.values, rtol=1e-5)
    virial = virial_of(tree, config, squared, tree.attrs["metrics_numel"], 2, 12)
    np.testing.assert_allclose(virial, ours.virial.values, rtol=1e-4, atol=1e-7)
    e = evidence_of(tree)
    bias = assess(e).order_bias
    assert 0 < bias < order_bound(tree, e)
    for other in ({"localization": 0.0}, {"llc_weight_decay": 1.0}, {"sampling_method": "rmsprop_sgld"}):
        assert virial_of(tree, SAMPLER | other, squared, 99, 2, 12) is None
