"""Chains of a small model that walk at once: the same noise, the same chains to rounding, each on its own."""

import numpy as np
import pytest
import torch
from test_sample import LM, SHORT, tokens
from torch import nn

from llc_fast import estimate_llc, select
from llc_fast.errors import ArgumentError
from llc_fast.sampling import Order, Schedule, walk
from llc_fast.scalars import Scalars
from llc_fast.session import Request, lent


def each(model, batch):
    return (model(batch[:, :3]) - batch[:, 3:]).square().sum(dim=1)


def network(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).to(dtype)


def pool(dtype=torch.float32, count=4):
    return list(torch.randn(count, 6, 5, generator=torch.Generator().manual_seed(1)).to(dtype))


RUN = {"lr": 1e-3, "nbeta": 20.0, "localization": 5.0, "num_draws": 12, "num_burnin_steps": 4}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_without_gradients_bits_are_equal(dtype):
    """A loss that the weights hardly matter to: what moves them is noise and prior, of equal bits."""
    model, data = network(dtype), pool(dtype)
    names = ["0.weight", "2.bias"]
    scalars = Scalars.check(lr=1e-3, nbeta=0.0, localization=5.0)
    request = Request(
        select(model, names), scalars, "sgld", "split", "gaussian", 7, "auto", True, init_noise=0.01
    )
    schedule = Schedule(3, 2, 2)
    with lent(model, each, data, request) as session:
        session.look()
        session.settings["stacked"] = True
        assert session.stackable() == ""
        together = session.stacked([2, 3, 5])
        walk(together, Order(7, [2, 3, 5], [range(4)] * 3), scalars, schedule)
        weights = [p.detach().clone() for p in together.plan.params]
        rests = [None if r is None else r.clone() for r in together.plan.remainders]
        session.settings["stacked"] = False
        for i, chain in enumerate([2, 3, 5]):
            alone = session.walkers([chain])
            walk(alone, Order(7, [chain], [range(4)]), scalars, schedule)
            for p, stacked in zip(alone.plan.params, weights, strict=True):
                assert torch.equal(p, stacked[i])
            for r, stacked in zip(alone.plan.remainders, rests, strict=True):
                assert r is None or torch.equal(r, stacked[i])


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"component": "0.weight"},
        {"sampler": "rmsprop_sgld"},
        {"sampler": "sghmc", "lr": 1e-4},
        {"sampler": "sgnht", "lr": 1e-4},
        {"bounding_box_size": 0.2, "weight_decay": 0.1},
        {"control_variates": True},
    ],
    ids=str,
)
def test_chains_are_those_that_walk_alone(settings):
    """In float64 gradients agree to 1e-15; noise, thermostats, boxes and all that is measured are each chain's own."""
    model = network(torch.float64)
    a, b = (
        estimate_llc(model, each, pool(torch.float64), stacked=stacked, seed=3, **RUN | settings)
        for stacked in (False, True)
    )
    assert (a.settings["stacked"], b.settings["stacked"]) == (False, True)
    np.testing.assert_allclose(a.loss_trace, b.loss_trace, rtol=1e-9)
    for name in (
        "llc_mean",
        "r_hat",
        "r_hat_distance",
        "order_bias",
        "gradient_term",
        "temperature",
        "llc_scalar",
    ):
        assert getattr(b, name) == pytest.approx(getattr(a, name), rel=1e-6, nan_ok=True), name
    assert b.controlled == (None if a.controlled is None else pytest.approx(a.controlled, rel=1e-6))


def test_a_dead_chain_leaves_the_others_alone():
    """A loss that is NaN beyond a bound kills chains at different steps; the rest walk as without it."""
    model = network(torch.float64)
    bound = float(model[2].bias[0].detach()) + 0.03

    def fragile(m, batch):
        return torch.where(m[2].bias[0] > bound, torch.nan, each(m, batch))

    run = RUN | {"num_chains": 8, "stacked": True}
    free, frail = (
        estimate_llc(model, each, pool(torch.float64), **run),
        estimate_llc(model, fragile, pool(torch.float64), **run),
    )
    dead = sorted(frail.dead_chains)
    assert 0 < len(dead) < 8
    live = [chain for chain in range(8) if chain not in dead]
    np.testing.assert_allclose(frail.loss_trace[live], free.loss_trace[live], rtol=1e-12)
    assert len({frail.dead_chains[chain] for chain in dead}) > 1


