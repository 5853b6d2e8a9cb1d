"""How often the 95 % interval holds its target, over replicates of four chains that all walk at once.

Gaussian: a linear regression with minibatches in shuffled epochs; the target is the exact stationary mean at the step
used, with the batches' gradient noise and the bias of their order in it. Reduced rank: |B A|^2 / 2 of 2 x 2 matrices;
the target is a long run at the same step, written out here. Beside it what devinterp's llc_std, the standard deviation
over chains, covers on the same chains. Last, a chain that is at another level of the loss, which R-hat must see.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from epochs import Epochs, Regression
from frame import Near, Row, main
from rows import Between
from torch import Tensor, nn

from llc_fast import LLCResult, diagnostics, exact
from llc_fast.evidence import assess
from llc_fast.gathered import arrays, deaths, evidence, facts, settings
from llc_fast.sampling import Order, Schedule, Trace, empty_records, walk
from llc_fast.scalars import Scalars
from llc_fast.session import Request, Session, lent

CHAINS = 4  # of a replicate


@dataclass(frozen=True)
class Problem:
    """A model at w0, its pool of batches, and how chains walk on it."""

    model: nn.Module
    pool: Sequence[Any]
    lr: float
    nbeta: float
    localization: float

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        x, y = batch
        return (model(x) - y).square().sum(dim=-1) / 2

    @property
    def scalars(self) -> Scalars:
        return Scalars.check(
            lr=self.lr,
            nbeta=self.nbeta,
            localization=self.localization,
            weight_decay=0.0,
            noise_level=1.0,
            box=None,
        )


def walked(
    problem: Problem, schedule: Schedule, replicas: int, *, seed: int, planted: Tensor | None = None
) -> list[LLCResult]:
    """The results of replicates, each of four chains of one stacked run.

    planted: weights, flat, at which the last chain of each starts, not at w0.
    """
    scalars = problem.scalars
    request = Request("full", scalars, "sgld", "split", "gaussian", seed, "auto", True)
    with lent(problem.model, problem.loss, problem.pool, request) as session:
        session.look()
        traces: list[Trace] = []
        for bundle in session.bundles(range(CHAINS * replicas), True):
            walkers = session.walkers(bundle)
            order = Order(seed, bundle, [range(len(problem.pool))] * len(bundle))
            state = None
            if planted is not None:
                walkers.start(scalars)
                state = {
                    "step": 0,
                    "records": empty_records(len(bundle), schedule),
                    "deaths": {},
                    "walkers": _moved(walkers.state(), planted),
                }
            traces += walk(walkers, order, scalars, schedule, state=state)
        return [_result(session, schedule, traces[i : i + CHAINS]) for i in range(0, len(traces), CHAINS)]


def _moved(state: dict[str, Any], weights: Tensor) -> dict[str, Any]:
    """The last chain of each replicate put at these weights."""
    parts = weights.split([p[0].numel() for p in state["params"]])
    for p, part in zip(state["params"], parts, strict=True):
        p[CHAINS - 1 :: CHAINS] = part.view(p.shape[1:])
    return state


def _result(session: Session, schedule: Schedule, traces: Sequence[Trace]) -> LLCResult:
    used = settings(session, schedule, len(traces))
    known = facts(session, used, pool=len(session.problem.batches))
    known["baseline"] = session.baseline.losses
    found = arrays(traces, known["baseline"])
    return assess(evidence(known, found, dead=deaths(traces), settings=used))


# --- targets ---


def gaussian(*, batches: int = 8, samples: int = 8, d: int = 4) -> tuple[Problem, Epochs]:
    """A linear regression at its least squares solution."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(batches, samples, d, generator=g)
    y = torch.randn(batches, samples, generator=g) * 0.7
    model = nn.Linear(d, 1, bias=False)
    w0 = torch.linalg.lstsq(x.view(-1, d), y.view(-1, 1)).solution[:, 0]
    with torch.no_grad():
        model.weight.copy_(w0)
    how = {"lr": 2e-3, "nbeta": 50.0, "localization": 1.0}
    return Problem(model, [*zip(x, y[..., None], strict=True)], **how), Epochs(Regression.of(x, y, w0), **how)


