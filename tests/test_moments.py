"""Streamed moments against numpy's of the same draws; what they refuse; saved and loaded."""

import numpy as np
import pytest
import torch

from llc_fast.errors import ArgumentError
from llc_fast.sampling import moments as module
from llc_fast.sampling.moments import Moments

SHAPES = {"b": (3, 2), "a": (2, 2)}  # not in order
CHAINS, DRAWS = 3, 11


def draws(seed=0, *, offset=3.0, scale=0.5):
    """Losses of every chain and draw, and the scalars."""
    rng = np.random.default_rng(seed)
    observed = {
        name: (offset + scale * rng.standard_normal((CHAINS, DRAWS, *shape))).astype(np.float32)
        for name, shape in SHAPES.items()
    }
    scalar = (offset + scale * rng.standard_normal((CHAINS, DRAWS))).astype(np.float32)
    return observed, scalar


def feed(moments, observed, scalar, chains, draw):
    at_draw = {name: torch.from_numpy(x[chains, draw]) for name, x in observed.items()}
    moments.draw(chains, draw, at_draw, torch.from_numpy(scalar[chains, draw]))


def values(moments, chains=None):
    return {name: x for name, (_, x) in moments.arrays(chains).items()}


@pytest.mark.parametrize("groups", [[[0, 1, 2]], [[0], [1], [2]], [[2, 0], [1]]], ids=str)
@pytest.mark.parametrize("scalar", ["loss", "a"])
def test_sums_are_numpy_s(groups, scalar):
    observed, losses = draws()
    m = Moments(SHAPES, CHAINS, kinds=("sequence", "token"), scalar=scalar)
    for group in groups:
        for draw in range(DRAWS):
            feed(m, observed, losses, group, draw)
    got = values(m)
    x = {name: a.astype(np.float64) for name, a in observed.items()}
    s = losses.astype(np.float64) if scalar == "loss" else x["a"].mean(axis=(2, 3))
    np.testing.assert_array_equal(got["count"], [DRAWS] * CHAINS)
    np.testing.assert_allclose(got["scalar_mean"], s.mean(1), rtol=1e-14)
    np.testing.assert_allclose(got["scalar_m2"], s.var(1) * DRAWS, rtol=1e-12)
    ds = s - s.mean(1, keepdims=True)
    for name, a in x.items():
        np.testing.assert_allclose(got[f"mean_{name}"], a.mean(1), rtol=1e-14)
        np.testing.assert_allclose(got[f"m2_{name}"], a.var(1) * DRAWS, rtol=1e-12)
        np.testing.assert_allclose(got[f"cross_{name}"], np.einsum("cd,cdnt->cnt", ds, a), atol=1e-12)
    both = np.concatenate([x["a"], x["b"]], axis=2)  # in the order of names
    both = both - both.mean(1, keepdims=True)
    sequences = both.mean(3)
    np.testing.assert_allclose(got["sequence_m2"], np.square(sequences).sum(1), rtol=1e-12)
    np.testing.assert_allclose(
        got["sequence_comoment"], np.einsum("cdi,cdj->cij", sequences, sequences), atol=1e-12
    )
    np.testing.assert_allclose(got["token_comoment"], np.einsum("cdit,cdju->citju", both, both), atol=1e-12)


def test_no_digits_are_lost_where_losses_are_large_and_vary_little():
    # float32 around 10 is spaced by 9.5e-7, so a standard deviation of 1e-3 is about 1000 steps. Sums of squares
    # taken about 0 and in float32 would have errors of 1e-5, ten times the variance.
    observed, losses = draws(1, offset=10.0, scale=1e-3)
    m = Moments(SHAPES, CHAINS)
    for draw in range(DRAWS):
        feed(m, observed, losses, [0, 1, 2], draw)
    got = values(m)
    for name, a in observed.items():
        exact = a.astype(np.float64).var(axis=1) * DRAWS
        assert 2e-6 < exact.mean() < 3e-5
        np.testing.assert_allclose(got[f"m2_{name}"], exact, rtol=1e-9)


def test_the_device_s_losses_may_be_of_any_dtype():
    m = Moments({"a": (1, 1)}, 1)
    for i, x in enumerate([1.0, 2.0, 4.0]):
        m.draw([0], i, {"a": torch.full((1, 1, 1), x, dtype=torch.bfloat16)}, torch.tensor([x]))
    assert values(m)["m2_a"].item() == pytest.approx(14 / 3, rel=1e-15)


def test_saved_and_loaded_goes_on_bit_for_bit():
    observed, losses = draws(2)
    options = {"kinds": ("sequence", "token"), "scalar": "b"}
    unbroken, first = Moments(SHAPES, CHAINS, **options), Moments(SHAPES, CHAINS, **options)
    for draw in range(DRAWS):
        feed(unbroken, observed, losses, [0, 2], draw)
    for draw in range(4):
        feed(first, observed, losses, [0, 2], draw)
    state = first.state()
    feed(first, observed, losses, [0, 2], 4)  # which the state must not see
    second = Moments(SHAPES, CHAINS, **options)
    second.load(state)
    for draw in range(4, DRAWS):
        feed(second, observed, losses, [0, 2], draw)
    expected = values(unbroken)
    for name, x in values(second).items():
        assert x.tobytes() == expected[name].tobytes(), name
    assert expected["token_comoment"].any()


