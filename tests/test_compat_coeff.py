"""devinterp 1.3.2's estimate_learning_coeff: its arguments, callbacks and results; against an exact value."""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, TensorDataset

import llc_fast
from llc_fast.compat import estimate_learning_coeff, estimate_learning_coeff_with_summary
from llc_fast.compat.methods import translate
from llc_fast.errors import ArgumentError, ArgumentTypeError, ChainError, DataError

NBETA, GAMMA, LR = 40.0, 1.0, 2e-3
SETTINGS: dict[str, Any] = {"lr": LR, "nbeta": NBETA, "localization": GAMMA}
X = torch.randn(64, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).float()
Y = torch.zeros(64, 2)

# The arguments of devinterp 1.3.2, in order, with their defaults.
FIRST = {
    "callbacks": [],
    "evaluate": None,
    "sampling_method": "SGLD",
    "optimizer_kwargs": None,
    "num_draws": 100,
}
FIRST |= {
    "num_chains": 10,
    "num_burnin_steps": 0,
    "num_steps_bw_draws": 1,
    "init_loss": None,
    "grad_accum_steps": 1,
}
FIRST |= {"cores": 1, "seed": None, "device": "cpu"}
SUMMARY = FIRST | {"gpu_idxs": None, "verbose": True, "optimize_over_per_model_param": None, "online": False}
SUMMARY |= {"use_amp": False}
VALUE = FIRST | {"verbose": True, "optimize_over_per_model_param": None}


@pytest.fixture
def model() -> nn.Module:
    linear = nn.Linear(4, 2, bias=False)
    nn.init.zeros_(linear.weight)
    return linear


def loader(size: int = 16) -> DataLoader[Any]:
    return DataLoader(TensorDataset(X, Y), size)


