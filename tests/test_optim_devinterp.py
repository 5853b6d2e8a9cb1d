"""devinterp 2.0.1's optimizers, given our noise, walk the same trajectories; the same metrics and sketches."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import llc_fast

theirs = pytest.importorskip("devinterp.optim", reason="needs devinterp 2.0.1: pip install 'llc-fast[dev]'")

SHAPES = [(40, 30), (30,), (7, 30), (7,)]
STEPS = 25


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class Noise:
    """Stands in for torch.normal: the noise that our samplers draw, parameter after parameter."""

    def __init__(self, seed: int) -> None:
        self.seed, self.calls = seed, 0

    def __call__(self, *, mean: float, std: float, size: Any, device: Any, generator: Any = None) -> Tensor:
        step, i = divmod(self.calls, len(SHAPES))
        self.calls += 1
        assert tuple(size) == SHAPES[i]
        n = llc_fast.normal(size.numel(), seed=self.seed, step=step, tensor_id=i)
        return mean + std * n.view(size)


def parameters(seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(0.3 * torch.randn(shape, generator=generator)) for shape in SHAPES]


def gradients(params: list[nn.Parameter], step: int) -> None:
    """Those of a loss with minibatch noise."""
    for i, p in enumerate(params):
        generator = torch.Generator().manual_seed(1000 * step + i)
        p.grad = p.detach() ** 3 + 0.1 * torch.randn(p.shape, generator=generator)


def masks() -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.rand(shape, generator=generator) < 0.5 for shape in SHAPES]


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "localization": {"localization": 50.0},
    "weight decay": {"weight_decay": 3.0},
    "both": {"localization": 50.0, "weight_decay": 3.0},
    "noise level": {"localization": 50.0, "noise_level": 0.3},
    "no noise": {"localization": 50.0, "noise_level": 0.0},
    "box": {"localization": 5.0, "bounding_box_size": 0.02},
    "mask": {"localization": 50.0, "mask": "masks"},
    "everything": {
        "localization": 50.0,
        "weight_decay": 3.0,
        "bounding_box_size": 0.05,
        "mask": "masks",
        "save_metrics": True,
    },
}
FACTORIES = {
    "SGMCMC.sgld": lambda module, params, **kw: module.SGMCMC.sgld(params, **kw),
    "SGMCMC.rmsprop_sgld": lambda module, params, **kw: module.SGMCMC.rmsprop_sgld(params, **kw),
    "SGLD": lambda module, params, **kw: module.SGLD(params, **kw),
}


def both(
    monkeypatch: pytest.MonkeyPatch, factory: str, options: dict[str, Any], **ours: Any
) -> tuple[Any, Any, list[nn.Parameter], list[nn.Parameter]]:
    """Their sampler and ours after some steps with the same noise and gradients."""
    options = {k: masks() if v == "masks" else v for k, v in options.items()}
    common = {"lr": 2e-3, "nbeta": 20.0} | options
    a, b = parameters(), parameters()
    theirs_kw, ours_kw = dict(common), dict(common)
    if factory == "SGLD" and "mask" in options:  # theirs takes it in the groups
        del theirs_kw["mask"]
        groups = [{"params": [p], "mask": m} for p, m in zip(a, options["mask"], strict=True)]
    else:
        groups = a
    first = FACTORIES[factory](theirs, groups, **theirs_kw)
    second = FACTORIES[factory](llc_fast, b, seed=11, **ours_kw, **ours)
    monkeypatch.setattr(torch, "normal", Noise(11))
    for step in range(STEPS):
        for params in (a, b):
            gradients(params, step)
        first.step()
        second.step()
    return first, second, a, b


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("factory", FACTORIES)
def test_trajectories_are_the_same(monkeypatch, factory, options):
    """To fp32 rounding: 25 steps of some units in the last place each."""
    _, _, a, b = both(monkeypatch, factory, OPTIONS[options])
    start = parameters()
    for p, q, p0 in zip(a, b, start, strict=True):
        torch.testing.assert_close(q, p, rtol=2e-6, atol=1e-6)
        assert not torch.equal(q, p0)


@pytest.mark.parametrize(
    "more", [{"alpha": 0.9}, {"alpha": 0.0, "eps": 0.3}, {"eps": 1.0}, {"alpha": 0.999, "eps": 0.2}]
)
def test_rmsprop_settings(monkeypatch, more):
    _, _, a, b = both(monkeypatch, "SGMCMC.rmsprop_sgld", {"localization": 50.0, "weight_decay": 1.0} | more)
    for p, q in zip(a, b, strict=True):
        torch.testing.assert_close(q, p, rtol=3e-6, atol=2e-6)


@pytest.mark.parametrize(
    "more",
    [
        {"prior": 30.0},
        {"prior": "initial"},
        {"prior": "centres"},
        {"prior": None, "preconditioner": "rmsprop"},
        {"prior": 7.0, "preconditioner": "rmsprop", "preconditioner_kwargs": {"alpha": 0.9, "eps": 0.2}},
        {"prior": 7.0, "preconditioner": None, "bounding_box_size": 0.03},
        {"prior": 7.0, "mask": "masks", "noise_level": 0.5},
    ],
)
def test_the_constructor_itself(monkeypatch, more):
    centres = [0.1 * torch.ones(shape) for shape in SHAPES]
    more = {k: centres if v == "centres" else masks() if v == "masks" else v for k, v in more.items()}
    a, b = parameters(), parameters()
    first = theirs.SGMCMC(a, lr=2e-3, nbeta=20.0, **more)
    second = llc_fast.SGMCMC(b, lr=2e-3, nbeta=20.0, seed=11, **more)
    monkeypatch.setattr(torch, "normal", Noise(11))
    for step in range(STEPS):
        for params in (a, b):
            gradients(params, step)
        first.step()
        second.step()
    for p, q in zip(a, b, strict=True):
        torch.testing.assert_close(q, p, rtol=3e-6, atol=2e-6)


@pytest.mark.parametrize("factory", FACTORIES)
def test_metrics_are_theirs(monkeypatch, factory):
    options = {"localization": 50.0, "weight_decay": 3.0, "save_metrics": True}
    first, second, _, _ = both(monkeypatch, factory, options)
    x, y = first.get_metrics(), second.get_metrics()
    for name in (*x.NORM_FIELDS, "prior"):
        torch.testing.assert_close(getattr(y, name), getattr(x, name), rtol=1e-5, atol=0)
    for name, parts in (
        ("dot_grad_prior", ("scaled_grad", "prior")),
        ("dot_grad_noise", ("scaled_grad", "noise")),
        ("dot_prior_noise", ("prior", "noise")),
    ):
        scale = float(getattr(x, parts[0]) * getattr(x, parts[1]))
        assert float(getattr(y, name)) == pytest.approx(float(getattr(x, name)), abs=1e-5 * scale)
    assert x.numel == y.numel
    assert len(list(first.iter_group_metrics())) == len(list(second.iter_group_metrics()))


@pytest.mark.parametrize("factory", ["SGMCMC.sgld", "SGMCMC.rmsprop_sgld"])
def test_metrics_of_a_mask_count_what_moves(monkeypatch, factory):
    """Theirs measure the distance of all weights, of which the others have none; numel is of the mask."""
    options = {"localization": 50.0, "mask": "masks", "save_metrics": True}
    first, second, _, _ = both(monkeypatch, factory, options)
    x, y = first.get_metrics(), second.get_metrics()
    assert x.numel == y.numel == sum(int(m.sum()) for m in masks())
    for name in ("scaled_grad", "localization", "noise", "distance"):
        torch.testing.assert_close(getattr(y, name), getattr(x, name), rtol=1e-5, atol=0)


@pytest.mark.parametrize("factory", FACTORIES)
def test_sketches_are_theirs(monkeypatch, factory):
    options = {"localization": 50.0, "weight_decay": 3.0, "sketch_dim": 17, "sketch_seed": 5}
    first, second, _, _ = both(monkeypatch, factory, options)
    x, y = first.get_sketches(), second.get_sketches()
    for name in x.QUANTITIES:
        torch.testing.assert_close(getattr(y, name), getattr(x, name), rtol=1e-4, atol=1e-6)
        assert getattr(y, name).abs().max() > 0


def test_arguments_and_defaults_are_theirs():
    """But for nbeta, which has no default, and what is ours besides."""
    pairs = [
        (theirs.SGMCMC.__init__, llc_fast.SGMCMC.__init__),
        (theirs.SGMCMC.sgld, llc_fast.SGMCMC.sgld),
        (theirs.SGMCMC.rmsprop_sgld, llc_fast.SGMCMC.rmsprop_sgld),
        (theirs.SGMCMC.sgnht, llc_fast.SGMCMC.sgnht),
        (theirs.SGLD.__init__, llc_fast.SGLD.__init__),
        (theirs.SGMCMC.step, llc_fast.SGMCMC.step),
        (theirs.SGLD.step, llc_fast.SGLD.step),
    ]
    for one, other in pairs:
        want, have = inspect.signature(one).parameters, inspect.signature(other).parameters
        for name, p in want.items():
            assert name in have, (one, name)
            if name != "nbeta":
                assert have[name].default == p.default, (one, name)
    for name in ("lr", "diffusion_factor", "bounding_box_size"):
        want = inspect.signature(theirs.SGNHT.__init__).parameters[name].default
        assert inspect.signature(llc_fast.SGNHT.__init__).parameters[name].default == want
    factories = [llc_fast.SGMCMC.sgld, llc_fast.SGMCMC.rmsprop_sgld]
    for one, other in zip(factories, [theirs.SGMCMC.sgld, theirs.SGMCMC.rmsprop_sgld], strict=True):
        positional = list(inspect.signature(other).parameters)
        assert list(inspect.signature(one).parameters)[: len(positional)] == positional


def test_what_cannot_be_fused_is_refused_with_the_reason():
    from devinterp.optim.preconditioner import IdentityPreconditioner
    from devinterp.optim.prior import GaussianPrior

    with pytest.raises(llc_fast.LlcFastError, match="a prior is computed in fused kernels"):
        llc_fast.SGMCMC(parameters(), nbeta=2.0, prior=GaussianPrior(1.0))
    with pytest.raises(llc_fast.LlcFastError, match="a preconditioner is computed in fused kernels"):
        llc_fast.SGMCMC(parameters(), nbeta=2.0, preconditioner=IdentityPreconditioner())
    with pytest.raises(llc_fast.LlcFastError, match="add_grad_correction"):
        llc_fast.SGMCMC.rmsprop_sgld(parameters(), nbeta=2.0, add_grad_correction=True)
    with pytest.raises(llc_fast.LlcFastError, match="preconditioner_kwargs has 'beta'"):
        llc_fast.SGMCMC(
            parameters(), nbeta=2.0, preconditioner="rmsprop", preconditioner_kwargs={"beta": 0.1}
        )
    with pytest.raises(llc_fast.LlcFastError, match="centre tensors"):
        llc_fast.SGMCMC(parameters(), nbeta=2.0, prior=parameters(), bounding_box_size=1.0)
    with pytest.raises(llc_fast.LlcFastError, match="prior has 1 centres for 4 params"):
        llc_fast.SGMCMC(parameters(), nbeta=2.0, prior=[torch.ones(3)])
    with pytest.raises(llc_fast.LlcFastError, match="nbeta is missing"):
        llc_fast.SGMCMC.sgld(parameters())
    with pytest.raises(llc_fast.LlcFastError, match="method is 'adam'"):
        llc_fast.SGMCMC.get_method("adam")


def test_a_generator_chooses_the_seed():
    """Equal generators give equal steps, and one that has moved on gives another."""
    runs = []
    generator = torch.Generator().manual_seed(4)
    for source in (torch.Generator().manual_seed(4), copy.deepcopy(generator), generator, generator):
        params = parameters()
        sampler = llc_fast.SGMCMC.sgld(params, nbeta=20.0, seed=99)
        for _ in range(2):
            sampler.step(noise_generator=source)
        runs.append(torch.cat([p.detach().view(-1) for p in params]))
    assert torch.equal(runs[0], runs[1])
    assert torch.equal(runs[0], runs[2])
    assert not torch.equal(runs[2], runs[3])
    with pytest.raises(llc_fast.LlcFastError, match="noise_generator is a int"):
        sampler.step(noise_generator=5)
