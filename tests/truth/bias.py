"""Order bias and pool bias of linear regression, predicted against observed.

y = W x + noise of variance s^2 in each of o outputs, L = mean |y - W x|^2 / 2, H the covariance of x, eps = lr,
a = nbeta H + localization.

Order bias: a chain that takes losses on the batches that give its gradients, in whole epochs of N, reads high by
about lr nbeta^2 tr(C)/4, C the covariance of batch gradients at w0 (the result's `order_bias`). Where the chain
forgets a batch within an epoch it is less. In an eigendirection of H of precision a, rho = 1 - lr a/2,

    lr nbeta^2 C_ii / (2 (N - 1)) * mean over p < N of (1 - rho^p) / (1 - rho),

and where designs differ between batches C is that at the chain's own distance from w0: C + E (H_b - H) Var (H_b - H)
for each output. Observed: the estimate minus another of the same chains, bit for bit, that takes the loss of the pool
and the gradient of the batch.

Pool bias: w0 is the population's minimum, not the pool's. The gradient of a pool of S samples at w0 has covariance
s^2 H/S for each output, which adds on average

    -(nbeta^2 s^2 / S) o sum h/a (1 - nbeta h/(2a)),

-nbeta/S of the LLC where s = 1 and localization is small. Observed: chains on many random pools, minus the
population's exact value at the same lr. A pool's two halves read low by twice that, so that full minus half pool shows
the bias to whoever knows no population. Standard errors are from chains, and from pools.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from frame import Near, Row, main
from torch import Tensor, nn

from llc_fast import LLCResult, estimate_llc, exact

Batch = tuple[Tensor, Tensor]
FIRST_ORDER = 0.03  # of a prediction: it is one to first order, in lr or in 1/S


class Regression(nn.Module):
    """Weights (inputs, outputs)."""

    def __init__(self, w0: Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(w0.float().contiguous())


def losses(model: nn.Module, batch: Batch) -> Tensor:
    """Loss of each sample."""
    x, y = batch
    return (y - x @ model.w.double()).square().sum(dim=1) / 2


def design(samples: int, eigenvalues: Tensor, generator: torch.Generator, *, exactly: bool) -> Tensor:
    """x with this diagonal covariance, exactly in the sample or in the population."""
    x = torch.randn(samples, len(eigenvalues), dtype=torch.float64, generator=generator)
    if exactly:
        x = torch.linalg.qr(x).Q * math.sqrt(samples)
    return x * eigenvalues.sqrt()


# --- order ---


@dataclass(frozen=True)
class Order:
    """A pool of `batches` batches; same_design: whether all have the same H."""

    name: str
    lr: float
    nbeta: float
    localization: float
    batches: int
    batch_size: int
    same_design: bool
    slow: bool = True  # whether the chain remembers a batch all through an epoch
    inputs: int = 4
    outputs: int = 64


ORDERS = (
    Order("A", lr=5e-4, nbeta=30.0, localization=10.0, batches=8, batch_size=4, same_design=True),
    Order("B", lr=2e-4, nbeta=100.0, localization=10.0, batches=4, batch_size=32, same_design=False),
    Order(
        "C", lr=1e-2, nbeta=40.0, localization=10.0, batches=32, batch_size=8, same_design=True, slow=False
    ),
)


def regression_pool(s: Order) -> tuple[list[Batch], Tensor]:
    """Batches, and the pool's minimum."""
    generator = torch.Generator().manual_seed(0)
    h = torch.linspace(0.5, 1.5, s.inputs, dtype=torch.float64)
    pool = []
    for _ in range(s.batches):
        x = design(s.batch_size, h, generator, exactly=s.same_design)
        pool.append((x, torch.randn(s.batch_size, s.outputs, dtype=torch.float64, generator=generator)))
    return pool, torch.linalg.lstsq(torch.cat([x for x, _ in pool]), torch.cat([y for _, y in pool])).solution


def predicted_order_bias(s: Order, pool: Sequence[Batch], w0: Tensor) -> tuple[float, float]:
    """lr nbeta^2 tr(C)/4, and with curvature and the chain's distance counted."""
    hessians = torch.stack([x.T @ x / len(x) for x, _ in pool])
    gradients = torch.stack([x.T @ (x @ w0 - y) / len(x) for x, y in pool])
    h, basis = torch.linalg.eigh(hessians.mean(dim=0))
    plain = s.lr * s.nbeta**2 * float(gradients.square().sum()) / s.batches / 4
    a = s.nbeta * h + s.localization
    variance = torch.from_numpy(exact.quadratic_variance(a.numpy(), s.lr))
    apart = basis.T @ hessians @ basis - torch.diag(h)
    c = (basis.T @ gradients).square().sum(dim=2).mean(dim=0)
    c += s.outputs * (apart.square() * variance).sum(dim=2).mean(dim=0)
    rho = 1 - s.lr * a / 2
    remembered = ((1 - rho ** torch.arange(s.batches)[:, None]) / (1 - rho)).mean(dim=0)
    return plain, s.lr * s.nbeta**2 / (2 * (s.batches - 1)) * float((c * remembered).sum())