def evaluate(model: nn.Module, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """Half the squared error: the Hessian is X^T X / n, once for each output."""
    x, y = batch
    out = model(x)
    return mse_loss(out, y), {"output": out}


def run(model: nn.Module, data: Any = None, **changes: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "evaluate": evaluate,
        "optimizer_kwargs": SETTINGS,
        "num_draws": 20,
        "num_chains": 3,
    }
    settings |= {"seed": 1, "verbose": False}
    return estimate_learning_coeff_with_summary(
        model, loader() if data is None else data, **(settings | changes)
    )


@pytest.mark.parametrize(
    ("function", "expected"),
    [(estimate_learning_coeff_with_summary, SUMMARY), (estimate_learning_coeff, VALUE)],
)
def test_signatures_are_those_of_1_3_2(function: Any, expected: dict[str, Any]):
    parameters = dict(inspect.signature(function).parameters)
    assert parameters.pop("eval_mode").kind is inspect.Parameter.KEYWORD_ONLY
    assert list(parameters) == ["model", "loader", *expected]
    found = {name: p.default for name, p in parameters.items() if p.default is not p.empty}
    assert found.pop("sampling_method").__name__ == expected["sampling_method"]
    assert list(found.pop("callbacks")) == []
    assert found.items() <= expected.items()


def test_the_value_of_a_quadratic_is_exact(model: nn.Module):
    """One batch, so that the stationary law is known: nbeta h / (2 a (1 - lr a / 4)), a = nbeta h + gamma, summed."""
    h = torch.linalg.eigvalsh(
        X.double().T @ X.double() / len(X)
    )  # of the loss's mean over 2 outputs, each twice
    a = NBETA * h + GAMMA
    exact = float(2 * (NBETA * h / (2 * a * (1 - LR * a / 4))).sum())
    kwargs = {"num_draws": 1500, "num_burnin_steps": 100, "num_chains": 4}
    found = run(model, loader(64), **kwargs)
    assert found["llc/mcse"] < 0.06 * exact
    assert abs(found["llc/mean"] - exact) < 3.5 * found["llc/mcse"]
    low, high = found["llc/interval_95"]
    assert low < found["llc/mean"] < high
    chains = [found[f"llc-chain/{i}"] for i in range(4)]
    assert found["llc/mean"] == pytest.approx(np.mean(chains))
    assert found["llc/std"] == pytest.approx(np.std(chains, ddof=1))
    assert found["loss/trace"].shape == (4, 1500)
    np.testing.assert_allclose(
        chains, NBETA * found["loss/trace"].mean(axis=1), rtol=1e-6
    )  # the loss at w0 is 0
    assert {"llc/verdict", "llc/notes", "llc/dead_chains"} <= found.keys()
    value = estimate_learning_coeff(
        model, loader(), evaluate=evaluate, optimizer_kwargs=SETTINGS, num_draws=5, seed=1, verbose=False
    )
    assert value == run(model, num_draws=5, num_chains=10)["llc/mean"]


def test_chains_are_those_of_estimate_llc():
    """And differences are of equal batches."""
    torch.manual_seed(0)
    model = nn.Linear(4, 2)
    found = run(model, num_burnin_steps=5, num_steps_bw_draws=2)
    direct = llc_fast.estimate_llc(
        model,
        lambda m, group: evaluate(m, group[0])[0],
        [[batch] for batch in loader()],
        num_draws=20,
        num_chains=3,
        num_burnin_steps=5,
        num_steps_bw_draws=2,
        seed=1,
        **SETTINGS,
    )
    assert [found[f"llc-chain/{i}"] for i in range(3)] == pytest.approx(
        direct.llc_per_chain.tolist(), rel=1e-6
    )
    np.testing.assert_allclose(found["loss/trace"], direct.loss_trace[:, 5::2], rtol=1e-6)
    assert found["llc/mcse"] == pytest.approx(direct.mcse)
    online = run(model, num_burnin_steps=5, num_steps_bw_draws=2, online=True)
    assert online["init_loss"] == pytest.approx(direct.init_loss)
    assert online["llc/trace"].shape == (3, 20)
    np.testing.assert_allclose(online["llc/trace"].mean(axis=1), direct.llc_per_chain, rtol=1e-6)
    np.testing.assert_allclose(online["llc/means"], online["llc/trace"].mean(axis=0))
    np.testing.assert_allclose(online["llc/stds"], online["llc/trace"].std(axis=0, ddof=1))
    np.testing.assert_allclose(online["loss/trace"], found["loss/trace"])


class Seen:
    """A callback of 1.3.2's kind that takes the loss again."""

    def __init__(self) -> None:
        self.init_loss, self.visits, self.finished = None, [], 0

    def __call__(self, chain: int, draw: int, model: nn.Module, loss: Tensor, **others: Any) -> None:
        assert not torch.is_grad_enabled()
        again = evaluate(model, others["data"])[0]
        torch.testing.assert_close(again, loss, rtol=1e-5, atol=1e-7)
        assert torch.equal(others["results"][0]["output"].detach(), model(others["data"][0]))
        self.visits.append((chain, draw, float(loss)))
        self.others = others

    def finalize(self) -> None:
        self.finished += 1

    def get_results(self) -> dict[str, int]:
        return {"visits": len(self.visits)}


def test_callbacks_see_every_draw(model: nn.Module):
    seen = Seen()
    found = run(model, callbacks=[seen], num_burnin_steps=3, num_steps_bw_draws=2)
    assert [visit[:2] for visit in seen.visits] == list(itertools.product(range(3), range(20)))
    np.testing.assert_allclose([v[2] for v in seen.visits], found["loss/trace"].ravel(), rtol=1e-6)
    assert (seen.finished, found["visits"], seen.init_loss) == (1, 60, 0.0)
    assert seen.others["num_draws"] == 20
    assert seen.others["num_steps"] == 43
    assert not model.weight.any()  # type: ignore[union-attr, operator]


def test_callbacks_that_need_what_is_not_there(model: nn.Module):
    class NoiseNorm:
        def __call__(self, **kwargs: Any) -> None: ...

    class Mine(NoiseNorm):
        pass

    def needs(chain: int, draw: int, optimizer: Any, **kwargs: Any) -> None: ...

    for callback, text in (
        (NoiseNorm(), "a NoiseNorm"),
        (Mine(), "a NoiseNorm"),
        (needs, "needs, which takes 'optimizer'"),
    ):
        with pytest.raises(ArgumentError, match=text):
            run(model, callbacks=[callback])
    with pytest.raises(ArgumentTypeError, match="callbacks has a int"):
        run(model, callbacks=[3])


@pytest.mark.parametrize(
    "form",
    [
        lambda loss: loss,
        lambda loss: (loss,),
        lambda loss: {"loss": loss, "x": 1},
        lambda loss: SimpleNamespace(loss=loss),
    ],
)
def test_forms_of_evaluate(model: nn.Module, form: Any):
    found = run(model, evaluate=lambda m, b: form(evaluate(m, b)[0]))
    np.testing.assert_array_equal(found["loss/trace"], run(model)["loss/trace"])


def test_a_model_that_is_its_own_loss():
    class Own(nn.Linear):
        def forward(self, batch: Any) -> Tensor:  # type: ignore[override]
            return super().forward(batch[0]).square().mean()

    model = Own(4, 2, bias=False)
    own = run(model, evaluate=None)
    plain = run(model, evaluate=lambda m, b: m(b))
    np.testing.assert_array_equal(own["loss/trace"], plain["loss/trace"])


@pytest.mark.parametrize("result", [3.0, None, torch.zeros(4)])
def test_evaluate_that_returns_no_loss(model: nn.Module, result: Any):
    with pytest.raises(ArgumentTypeError, match="evaluate returned a"):
        run(model, evaluate=lambda m, b: result)


class SGLD:
    """devinterp's name for it."""


class SGMCMC:
    @classmethod
    def rmsprop_sgld(cls) -> None: ...

    @classmethod
    def sgnht(cls) -> None: ...


METHODS: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "defaults": (SGLD, {}, {"sampler": "sgld", "lr": 0.01, "localization": 0.0}),
    "ours": (llc_fast.SGLD, {"lr": 0.1}, {"sampler": "sgld", "lr": 0.1, "localization": 0.0}),
    "factory": (
        SGMCMC.rmsprop_sgld,
        {"alpha": 0.9, "eps": 0.2, "add_grad_correction": False},
        {"sampler": "rmsprop_sgld", "lr": 0.01, "localization": 0.0, "alpha": 0.9, "eps": 0.2},
    ),
    "thermostat": (
        SGMCMC.sgnht,
        {"diffusion_factor": 0.05},
        {"sampler": "sgnht", "lr": 0.01, "localization": 0.0, "friction": 0.05},
    ),
    "partial": (
        partial(partial(llc_fast.SGHMC, lr=1.0), friction=0.3, lr=0.2),
        {"nbeta": 3.0},
        {"sampler": "sghmc", "lr": 0.2, "localization": 0.0, "friction": 0.3, "nbeta": 3.0},
    ),
    "no box": (SGLD, {"bounding_box_size": 0}, {"sampler": "sgld", "lr": 0.01, "localization": 0.0}),
    "box": (SGLD, {"bounding_box_size": 2.0, "metrics": [], "noise_norm": False, "optimize_over": None},
            {"sampler": "sgld", "lr": 0.01, "localization": 0.0, "bounding_box_size": 2.0}),
}  # fmt: skip


