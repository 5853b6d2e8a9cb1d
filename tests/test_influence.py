"""Influence, kernel and functional variance: devinterp's on the same tree, and equal from draws and moments."""

import functools
import inspect
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from llc_fast.errors import ArgumentError, ArgumentTypeError
from llc_fast.influence import bayesian_influence, bif, compute_bif, functional_variance, loss_kernel

trees = pytest.importorskip("trees", reason="needs xarray: pip install 'llc-fast[store]'")
xr = trees.xr


@functools.cache
def theirs():
    return pytest.importorskip(
        "devinterp.slt.bif", reason="needs devinterp 2.0.1: pip install 'llc-fast[dev]'"
    )


METHODS = [(per, average) for per in ("token", "sequence") for average in (False, True)]


@pytest.mark.parametrize("covariance", [False, True])
@pytest.mark.parametrize("chains", ["stack", "mean"])
@pytest.mark.parametrize(("per", "average"), METHODS)
def test_compute_bif_is_devinterp_s(per, average, chains, covariance):
    tree = trees.traces(trees.losses(0))
    options = {
        "correlation_method": per,
        "average_tokenwise_bif": average,
        "reduce_chain_dimension_method": chains,
        "compute_covariance": covariance,
        "device": "cpu",
    }
    for selection in (
        {},
        {"loss_keys": ["wiki_en", "code"]},
        {"batch_index_range_1": [4, 0], "batch_index_range_2": range(2, 9), "batch_size": 2},
    ):
        ours, expected = (f(tree, **options, **selection) for f in (compute_bif, theirs().compute_bif))
        assert ours.influences.dtype == expected.influences.dtype
        assert ours.influences.dims == expected.influences.dims
        assert ours.data_vars.keys() == expected.data_vars.keys()
        assert ours.coords.keys() == expected.coords.keys()
        # devinterp sums float32: losses are near 3, deviations .1, so 1e-6 of 3 over 1e-1 at most
        xr.testing.assert_allclose(
            ours, expected, rtol=1e-4, atol=1e-5 * np.abs(expected.influences).max().item()
        )


@pytest.mark.parametrize("ours", [bif, compute_bif])
def test_it_takes_devinterp_s_arguments(ours):
    expected = inspect.signature(getattr(theirs(), ours.__name__)).parameters
    got = inspect.signature(ours).parameters
    assert {n: (p.kind, p.default) for n, p in expected.items()} == {
        n: (p.kind, p.default) for n, p in got.items()
    }


@pytest.mark.parametrize("covariance", [False, True])
@pytest.mark.parametrize("chains", ["stack", "within"])
@pytest.mark.parametrize(("per", "average"), METHODS)
def test_draws_and_moments_give_the_same(per, average, chains, covariance):
    losses = trees.losses(1)
    for selection in ({}, {"loss_keys": ["wiki_en", "code"], "batch_index_range_2": [5, 1]}):
        a, b = (
            compute_bif(
                tree,
                correlation_method=per,
                average_tokenwise_bif=average,
                reduce_chain_dimension_method=chains,
                compute_covariance=covariance,
                **selection,
            )
            for tree in (trees.traces(losses), trees.streamed(losses, kinds=(per,)))
        )
        xr.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-8)
        assert np.ptp(a.influences.values) > 1e-3


@pytest.mark.parametrize("per", ["token", "sequence"])
def test_large_losses_that_vary_little_keep_their_digits(per):
    rng = np.random.default_rng(3)
    x = (10 + 1e-3 * rng.standard_normal((2, 50, 3, trees.TOKENS))).astype(np.float32)
    exact = x.astype(np.float64) if per == "token" else x.astype(np.float64).mean(3, keepdims=True)
    flat = np.moveaxis(exact.reshape(100, -1), 0, 1)
    expected = np.cov(flat)
    for tree in (trees.traces({"a": x}), trees.streamed({"a": x}, kinds=(per,))):
        kernel = loss_kernel(tree, per=per).loss_kernel
        matrix = (
            kernel.values if per == "sequence" else np.swapaxes(kernel.values, 1, 2).reshape(expected.shape)
        )
        np.testing.assert_allclose(matrix, expected, rtol=1e-6, atol=1e-6 * expected.max())
        assert kernel.dtype == np.float64


