"""What an estimate refuses: before any work, with the model as it was."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_estimate_guards import RUN, loss, network, pool, state
from torch import nn

from llc_fast import select
from llc_fast.errors import (
    ArgumentError,
    ArgumentTypeError,
    BackendError,
    ChainError,
    ComponentError,
    DataError,
    LlcFastError,
    ModelError,
)
from llc_fast.estimate import estimate_llc


def bad(error, match, model=None, loss_fn=loss, batches=None, **changes):
    """One call that must be refused."""
    return SimpleNamespace(
        error=error, match=match, model=model, loss_fn=loss_fn, batches=batches, changes=changes
    )


def other_dtype(dtype):
    return lambda: network().to(dtype)


def with_values(value):
    def make():
        model = network()
        with torch.no_grad():
            model[3].weight[1, 1] = value
        return model

    return make


def transposed():
    model = nn.Sequential(nn.Linear(3, 2))
    model[0].weight = nn.Parameter(torch.zeros(3, 2).t())
    return model


def frozen():
    return network().requires_grad_(False)


def meta():
    return nn.Linear(3, 2, device="meta")


def inference():
    with torch.inference_mode():
        return nn.Linear(3, 2)


BAD = {
    "model": bad(ArgumentTypeError, "model is a list", lambda: [1]),
    "model class": bad(ArgumentTypeError, "model is a type", lambda: nn.Linear),
    "loss_fn": bad(ArgumentTypeError, "loss_fn is a str", loss_fn="mse"),
    "progress": bad(ArgumentTypeError, "progress is a bool", progress=True),
    "fp8": bad(ArgumentTypeError, r"'0.bias' is torch.float8_e5m2: convert", other_dtype(torch.float8_e5m2)),
    "meta": bad(ModelError, "'bias' is a meta tensor", meta),
    "inference": bad(ModelError, "inference mode", inference),
    "nan": bad(ModelError, "'3.weight' holds weights that are not finite", with_values(torch.nan)),
    "inf": bad(ModelError, "'3.weight' holds weights that are not finite", with_values(torch.inf)),
    "transposed": bad(ArgumentError, r"'0.weight' has strides \(1, 2\)", transposed),
    "frozen": bad(ArgumentError, "every parameter of component 'full' is frozen", frozen),
    "frozen part": bad(ArgumentError, "every parameter of component '1.bias' is frozen", component="1.bias"),
    "component": bad(ComponentError, "0.wieght", component="0.wieght"),
    "selection": bad(ArgumentError, "Selection of another model", component=select(nn.Linear(3, 2), "full")),
    "no batches": bad(DataError, "batches is empty", batches=[]),
    "spent generator": bad(DataError, "read only once", batches=(b for b in [])),
    "tensor": bad(ArgumentTypeError, r"batches is a Tensor: .* \[batch\]", batches=torch.zeros(5, 3)),
    "array": bad(ArgumentTypeError, "batches is a ndarray", batches=np.zeros((5, 3))),
    "dict": bad(ArgumentTypeError, "batches is a dict", batches={"x": 1}),
    "string": bad(ArgumentTypeError, "batches is a str", batches="data.txt"),
    "function": bad(ArgumentTypeError, "batches is a function", batches=lambda: pool()),
    "dataset": bad(
        ArgumentTypeError, "give a DataLoader", batches=torch.utils.data.TensorDataset(torch.zeros(5, 3))
    ),
    "no draws": bad(ArgumentError, "num_draws is 0", num_draws=0),
    "half a draw": bad(ArgumentTypeError, "num_draws is 1.5", num_draws=1.5),
    "no chains": bad(ArgumentError, "num_chains is 0", num_chains=0),
    "burn-in": bad(ArgumentError, "num_burnin_steps is -1", num_burnin_steps=-1),
    "thinning": bad(ArgumentError, "num_steps_bw_draws is 0", num_steps_bw_draws=0),
    "too long": bad(ArgumentError, "too many", num_burnin_steps=2**32),
    "seed": bad(ArgumentError, "seed is -1", seed=-1),
    "long seed": bad(ArgumentError, "seed is", seed=2**64),
    "lr": bad(ArgumentError, "lr is -0.1", lr=-0.1),
    "nbeta": bad(ArgumentError, "nbeta is nan", nbeta=float("nan")),
    "localization": bad(ArgumentError, "localization is inf", localization=float("inf")),
    "noise_level": bad(ArgumentTypeError, "noise_level is None", noise_level=None),
    "box": bad(ArgumentError, "bounding_box_size is -1", bounding_box_size=-1.0),
    "backend": bad(BackendError, "unknown backend 'cpuu'", backend="cpuu"),
    "fp64 on cpu": bad(BackendError, "has no float64 step", other_dtype(torch.float64), backend="cpu"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_before_any_work(name):
    case, calls = BAD[name], []
    model = case.model() if case.model else network()
    loss_fn = (lambda m, b: calls.append(1)) if case.loss_fn is loss else case.loss_fn
    before = state(model) if isinstance(model, nn.Module) and name != "meta" else None
    with pytest.raises(case.error, match=case.match) as raised:
        estimate_llc(
            model, loss_fn, pool() if case.batches is None else case.batches, **{**RUN, **case.changes}
        )
    assert isinstance(raised.value, LlcFastError)
    assert calls == []
    assert before is None or state(model) == before


@pytest.mark.parametrize(
    ("value", "error", "match"),
    [
        (lambda x: x.mean().item(), ArgumentTypeError, "loss_fn returned a float for batch 0"),
        (lambda x: None, ArgumentTypeError, "loss_fn returned a NoneType"),
        (lambda x: SimpleNamespace(loss=x), ArgumentTypeError, "Hugging Face output its .loss"),
        (lambda x: x.long(), ArgumentTypeError, "loss_fn returned torch.int64"),
        (lambda x: x[:0], ArgumentError, "loss_fn returned no losses"),
        (lambda x: x.detach(), ArgumentError, "loss_fn .* do not depend on any selected weight"),
        (lambda x: x.detach().requires_grad_(), ArgumentError, "do not depend on any selected weight"),
        (lambda x: x / 0, ChainError, "the loss of batch 0 is inf at w0"),
        (lambda x: x * torch.nan, ChainError, "the loss of batch 0 is nan at w0"),
        (lambda x: (x * 0).sqrt() + x, ChainError, "the gradient of batch 0 is not finite at w0"),
    ],
)
def test_bad_losses_are_refused_before_any_step(value, error, match):
    model, steps = network(), []
    before = state(model)
    with pytest.raises(error, match=match):
        estimate_llc(
            model, lambda m, b: value(loss(m, b)), pool(), progress=lambda *a: steps.append(a), **RUN
        )
    assert steps == []
    assert state(model) == before


def test_the_batch_whose_loss_is_not_finite_is_named():
    data = pool()
    data[2][0, 0] = torch.nan
    with pytest.raises(ChainError, match="batch 2 is nan"):
        estimate_llc(network(), loss, data, **RUN)