@pytest.mark.parametrize("case", METHODS)
def test_methods(case: str):
    method, given, expected = METHODS[case]
    kept = dict(given)
    assert translate(method, given) == expected
    assert given == kept


def test_deprecated_names():
    with pytest.warns(UserWarning, match="'temperature', the old name of 'nbeta'"):
        assert translate(SGLD, {"temperature": 7.0})["nbeta"] == 7.0
    with pytest.warns(UserWarning, match="'elasticity', the old name of 'localization'"):
        assert translate(SGLD, {"elasticity": 7.0})["localization"] == 7.0
    with pytest.raises(ArgumentError, match="'nbeta' under two names"), pytest.warns(match="old name"):
        translate(SGLD, {"nbeta": 1.0, "temperature": 7.0})


@pytest.mark.parametrize(
    ("method", "given", "text"),
    [
        (torch.optim.Adam, {}, "sampling_method is 'Adam'"),
        ("sgld", {}, "sampling_method is 'sgld'"),
        (SGLD, {"momentum": 1}, "'momentum', which is not known"),
        (SGLD, {"save_noise": True}, "'save_noise', which fused steps do not keep"),
        (SGLD, {"optimize_over": torch.ones(2)}, "optimize_over_per_model_param"),
        (partial(SGLD, 1), {}, "positional"),
    ],
)
def test_methods_that_are_not_known(method: Any, given: dict[str, Any], text: str):
    with pytest.raises(ArgumentError, match=text):
        translate(method, given)


