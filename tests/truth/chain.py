"""The chain against closed forms: a quadratic loss at a finite step, and two singular ones extrapolated to step 0.

Every model here is many replicas of a small one in one tensor, side by side: their noise is independent, so that a run
is as many chains of the small model. All figures are of one replica. Samplers other than SGLD: RMSprop-SGLD is left
out, it has no exact target.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from frame import Near, Row, main
from torch import Tensor, nn

from llc_fast import SGLD, LLCResult, estimate_llc, exact

EIGENVALUES = np.logspace(-2, 0, 16)
NBETA, LOCALIZATION = 30.0, 5.0
PRECISION = exact.precision(EIGENVALUES, nbeta=NBETA, localization=LOCALIZATION)
SLOWEST, FASTEST = float(PRECISION.min()), float(PRECISION.max())
EXTRAPOLATED = 0.01  # of the target: what a straight line through two steps leaves


class Replicas(nn.Module):
    """Weights (weights, replicas) at w0."""

    def __init__(self, w0: Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(w0.clone())


# --- a quadratic loss ---


def start(replicas: int) -> Tensor:
    """A w0 that is not 0."""
    return torch.randn(len(EIGENVALUES), replicas, generator=torch.Generator().manual_seed(0))


def quadratic(replicas: int, **settings: Any) -> LLCResult:
    """`estimate_llc` of the replicated quadratic; see `of_one` for what it says of one."""
    w0, h = start(replicas), torch.tensor(EIGENVALUES)[:, None]
    return estimate_llc(
        Replicas(w0),
        lambda model, batch: (h * (model.w.double() - w0).square()).sum() / 2,
        [None],
        nbeta=NBETA,
        localization=LOCALIZATION,
        **settings,
    )


def of_one(result: LLCResult, replicas: int) -> tuple[float, float]:
    """LLC and standard error of a replica."""
    return result.llc_mean / replicas, result.mcse / replicas


def relaxations(lr: float, slowest: float, times: float) -> int:
    """Steps in which the slowest direction relaxes so often."""
    return math.ceil(times * 2 / (lr * slowest))


def sgld(rate: float, replicas: int, times: float) -> Row:
    """The estimate at eps a_max = rate against its exact mean, with the exact standard error."""
    lr = rate / FASTEST
    run = {
        "lr": lr,
        "num_burnin_steps": relaxations(lr, SLOWEST, 1),
        "num_draws": relaxations(lr, SLOWEST, times),
    }
    result = quadratic(replicas, **run)
    target = exact.chain_llc(EIGENVALUES, nbeta=NBETA, localization=LOCALIZATION, **run)
    error = exact.estimate_std(
        EIGENVALUES,
        nbeta=NBETA,
        localization=LOCALIZATION,
        lr=lr,
        num_draws=run["num_draws"],
        num_chains=len(result.llc_per_chain),
    )
    value, _ = of_one(result, replicas)
    return Near(f"quadratic, eps a_max {rate:g}: LLC", target, value, error / math.sqrt(replicas))


def walk(rate: float, replicas: int, times: float) -> Iterator[Row]:
    """|w - w0|^2 and the virial on a chain of the `SGLD` optimizer; standard errors are from the replicas."""
    lr = rate / FASTEST
    w0, h = start(replicas), torch.tensor(EIGENVALUES, dtype=torch.float32)[:, None]
    a = torch.tensor(PRECISION)[:, None]
    w = nn.Parameter(w0.clone())
    sampler = SGLD([w], lr=lr, nbeta=NBETA, localization=LOCALIZATION, seed=1)
    burnin, draws = relaxations(lr, SLOWEST, 4), relaxations(lr, SLOWEST, times)
    squares = torch.zeros(w.shape, dtype=torch.float64)
    for step in range(burnin + draws):
        d = w.detach() - w0
        if step >= burnin:
            squares += d.double().square() / draws
        w.grad = h * d
        sampler.step()
    for name, values, target in (
        ("|w - w0|^2", squares.sum(dim=0), exact.quadratic_variance(PRECISION, lr).sum()),
        ("virial", (a * squares).mean(dim=0), exact.virial(PRECISION, lr)),
    ):
        error = float(values.std()) / math.sqrt(replicas)
        yield Near(f"quadratic, eps a_max {rate:g}: {name}", float(target), float(values.mean()), error)


def momentum(replicas: int, times: float) -> Iterator[Row]:
    """SGHMC and SGNHT; the thermostat averages over all directions of all replicas."""
    friction, lr = 0.1, 0.4 / FASTEST
    for sampler, variance in (("sghmc", exact.sghmc_variance), ("sgnht", exact.sgnht_variance)):
        slow = friction / (lr * SLOWEST)  # steps; a velocity makes lr/A of SGLD's lr/2
        result = quadratic(
            replicas,
            sampler=sampler,
            friction=friction,
            lr=lr,
            num_burnin_steps=math.ceil(8 * max(slow, 1 / friction)),
            num_draws=math.ceil(times * 10 * slow),
        )
        target = exact.gaussian_llc(EIGENVALUES, variance(PRECISION, lr, friction), nbeta=NBETA)
        yield Near(f"quadratic, {sampler}, lr a_max 0.4: LLC", target, *of_one(result, replicas))


# --- singular losses ---


def reduced_rank(w: Tensor) -> Tensor:
    """|B A|^2 / 2 of 2 x 2 matrices, summed over replicas."""
    a, b = w.view(2, 2, 2, -1)
    return (b[:, 0, None] * a[0] + b[:, 1, None] * a[1]).square().sum() / 2


def product(w: Tensor) -> Tensor:
    """w1^2 w2^2."""
    return (w[0] * w[1]).square().sum()


def singular(
    loss: Callable[[Tensor], Tensor], weights: int, nbeta: float, rate: float, replicas: int, times: float
) -> tuple[float, float]:
    """LLC at lr = rate/nbeta and localization 1, at w0 = 0, where weights relax in 2/lr steps; standard error."""
    lr = rate / nbeta
    thinning = max(1, int(0.02 * 2 / lr))
    result = estimate_llc(
        Replicas(torch.zeros(weights, replicas)),
        lambda model, batch: loss(model.w),
        [None],
        lr=lr,
        nbeta=nbeta,
        localization=1.0,
        num_chains=8,  # of many replicas each, for an error that counts what is slow
        num_burnin_steps=relaxations(lr, 1.0, 2),
        num_draws=relaxations(lr, 1.0, times) // thinning,
        num_steps_bw_draws=thinning,
    )
    return of_one(result, replicas)


# of lr nbeta: a straight line needs them small, and a chain takes 2 nbeta/rate steps to relax
RATES = {"RRR(2,2,2)": {10.0: 0.1, 30.0: 0.2, 100.0: 0.2, 1000.0: 0.2}}
RATES["w1^2 w2^2"] = {10.0: 0.05, 30.0: 0.1, 100.0: 0.2, 1000.0: 0.2}


def extrapolated(name: str, nbeta: float, elements: int, times: float) -> Row:
    """A straight line through the steps rate/nbeta and half of that, at lr = 0; elements: of a chain's weights."""
    if name == "w1^2 w2^2":
        loss, weights, target = product, 2, exact.power_product_llc([1, 1], nbeta=nbeta, localization=1.0)
    else:
        loss, weights = reduced_rank, 8
        target = exact.reduced_rank_llc(2, 2, 2, nbeta=nbeta, localization=1.0)
    rate = RATES[name][nbeta]
    coarse, coarse_error = singular(loss, weights, nbeta, rate, elements // weights, times)
    fine, fine_error = singular(loss, weights, nbeta, rate / 2, elements // weights, times)
    error = math.hypot(2 * fine_error, coarse_error)
    return Near(f"{name}, nbeta {nbeta:g}: LLC at eps -> 0", target, 2 * fine - coarse, error, EXTRAPOLATED)


def rows(quick: bool) -> Iterator[Row | str]:
    replicas, times = (64, 4) if quick else (256, 12)
    for rate in (0.04, 0.4, 2.0):
        yield sgld(rate, replicas, times)
        yield from walk(rate, replicas, times)
    yield from momentum(replicas, times)
    yield "singular losses: 1 % is allowed for the straight line"
    for name in ("RRR(2,2,2)", "w1^2 w2^2"):
        for nbeta in (10.0, 30.0, 100.0) if quick else (10.0, 100.0, 1000.0):
            times = 20 if nbeta == 10 else 3  # cheap there
            yield extrapolated(name, nbeta, 800 if quick else 4000, times)


if __name__ == "__main__":
    main(__doc__ or "", rows)
