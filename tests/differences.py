"""The figures of docs/devinterp.md: devinterp 2.0.1 and ours on the same problem, `python tests/differences.py`.

The problem is a linear regression of 20 weights on 2,048 samples at its minimum, its samples called up by token ids.
Its LLC is known: 1/2 sum nbeta h / (nbeta h + gamma) over the eigenvalues h of its Hessian, as lr goes to 0.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from llc_fast import create_param_masks
from llc_fast.dropin import llc

DIM, SAMPLES = 20, 2048
SETTINGS: dict[str, Any] = {"lr": 1e-3, "n_beta": 100.0, "localization": 10.0, "batch_size": 64}
SETTINGS |= {"num_chains": 4, "num_draws": 200, "device": "cpu"}

_random = torch.Generator().manual_seed(0)
INPUTS = torch.randn(SAMPLES, DIM, generator=_random)
_targets = torch.randn(SAMPLES, generator=_random)
TARGETS = _targets - INPUTS @ torch.linalg.lstsq(INPUTS, _targets[:, None]).solution[:, 0]


class Regression(nn.Module):
    """Weights around `centre`, where the loss has its minimum."""

    def __init__(self, centre: float = 0.0, dtype: torch.dtype = torch.float32, dropout: float = 0.0) -> None:
        super().__init__()
        self.centre, self.dropout = centre, nn.Dropout(dropout)
        self.w = nn.Parameter(torch.full((DIM,), centre, dtype=dtype))


def loss(model: Any, ids: Tensor) -> Tensor:
    """Half the squared error of each sample, (batch, 1)."""
    chosen = ids[:, 0]
    x = model.dropout(INPUTS[chosen])
    error = x @ model.w.float() - model.centre * INPUTS[chosen].sum(1) - TARGETS[chosen]
    return 0.5 * error.square()[:, None]


def exact(lr: float = 0.0) -> float:
    """The LLC for gradients without minibatch noise."""
    h = torch.linalg.eigvalsh(INPUTS.double().T @ INPUTS.double() / SAMPLES)
    a = SETTINGS["n_beta"] * h + SETTINGS["localization"]
    return float((SETTINGS["n_beta"] * h / (2 * a * (1 - lr * a / 4))).sum())


def theirs(model: nn.Module | None = None, **changes: Any) -> Any:
    """devinterp's `llc`."""
    import datasets
    from devinterp.slt.llc import llc as devinterp_llc

    data = datasets.Dataset.from_dict({"input_ids": [[i, 0] for i in range(SAMPLES)]}).with_format("torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return devinterp_llc(model or Regression(), data, {}, **(SETTINGS | {"loss_fn": loss} | changes))


def ours(model: nn.Module | None = None, **changes: Any) -> Any:
    data = torch.stack([torch.arange(SAMPLES), torch.zeros(SAMPLES, dtype=torch.int64)], dim=1)
    return llc(model or Regression(), data, {}, **(SETTINGS | {"loss_fn": loss} | changes))


def both(**changes: Any) -> list[Any]:
    return [run(**changes) for run in (theirs, ours)]


def dying(chain: int, step: int, *, first: int) -> Callable[[Any, Tensor], Tensor]:
    """The loss, NaN once: at a step of a chain. first: gradients that are taken before the chains."""
    passes = itertools.count()

    def broken(model: Any, ids: Tensor) -> Tensor:
        values = loss(model, ids)
        dead = torch.is_grad_enabled() and next(passes) == first + chain * SETTINGS["num_draws"] + step
        return values * float("nan") if dead else values

    return broken


def dead_chain() -> dict[str, list[float]]:
    """Values of the chains if chain 2 has a loss of NaN after 30 % of its steps."""
    pool, step = SAMPLES // SETTINGS["batch_size"], 3 * SETTINGS["num_draws"] // 10
    return {
        "theirs": theirs(loss_fn=dying(2, step, first=0)).llc_per_chain.values.tolist(),
        "ours": ours(loss_fn=dying(2, step, first=pool), stacked=False).llc_per_chain.values.tolist(),
    }


def overlapping_seeds() -> dict[str, bool]:
    """Whether chain 1 of init_seed 100 is chain 0 of init_seed 101."""
    found = {}
    for name, run in (("theirs", theirs), ("ours", ours)):
        a, b = (
            run(init_seed=seed, num_chains=2, num_draws=50, match_sampling_input_ids_across_chains=False)
            for seed in (100, 101)
        )
        found[name] = bool(np.array_equal(a.loss_trace.values[1], b.loss_trace.values[0]))
    return found


def initial_noise() -> dict[str, list[float]]:
    """Loss at w0 and LLC with init_noise .1."""
    found = both(init_noise=0.1)
    return {
        n: [float(r.init_loss), float(r.llc_mean)] for n, r in zip(("theirs", "ours"), found, strict=True)
    }


def dropout() -> dict[str, list[float]]:
    """Loss at w0 and LLC of a model with 10 % dropout."""
    found = [run(Regression(1.0, dropout=0.1)) for run in (theirs, ours)]
    return {
        n: [float(r.init_loss), float(r.llc_mean)] for n, r in zip(("theirs", "ours"), found, strict=True)
    }


def bf16(lr: float = 1e-4, draws: int = 2000) -> dict[str, float]:
    """The LLC of a bf16 model whose weights are about 1."""
    kwargs = {"lr": lr, "num_draws": draws}
    found = {
        name: run(Regression(1.0, torch.bfloat16), **kwargs)
        for name, run in (("theirs", theirs), ("ours", ours))
    }
    found["ours, fp32"] = ours(Regression(1.0), **kwargs)
    return {name: float(result.llc_mean) for name, result in found.items()}


def repeats(count: int = 20) -> dict[str, tuple[float, ...]]:
    """Mean and standard deviation of the estimate over repeats, and the error that one run gives.

    Ours with 20 of the 200 steps as burn-in, and with the order bias that it reports.
    """
    a = [theirs(init_seed=1000 * i + 7) for i in range(count)]
    b = [ours(init_seed=1000 * i + 7, num_burnin_steps=20, num_draws=180) for i in range(count)]
    spread = [np.array([float(r.llc_mean) for r in results]) for results in (a, b)]
    means = [(float(values.mean()), float(values.std(ddof=1))) for values in spread]
    chains = float(np.mean([float(r.llc_std) for r in a])) / SETTINGS["num_chains"] ** 0.5
    said = [float(np.mean([float(r[name]) for r in b])) for name in ("mcse", "order_bias")]
    return {"theirs": (*means[0], chains), "ours": (*means[1], *said)}


def head_masks() -> dict[str, list[int]]:
    """Rows of the key projection that head 1 gets: 4 heads of 16, which share 2 KV heads, in a model of 32 channels."""
    import transformers
    from devinterp.slt.weight_restrictions import create_param_masks as devinterp_masks

    config = transformers.Qwen3Config(
        vocab_size=32,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        intermediate_size=64,
    )
    model, name = transformers.Qwen3ForCausalLM(config), "model.layers.0.self_attn.k_proj.weight"
    masks = {"theirs": devinterp_masks(model, "l0h1"), "ours": create_param_masks(model, "l0h1")}
    return {who: mask[name][:, 0].nonzero().flatten().tolist() for who, mask in masks.items()}  # type: ignore[index]


if __name__ == "__main__":
    import devinterp.slt.sampler as quiet
    from tqdm.auto import trange

    quiet.trange = lambda *a, **k: trange(*a, **(k | {"disable": True}))
    torch.set_num_threads(1)
    print("exact LLC", exact(), "at lr 1e-3", exact(1e-3), "at lr 1e-4", exact(1e-4))
    for figures in (dead_chain, overlapping_seeds, initial_noise, dropout, bf16, repeats, head_masks):
        print(figures.__name__, figures())