@pytest.mark.parametrize(
    "method", [llc_fast.SGLD, llc_fast.SGNHT, llc_fast.SGHMC, llc_fast.SGMCMC.rmsprop_sgld]
)
def test_methods_give_different_chains(model: nn.Module, method: Any):
    kwargs = SETTINGS | ({"lr": 1e-4} if method is not llc_fast.SGLD else {})
    trace = run(model, sampling_method=method, optimizer_kwargs=kwargs)["loss/trace"]
    assert np.isfinite(trace).all()
    assert (method is llc_fast.SGLD) == bool(np.array_equal(trace, run(model)["loss/trace"]))


def test_masks_restrict(model: nn.Module):
    mask = torch.zeros(2, 4, dtype=torch.bool)
    mask[1] = True
    moved: list[Tensor] = []
    run(
        model,
        optimize_over_per_model_param={"weight": mask},
        callbacks=[lambda model, **_: moved.append(model.weight.detach().clone())],
    )
    assert not torch.stack(moved)[:, ~mask].any()
    assert torch.stack(moved)[-1, mask].all()
    with pytest.raises(ArgumentError, match="optimize_over_per_model_param has no 'weight'"):
        run(model, optimize_over_per_model_param={"other": mask})
    with pytest.raises(ArgumentError, match=r"optimize_over_per_model_param\['weight'\] has shape"):
        run(model, optimize_over_per_model_param={"weight": mask[0]})


@pytest.mark.parametrize("start", [0.25, 0.0])
def test_an_init_loss_that_is_given_counts(start: float):
    torch.manual_seed(0)
    model = nn.Linear(4, 2)
    found = run(model, init_loss=start)
    per_chain = NBETA * (found["loss/trace"].mean(axis=1) - start)
    assert [found[f"llc-chain/{i}"] for i in range(3)] == pytest.approx(per_chain.tolist())
    assert found["llc/mean"] == pytest.approx(per_chain.mean())
    assert sum(found["llc/interval_95"]) / 2 == pytest.approx(found["llc/mean"])
    assert found["llc/mean"] != pytest.approx(run(model)["llc/mean"], rel=0.01)
    online = run(model, init_loss=start, online=True)
    assert online["init_loss"] == start
    np.testing.assert_allclose(online["llc/trace"], NBETA * (found["loss/trace"] - start))


def test_batches_accumulate(model: nn.Module):
    """Two batches of 16 a step are one of 32."""
    np.testing.assert_allclose(
        run(model, loader(16), grad_accum_steps=2)["loss/trace"],
        run(model, loader(32))["loss/trace"],
        rtol=1e-4,
    )
    with pytest.raises(DataError, match="gives 4 batches, a step takes grad_accum_steps = 5"):
        run(model, grad_accum_steps=5)


def test_no_more_batches_are_read_than_a_chain_needs(model: nn.Module):
    count = 0

    def endless() -> Iterator[Any]:
        nonlocal count
        while True:
            count += 1
            yield X[:8] * count, Y[:8]

    run(model, endless(), num_draws=5, num_burnin_steps=1, grad_accum_steps=2)
    assert count == 12
    with pytest.raises(ArgumentTypeError, match="loader is a Tensor"):
        run(model, X)


