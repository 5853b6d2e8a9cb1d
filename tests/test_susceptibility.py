"""Susceptibilities: devinterp's on the same trees, a closed form, equal from draws and moments, standardised."""

import functools
import inspect
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from llc_fast.errors import ArgumentError, ArgumentTypeError
from llc_fast.susceptibility import compute_susceptibilities, susceptibilities

trees = pytest.importorskip("trees", reason="needs xarray: pip install 'llc-fast[store]'")
xr = trees.xr

SUS, CONTEXT = "/susceptibilities", "/context"


@functools.cache
def theirs():
    return pytest.importorskip(
        "devinterp.slt.susceptibilities", reason="needs devinterp 2.0.1: pip install 'llc-fast[dev]'"
    )


def restrictions():
    """Losses under each weight restriction, of which one lost a chain."""
    return {
        "full": trees.losses(0),
        "l0h0": trees.losses(1),
        "l0h1": trees.losses(2, chains=2),
        "l1": trees.losses(3),
    }


def from_draws(losses, **options):
    return {name: trees.traces(x, **options) for name, x in losses.items()}


def from_moments(losses, **options):
    return {name: trees.streamed(x, scalar="pile", **options) for name, x in losses.items()}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"include_sampling_task": True},
        {"observable_names": ["wiki-en"]},
        {"observable_names": ["pile", "code"]},
    ],
    ids=str,
)
def test_it_is_devinterp_s(options):
    wr_map = from_draws(restrictions())
    ours = compute_susceptibilities(wr_map, "pile", **options)
    expected = theirs().compute_susceptibilities(wr_map, "pile", **options)
    # devinterp takes means of products near 9 in float32
    xr.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)
    assert np.abs(expected[SUS].sus.values).max() > 0.4
    assert ours[SUS].sus.dtype == expected[SUS].sus.dtype
    for group in (SUS, CONTEXT):
        assert ours[group].attrs == expected[group].attrs
        assert ours[group].coords.keys() == expected[group].coords.keys()


@pytest.mark.parametrize("ours", [susceptibilities, compute_susceptibilities])
def test_it_takes_devinterp_s_arguments(ours):
    expected = inspect.signature(getattr(theirs(), ours.__name__)).parameters
    got = inspect.signature(ours).parameters
    assert {n: (p.kind, p.default) for n, p in expected.items()}.items() <= {
        n: (p.kind, p.default) for n, p in got.items()
    }.items()


@pytest.mark.parametrize("options", [{}, {"standardise": True}, {"include_sampling_task": True}], ids=str)
def test_draws_and_moments_give_the_same(options):
    losses = restrictions()
    a, b = (
        compute_susceptibilities(wr_map, "pile", **options)
        for wr_map in (from_draws(losses), from_moments(losses))
    )
    xr.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)  # float32 results
    mixed = from_moments(losses) | {"full": trees.traces(losses["full"])}
    xr.testing.assert_allclose(a, compute_susceptibilities(mixed, "pile", **options), rtol=1e-6, atol=1e-7)


def test_small_covariances_of_large_losses_keep_their_digits():
    rng = np.random.default_rng(5)
    noise = rng.standard_normal((2, 400, 1, 1))
    losses = {}
    for name in ("full", "part"):
        task = 10 + 1e-3 * noise + np.zeros((1, 1, 2, 3))
        probe = 10 + 1e-3 * noise * np.arange(-1, 3).reshape(1, 1, 4, 1) + np.zeros((1, 1, 1, 3))
        losses[name] = {"task": task.astype(np.float32), "probe": probe.astype(np.float32)}
    wide = {k: {n: x.astype(np.float64) for n, x in v.items()} for k, v in losses.items()}
    s = wide["part"]["task"].mean((2, 3))
    x = wide["part"]["probe"]
    ds = s - s.mean()
    fluctuation = (ds[:, :, None, None] * (s[:, :, None, None] - x)).mean((0, 1))
    # With the restriction's draws those of the whole model, the second term is a difference of equal numbers.
    assert 1e-7 < np.abs(fluctuation).min(where=np.abs(fluctuation) > 1e-9, initial=1) < 1e-5
    for tree in (
        {k: trees.xr.DataTree(_root(v)) for k, v in losses.items()},
        {k: _moments(v) for k, v in losses.items()},
    ):
        got = compute_susceptibilities(tree, "task")[SUS].sus.values.reshape(4, 3)
        np.testing.assert_allclose(got, fluctuation, rtol=1e-5, atol=1e-12)


def _root(losses):
    return xr.Dataset(
        {"init_loss": (("chain", "token_pos"), np.full((2, 3), 9.9, np.float32))}
        | {f"loss_{n}": (("chain", "draw", f"batch_{n}", "token_pos"), x) for n, x in losses.items()}
    )


def _moments(losses):
    m = trees.stream(losses, scalar="task")
    root = _root(losses)[["init_loss"]]
    return xr.DataTree.from_dict({"/": root, "/moments": xr.Dataset(m.arrays())})


