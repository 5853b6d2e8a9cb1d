"""The tree that `sample` makes, against the step's own op, sums by hand and devinterp's readers."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from llc_fast import create_param_masks, estimate_llc, sgld_step_
from llc_fast.dropin import llc, sample
from llc_fast.errors import ArgumentError, ArgumentTypeError, BackendError, ChainError, DataError
from llc_fast.lm import token_losses
from llc_fast.sampling import RECORD, Order, batch_order
from llc_fast.selection import parameter_table
from llc_fast.tree_llc import compute_llc, evidence_of, result_of

pytest.importorskip("xarray")
pytest.importorskip("zarr")

VOCABULARY, LENGTH, BATCH = 11, 5, 4
RUN = {"lr": 1e-3, "n_beta": 10.0, "localization": 10.0, "batch_size": BATCH, "batches_per_draw": 1}
SHORT = RUN | {"num_chains": 3, "num_draws": 8}


class LM(nn.Module):
    """A small language model that sees one token."""

    def __init__(self, width=6, dropout=0.0):
        super().__init__()
        torch.manual_seed(0)
        self.e, self.u = nn.Embedding(VOCABULARY, width), nn.Linear(width, VOCABULARY)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):
        return self.u(self.dropout(torch.tanh(self.e(x))))


def tokens(seed, count=40):
    return torch.randint(0, VOCABULARY, (count, LENGTH), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def model():
    return LM()


def test_losses_are_those_of_the_step_itself(model):
    """Every loss, token and observable of chains that walk one by one, bit for bit."""
    ids, probe = tokens(1), tokens(2)
    tree = sample(
        model, ids, {"a probe": probe}, num_burnin_steps=3, num_steps_bw_draws=2, stacked=False, **SHORT
    )
    ds, places = tree.dataset, tree["llc_fast"].batch.values[:, :, 0]
    params = list(model.parameters())
    table = parameter_table(model)
    numbers = [table[name] for name, _ in model.named_parameters()]
    w0 = [p.detach().clone() for p in params]
    pool = ds.sampling_input_ids_micro.values
    shown = torch.from_numpy(ds.input_ids_a_probe.values)
    for chain in range(3):
        seen = set()
        for step in range(19):
            epoch, position = divmod(step, 10)
            assert places[chain, step] == batch_order(100, chain, epoch, 10)[position]
            seen.add(places[chain, step])
            batch = torch.from_numpy(pool[chain, step])
            loss = token_losses(model, batch)
            np.testing.assert_array_equal(ds.sampling_loss_micro.values[chain, step], loss.detach())
            draw, rest = divmod(step - 3, 2)
            if step >= 3 and not rest:
                np.testing.assert_array_equal(ds.sampling_loss.values[chain, draw], loss.detach())
                with torch.no_grad():
                    observed = token_losses(model, shown)
                np.testing.assert_array_equal(ds.loss_a_probe.values[chain, draw], observed)
                squared = sum(
                    float((p.detach() - a).double().square().sum()) for p, a in zip(params, w0, strict=True)
                )
                assert tree["llc_fast"].distance.values[chain, draw] == pytest.approx(squared, rel=1e-5)
            grads = list(torch.autograd.grad(loss.mean(dtype=torch.float64), params))
            sgld_step_(
                params,
                grads,
                w0,
                lr=1e-3,
                nbeta=10.0,
                localization=10.0,
                seed=100,
                chain=chain,
                step=step,
                tensor_ids=numbers,
            )
        assert len(seen) == 10
        with torch.no_grad():
            for p, a in zip(params, w0, strict=True):
                p.copy_(a)


def test_the_pool_is_the_one_that_devinterp_takes(model):
    """The batches of a DataLoader over the dataset, with its generator seeded by init_seed."""
    ids = tokens(1, 43)
    tree = sample(model, ids, num_burnin_steps=4, init_seed=7, **SHORT)
    generator = torch.Generator().manual_seed(7)
    loader = torch.utils.data.DataLoader(ids, BATCH, shuffle=True, generator=generator, drop_last=True)
    expected = torch.stack(list(loader))
    taken = tree.dataset.sampling_input_ids_micro.values
    places = tree["llc_fast"].batch.values[:, :, 0]
    np.testing.assert_array_equal(taken, expected[places])
    assert len({tuple(order) for order in places.tolist()}) == 3


def test_estimate_llc_gives_the_same(model):
    """On the same pool: the same chains, so the same numbers."""
    ids = tokens(1)
    tree = sample(
        model,
        ids,
        seed=5,
        num_burnin_steps=10,
        lr=1e-3,
        n_beta=10.0,
        localization=10.0,
        num_chains=3,
        num_draws=20,
        batch_size=BATCH,
    )
    generator = torch.Generator().manual_seed(100)
    loader = torch.utils.data.DataLoader(ids, BATCH, shuffle=True, generator=generator, drop_last=True)
    direct = estimate_llc(
        model,
        token_losses,
        list(loader),
        lr=1e-3,
        nbeta=10.0,
        localization=10.0,
        num_chains=3,
        num_draws=20,
        num_burnin_steps=10,
        seed=5,
    )
    result = result_of(tree)
    for name in (
        "llc_mean",
        "llc_std",
        "mcse",
        "dof",
        "r_hat",
        "r_hat_distance",
        "ess",
        "order_bias",
        "gradient_term",
    ):
        assert getattr(result, name) == pytest.approx(getattr(direct, name), rel=1e-9, nan_ok=True), name
    np.testing.assert_allclose(result.loss_trace, direct.loss_trace, rtol=1e-12)
    assert result.settings["data_sha256"] == direct.settings["data_sha256"]


def test_devinterp_reads_it(model):
    """Its three functions on our tree; its LLC is ours over all steps, since init_loss is of the batches visited."""
    theirs = pytest.importorskip("devinterp.slt.llc", exc_type=ImportError)
    from devinterp.slt.bif import compute_bif
    from devinterp.slt.config import SamplerConfig
    from devinterp.slt.susceptibilities import compute_susceptibilities

    observables = {"probe": tokens(2), "task": tokens(1)}
    tree = sample(model, tokens(1), observables, **SHORT)
    part = sample(model, tokens(1), observables, component="u.weight", **SHORT)
    old, new = theirs.compute_llc(tree), compute_llc(tree)
    for name in ("llc_mean", "llc_std", "llc_scalar", "init_loss"):
        assert float(new[name]) == pytest.approx(float(old[name]), rel=2e-4), name
    np.testing.assert_allclose(new.llc_per_chain, old.llc_per_chain, rtol=2e-4)
    np.testing.assert_allclose(new.loss_trace, old.loss_trace, rtol=1e-5)
    assert new.loss_trace.dims == old.loss_trace.dims
    assert compute_bif(tree).influences.shape == (8, 8, LENGTH - 1, LENGTH - 1)
    found = compute_susceptibilities({"full": tree, "u": part}, "task")
    assert np.isfinite(found["susceptibilities"].sus.values).all()
    stored = tree.attrs["metadata"]["config"]["sampler"]
    constants = {"scheduler_type": "constant", "scheduler_kwargs": None, "cores": 1, "online": False}
    config = SamplerConfig(
        lr=1e-3, n_beta=10.0, localization=10.0, batch_size=BATCH, num_chains=3, num_draws=8
    )
    assert stored == {**config.model_dump(), **constants}
    assert tree.attrs["completed"] == 1


def test_defaults_are_devinterp_s():
    import inspect

    sampling = pytest.importorskip("devinterp.slt.sampling", exc_type=ImportError)
    theirs = inspect.signature(sampling.sample).parameters
    ours = inspect.signature(sample).parameters
    assert list(ours)[: len(theirs)] == list(theirs)
    for name, parameter in theirs.items():
        if name != "observables":  # which may be left out here
            assert (ours[name].default, ours[name].kind) == (parameter.default, parameter.kind), name


def test_gradient_accumulation_is_a_larger_batch(model):
    """Two batches of 4 a step move the weights as one of 8 does, to rounding."""
    ids = tokens(1, 8)
    one = sample(model, ids, num_draws=6, shuffle=False, num_chains=2, **RUN | {"batch_size": 8})
    two = sample(model, ids, num_draws=6, shuffle=False, num_chains=2, gradient_accumulation_steps=2, **RUN)
    np.testing.assert_allclose(two["llc_fast"].loss, one["llc_fast"].loss, rtol=1e-5)
    np.testing.assert_allclose(two["llc_fast"].distance, one["llc_fast"].distance, rtol=1e-5)
    assert two.dataset.sampling_loss_micro.shape == (2, 6, 8, LENGTH - 1)
    np.testing.assert_allclose(
        two.dataset.sampling_loss.values,
        two.dataset.sampling_loss_micro.values.reshape(2, 6, 2, 4, -1).mean(axis=2),
        rtol=1e-6,
    )


def test_unmatched_chains_share_no_sequence(model):
    ids = torch.arange(40).view(-1, 1).expand(-1, 2) % VOCABULARY
    ids = torch.cat([ids, (torch.arange(40)[:, None] // torch.tensor([11, 121, 1331])) % VOCABULARY], dim=1)
    tree = sample(model, ids, match_sampling_input_ids_across_chains=False, **SHORT)
    rows = tree.dataset.sampling_input_ids_micro.values.reshape(3, -1, LENGTH)
    sets = [{tuple(row) for row in chain} for chain in rows]
    assert all(len(s) == 12 for s in sets)
    assert not sets[0] & sets[1]
    assert not sets[0] & sets[2]
    assert not sets[1] & sets[2]
    assert evidence_of(tree).disjoint_pools


def test_fresh_batches_are_drawn_apart(model):
    """The same chains; draws on batches of another order, each against its own loss at w0."""
    plain = sample(model, tokens(1), stacked=False, **SHORT)
    fresh = sample(model, tokens(1), fresh_batches=True, stacked=False, **SHORT)
    np.testing.assert_array_equal(plain["llc_fast"].loss, fresh["llc_fast"].loss)
    base = fresh["llc_fast"].baseline.values
    order = Order(100, [0, 1, 2], [range(8)] * 3, RECORD)
    for draw in range(8):
        places = order.take(draw, 1)[:, 0]
        means = fresh.dataset.sampling_loss.values[:, draw].astype(float).mean(axis=(1, 2))
        np.testing.assert_allclose(fresh["llc_fast"].gain.values[:, draw], means - base[places], atol=1e-6)
    assert not np.array_equal(plain["llc_fast"].gain, fresh["llc_fast"].gain)
    assert evidence_of(fresh).fresh_batches


def test_halves_of_the_pool(model):
    tree = sample(model, tokens(1), pool_check=True, **SHORT)
    assert tree["half_pool"].gain.shape == (3, 8)
    result = result_of(tree)
    gains, halves = tree["llc_fast"].gain.values, tree["half_pool"].gain.values
    pair = halves[:2]  # the only whole one
    assert result.pool_bias == pytest.approx(10.0 * (gains.mean() - pair.mean()))
    assert "num_chains >= 4" in result.verdict["pool bias"].advice
    alone = sample(model, tokens(1), **SHORT)
    np.testing.assert_array_equal(alone["llc_fast"].gain, gains)


def test_init_noise_moves_the_start_and_not_the_baseline(model):
    """E|w - w0|^2 at step 0 is init_noise^2 times the weights; w0 stays the anchor and the baseline."""
    quiet = sample(model, tokens(1), **SHORT)
    tree = sample(model, tokens(1), init_noise=0.02, lr=0.0, **{k: v for k, v in SHORT.items() if k != "lr"})
    count = sum(p.numel() for p in model.parameters())
    assert tree["llc_fast"].distance.values[:, 0] == pytest.approx(0.02**2 * count, rel=0.3)
    assert len({*tree["llc_fast"].distance.values[:, 0]}) == 3
    np.testing.assert_array_equal(tree["llc_fast"].baseline, quiet["llc_fast"].baseline)
    np.testing.assert_allclose(tree["llc_fast"].loss[:, 0] != quiet["llc_fast"].loss[:, 0], True)


def test_streamed_moments_are_those_of_the_traces(model):
    observables = {"probe": tokens(2), "task": (tokens(1), 2)}
    kept = sample(model, tokens(1), observables, **SHORT)
    streamed = sample(model, tokens(1), observables, traces=False, **SHORT)
    losses = kept.dataset.loss_probe.values.astype(float)
    np.testing.assert_allclose(streamed["moments"].mean_probe, losses.mean(axis=1), rtol=1e-12)
    np.testing.assert_allclose(streamed["moments"].m2_probe, losses.var(axis=1) * 8, rtol=1e-7, atol=1e-15)
    drawn = kept.dataset.sampling_loss.values.astype(float).mean(axis=(2, 3))
    cross = (
        (losses - losses.mean(axis=1, keepdims=True))
        * (drawn - drawn.mean(axis=1, keepdims=True))[..., None, None]
    ).sum(axis=1)
    np.testing.assert_allclose(streamed["moments"].cross_probe, cross, rtol=1e-6, atol=1e-12)
    assert not [name for name in streamed.dataset if name.startswith(("loss_", "sampling_"))]
    a, b = compute_llc(kept), compute_llc(streamed)
    assert float(a.llc_mean) == float(b.llc_mean)
    np.testing.assert_array_equal(a.loss_trace, b.loss_trace)


def test_dead_chains_are_kept_apart(model):
    """A loss that ends where a weight passes a bound: some chains die; theirs is under /dead, and not counted."""

    def fragile(model, batch):
        losses = token_losses(model, batch)
        return torch.where(model.u.bias[0] > model.u.bias[0].new_tensor(bound), torch.nan, losses)

    bound = float(model.u.bias[0]) + 0.05
    run = SHORT | {"num_chains": 6, "num_draws": 12}
    for stacked in (False, True):
        tree = sample(model, tokens(1), loss_fn=fragile, stacked=stacked, **run)
        ours = tree.attrs["llc_fast"]
        died = [int(chain) for chain in ours["dead"]]
        assert 0 < len(died) < 6
        assert sorted(died + ours["chains"]) == list(range(6))
        assert tree.dataset.sizes["chain"] == 6 - len(died)
        assert tree["dead"].sampling_loss_micro.sizes["dead_chain"] == len(died)
        assert np.isfinite(tree.dataset.sampling_loss_micro.values).all()
        whole = sample(model, tokens(1), stacked=stacked, **run)
        np.testing.assert_array_equal(tree["llc_fast"].loss, whole["llc_fast"].loss.values[ours["chains"]])
        result = result_of(tree)
        assert sorted(result.dead_chains) == died
        assert all("loss nan at step" in reason for reason in result.dead_chains.values())
        assert np.isnan(result.llc_per_chain[died]).all()
        assert not result.verdict.ok
        data = compute_llc(tree)
        assert data.sizes["chain"] == 6 - len(died)
        assert json.loads(data.attrs["dead_chains"])
        old = pytest.importorskip("devinterp.slt.llc", exc_type=ImportError).compute_llc(tree)
        assert math.isfinite(float(old.llc_mean))


def test_all_dead_is_an_error(model):
    with pytest.raises(ChainError, match="every chain died"):
        sample(model, tokens(1), bounding_box_size=1e-3, **SHORT)


def test_other_data_and_losses(model):
    """Tensors with one loss a sample, batches with a scalar loss, a ragged last batch."""
    x, y = torch.randn(10, 3), torch.randn(10, 1)
    linear = nn.Linear(3, 1)

    def each(m, batch):
        return (m(batch[0]) - batch[1]).square().squeeze(1)

    run = {"lr": 1e-3, "n_beta": 5.0, "num_chains": 2, "num_draws": 6}
    tree = sample(linear, (x, y), {"same": ((x, y), 1)}, batch_size=5, loss_fn=each, **run)
    assert tree.dataset.sampling_loss_micro.shape == (2, 6, 5, 1)
    assert tree.dataset.loss_same.shape == (2, 6, 5, 1)
    assert "sampling_input_ids_micro" not in tree.dataset
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=4)
    ragged = sample(linear, loader, loss_fn=each, **run)
    assert ragged.dataset.sampling_loss_micro.shape == (2, 6, 4, 1)
    last = ragged["llc_fast"].batch.values[:, :, 0] == 2
    assert np.isnan(ragged.dataset.sampling_loss_micro.values[last][:, 2:]).all()
    assert np.isfinite(ragged.dataset.sampling_loss_micro.values[last][:, :2]).all()
    scalar = sample(linear, loader, loss_fn=lambda m, b: each(m, b).mean(), **run)
    assert scalar.dataset.sampling_loss_micro.shape == (2, 6, 1, 1)
    np.testing.assert_allclose(scalar["llc_fast"].loss, ragged["llc_fast"].loss, rtol=1e-5)


def test_masks_and_components_select_the_same(model):
    masks = create_param_masks(model, ["u.weight", "u.bias"])
    a = sample(model, tokens(1), param_masks=masks, **SHORT)
    b = sample(model, tokens(1), component=["u.weight", "u.bias"], **SHORT)
    np.testing.assert_array_equal(a["llc_fast"].loss, b["llc_fast"].loss)
    half = {"u.weight": torch.arange(66).view(11, 6) % 2 == 0}
    tree = sample(model, tokens(1), param_masks=half, **SHORT)
    assert tree.attrs["llc_fast"]["settings"]["weights"] == 33


@pytest.mark.parametrize("zero", ["lr", "n_beta"])
def test_controls_are_legal_and_flagged(model, zero):
    result = result_of(sample(model, tokens(1), **SHORT | {zero: 0.0}))
    assert result.llc_mean == 0.0
    assert any("is 0: a control, not an estimate" in note for note in result.notes)


def test_the_model_comes_back(model):
    model = LM(dropout=0.1).train()
    model.u.bias.requires_grad_(False)
    model.e.weight.grad = torch.ones_like(model.e.weight)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.get_rng_state()
    for stacked in (None, False):
        sample(model, tokens(1), {"p": tokens(2)}, stacked=stacked, **SHORT)
        sample(model, tokens(1), eval_mode=False, stacked=False, **SHORT)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert model.training
    assert not model.u.bias.requires_grad
    assert model.e.weight.requires_grad
    assert torch.equal(model.e.weight.grad, torch.ones_like(model.e.weight))
    assert torch.equal(torch.get_rng_state(), state)


def test_metrics_are_those_of_the_steps(model):
    """Norms of the parts of each update; the distance is that of the draws."""
    tree = sample(model, tokens(1), save_metrics=True, **SHORT)
    np.testing.assert_allclose(tree.dataset.metrics_distance**2, tree["llc_fast"].distance, rtol=1e-5)
    assert tree.attrs["metrics_numel"] == sum(p.numel() for p in model.parameters())
    noise = tree.dataset.metrics_noise.values
    assert noise == pytest.approx(math.sqrt(1e-3 * tree.attrs["metrics_numel"]), rel=0.25)


def test_llc_is_compute_llc_of_sample(model):
    a, b = llc(model, tokens(1), **SHORT), compute_llc(sample(model, tokens(1), **SHORT))
    assert a.equals(b)
    assert {"llc_mean", "llc_std", "llc_per_chain", "llc_scalar", "loss_trace", "init_loss", "mcse"} <= {*a}
    low, high = float(a.interval_low), float(a.interval_high)
    assert low < float(a.llc_mean) < high
    assert json.loads(a.attrs["verdict"])["checks"]


BAD = [
    ({"n_beta": -1.0}, ArgumentError, "n_beta"),
    ({"lr": math.nan}, ArgumentError, "lr"),
    ({"llc_weight_decay": -1.0}, ArgumentError, "llc_weight_decay"),
    ({"num_draws": 0}, ArgumentError, "num_draws"),
    ({"sampling_method": "adam"}, ArgumentError, "sampling_method"),
    ({"rmsprop_eps": 0.1}, ArgumentError, "rmsprop_eps"),
    ({"sampling_method_kwargs": {"nbeta": 3}}, ArgumentError, "nbeta"),
    ({"device": "nowhere"}, ArgumentError, "device"),
    ({"component": "e.weight", "param_masks": {"e.weight": None}}, ArgumentError, "both given"),
    ({"param_masks": {"e.weight": torch.zeros(11, 6, dtype=torch.bool)}}, ArgumentError, "selects no weight"),
    ({"batch_size": 64}, DataError, "batch"),
    ({"moments": ("all",), "traces": False}, ArgumentError, "moments"),
    ({"loss_fn": lambda m, b: token_losses(m, b).mean()}, ArgumentError, "loss_fn"),
    ({"loss_fn": 3}, ArgumentTypeError, "loss_fn"),
    ({"pool_check": True, "batch_size": 40}, ArgumentError, "pool_check"),
    ({"obs_seed": None}, ArgumentTypeError, "obs_seed"),
    ({"init_seed": 2**70}, ArgumentError, "init_seed"),
    ({"moments": ("all",)}, ArgumentError, "moments"),
    ({"scalar": "nothing"}, ArgumentError, "scalar"),
    ({"bounding_box_size": 0.0}, ArgumentError, "bounding_box_size"),
    ({"dataset": tokens(1) + 40}, DataError, "vocabulary"),
    (
        {"loss_fn": lambda m, b: token_losses(m, b) * torch.where(b[:, :1] == 0, torch.nan, 1.0)},
        ChainError,
        "w0",
    ),
    ({"backend": "abacus"}, BackendError, "backend"),
]


@pytest.mark.parametrize(("change", "error", "word"), BAD, ids=lambda v: str(v)[:30])
def test_bad_input_is_refused_before_sampling(model, change, error, word, tmp_path):
    out = tmp_path / "out.zarr"
    steps = []
    with pytest.raises(error, match=word):
        sample(
            model,
            observables={"p": tokens(2)},
            output_path=out,
            progress=lambda *a: steps.append(a),
            **{"dataset": tokens(1)} | SHORT | change,
        )
    assert not steps
    assert not [*tmp_path.iterdir()]


def test_weights_that_are_not_finite_are_refused(tmp_path):
    model = LM()
    with torch.no_grad():
        model.e.weight[0, 0] = math.nan
    with pytest.raises(ValueError, match=r"e\.weight.*finite"):
        sample(model, tokens(1), output_path=tmp_path / "x.zarr", **SHORT)
    assert not [*tmp_path.iterdir()]


def test_one_chain_without_traces_is_kept(model):
    tree = sample(model, tokens(1), {"p": tokens(2)}, traces=False, **SHORT | {"num_chains": 1})
    assert tree["llc_fast"].loss.shape == (1, 8)
    assert tree["moments"]["count"].values.tolist() == [8]
    assert math.isfinite(float(compute_llc(tree).llc_mean))


def test_with_pools_of_their_own_the_gradient_at_w0_is_not_known(model):
    """That of all pools together says nothing of the pull of each chain's own."""
    tree = sample(model, tokens(1), match_sampling_input_ids_across_chains=False, **SHORT)
    result = result_of(tree)
    assert math.isnan(result.gradient_term)
    assert result.verdict["gradient at w0"].ok is None
    shared = result_of(sample(model, tokens(1)[:12], **SHORT))  # 3 batches of 4, as each chain has 3 of 9
    assert 0.3 < result.order_bias / shared.order_bias < 3


def test_losses_of_one_shape_are_wanted(tmp_path):
    batches = [(torch.randn(4, k, 6),) for k in (5, 3)]
    with pytest.raises(DataError, match="3 losses a sample for batch 1, 5 for batch 0"):
        sample(
            nn.Linear(6, 2),
            batches,
            loss_fn=lambda m, b: m(b[0]).square().sum(-1),
            output_path=tmp_path / "x.zarr",
            lr=1e-3,
            n_beta=5.0,
        )
    assert not [*tmp_path.iterdir()]


def test_a_shuffling_loader_leaves_the_random_state(model):
    loader = torch.utils.data.DataLoader(tokens(1), batch_size=4, shuffle=True)
    before = torch.get_rng_state()
    sample(model, loader, **SHORT)
    assert torch.equal(torch.get_rng_state(), before)
