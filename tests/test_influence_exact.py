"""Kernel, influence and functional variance of linear regression against their closed forms."""

import numpy as np
import pytest
import torch

from llc_fast import exact
from llc_fast.diagnostics import t_quantile
from llc_fast.dropin import sample
from llc_fast.influence import bayesian_influence, compute_bif, functional_variance, loss_kernel
from llc_fast.susceptibility import susceptibilities

trees = pytest.importorskip("trees", reason="needs xarray: pip install 'llc-fast[store]'")
xr = trees.xr

CHAINS, DRAWS = 4, 25_000


@pytest.fixture(scope="module")
def regression():
    """Design, residuals and posterior covariance, and the losses of independent draws from that posterior."""
    rng = np.random.default_rng(0)
    design, residuals = rng.standard_normal((6, 3)), 0.3 * rng.standard_normal(6)
    covariance = np.linalg.inv(8 * design.T @ design + np.eye(3))
    u = rng.multivariate_normal(np.zeros(3), covariance, (CHAINS, DRAWS))
    losses = (residuals - u @ design.T) ** 2 / 2
    return (design, residuals, covariance), losses.astype(np.float32)[..., None]


def made(losses):
    start = {"init_loss": (("chain", "token_pos"), np.zeros((CHAINS, 1)))}
    draws = {"loss_all": (("chain", "draw", "batch_all", "token_pos"), losses)}
    yield xr.DataTree(xr.Dataset(start | draws))
    # The same draws as many short chains, which walk at once: one call for each draw takes its time.
    m = trees.stream({"all": losses.reshape(CHAINS * 100, DRAWS // 100, 6, 1)}, kinds=("sequence",))
    yield xr.DataTree.from_dict({"/moments": xr.Dataset(m.arrays())})


def test_kernel_influence_and_functional_variance_are_the_closed_forms(regression):
    # 21 covariances of independent draws, each within 4.5 of its standard errors: a right program fails with
    # another seed about once in 7,000 times.
    setting, losses = regression
    expected = exact.loss_kernel(*setting)
    flat = losses.reshape(-1, 6).astype(np.float64)
    d = flat - flat.mean(axis=0)
    products = d[:, :, None] * d[:, None, :]
    error = products.std(axis=0) / np.sqrt(len(flat))
    assert np.median(np.diag(error) / np.diag(expected)) < 0.02  # enough draws to see something
    of_trace = np.square(d).sum(axis=1).std() / np.sqrt(len(flat))
    for tree in made(losses):
        kernel = loss_kernel(tree).loss_kernel.values
        assert (np.abs(kernel - expected) < 4.5 * error).all()
        influence = bayesian_influence(tree).bayesian_influence.values
        assert (np.abs(influence - exact.bayesian_influence(*setting)) < 4.5 * error).all()
        for per in ("token", "sequence"):  # of one token each
            total = functional_variance(tree, per).attrs["total"]
            assert total == pytest.approx(exact.functional_variance(*setting), abs=4.5 * of_trace)


SETTINGS = {"lr": 0.02, "n_beta": 60.0, "localization": 2.0}
WALK = {"batch_size": 6, "num_chains": 16, "num_draws": 500, "num_burnin_steps": 60}


@pytest.fixture(scope="module")
def problem():
    """A linear model at its least squares on six points of moderate condition, its points, its closed form."""
    rng = np.random.default_rng(1)
    design = np.linalg.qr(rng.standard_normal((6, 3)))[0] * np.array([3.0, 2.5, 2.0])
    targets = rng.standard_normal(6)
    weights = np.linalg.lstsq(design, targets, rcond=None)[0]
    model = torch.nn.Linear(3, 1, bias=False)
    torch.nn.init.zeros_(model.weight).data += torch.tensor(weights, dtype=torch.float32)
    points = torch.tensor(np.column_stack([design, targets]), dtype=torch.float32)
    precision = SETTINGS["n_beta"] * design.T @ design / 6 + SETTINGS["localization"] * np.eye(3)
    covariance = exact.quadratic_covariance(precision, SETTINGS["lr"])
    return model, points, (design, targets - design @ weights, covariance)


def squares(model, batch):
    return (model(batch[:, :3])[:, 0] - batch[:, 3]).square() / 2


@pytest.fixture(scope="module")
def walked(problem):
    """The same chains with losses at draws and with streamed moments; points as one batch keep their order."""
    model, points, _ = problem
    return [
        sample(
            model, points, {"all": ([points], 1)}, loss_fn=squares, traces=traces, **SETTINGS, **WALK, **extra
        )
        for traces, extra in ((True, {}), (False, {"moments": ("sequence", "token"), "scalar": "all"}))
    ]


def test_chains_have_the_closed_forms_too(problem, walked):
    # Covariances of chains are averaged, and their spread is the standard error. 21 entries of 16 chains, each
    # within the t quantile of 2e-5 on both sides: 1 in 1,200 of right programs fails.
    *_, setting = problem
    expected = exact.loss_kernel(*setting)
    losses = walked[0]["loss_all"].values[..., 0].astype(np.float64)
    d = losses - losses.mean(axis=(0, 1))
    per_chain = np.einsum("cdi,cdj->cij", d, d) / losses.shape[1]
    error = per_chain.std(axis=0, ddof=1) / np.sqrt(len(per_chain))
    assert np.median(np.diag(error) / np.diag(expected)) < 0.1
    bound = t_quantile(1 - 2e-5, len(per_chain) - 1)
    for tree in walked:
        assert (np.abs(loss_kernel(tree).loss_kernel.values - expected) < bound * error).all()
        total = functional_variance(tree).attrs["total"]
        sums = np.trace(per_chain, axis1=1, axis2=2)
        spread = sums.std(ddof=1) / np.sqrt(len(sums))
        assert total == pytest.approx(exact.functional_variance(*setting), abs=bound * spread)


@pytest.mark.parametrize("chains", ["stack", "within"])
@pytest.mark.parametrize("per", ["token", "sequence"])
def test_chains_with_and_without_traces_give_the_same(walked, per, chains):
    options = {"correlation_method": per, "reduce_chain_dimension_method": chains, "compute_covariance": True}
    a, b = (compute_bif(tree, **options) for tree in walked)
    xr.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9)


def test_susceptibilities_of_chains_with_and_without_traces(problem, tmp_path):
    model, points, _ = problem
    more = points.flip(0) * 1.5
    made = [
        susceptibilities(
            model,
            points,
            {"all": (points, 1), "more-of": (more, 1)},
            {"full": None, "first": {"weight": torch.tensor([[True, False, False]])}, "named": "full"},
            sampling_task="all",
            loss_fn=squares,
            traces=traces,
            output_path=tmp_path / f"{traces}.zarr",
            **SETTINGS,
            **WALK | {"num_draws": 40, "num_chains": 4},
        )
        for traces in (True, False)
    ]
    xr.testing.assert_allclose(*made, rtol=1e-5, atol=1e-7)
    sus = made[0]["susceptibilities"].sus
    assert list(sus.wr.values) == ["first", "named"]
    assert np.abs(sus.sel(wr="first") - sus.sel(wr="named")).max() > 1e-3
    stores = {path.name for path in tmp_path.iterdir() if path.suffix == ".zarr"}
    assert stores == {f"{t}_{name}.zarr" for t in (True, False) for name in ("full", "first", "named")}
