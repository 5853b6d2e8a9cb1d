"""What an estimate records, against the step's own op, exact sums and values chosen so that the answer is known."""

import numpy as np
import pytest
import torch
from torch import nn

from llc_fast import select, sgld_step_
from llc_fast.errors import ChainError
from llc_fast.estimate import estimate_llc
from llc_fast.sampling import Displacement, Schedule, Trace, batch_order, empty_records
from llc_fast.selection import parameter_table
from llc_fast.types import Box, Selection, Tile

RUN = {"lr": 1e-3, "nbeta": 20.0, "localization": 5.0, "num_draws": 12}


def network(dtype=torch.float32):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))
    return model.to(dtype)


def batches(count=4, size=3, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    return list(torch.randn(count, size, 5, generator=generator).to(dtype))


def losses(model, batch):
    """One loss for each sample."""
    return (model(batch[:, :3]) - batch[:, 3:]).square().sum(dim=1)


class Vector(nn.Module):
    def __init__(self, *w0):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(w0, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_chains_are_those_of_the_step_itself(dtype):
    """Bit for bit: losses before each update, step numbers, chains, tensor_ids, batch orders, remainders, means."""
    model, pool = network(dtype), batches(dtype=dtype)
    names = ["0.weight", "2.bias"]
    settings = {"lr": 1e-3, "nbeta": 20.0, "localization": 5.0, "weight_decay": 0.1, "noise_level": 0.9}
    result = estimate_llc(
        model,
        losses,
        pool,
        component=names,
        num_chains=3,
        num_draws=4,
        num_burnin_steps=5,
        num_steps_bw_draws=2,
        seed=7,
        bounding_box_size=10.0,
        stacked=False,
        **settings,
    )
    params = [dict(model.named_parameters())[name] for name in names]
    ids = [parameter_table(model)[name] for name in names]
    anchors = [p.detach().clone() for p in params]
    at_w0 = [losses(model, batch).mean(dtype=torch.float64).item() for batch in pool]
    assert result.init_loss == np.mean(at_w0)
    for chain in range(3):
        remainders = [
            torch.zeros_like(p, dtype=torch.int16) if dtype == torch.bfloat16 else None for p in params
        ]
        trace, gains = [], []
        for step in range(13):
            batch = batch_order(7, chain, step // 4, 4)[step % 4]
            loss = losses(model, pool[batch]).mean(dtype=torch.float64)
            trace.append(loss.item())
            if step in (5, 7, 9, 11):
                gains.append(trace[-1] - at_w0[batch])
            stream = {"seed": 7, "chain": chain, "step": step, "tensor_ids": ids, "remainders": remainders}
            sgld_step_(params, torch.autograd.grad(loss, params), anchors, **settings, box=10.0, **stream)
        np.testing.assert_array_equal(result.loss_trace[chain], trace)
        assert result.llc_per_chain[chain] == 20.0 * np.mean(gains)
        with torch.no_grad():
            for p, anchor in zip(params, anchors, strict=True):
                p.copy_(anchor)
    assert result.llc_mean == np.mean(result.llc_per_chain)
    assert result.llc_std == np.std(result.llc_per_chain)


def test_the_loss_is_recorded_before_the_update():
    """One batch, no noise: w goes 1, 1/2, 1/4; a loss recorded after the update would begin with 1/8."""
    result = estimate_llc(
        Vector(1.0),
        lambda m, b: (m.w**2).sum() / 2,
        [0],
        lr=1.0,
        nbeta=1.0,
        localization=0.0,
        noise_level=0.0,
        num_chains=1,
        num_draws=3,
    )
    np.testing.assert_allclose(result.loss_trace, [[1 / 2, 1 / 8, 1 / 32]], rtol=1e-12)
    assert result.llc_mean == pytest.approx((0 - 3 / 8 - 15 / 32) / 3)


def test_the_baseline_is_that_of_the_same_batch():
    """Constants that differ from batch to batch change nothing, also where an epoch is cut short."""
    run = {**RUN, "num_draws": 7}
    plain = estimate_llc(Vector(0.5, 0.2), lambda m, b: (m.w**2).sum(), [0.0] * 4, **run)
    shifted = estimate_llc(Vector(0.5, 0.2), lambda m, b: (m.w**2).sum() + b, [0.0, 30.0, -5.0, 1e3], **run)
    np.testing.assert_allclose(shifted.llc_per_chain, plain.llc_per_chain, rtol=1e-9)
    assert shifted.init_loss == pytest.approx(plain.init_loss + 256.25)


def test_estimates_depend_on_the_seed_and_not_on_the_callers_random_state():
    torch.manual_seed(1)
    first = estimate_llc(network(), losses, batches(), seed=5, **RUN)
    torch.manual_seed(2)
    second = estimate_llc(network(), losses, batches(), seed=5, **RUN)
    other = estimate_llc(network(), losses, batches(), seed=6, **RUN)
    np.testing.assert_array_equal(first.loss_trace, second.loss_trace)
    assert first.to_dict(arrays=True) == second.to_dict(arrays=True)
    assert not np.isin(first.loss_trace[:, 1:], other.loss_trace).any()


def test_burnin_moves_the_draws_and_not_the_chain():
    short = estimate_llc(network(), losses, batches(), **RUN)
    long = estimate_llc(network(), losses, batches(), num_burnin_steps=8, **{**RUN, "num_draws": 4})
    np.testing.assert_array_equal(short.loss_trace, long.loss_trace)
    # Draws 8 ... 11 are a whole epoch, whose mean at w0 is init_loss.
    expected = 20.0 * (short.loss_trace[:, 8:].mean(axis=1) - short.init_loss)
    np.testing.assert_allclose(long.llc_per_chain, expected, rtol=1e-9)


def test_weights_outside_the_component_stay():
    model = network()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    moved = set()

    def loss(m, batch):
        for name, p in m.named_parameters():
            changed = (p != before[name]).nonzero().tolist()
            moved.update((name, *index) for index in changed)
        return losses(m, batch)

    whole = select(model, "0.weight")
    part = Selection("two rows", {"0.weight": (Box(3, 1, 6, 6),)}, whole.shapes, whole.tensor_ids)
    result = estimate_llc(model, loss, batches(), component=part, **RUN)
    assert moved == {("0.weight", i, j) for i in (1, 2) for j in range(3)}
    assert (result.settings["component"], result.settings["weights"]) == ("two rows", 6)


def test_a_tied_weight_is_one_weight():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.b = nn.Linear(4, 4, bias=False)
            self.a = nn.Linear(4, 4, bias=False)
            self.a.weight = self.b.weight

    torch.manual_seed(0)
    model = Tied()
    before = model.a.weight.detach().clone()
    loss = lambda m, x: m.b(torch.tanh(m.a(x))).square().mean()  # noqa: E731
    pool = list(torch.randn(3, 8, 4))
    results = [estimate_llc(model, loss, pool, component=c, **RUN) for c in ("full", "a.weight", "b.weight")]
    assert [r.settings["weights"] for r in results] == [16, 16, 16]
    for r in results:
        np.testing.assert_array_equal(r.loss_trace, results[0].loss_trace)
    assert model.a.weight is model.b.weight
    assert torch.equal(model.a.weight, before)


def test_frozen_parameters_stay_and_are_named():
    model = network()
    model[0].weight.requires_grad_(False)
    result = estimate_llc(model, losses, batches(), component="0.*", **RUN)
    alone = estimate_llc(model, losses, batches(), component="0.bias", **RUN)
    np.testing.assert_array_equal(result.loss_trace, alone.loss_trace)
    assert result.settings["frozen"] == ["0.weight"]
    assert result.settings["weights"] == 5
    assert "frozen and left out: 0.weight." in result.notes


def test_chains_that_die_are_named_and_not_counted():
    """loss = w, a free random walk; the same chains with a loss that is not finite above a limit."""
    run = {"lr": 1e-2, "nbeta": 1e-6, "localization": 0.0, "num_chains": 6, "num_draws": 30}
    walk = estimate_llc(Vector(0.0), lambda m, b: m.w.sum(), [0], **run)
    highest = np.sort(walk.loss_trace.max(axis=1))
    limit = float(highest[2:4].mean())

    def loss(m, b):
        return torch.where(m.w > limit, torch.inf, m.w).sum()

    result = estimate_llc(Vector(0.0), loss, [0], **run)
    for chain, trace in enumerate(walk.loss_trace):
        over = np.flatnonzero(trace > limit)
        if over.size == 0:
            np.testing.assert_array_equal(result.loss_trace[chain], trace)
            assert result.llc_per_chain[chain] == walk.llc_per_chain[chain]
            continue
        assert result.dead_chains[chain] == f"loss inf at step {over[0]}"
        np.testing.assert_array_equal(result.loss_trace[chain, : over[0]], trace[: over[0]])
        assert np.isinf(result.loss_trace[chain, over[0]])
        assert np.isnan(result.loss_trace[chain, over[0] + 1 :]).all()
        assert np.isnan(result.llc_per_chain[chain])
    assert len(result.dead_chains) == 3
    assert result.llc_mean == np.mean([x for x in result.llc_per_chain if not np.isnan(x)])
    assert "dead" in str(result)
    assert sum("died and is not counted" in note for note in result.notes) == 3


def test_a_weight_that_overflows_kills_a_chain_whose_loss_does_not():
    loss = lambda m, b: m.w[1] ** 2  # noqa: E731
    with pytest.raises(
        ChainError, match=r"every chain died \(chain 0: \|w - w0\|\^2 is (inf|nan) at step \d"
    ):
        estimate_llc(
            Vector(1.0, 0.0), loss, [0], lr=1.0, nbeta=1.0, localization=0.0, weight_decay=1e38, num_draws=20
        )


def test_all_dead_is_an_error():
    with pytest.raises(ChainError, match="every chain died"):
        estimate_llc(
            Vector(1.0), lambda m, b: (m.w**4).sum(), [0], lr=10.0, nbeta=50.0, localization=1.0, num_draws=99
        )


def test_chains_at_the_box_are_dead():
    run = {"lr": 1e-2, "nbeta": 1.0, "localization": 1.0, "num_draws": 50}
    loss = lambda m, b: (m.w**2).sum()  # noqa: E731
    free = estimate_llc(Vector(0.0, 0.0), loss, [0], bounding_box_size=3.0, **run)
    assert free.dead_chains == {}
    with pytest.raises(ChainError, match=r"% of its weights at the box"):
        estimate_llc(Vector(0.0, 0.0), loss, [0], bounding_box_size=0.05, **run)
    trace = Trace({name: values[0] for name, values in empty_records(1, Schedule(2, 1, 1)).items()})
    trace.boxed[:] = [0.0, 0.1]
    assert trace.verdict is None
    trace.boxed[:] = [0.0, 0.11]
    assert trace.verdict == "5.5% of its weights at the box, on average over its draws"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_displacement_by_hand(dtype):
    """A 2 x 3 tile of a 3 x 4 weight, moved by known amounts of which two reach the box of 0.5."""
    w0 = torch.arange(12.0).reshape(3, 4).to(dtype)
    w = w0.clone()
    w[1, 1], w[1, 2], w[2, 3], w[0, 0] = w[1, 1] + 0.5, w[1, 2] - 0.5, w[2, 3] + 0.25, 99.0
    lo = torch.zeros(3, 4, dtype=torch.int16) if dtype == torch.bfloat16 else None
    at = Displacement([w], [w0], [lo], [Tile(0, 2, 3, 5, 4, 5, 4)], box=0.5)
    for factor in (1.0, 3.0):
        at.add_gradient([factor * torch.ones(3, 4, dtype=dtype)])
    distance, dot, boxed = at.measure()
    assert distance == pytest.approx(0.5**2 + 0.5**2 + 0.25**2)
    assert dot == pytest.approx(2.0 * 0.25)
    assert boxed == pytest.approx(2 / 6)
    assert at.gradient_noise(2) == pytest.approx(6.0)  # 6 elements, gradients 1 and 3