def order_rows(s: Order, chains: int, draws: int) -> Iterator[Row]:
    pool, w0 = regression_pool(s)
    x, y = (torch.cat(parts) for parts in zip(*pool, strict=True))

    def loss_of_the_pool(model: nn.Module, batch: Batch) -> Tensor:
        """The pool's value with the batch's gradient."""
        own = losses(model, batch)
        return own - own.detach() + losses(model, (x, y)).detach().mean()

    def estimate(loss_fn: object) -> LLCResult:
        settled = math.ceil(6 / (s.lr * s.localization) / s.batches)
        return estimate_llc(
            Regression(w0),
            loss_fn,
            pool,
            lr=s.lr,
            nbeta=s.nbeta,
            localization=s.localization,
            num_chains=chains,
            num_burnin_steps=min(settled, 40) * s.batches,
            num_draws=draws // s.batches * s.batches,
        )

    on_gradient_batches = estimate(losses)
    seen = on_gradient_batches.llc_per_chain - estimate(loss_of_the_pool).llc_per_chain
    observed, error = float(seen.mean()), float(seen.std(ddof=1)) / math.sqrt(chains)
    plain, curved = predicted_order_bias(s, pool, w0)
    share = f"{plain / on_gradient_batches.llc_mean:.0%} of LLC"
    yield Near(
        f"order {s.name}: order_bias = lr nbeta^2 tr(C)/4", plain, on_gradient_batches.order_bias, 0.0, 1e-3
    )
    yield Near(f"order {s.name}: with curvature, observed ({share})", curved, observed, error, FIRST_ORDER)
    if s.slow:
        off = abs(curved / plain - 1) + FIRST_ORDER
        yield Near(
            f"order {s.name}: order_bias, observed", on_gradient_batches.order_bias, observed, error, off
        )


# --- pool ---


@dataclass(frozen=True)
class Pool:
    """Pools of `samples`; fixed: their designs all have the population's covariance exactly."""

    name: str
    nbeta: float
    localization: float
    samples: int
    eigenvalues: tuple[float, ...]
    noise: float
    fixed: bool
    rate: float = 0.3  # lr a_max
    outputs: int = 128


POOLS = (
    Pool("A", 30.0, 0.5, 600, (1.0, 1.0, 1.0, 1.0), 1.0, fixed=True),
    Pool("B", 50.0, 10.0, 400, (0.1, 0.3, 1.0, 2.0), 1.5, fixed=True),
    Pool("C", 20.0, 2.0, 300, (0.5, 1.0, 1.0, 2.0), 1.0, fixed=False),
)


def predicted_pool_bias(s: Pool) -> float:
    h = np.array(s.eigenvalues)
    a = exact.precision(h, nbeta=s.nbeta, localization=s.localization)
    return (
        -s.outputs * (s.nbeta * s.noise) ** 2 / s.samples * float((h / a * (1 - s.nbeta * h / (2 * a))).sum())
    )


def pool_llc(s: Pool, x: Tensor, y: Tensor, draws: int, seed: int) -> float:
    """The estimate of one chain on this pool, as one batch, from the population's minimum, 0."""
    a = exact.precision(s.eigenvalues, nbeta=s.nbeta, localization=s.localization)
    lr = s.rate / float(a.max())
    result = estimate_llc(
        Regression(torch.zeros(x.shape[1], y.shape[1])),
        losses,
        [(x, y)],
        lr=lr,
        nbeta=s.nbeta,
        localization=s.localization,
        num_chains=1,
        num_burnin_steps=math.ceil(10 / (lr * float(a.min()))),
        num_draws=draws,
        seed=seed,
    )
    return result.llc_mean


def pool_rows(s: Pool, pools: int, draws: int) -> Iterator[Row]:
    generator = torch.Generator().manual_seed(0)
    h = torch.tensor(s.eigenvalues, dtype=torch.float64)
    a_max = float(exact.precision(s.eigenvalues, nbeta=s.nbeta, localization=s.localization).max())
    population = s.outputs * exact.quadratic_llc(
        s.eigenvalues, nbeta=s.nbeta, localization=s.localization, lr=s.rate / a_max
    )
    full, half = np.empty(pools), np.empty(pools)
    for i in range(pools):
        halves = []
        for _ in range(2):
            x = design(s.samples // 2, h, generator, exactly=s.fixed)
            y = torch.randn(len(x), s.outputs, dtype=torch.float64, generator=generator)
            halves.append((x, s.noise * y))
        x, y = (torch.cat(parts) for parts in zip(*halves, strict=True))
        full[i] = pool_llc(s, x, y, draws, seed=3 * i)
        half[i] = np.mean([pool_llc(s, *part, draws, seed=3 * i + j) for j, part in enumerate(halves, 1)])
    bias = predicted_pool_bias(s)
    for name, target, seen in (
        (
            f"pool {s.name}: {pools} pools - population ({bias / population:.1%} of LLC)",
            bias,
            full - population,
        ),
        (f"pool {s.name}: full - half pool", -bias, full - half),
    ):
        error = float(seen.std(ddof=1)) / math.sqrt(pools)
        yield Near(name, target, float(seen.mean()), error, FIRST_ORDER)


def rows(quick: bool) -> Iterator[Row | str]:
    yield f"{FIRST_ORDER:.0%} of a prediction is allowed beside 3 standard errors: it is of first order"
    for order in ORDERS:
        yield from order_rows(order, chains=8, draws=240 if quick else 2000)
    for pool in POOLS:
        yield from pool_rows(pool, pools=30 if quick else 120, draws=50 if quick else 250)


if __name__ == "__main__":
    main(__doc__ or "", rows)