@pytest.mark.parametrize(
    "other",
    [
        Moments(SHAPES, CHAINS, scalar="a"),
        Moments(SHAPES, CHAINS + 1),
        Moments({"b": (3, 2)}, CHAINS),
        Moments(SHAPES, CHAINS, kinds=("sequence",)),
    ],
)
def test_moments_of_another_run_are_refused(other):
    with pytest.raises(ArgumentError, match="of other observables, chains, kinds or of another scalar"):
        other.load(Moments(SHAPES, CHAINS).state())


def test_specs_tell_what_arrays_are():
    observed, losses = draws()
    m = Moments(SHAPES, CHAINS, kinds=("token", "sequence"))
    feed(m, observed, losses, [0, 1, 2], 0)
    arrays = m.arrays()
    assert arrays.keys() == m.specs().keys()
    for name, (dims, x) in arrays.items():
        assert (dims, x.shape, str(x.dtype)) == tuple(m.specs()[name]), name
        assert dims[0] == "chain"
    for name, x in values(m, [2]).items():
        np.testing.assert_array_equal(x, arrays[name][1][2:])


@pytest.mark.parametrize(("scalar", "place"), [("loss", -1), ("a", 0), ("b", 1)])
def test_the_scalar_s_place_is_kept(scalar, place):
    np.testing.assert_array_equal(values(Moments(SHAPES, CHAINS, scalar=scalar))["scalar_place"], [place] * 3)


def test_the_scalar_may_have_its_observable_s_own_name():
    assert Moments({"my_data": (1, 1)}, 1, scalar="my-data").scalar == "my_data"


def test_memory_is_of_the_order_of_tokens():
    specs = Moments({"a": (64, 128)}, 2).specs()
    assert sum(np.prod(spec.shape) for spec in specs.values()) < 3.1 * 2 * 64 * 128


def test_more_than_half_of_the_free_memory_is_refused(monkeypatch):
    monkeypatch.setattr(module, "free_memory", lambda device: 2**30)
    tokens = 2**13  # squared, in float64, for one chain: half a GiB
    with pytest.raises(ArgumentError, match=r"token_comoment \(1, 64, 128, 64, 128\) alone 0.5.*1 GiB free"):
        Moments({"a": (64, tokens // 64)}, 1, kinds=("token",))
    Moments({"a": (64, tokens // 64)}, 1, kinds=("sequence",))


def test_free_memory_is_a_number_of_bytes():
    free = module.free_memory(torch.device("cpu"))
    assert free is None or 2**20 < free < 2**50


def test_a_draw_counts_once():
    observed, losses = draws()
    m = Moments(SHAPES, CHAINS)
    feed(m, observed, losses, [0, 1], 0)
    for chains, draw in [([1], 0), ([2], 1), ([0], 2)]:
        with pytest.raises(ArgumentError, match="each counts once"):
            feed(m, observed, losses, chains, draw)
    np.testing.assert_array_equal(values(m)["count"], [1, 1, 0])


def test_a_chain_that_dies_spoils_no_other():
    observed, losses = draws()
    alone = Moments(SHAPES, CHAINS, kinds=("token",))
    together = Moments(SHAPES, CHAINS, kinds=("token",))
    for draw in range(DRAWS):
        feed(alone, observed, losses, [0], draw)
    observed["a"][1, 3:] = np.nan
    observed["b"][1, 3:] = np.inf
    for draw in range(DRAWS):
        feed(together, observed, losses, [0, 1], draw)
    expected = values(alone, [0])
    for name, x in values(together, [0]).items():
        np.testing.assert_array_equal(x, expected[name])


@pytest.mark.parametrize(
    ("shapes", "options", "message"),
    [
        ({}, {}, "no observables"),
        ({"a": (1, 2), "b": (1, 3)}, {}, r"observables have \[2, 3\] tokens"),
        (SHAPES, {"kinds": ("mean",)}, "moments has 'mean': use some of"),
        (SHAPES, {"scalar": "c"}, "scalar is 'c': use 'loss' or one of"),
        ({"loss": (1, 2)}, {}, "an observable has that name"),
    ],
)
def test_settings_that_make_no_sense(shapes, options, message):
    with pytest.raises(ArgumentError, match=message):
        Moments(shapes, 1, **options)


def test_losses_of_the_wrong_shape():
    m = Moments({"a": (2, 3)}, 2)
    good, scalar = torch.zeros(1, 2, 3), torch.zeros(1)
    for observed, s, message in [
        ({"a": good[0]}, scalar, r"losses of 'a' have shape \(2, 3\), expected \(1, 2, 3\)"),
        ({"b": good}, scalar, r"observed has \['b'\], expected \['a'\]"),
        ({"a": good}, torch.zeros(()), r"scalar has shape \(\), expected \(1,\)"),
    ]:
        with pytest.raises(ArgumentError, match=message):
            m.draw([0], 0, observed, s)
