"""What an estimate leaves behind: everything as it was, whatever happens."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from llc_fast.estimate import estimate_llc
from llc_fast.sampling import batch_order

RUN = {"stacked": False, "lr": 1e-2, "nbeta": 20.0, "localization": 5.0, "num_draws": 6, "num_chains": 2}


def network(dtype=torch.float32):
    """Layers with state, in mixed training modes, one frozen, with gradients of the caller's."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.3), nn.Linear(4, 2)).to(dtype)
    model.train()
    model[2].eval()
    model[1].bias.requires_grad_(False)
    model[0].weight.grad = torch.full_like(model[0].weight, 7.0)
    with torch.no_grad():
        model[0].weight[0, 0] = -0.0
    return model


def pool(dtype=torch.float32):
    return list(torch.randn(3, 5, 3, generator=torch.Generator().manual_seed(1)).to(dtype))


def loss(model, batch):
    return model(batch).square().mean(dim=1)


def state(model):
    """All that a caller could find changed, as bytes where they are numbers."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {
        "bytes": {k: t.detach().reshape(-1).view(torch.uint8).tolist() for k, t in tensors.items()},
        "identity": {k: (id(t), t.data_ptr()) for k, t in tensors.items()},
        "requires_grad": {k: t.requires_grad for k, t in tensors.items()},
        "grad": {k: None if t.grad is None else (id(t.grad), t.grad.tolist()) for k, t in tensors.items()},
        "training": [m.training for m in model.modules()],
        "random": torch.get_rng_state().tolist(),
        "modes": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
    }


def failing(error, call):
    """A loss that moves random states and raises at one of its calls; 3 calls are the pool at w0, then come chains."""
    calls = []

    def raising(model, batch):
        calls.append(1)
        if len(calls) == call:
            raise error
        return loss(model, batch) + 0 * torch.rand(())

    return raising


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("eval_mode", [True, False])
@pytest.mark.parametrize("component", ["full", "3.bias"])
def test_everything_is_as_before(dtype, eval_mode, component):
    model = network(dtype)
    before = state(model)
    estimate_llc(model, loss, pool(dtype), component=component, eval_mode=eval_mode, **RUN)
    assert state(model) == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("eval_mode", [True, False])
@pytest.mark.parametrize("call", [1, 3, 4, 9, 12])
@pytest.mark.parametrize("error", [RuntimeError("mine"), KeyboardInterrupt()])
def test_everything_is_as_before_an_exception(dtype, eval_mode, call, error):
    model = network(dtype)
    before = state(model)
    with pytest.raises(type(error)) as raised:
        estimate_llc(
            model, failing(error, call), pool(dtype), component=["0.*", "3.bias"], eval_mode=eval_mode, **RUN
        )
    assert raised.value is error
    assert state(model) == before


def test_everything_is_as_before_an_interrupt_in_progress():
    model = network()
    before = state(model)

    def interrupt(chain, step, total, value):
        if (chain, step) == (1, 3):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        estimate_llc(model, loss, pool(), progress=interrupt, **RUN)
    assert state(model) == before


def test_the_models_weights_do_move_in_between():
    """Or the tests above would show nothing."""
    model, seen = network(), set()

    def watching(model, batch):
        seen.add(model[0].weight[0, 0].item())
        assert not any(m.training for m in model.modules())
        return loss(model, batch)

    estimate_llc(model, watching, pool(), **RUN)
    assert len(seen) == 11  # w0, and 5 updates in each chain


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_callers_without_gradients_get_the_same(mode):
    model, data = network(), pool()
    expected = estimate_llc(model, loss, data, **RUN)
    with mode():
        before = state(model)
        result = estimate_llc(model, loss, data, **RUN)
        assert state(model) == before
    np.testing.assert_array_equal(result.loss_trace, expected.loss_trace)


def test_a_shuffling_loader_does_not_touch_the_callers_random_state():
    data = torch.utils.data.DataLoader(torch.cat(pool()), batch_size=5, shuffle=True)
    before = torch.get_rng_state()
    estimate_llc(network(), loss, data, **RUN)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_model_is_not_copied():
    class Uncopyable(nn.Linear):
        def __deepcopy__(self, memo):
            raise AssertionError("copied")

    with pytest.raises(AssertionError, match="copied"):
        copy.deepcopy(Uncopyable(3, 2))
    assert estimate_llc(Uncopyable(3, 2), loss, pool(), **RUN).settings["weights"] == 8


def test_gradients_are_taken_of_the_component_alone():
    model, seen = network(), []

    def watching(model, batch):
        seen.append([name for name, p in model.named_parameters() if p.requires_grad])
        return loss(model, batch)

    estimate_llc(model, watching, pool(), component="3.bias", **RUN)
    assert set(map(tuple, seen)) == {("3.bias",)}


class Sparse(nn.Module):
    def __init__(self, sparse):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(6, 2, sparse=sparse)

    def forward(self, x):
        return self.embedding(x)


def test_sparse_gradients_are_gradients():
    data = [torch.tensor([0, 2, 2]), torch.tensor([1, 5, 0])]
    dense, sparse = (estimate_llc(Sparse(s), loss, data, **RUN) for s in (False, True))
    np.testing.assert_array_equal(dense.loss_trace, sparse.loss_trace)


def test_a_batch_without_the_component_is_a_batch():
    """As with an expert that few tokens reach: there the gradient is 0, and the loss that of w0."""
    model = nn.ModuleDict({"experts": nn.ModuleList([nn.Linear(3, 2), nn.Linear(3, 2)])})
    data = list(enumerate(pool()[:2]))
    result = estimate_llc(
        model, lambda m, b: loss(m["experts"][b[0]], b[1]), data, component="experts.1.*", **RUN
    )
    unmoved = float(loss(model["experts"][0], data[0][1]).mean(dtype=torch.float64).detach())
    for chain, trace in enumerate(result.loss_trace):
        orders = [batch_order(0, chain, epoch, 2) for epoch in range(3)]
        for value, batch in zip(trace, np.ravel(orders), strict=True):
            assert (value == unmoved) == (batch == 0)