def test_what_cannot_be_stacked_walks_alone():
    """By default; on demand it is an error that says why."""

    def reading(model, batch):
        return each(model, batch) * (1.0 if model(batch[:, :3]).sum().item() < 1e9 else 2.0)

    alone = estimate_llc(network(), reading, pool(), **RUN)
    assert alone.settings["stacked"] is False
    np.testing.assert_array_equal(
        alone.loss_trace, estimate_llc(network(), each, pool(), stacked=False, **RUN).loss_trace
    )
    for model, loss, extra, why in (
        (network(), reading, {}, "vmap"),
        (network(torch.float16), each, {}, "float16"),
        (network(), each, {"num_chains": 1}, "one chain"),
        (network(), each, {"eval_mode": False}, "eval_mode"),
        (
            nn.Sequential(nn.Linear(3, 2), nn.Identity(), nn.Embedding(2**19, 4)),
            lambda m, b: (m[0](b[:, :3]) - b[:, 3:]).square().sum(dim=1),
            {},
            "weights",
        ),
    ):
        data = pool(next(model.parameters()).dtype)
        with pytest.raises(ArgumentError, match=f"stacked is True, but.*{why}"):
            estimate_llc(model, loss, data, stacked=True, **RUN | extra)


def test_ragged_batches_walk_alone():
    data = [*pool(), pool()[0][:2]]
    assert estimate_llc(network(), each, data, **RUN).settings["stacked"] is False


def test_transformers_models_stack():
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("zarr")
    from llc_fast.dropin import sample

    config = transformers.GPTNeoXConfig(
        vocab_size=11, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    model = transformers.GPTNeoXForCausalLM(config)
    trees = [
        sample(model, tokens(1), {"p": tokens(2)}, stacked=stacked, **SHORT) for stacked in (None, False)
    ]
    assert trees[0].attrs["llc_fast"]["settings"]["stacked"]
    for name in ("sampling_loss_micro", "loss_p", "init_loss"):
        np.testing.assert_allclose(trees[0].dataset[name], trees[1].dataset[name], rtol=1e-4)


def test_bundles_are_no_larger_than_memory_allows(monkeypatch):
    import llc_fast.session as session

    whole = estimate_llc(network(torch.float64), each, pool(torch.float64), **RUN | {"num_chains": 5})
    monkeypatch.setattr(session, "MAX_STACKED", 2 * 32)  # of a model with 32 weights
    parts = estimate_llc(network(torch.float64), each, pool(torch.float64), **RUN | {"num_chains": 5})
    assert parts.settings["stacked"]
    np.testing.assert_allclose(parts.loss_trace, whole.loss_trace, rtol=1e-9)


def test_observables_of_stacked_chains():
    pytest.importorskip("zarr")
    from llc_fast.dropin import sample

    a, b = (sample(LM().double(), tokens(1), {"p": tokens(2)}, stacked=s, **SHORT) for s in (False, True))
    np.testing.assert_allclose(a.dataset.loss_p, b.dataset.loss_p, rtol=1e-6)


def test_weights_that_a_loss_holds_by_itself_are_seen():
    """A penalty on parameters that the loss has captured, or that a module keeps in a list, beside the chains' own."""
    model = network()
    held = list(model.parameters())

    def captured(m, batch):
        return each(m, batch) + 0.05 * sum(p.square().sum() for p in held)

    class Listed(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network()
            self.some = [self.inner[0].weight]

        def forward(self, x):
            return self.inner(x) * self.some[0].mean()

    for m, loss in ((model, captured), (Listed(), each)):
        assert estimate_llc(m, loss, pool(), **RUN).settings["stacked"] is False
        with pytest.raises(ArgumentError, match="under torch"):
            estimate_llc(m, loss, pool(), stacked=True, **RUN)


def test_a_random_loss_walks_alone():
    for dtype in (torch.float32, torch.bfloat16):
        result = estimate_llc(
            network(dtype), lambda m, b: each(m, b) * (1 + 0.3 * torch.rand(())), pool(dtype), **RUN
        )
        assert result.settings["stacked"] is False


def test_thermostats_of_dead_chains_do_not_count():
    model = network(torch.float64)
    bound = float(model[2].bias[0].detach()) + 0.02
    run = RUN | {"num_chains": 8, "sampler": "sgnht", "lr": 2e-6, "num_draws": 60}
    results = [
        estimate_llc(
            model,
            lambda m, b: torch.where(m[2].bias[0] > bound, torch.nan, each(m, b)),
            pool(torch.float64),
            stacked=stacked,
            **run,
        )
        for stacked in (True, False)
    ]
    assert 0 < len(results[0].dead_chains) < 8
    assert np.isfinite(results[0].order_bias)
    assert results[0].order_bias == pytest.approx(results[1].order_bias, rel=1e-6)
