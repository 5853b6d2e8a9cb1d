"""What a pool's halves say: which chain takes which half, what the value is, and whether its error is the spread."""

import math

import numpy as np
import pytest
import torch
from test_estimate import RUN
from test_evidence import evidence

from llc_fast import estimate, running
from llc_fast.dropin import sample
from llc_fast.estimate import estimate_llc
from llc_fast.evidence import assess
from llc_fast.sampling import half_pool


def test_every_pair_has_a_cut_of_its_own():
    """The halves of a cut are apart; of the 35 cuts of 8 batches 10 draws are all but surely more than 5 different."""
    pool = [3 * i for i in range(8)]
    cuts = set()
    for pair in range(10):
        first, second = half_pool(5, pool, 2 * pair), half_pool(5, pool, 2 * pair + 1)
        assert sorted(first + second) == pool
        assert len(first) == len(second)
        cuts.add(frozenset((frozenset(first), frozenset(second))))
    assert len(cuts) > 5
    odd = [half_pool(5, pool[:7], chain) for chain in (0, 1)]
    assert [len(half) for half in odd] == [3, 3]
    assert not set(odd[0]) & set(odd[1])
    assert half_pool(5, pool, 0) != half_pool(6, pool, 0)


@pytest.mark.parametrize("num_chains", [3, 4])
@pytest.mark.parametrize("stacked", [False, True])
def test_half_chains_are_counted_from_0(monkeypatch, num_chains, stacked):
    """With an odd number of chains too, so that chains 0 and 1 on halves are a pair."""
    asked = []

    def noted(seed, pool, chain):
        asked.append(chain)
        return half_pool(seed, pool, chain)

    monkeypatch.setattr(estimate, "half_pool", noted)
    x = torch.randn(6, 5, 3, generator=torch.Generator().manual_seed(0))
    run = RUN | {"num_draws": 8, "num_chains": num_chains}
    estimate_llc(
        torch.nn.Linear(3, 1), lambda m, b: m(b).square(), list(x), pool_check=True, stacked=stacked, **run
    )
    assert asked == list(range(num_chains))


def test_half_chains_of_a_tree_are_counted_from_0(monkeypatch):
    trees = pytest.importorskip("audit_trees", reason="needs xarray and zarr: pip install 'llc-fast[store]'")
    asked = []

    def noted(seed, pool, chain):
        asked.append(chain)
        return half_pool(seed, pool, chain)

    monkeypatch.setattr(running, "half_pool", noted)
    sample(
        trees.LM(), trees.tokens(24), lr=1e-2, n_beta=10.0, localization=20.0, num_chains=3, num_draws=8,
        batch_size=4, pool_check=True,
    )  # fmt: skip
    assert asked == [0, 1, 2]


def walked(rng, pairs, draws=16):
    """Gains of chains on halves: cuts differ by 0.02, their halves by 0.05 to either side, chains by less."""
    cut = rng.normal(0, 0.02, (pairs, 1))
    lean = rng.normal(0, 0.05, (pairs, 1)) * np.array([1.0, -1.0])
    chains = (cut + lean).reshape(-1, 1)
    return 0.07 + chains + 0.01 * rng.standard_normal((2 * pairs, draws))


@pytest.mark.parametrize("pool", [4, 9])
def test_the_error_is_the_spread(pool):
    """Of 300 runs with 6 pairs: 20 % is four standard errors of what 300 runs say about a spread."""
    batch = np.zeros((4, 64), dtype=np.int64)
    values, errors = [], []
    for seed in range(300):
        rng = np.random.default_rng(seed)
        gains = rng.normal(0.1, 0.04, (4, 64))
        r = assess(
            evidence(
                gains=gains, loss=gains + 1.9, batch=batch, distance=None, dot=None, boxed=None, virial=None,
                pool_batches=pool, half_gains=walked(rng, 6),
            )
        )  # fmt: skip
        values.append(r.pool_bias)
        errors.append(r.pool_bias_error)
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(np.std(values, ddof=1), rel=0.2)
    # 9 batches: halves of 4, so 4/5 of the difference. 5 standard errors.
    true = 30 * (0.1 - 0.07) * (pool // 2) / (pool - pool // 2)
    assert abs(np.mean(values) - true) < 5 * np.std(values) / 300**0.5


def test_only_whole_pairs_count():
    base = evidence()
    half = walked(np.random.default_rng(0), 3)
    means = half.reshape(3, -1).mean(axis=1)
    r = assess(evidence(half_gains=half))
    assert r.pool_bias == pytest.approx(30 * (base.gains.mean() - means.mean()))
    assert r.pool_bias_error == pytest.approx(math.hypot(r.mcse, 30 * means.std(ddof=1) / 3**0.5))
    odd = assess(evidence(half_gains=half[:5]))
    assert odd.pool_bias == pytest.approx(30 * (base.gains.mean() - means[:2].mean()))
    half[1, 3:] = math.nan
    two = assess(evidence(half_gains=half))
    assert two.pool_bias == pytest.approx(30 * (base.gains.mean() - means[1:].mean()))
    assert two.pool_bias_error > 0


@pytest.mark.parametrize(("dead", "left"), [([0, 2], 0), ([0], 1), ([], 1)])
def test_too_few_pairs_say_so(dead, left):
    half = walked(np.random.default_rng(0), 2)
    if not dead:
        half = half[:3]
    half[dead] = math.nan
    r = assess(evidence(half_gains=half))
    assert math.isnan(r.pool_bias_error)
    assert math.isnan(r.pool_bias) == (left == 0)
    check = r.verdict["pool bias"]
    assert check.ok is None
    assert check.advice.startswith(f"{left} of the pairs")
    assert "num_chains >= 4" in check.advice
    assert "pool_check=True" in assess(evidence(half_gains=None)).verdict["pool bias"].advice