def test_standardised_columns_have_mean_0_and_variance_1_and_can_be_undone():
    wr_map = from_draws(restrictions())
    plain = compute_susceptibilities(wr_map, "pile")[SUS]
    made = compute_susceptibilities(wr_map, "pile", standardise=True)[SUS]
    np.testing.assert_allclose(made.sus.mean("sus_flat"), 0, atol=1e-6)
    np.testing.assert_allclose(made.sus.std("sus_flat"), 1, rtol=1e-6)
    np.testing.assert_allclose(made.sus * made.sus_std + made.sus_mean, plain.sus, rtol=1e-5, atol=1e-6)
    assert list(plain.data_vars) == ["sus"]


def test_a_restriction_that_does_not_move_has_no_standardised_column():
    losses = restrictions()
    losses["l1"] = {name: np.full_like(x, 2.9) for name, x in losses["l1"].items()}
    for made in (from_draws(losses), from_moments(losses)):
        for tree in made.values():
            tree["init_loss"].values[:] = 2.9
        sus = compute_susceptibilities(made, "pile", standardise=True)[SUS].sus
        assert np.isnan(sus.sel(wr="l1")).all()
        assert np.isfinite(sus.sel(wr=["l0h0", "l0h1"])).all()


def test_data_without_tokens_have_no_context():
    got = compute_susceptibilities(from_draws(restrictions(), ids=False), "pile")
    assert list(got.children) == ["susceptibilities"]


def test_what_cannot_be_computed():
    losses = restrictions()
    wr_map, moments = from_draws(losses), from_moments(losses)
    other = trees.traces(trees.losses(1))
    other["input_ids_code"].values[0, 0] += 1
    for call, message in [
        (
            lambda: compute_susceptibilities({"full": wr_map["full"]}, "pile"),
            "at least one weight restriction",
        ),
        (lambda: compute_susceptibilities({"l1": wr_map["l1"]}, "pile"), "give 'full'"),
        (lambda: compute_susceptibilities(wr_map, "stack"), "sampling_task is 'stack'"),
        (lambda: compute_susceptibilities(wr_map, "pile", ["code", "x"]), r"observables are \['code', 'x'\]"),
        (
            lambda: compute_susceptibilities(
                from_draws({n: {"pile": x["pile"]} for n, x in losses.items()}), "pile"
            ),
            "include_sampling_task=True",
        ),
        (lambda: compute_susceptibilities(moments, "code"), "scalar 'pile', not with 'code'.*scalar='code'"),
        (lambda: compute_susceptibilities(wr_map | {"l1": other}, "pile"), "'code' of 'l1' has other tokens"),
        (
            lambda: compute_susceptibilities(
                from_draws(
                    {"full": losses["full"], "a": trees.losses(1, sizes=trees.SIZES | {"code": 1})}, ids=False
                ),
                "pile",
            ),
            r"shapes \(1, 5\) and, of 'full', \(4, 5\)",
        ),
    ]:
        with pytest.raises(ArgumentError, match=message):
            call()
    with pytest.raises(ArgumentTypeError, match="give a dictionary"):
        compute_susceptibilities(list(wr_map.values()), "pile")


def test_susceptibilities_samples_each_restriction(monkeypatch, tmp_path):
    losses, asked = restrictions(), []
    made = {"full": losses["full"], "head": losses["l0h0"], "masks": losses["l1"]}

    def sample(*args, **kwargs):
        asked.append(kwargs)
        x = list(made.values())[(len(asked) - 1) % 3]
        return trees.streamed(x, scalar=kwargs["scalar"]) if "scalar" in kwargs else trees.traces(x)

    monkeypatch.setitem(sys.modules, "llc_fast.dropin", SimpleNamespace(sample=sample))
    observables = dict.fromkeys(losses["full"], "data")
    masks = {"weight": None}
    call = functools.partial(
        susceptibilities,
        torch.nn.Linear(1, 1),
        "data",
        observables,
        {"full": None, "head": "l0h0", "masks": masks},
        sampling_task="pile",
        lr=1e-3,
        n_beta=30.0,
        output_path=tmp_path / "samples.zarr",
    )
    a, b = call(), call(traces=False)
    expected = compute_susceptibilities(from_draws(made), "pile")
    xr.testing.assert_identical(a, expected)
    xr.testing.assert_allclose(b, expected, rtol=1e-6, atol=1e-7)
    common = {"lr": 1e-3, "n_beta": 30.0, "loss_fn": None}
    for name, kwargs, own in zip(
        made, asked, [{}, {"component": "l0h0"}, {"param_masks": masks}], strict=False
    ):
        assert kwargs == common | own | {"output_path": tmp_path / f"samples_{name}.zarr"}
    assert all(kwargs["scalar"] == "pile" for kwargs in asked[3:])
    model = torch.nn.Linear(1, 1)
    for restricted, given, task, message in [
        ({"head": "l0h0"}, observables, "pile", "weight_restrictions has no 'full'"),
        ({"full": None}, observables, "pile", "add the components"),
        ({"full": None, "a": "l0"}, observables, "x", "sampling_task is 'x'"),
        ({"full": None, "a": "l0"}, {"pile": "data"}, "pile", "no observable besides"),
    ]:
        with pytest.raises(ArgumentError, match=message):
            susceptibilities(model, "data", given, restricted, sampling_task=task, lr=1e-3, n_beta=3.0)