def reduced_rank(lr: float = 4e-3) -> Problem:
    """|B A|^2 / 2 of 2 x 2 matrices at 0, as the mean over two samples of its one batch."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    x = math.sqrt(2) * torch.eye(2)
    return Problem(model, [(x, torch.zeros(2, 2))], lr=lr, nbeta=100.0, localization=1.0)


def long_run(problem: Problem, chains: int, schedule: Schedule) -> tuple[float, float]:
    """LLC of the reduced rank problem by the plain recursion in float64, and its standard error from chains."""
    g = torch.Generator().manual_seed(1)
    a, b = torch.zeros(2, 2, 2, chains, dtype=torch.float64)
    total = torch.zeros(chains, dtype=torch.float64)
    lr, nbeta, gamma = problem.lr, problem.nbeta, problem.localization
    for step in range(schedule.steps):
        ba = (b[:, :, None] * a[None]).sum(dim=1)
        if step >= schedule.num_burnin_steps:
            total += ba.square().sum(dim=(0, 1)) / 2
        down_a = (b[:, :, None] * ba[:, None]).sum(dim=0)
        down_b = (ba[:, None] * a[None]).sum(dim=2)
        za, zb = torch.randn(2, 2, 2, chains, generator=g, dtype=torch.float64) * math.sqrt(lr)
        a = a - lr / 2 * (nbeta * down_a + gamma * a) + za
        b = b - lr / 2 * (nbeta * down_b + gamma * b) + zb
    values = nbeta * total / (schedule.steps - schedule.num_burnin_steps)
    return float(values.mean()), float(values.std()) / math.sqrt(chains)


# --- coverage ---


def covered(results: Sequence[LLCResult], target: float) -> dict[str, float]:
    """The share of intervals that hold the target, ours and two that can be made of llc_std."""
    means = np.array([r.llc_mean for r in results])
    std = np.array([r.llc_std for r in results])
    bounds = np.array([r.interval() for r in results])
    return {
        "ours": float(((bounds[:, 0] <= target) & (target <= bounds[:, 1])).mean()),
        "std": float((abs(means - target) <= 1.96 * std).mean()),
        "std/sqrt": float((abs(means - target) <= 1.96 * std / math.sqrt(CHAINS)).mean()),
    }


def judged(name: str, results: Sequence[LLCResult], target: float, margin: float) -> Iterator[Row | str]:
    """The rows of a case. margin: percentage points about 95."""
    means = np.array([r.llc_mean for r in results])
    spread = float(means.std(ddof=1))
    said = float(np.median([r.mcse for r in results]))
    dofs = np.percentile([r.dof for r in results], [5, 50, 95]).astype(int).tolist()
    yield Near(f"{name}: mean of the replicates", target, float(means.mean()), spread / math.sqrt(len(means)))
    share = covered(results, target)
    error = math.sqrt(0.95 * 0.05 / len(results))
    low, high = 95 - margin, min(100.0, 95 + margin)
    yield Between(f"{name}: coverage of the 95 % interval, %", low, high, 100 * share["ours"], 100 * error)
    yield f"  of {len(results)} replicates; their means spread by {spread:.4g}, median mcse {said:.4g}, dof {dofs}"
    yield f"  on the same chains, mean +- 1.96 llc_std: {100 * share['std']:.1f} %"
    yield f"  on the same chains, mean +- 1.96 llc_std/sqrt({CHAINS}): {100 * share['std/sqrt']:.1f} %"


def margin(replicas: int) -> float:
    """2 for 1,000 replicates, which is 2.9 standard deviations of a binomial; as many for fewer."""
    return 2.0 * math.sqrt(1000 / replicas)


# --- an unmixed chain ---


def unmixed() -> tuple[Problem, Tensor]:
    """A regression with a direction so slack that chains stay where they start along it, and a start up that slope."""
    g = torch.Generator().manual_seed(2)
    batches, samples = 8, 16
    x = torch.randn(batches, samples, 2, generator=g) * torch.tensor([1.0, 1e-3])
    y = torch.randn(batches, samples, 1, generator=g) * (1 + 0.3 * torch.randn(batches, 1, 1, generator=g))
    model = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        w0 = torch.linalg.lstsq(x.view(-1, 2), y.view(-1, 1)).solution[:, 0]
        model.weight.copy_(w0)
    return Problem(
        model, [*zip(x, y, strict=True)], lr=1e-3, nbeta=50.0, localization=0.0
    ), w0 + torch.tensor([0.0, 300.0])


def planted_rows() -> Iterator[Row | str]:
    problem, start = unmixed()
    schedule = Schedule(num_draws=512, num_burnin_steps=128, num_steps_bw_draws=1)
    mixed = walked(problem, schedule, 1, seed=5)[0]
    planted = walked(problem, schedule, 1, seed=5, planted=start)[0]
    drawn = planted.loss_trace[:, schedule.num_burnin_steps :]
    levels = planted.llc_per_chain / problem.nbeta
    apart = float(levels[-1] - levels[:-1].mean())
    noise = float(drawn.std(axis=1).mean())
    yield f"R-hat, one chain of {CHAINS} planted {apart:.2g} above the others; batch losses spread by {noise:.2g}"
    yield Between("planted level / spread of batch losses", 0.0, 1.0, apart / noise)
    yield Between("R-hat of raw batch losses, planted", 0.0, 1.01, diagnostics.r_hat(drawn))
    yield Between("our R-hat, planted", 1.1, math.inf, planted.r_hat)
    yield Between("our R-hat, no chain planted", 0.0, 1.1, mixed.r_hat)


def rows(quick: bool) -> Iterator[Row | str]:
    replicas = 100 if quick else 1000
    problem, epochs = gaussian()
    size = len(problem.pool)
    burnin, draws = 16, 64 if quick else 128  # epochs
    target = epochs.llc()
    yield f"Gaussian, {replicas} replicates of {CHAINS} chains x {draws * size} draws"
    yield f"  what {burnin} epochs of burn-in leave of the start: {epochs.llc_from_start(burnin, draws) - target:+.1e}"
    results = walked(problem, Schedule(draws * size, burnin * size, 1), replicas, seed=1)
    yield from judged("Gaussian", results, target, margin(replicas))

    problem = reduced_rank()
    schedule = Schedule(num_draws=500 if quick else 800, num_burnin_steps=2000, num_steps_bw_draws=8)
    target, error = long_run(problem, 8_000 if quick else 20_000, schedule)
    limit = exact.reduced_rank_llc(2, 2, 2, nbeta=problem.nbeta, localization=problem.localization)
    yield f"RRR(2,2,2), {replicas} replicates of {CHAINS} chains x {schedule.num_draws} draws, eps {problem.lr:g}"
    yield f"  target {target:.4f} +- {error:.4f} at this step ({limit:.4f} at eps -> 0)"
    results = walked(problem, schedule, replicas, seed=2)
    spread = float(np.std([r.llc_mean for r in results], ddof=1))
    yield Between("RRR(2,2,2): target's error / a replicate's", 0.0, 0.1, error / spread)
    yield from judged("RRR(2,2,2)", results, target, margin(replicas))
    yield from planted_rows()


if __name__ == "__main__":
    main(__doc__ or "", rows)
