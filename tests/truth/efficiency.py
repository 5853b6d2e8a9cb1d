"""Mean squared error at equal passes: `llc_fast.estimate_llc` and devinterp 2.0.1's `llc`, llc_mean of each.

Target: the mean of nbeta (L(w) - L(w0)) over the stationary chain at the same lr, nbeta, localization and batches of
32, L the loss of the whole dataset. The reference is a long run of ours, many times the burn-in and draws, over the
whole dataset, with its losses taken on batches independent of those that give the gradients.

devinterp runs with its defaults: 4 chains x 200 draws from w0 on, all counted, batches of 32, and for L(w0) the mean
of 32 batches. Ours gets no more passes: 4 chains, 64 steps of burn-in, a pool of 64 random batches for each repeat, and
each loss compared with that of its own batch at w0. Both have the same weights to move and the same loss function.

A pass is a forward with its backward; a forward alone counts as a third of one. Repeats have seeds, batches and pools
of their own. The error of the reference counts against both. Intervals are bootstrapped over repeats.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from frame import AtLeast, Row, main
from problems import BATCH, Problem, deep_linear, transformer
from torch import Tensor, nn

from llc_fast import LLCResult, create_param_masks, estimate_llc

Array = npt.NDArray[np.float64]
AIM = 10.0
CHAINS, DRAWS, INIT_BATCHES = 4, 200, 32  # devinterp's defaults
BURNIN, POOL = 64, 64  # ours


@dataclass(frozen=True)
class Size:
    """How much of it. reference: chains, burn-in and draws of each."""

    repeats: int
    reference: tuple[int, int, int]


def theirs_passes(draws: int = DRAWS) -> float:
    """Every step, and L(w0) for every chain."""
    return CHAINS * draws + CHAINS * INIT_BATCHES / 3


def ours_passes(draws: int) -> float:
    """Every step, and the pool at w0 with its gradients."""
    return CHAINS * (BURNIN + draws) + float(POOL)


def draws_for(passes: float) -> int:
    """The most draws of a chain of ours that these passes pay."""
    return int((passes - ours_passes(0)) / CHAINS)


def theirs(problem: Problem, seed: int, draws: int = DRAWS) -> float:
    """devinterp's llc_mean."""
    from datasets import Dataset

    with (
        warnings.catch_warnings(),
        contextlib.redirect_stderr(io.StringIO()),
        tempfile.TemporaryDirectory() as out,
    ):
        warnings.simplefilter("ignore")  # of its progress bars and of its scheduler
        from devinterp.slt.llc import llc

        result = llc(
            problem.model,
            Dataset.from_dict({"input_ids": problem.ids.tolist()}).with_format("torch"),
            {},
            lr=problem.lr,
            n_beta=problem.nbeta,
            localization=problem.localization,
            param_masks=create_param_masks(problem.model, problem.component),
            loss_fn=problem.loss_fn,
            num_chains=CHAINS,
            num_draws=draws,
            init_seed=seed,
            device="cpu",
            output_path=Path(out, "samples.zarr"),
        )
        return float(result.llc_mean)


def ours(problem: Problem, seed: int, draws: int, stacked: bool | None = None) -> float:
    """Our llc_mean, on a random pool."""
    rows = torch.randperm(len(problem.ids), generator=torch.Generator().manual_seed(seed))[: POOL * BATCH]
    pool = problem.ids[rows].split(BATCH)
    return _estimate(
        problem,
        problem.loss_fn,
        pool,
        CHAINS,
        num_burnin_steps=BURNIN,
        num_draws=draws,
        seed=seed,
        stacked=stacked,
    ).llc_mean


def reference(problem: Problem, chains: int, burnin: int, draws: int) -> LLCResult:
    """A long run on the whole dataset; each batch moves the weights while the loss of another is taken."""
    generator = torch.Generator().manual_seed(1)
    moving, seen = (problem.ids[torch.randperm(len(problem.ids), generator=generator)] for _ in range(2))

    def loss(model: nn.Module, batches: tuple[Tensor, Tensor]) -> Tensor:
        own = problem.loss_fn(model, batches[0])
        with torch.no_grad():
            other = problem.loss_fn(model, batches[1])
        return own - own.detach() + other

    pairs = list(zip(moving.split(BATCH), seen.split(BATCH), strict=True))
    return _estimate(problem, loss, pairs, chains, num_burnin_steps=burnin, num_draws=draws, seed=2**40)


def _estimate(
    problem: Problem, loss_fn: Callable[..., Tensor], batches: Any, chains: int, **run: Any
) -> LLCResult:
    return estimate_llc(
        problem.model,
        loss_fn,
        batches,
        component=problem.component,
        lr=problem.lr,
        nbeta=problem.nbeta,
        localization=problem.localization,
        num_chains=chains,
        **run,
    )


def ratio(errors: Array, others: Array) -> tuple[float, float, float]:
    """Mean square of `others` over that of `errors`, and its 95 % interval from 10,000 resamplings of both."""
    rng = np.random.default_rng(0)
    ours, theirs = (
        (x**2)[rng.integers(len(x), size=(10_000, len(x)))].mean(axis=1) for x in (errors, others)
    )
    low, high = np.quantile(theirs / ours, [0.025, 0.975])
    return float((others**2).mean() / (errors**2).mean()), float(low), float(high)


def compare(problem: Problem, size: Size) -> Iterator[Row | str]:
    """The two estimators on a problem."""
    truth = reference(problem, *size.reference)
    yield (
        f"{problem.name}: lr {problem.lr:g}, nbeta {problem.nbeta:g}, localization {problem.localization:g}, "
        f"{len(problem.ids)} rows; reference {truth.llc_mean:.4f} +- {truth.mcse:.4f}, R-hat {truth.r_hat:.3f}"
    )
    draws = draws_for(theirs_passes())
    errors = {
        "ours": np.array([ours(problem, i, draws) for i in range(size.repeats)]) - truth.llc_mean,
        # its chain c takes init_seed + c
        "devinterp": np.array([theirs(problem, 10 * CHAINS * i) for i in range(size.repeats)])
        - truth.llc_mean,
    }
    passes = {"ours": ours_passes(draws), "devinterp": theirs_passes()}
    for name, x in errors.items():
        yield (
            f"  {name:9} {passes[name]:6.1f} passes, {len(x)} repeats: mean squared error {(x**2).mean():.4g} = "
            f"bias {x.mean():+.3g}, squared {x.mean() ** 2:.3g}, + variance {x.var():.3g}"
        )
    yield AtLeast(
        f"{problem.name}: MSE devinterp / MSE ours", AIM, *ratio(errors["ours"], errors["devinterp"])
    )


def rows(quick: bool) -> Iterator[Row | str]:
    yield from compare(
        deep_linear(samples=8192), Size(5, (4, 128, 1024)) if quick else Size(40, (8, 512, 4096))
    )
    yield from compare(
        transformer(samples=8192, steps=250 if quick else 1500),
        Size(3, (4, 64, 128)) if quick else Size(20, (8, 128, 2048)),
    )


if __name__ == "__main__":
    main(__doc__ or "", rows)