def test_seeds(model: nn.Module):
    traces = {
        name: run(model, seed=seed)["loss/trace"]
        for name, seed in {
            "one": 1,
            "again": 1,
            "two": 2,
            "list": [1, 2, 3],
            "same": (1, 2, 3),
            "other": [1, 2, 4],
        }.items()
    }
    assert np.array_equal(traces["one"], traces["again"])
    assert np.array_equal(traces["list"], traces["same"])
    for a, b in (("one", "two"), ("one", "list"), ("list", "other")):
        assert not np.array_equal(traces[a], traces[b])
    assert len({tuple(row) for row in traces["one"]}) == 3
    assert not np.array_equal(*(run(model, seed=None)["loss/trace"] for _ in range(2)))
    with pytest.raises(ArgumentError, match="seed has 2 entries for 3 chains"):
        run(model, seed=[1, 2])


def test_a_chain_that_dies_is_not_counted(model: nn.Module):
    calls = itertools.count()

    def broken(m: nn.Module, batch: Any) -> Tensor:
        loss = evaluate(m, batch)[0]
        return loss * math.nan if next(calls) == 4 + 20 + 10 else loss  # the pool, chain 0, half of chain 1

    seen = Seen()
    seen_only = lambda chain, draw, **_: seen.visits.append((chain, draw))  # noqa: E731
    found = run(model, evaluate=broken, callbacks=[seen_only])
    assert list(found["llc/dead_chains"]) == [1]
    assert math.isnan(found["llc-chain/1"])
    assert found["llc/mean"] == pytest.approx((found["llc-chain/0"] + found["llc-chain/2"]) / 2)
    assert np.isfinite(found["loss/trace"][1]).sum() == 10
    assert [v for v in seen.visits if v[0] == 1] == [(1, draw) for draw in range(10)]
    with pytest.raises(ChainError, match="every chain died"):
        run(model, optimizer_kwargs=SETTINGS | {"lr": 1e6})


def test_nbeta_that_is_not_given(model: nn.Module):
    kwargs = {"lr": LR, "localization": GAMMA}
    with pytest.warns(UserWarning, match="n / log n of the batch size"):
        found = run(model, optimizer_kwargs=kwargs, grad_accum_steps=2)
    expected = 32 / math.log(32)
    assert found["llc-chain/0"] == pytest.approx(expected * found["loss/trace"][0].mean(), rel=1e-5)
    assert kwargs == {"lr": LR, "localization": GAMMA}
    with pytest.raises(ArgumentError, match="no nbeta, and loader no batch size"):
        run(model, list(loader()), optimizer_kwargs=kwargs)


def test_what_has_no_effect_says_so(model: nn.Module):
    plain = run(model)["loss/trace"]
    with pytest.warns(UserWarning, match="cores and gpu_idxs are not used"):
        assert np.array_equal(run(model, cores=2)["loss/trace"], plain)
    with pytest.warns(UserWarning, match="use_amp is for GPUs"):
        assert np.array_equal(run(model, use_amp=True)["loss/trace"], plain)
    with pytest.raises(ArgumentError, match="gpu_idxs"):
        run(model, gpu_idxs=[0])


def test_dropout_is_off_unless_asked():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 2)).train()
    still = SETTINGS | {"lr": 0.0}
    quiet = run(model, loader(64), optimizer_kwargs=still)
    assert len(set(quiet["loss/trace"].ravel())) == 1
    assert model.training
    noisy = run(model, loader(64), optimizer_kwargs=still, eval_mode=False)
    assert len(set(noisy["loss/trace"].ravel())) > 10


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_model_comes_back_to_its_device(model: nn.Module):
    seen: list[str] = []
    found = run(model, device="cuda", callbacks=[lambda model, **_: seen.append(model.weight.device.type)])
    assert set(seen) == {"cuda"}
    assert model.weight.device.type == "cpu"  # type: ignore[union-attr]
    assert np.isfinite(found["llc/mean"])