def test_within_chains_differences_between_chains_do_not_count():
    losses = trees.losses(4)
    shift = np.arange(3, dtype=np.float32).reshape(3, 1, 1, 1)
    apart = {name: x + shift for name, x in losses.items()}
    tree, moved = trees.traces(losses), trees.traces(apart)
    for compute in (loss_kernel, functional_variance):
        a, b = (compute(t, within_chains=True) for t in (tree, moved))
        xr.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)  # float32 losses move by rounding
        pooled = (compute(t) for t in (tree, moved))
        assert np.subtract(*(float(next(iter(p.data_vars.values())).sum()) for p in pooled)) < -1
    x = losses["pile"].astype(np.float64).mean(3)
    expected = np.mean([np.cov(chain.T) for chain in x], axis=0)
    np.testing.assert_allclose(
        loss_kernel(tree, within_chains=True, loss_keys=["pile"]).loss_kernel, expected, rtol=1e-9
    )


def test_influence_is_minus_the_kernel():
    tree = trees.traces(trees.losses(5))
    for per in ("token", "sequence"):
        kernel, influence = loss_kernel(tree, per=per), bayesian_influence(tree, per=per)
        np.testing.assert_array_equal(influence.bayesian_influence, -kernel.loss_kernel)
        covariance = compute_bif(tree, correlation_method=per, compute_covariance=True)
        np.testing.assert_allclose(covariance.influences, kernel.loss_kernel, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("within", [False, True])
@pytest.mark.parametrize("per", ["token", "sequence"])
def test_functional_variance_is_the_kernel_s_diagonal(per, within):
    losses = trees.losses(6)
    kernel = loss_kernel(trees.traces(losses), per=per, within_chains=within).loss_kernel.values
    diagonal = np.einsum("iitt->it" if per == "token" else "ii->i", kernel)
    for tree in (trees.traces(losses), trees.streamed(losses)):  # the moments that are always kept
        got = functional_variance(tree, per, within_chains=within)
        parts = [got[f"variance_{name}"].values for name in sorted(losses)]
        np.testing.assert_allclose(np.concatenate(parts), diagonal, rtol=1e-9)
        np.testing.assert_allclose(got.functional_variance, [p.sum() for p in parts], rtol=1e-12)
        assert list(got.observable) == sorted(losses)
        assert got.attrs["total"] == pytest.approx(diagonal.sum(), rel=1e-9)
    some = functional_variance(
        trees.streamed(losses), per, within_chains=within, loss_keys=["wiki_en", "code"]
    )
    assert some.sel(observable="wiki_en").functional_variance.item() == pytest.approx(
        parts[-1].sum(), rel=1e-9
    )


def test_chains_without_draws_yet_are_left_out_of_moments():
    losses = trees.losses(7)
    first = {name: x[:2] for name, x in losses.items()}
    partly = trees.stream(losses, groups=[[0], [1]], kinds=("sequence", "token"))
    tree = xr.DataTree.from_dict(
        {"/": xr.Dataset(trees.base(losses)), "/moments": xr.Dataset(partly.arrays())}
    )
    for per in ("token", "sequence"):
        a, b = (loss_kernel(t, per=per) for t in (tree, trees.traces(first)))
        xr.testing.assert_allclose(a, b, rtol=1e-9)
    nothing = trees.stream(losses, groups=[])
    with pytest.raises(ArgumentError, match="no draws"):
        functional_variance(xr.DataTree.from_dict({"/moments": xr.Dataset(nothing.arrays())}))


def test_one_chain_can_be_left_out_afterwards():
    losses = trees.losses(8)
    tree = trees.streamed(losses, kinds=("sequence",))
    rest = tree.isel(chain=[0, 2])
    a = loss_kernel(rest)
    b = loss_kernel(trees.traces({name: x[[0, 2]] for name, x in losses.items()}))
    xr.testing.assert_allclose(a, b, rtol=1e-9)


def test_shorter_sequences_are_padded_with_nan():
    losses = trees.losses(9)
    losses["code"][:, :, 1, 3:] = np.nan
    tree = trees.traces(losses)
    kernel = loss_kernel(tree).loss_kernel
    x = losses["code"][:, :, 1, :3].astype(np.float64).mean(2)
    assert kernel[1, 1].item() == pytest.approx(x.var(ddof=1), rel=1e-9)  # "code" comes first
    xr.testing.assert_allclose(
        compute_bif(tree, correlation_method="sequence"),
        theirs().compute_bif(tree, correlation_method="sequence", device="cpu"),
        rtol=1e-4,
        atol=1e-5,
    )
    xr.testing.assert_allclose(
        loss_kernel(tree), loss_kernel(trees.streamed(losses, kinds=("sequence",))), rtol=1e-9
    )


def test_a_loss_that_does_not_vary_has_no_correlation():
    losses = trees.losses(10, sizes={"a": 2})
    losses["a"][:, :, 0] = 0.1
    for tree in (trees.traces(losses), trees.streamed(losses, kinds=("sequence",))):
        got = compute_bif(tree, correlation_method="sequence").influences.values
        assert np.isnan(got[0]).all()
        assert np.isnan(got[:, 0]).all()
        assert got[1, 1] == pytest.approx(1.0)


def test_data_without_tokens_have_no_input_ids():
    losses = trees.losses(11)
    for tree in (trees.traces(losses, ids=False), trees.streamed(losses, ids=False, kinds=("token",))):
        assert list(compute_bif(tree).data_vars) == ["influences"]


def test_what_cannot_be_computed():
    losses = trees.losses(12)
    tree, moments = trees.traces(losses), trees.streamed(losses, kinds=("sequence",))
    for call, message in [
        (
            lambda: compute_bif(moments),
            r"neither losses at draws nor covariances of tokens.*moments=\('token',\)",
        ),
        (
            lambda: compute_bif(moments, correlation_method="sequence", reduce_chain_dimension_method="mean"),
            "'mean' needs losses at draws",
        ),
        (lambda: compute_bif(tree, correlation_method="word"), "use 'token' or 'sequence'"),
        (lambda: compute_bif(tree, reduce_chain_dimension_method="sum"), "use 'stack'"),
        (lambda: compute_bif(tree, loss_keys=["pile", "x"]), "no observable 'x' among"),
        (lambda: compute_bif(tree, loss_keys=["pile", "pile"]), "give each observable once"),
        (lambda: compute_bif(tree, loss_keys="pile"), "use 'all' or a list"),
        (lambda: compute_bif(tree, batch_index_range_1=[9]), "give places from 0 to 8"),
        (lambda: compute_bif(xr.DataTree(xr.Dataset(trees.base(losses)))), "the tree has no observables"),
    ]:
        with pytest.raises(ArgumentError, match=message):
            call()
    with pytest.raises(ArgumentTypeError, match=r"give the xarray.DataTree of sample\(\)"):
        compute_bif(tree.dataset)


def test_bif_samples_with_all_arguments(monkeypatch):
    losses, asked = trees.losses(13), []

    def sample(*args, **kwargs):
        asked.append((args, kwargs))
        streams = kwargs.get("traces") is False
        return trees.streamed(losses, kinds=kwargs["moments"]) if streams else trees.traces(losses)

    monkeypatch.setitem(sys.modules, "llc_fast.dropin", SimpleNamespace(sample=sample))
    model, given = torch.nn.Linear(1, 1), {"lr": 1e-3, "n_beta": 3.0, "num_draws": 7}
    a = bif(model, "data", {"pile": "data"}, correlation_method="sequence", compute_covariance=True, **given)
    b = bif(
        model,
        "data",
        {"pile": "data"},
        correlation_method="sequence",
        compute_covariance=True,
        traces=False,
        **given,
    )
    xr.testing.assert_allclose(a, b, rtol=1e-6)
    np.testing.assert_allclose(a.influences, loss_kernel(trees.traces(losses)).loss_kernel, rtol=1e-6)
    assert asked[0] == ((model, "data", {"pile": "data"}), given | {"param_masks": None, "loss_fn": None})
    assert asked[1][1]["moments"] == ("sequence",)
