"""Each sampler's stationary law on a quadratic, and storage that keeps it.

All are seeded. Variances come from 200,000 coordinates seen 10 times, far enough apart to count as independent: a
relative standard error below 0.15 %, and of the mean over steps of the virial below that; 1 % is 6 of them.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import llc_fast
from llc_fast import exact
from llc_fast.kept import heating
from llc_fast.metrics import virial
from llc_fast.plan import Plan
from llc_fast.reference import join
from llc_fast.scalars import Scalars
from llc_fast.sums import INDEX

NUMEL, NBETA, LOCALIZATION, H = 200_000, 30.0, 20.0, 1.0
A = NBETA * H + LOCALIZATION
RATES = [0.04, 0.4, 1.0]


class Chain:
    """A sampler on h w^2/2 from w0 = 0, with a gradient noise of its own."""

    def __init__(self, sampler: str, rate: float, seed: int = 1, gradient_noise: float = 0.0, **own: float):
        self.w, self.buffer = torch.zeros(NUMEL), torch.zeros(NUMEL)
        self.lr = rate / A
        self.thermostat = (
            torch.full((1,), own["friction"], dtype=torch.float64) if sampler == "sgnht" else None
        )
        self.plan = Plan(
            [self.w],
            [torch.zeros(NUMEL)],
            sampler=sampler,
            buffers=None if sampler == "sgld" else [self.buffer],
            seed=seed,
            thermostat=self.thermostat,
            sums=True,
        )
        self.scalars = Scalars.check(lr=self.lr, nbeta=NBETA, localization=LOCALIZATION, **own)
        self.gradient_noise, self.generator = gradient_noise, torch.Generator().manual_seed(seed)
        self.steps = 0

    def run(self, steps: int, every: int = 0) -> list[dict[str, float]]:
        """What is seen every so many steps, before them; the virial is of every step."""
        seen: list[dict[str, float]] = []
        heats = []
        for i in range(steps):
            if every and i % every == 0:
                seen.append({"w2": mean_square(self.w), "v2": mean_square(self.buffer)})
                seen[-1]["xi"] = 0.0 if self.thermostat is None else float(self.thermostat)
            g = H * self.w
            if self.gradient_noise:
                g = g + self.gradient_noise * torch.randn(NUMEL, generator=self.generator)
            self.plan.step([g], self.scalars, self.steps)
            self.steps += 1
            heats.append(float(virial(self.plan.totals().sum(dim=0), self.scalars)))
        if seen:
            seen[0]["virial"] = float(np.mean(heats))
        return seen


def mean_square(x: Tensor) -> float:
    return float(x.double().square().mean())


def average(seen: list[dict[str, float]], name: str) -> float:
    return float(np.mean([entry[name] for entry in seen]))


def settled(rate: float, friction: float = 1.0) -> tuple[int, int]:
    """Steps until nothing is left of the start, and between independent looks."""
    slowest = min(friction / 2, rate / (2 * friction)) if friction < 1 else rate / 2
    return int(10 / slowest) + 10, int(2 / slowest) + 1


@pytest.mark.parametrize("rate", RATES)
def test_sgld_and_its_virial(rate):
    """Variance 1/(a (1 - lr a/4)); the virial is the mean of a_i Var_i, and is seen without the loss."""
    chain = Chain("sgld", rate)
    burnin, apart = settled(rate)
    chain.run(burnin)
    seen = chain.run(10 * apart, apart)
    variance = float(exact.quadratic_variance(A, chain.lr))
    assert average(seen, "w2") == pytest.approx(variance, rel=0.01)
    assert seen[0]["virial"] == pytest.approx(A * variance, rel=0.01)
    assert A * variance == pytest.approx(1 / (1 - rate / 4))


@pytest.mark.parametrize("friction", [0.1, 1.0])
@pytest.mark.parametrize("rate", RATES)
def test_sghmc(rate, friction):
    """Var = 1/(a (1 - lr a/(4 - 2A))) and E v^2 = lr a Var/(1 - A/2); friction 1 is SGLD at twice the lr."""
    chain = Chain("sghmc", rate, friction=friction)
    burnin, apart = settled(rate, friction)
    chain.run(burnin)
    seen = chain.run(10 * apart, apart)
    variance = 1 / (A * (1 - rate / (4 - 2 * friction)))
    assert float(exact.sghmc_variance([A], chain.lr, friction)[0]) == pytest.approx(variance)
    assert average(seen, "w2") == pytest.approx(variance, rel=0.01)
    assert average(seen, "v2") == pytest.approx(rate * variance / (1 - friction / 2), rel=0.01)
    if friction == 1.0:
        assert variance == pytest.approx(float(exact.quadratic_variance(A, 2 * chain.lr)))


@pytest.mark.parametrize("rate", RATES)
def test_sgnht(rate):
    """xi goes to the smaller root of xi (4 - 2 xi - lr a) = 4A; Var = (1 - xi/2)/a, E v^2 = lr."""
    factor = 0.1
    chain = Chain("sgnht", rate, friction=factor)
    burnin, apart = settled(rate, factor)
    chain.run(2 * burnin)
    seen = chain.run(10 * apart, apart)
    xi = exact.sgnht_friction([A], chain.lr, factor)
    assert xi * (4 - 2 * xi - rate) == pytest.approx(4 * factor)
    assert average(seen, "xi") == pytest.approx(xi, rel=0.01)
    assert average(seen, "w2") == pytest.approx((1 - xi / 2) / A, rel=0.01)
    assert average(seen, "v2") == pytest.approx(chain.lr, rel=0.01)


def test_a_thermostat_takes_out_the_heat_of_gradient_noise():
    """E v^2/lr is 1 and a Var 1 - xi/2 with minibatch noise that heats SGLD by 16 %, SGHMC fourfold."""
    rate, spread = 0.1, 0.6
    drift_variance = (NBETA * spread) ** 2
    chains = {}
    for sampler, own in (("sgld", {}), ("sghmc", {"friction": 0.1}), ("sgnht", {"friction": 0.1})):
        chain = chains[sampler] = Chain(sampler, rate, gradient_noise=spread, **own)
        chain.run(
            2500 if sampler == "sgnht" else 600
        )  # the thermostat moves by lr times what it is off, a step
        chain.seen = chain.run(400, 40)
    lr = rate / A
    xi = exact.sgnht_friction([A], lr, 0.1, drift_variance=drift_variance)
    assert xi > 1.5 * exact.sgnht_friction([A], lr, 0.1)
    seen = chains["sgnht"].seen
    assert average(seen, "v2") / lr == pytest.approx(1.0, rel=0.01)
    assert average(seen, "xi") == pytest.approx(xi, rel=0.01)
    assert average(seen, "w2") * A == pytest.approx(1 - xi / 2, rel=0.01)
    hot = (1 + lr * drift_variance / 4) / (1 - rate / 4)  # the innovation of SGLD gains eps^2 nbeta^2 C/4
    assert average(chains["sgld"].seen, "w2") * A == pytest.approx(hot, rel=0.01)
    assert hot > 1.15
    warm = float(exact.sghmc_variance([A], lr, 0.1, drift_variance=drift_variance)[0]) * A
    assert average(chains["sghmc"].seen, "w2") * A == pytest.approx(warm, rel=0.01)
    assert warm > 4


@pytest.mark.parametrize("rate", RATES)
def test_rmsprop_with_a_gradient_of_constant_size(rate):
    """Gradients of +-c give V = c^2, a fixed G: mean -nbeta g/gamma, variance 1/(gamma (1 - lr G gamma/4))."""
    size, eps, alpha = 0.02, 0.05, 0.9
    signs = (torch.randint(0, 2, (NUMEL,), generator=torch.Generator().manual_seed(0)) * 2 - 1).float()
    G = 1 / (size + eps)
    lr = rate / (G * LOCALIZATION)
    w, V = torch.zeros(NUMEL), torch.zeros(NUMEL)
    plan = Plan([w], [torch.zeros(NUMEL)], sampler="rmsprop_sgld", buffers=[V], seed=4)
    scalars = Scalars.check(lr=lr, nbeta=NBETA, localization=LOCALIZATION, alpha=alpha, eps=eps)
    burnin, apart = settled(rate)
    squares, centres = [], []
    centre = -NBETA * size * signs / LOCALIZATION
    for step in range(burnin + 150 + 10 * apart):
        if step >= burnin + 150 and (step - burnin - 150) % apart == 0:
            squares.append(mean_square(w - centre))
            centres.append(float((w * signs).double().mean()))
        plan.step([size * signs], scalars, step)
    assert torch.allclose(V, torch.full_like(V, size**2), rtol=1e-4)
    assert np.mean(squares) == pytest.approx(1 / (LOCALIZATION * (1 - rate / 4)), rel=0.01)
    assert np.mean(centres) == pytest.approx(-NBETA * size / LOCALIZATION, rel=0.01)


# --- bf16 ---

ROWS = [(scale, lr) for scale in (0.02, 1.0) for lr in (1e-4, 1e-6, 1e-8)]


def sampled(
    scale: float, lr: float, state: str, noise: str = "gaussian", numel: int = 400_000
) -> tuple[float, Any]:
    """E|w - w0|^2 a coordinate after 400 steps under localization alone, and the sampler."""
    generator = torch.Generator().manual_seed(5)
    w = torch.nn.Parameter((scale * (1 + 0.2 * torch.randn(numel, generator=generator))).bfloat16())
    w0 = w.detach().clone()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sampler = llc_fast.SGLD(
            [w], lr=lr, nbeta=30.0, localization=0.02 / lr, state=state, noise=noise, seed=6
        )
    for _ in range(400):
        sampler.step()
    rest = sampler.state[w].get("remainder")
    full = w.detach().float() if rest is None else join(w.detach(), rest)
    return mean_square(full - w0.float()), sampler


@pytest.mark.parametrize(("scale", "lr"), ROWS)
def test_split_bfloat16_has_the_exact_variance(scale, lr):
    """E|w - w0|^2 within 1 % of the finite chain's (standard error .22 %); devinterp's on the same rows is not."""
    devinterp = pytest.importorskip("devinterp.optim")
    expected = float(exact.chain_variance(0.02 / lr, lr, 400))
    variance, _ = sampled(scale, lr, "split")
    assert variance == pytest.approx(expected, rel=0.01)
    generator = torch.Generator().manual_seed(5)
    w = torch.nn.Parameter((scale * (1 + 0.2 * torch.randn(60_000, generator=generator))).bfloat16())
    w0 = w.detach().clone()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = devinterp.SGMCMC.sgld([w], lr=lr, nbeta=30.0, localization=0.02 / lr)
    w.grad = torch.zeros_like(w)
    for _ in range(400):
        theirs.step(noise_generator=generator)
    other = mean_square(w.detach().float() - w0.float())
    print(f"|w| ~ {scale}, lr {lr}: exact {expected:.3e}, split {variance:.3e}, devinterp {other:.3e}")
    assert abs(other / expected - 1) > 0.03 or (scale == 0.02 and lr == 1e-4)  # 7 standard errors


@pytest.mark.parametrize("noise", ["gaussian", "ih4"])
@pytest.mark.parametrize(("scale", "lr"), ROWS)
def test_stochastic_rounding_is_right_where_it_is_allowed(scale, lr, noise):
    """Within 1 % of the finite chain's variance plus its own heat, below 1 %; refused where it would be more."""
    variance, sampler = sampled(scale, lr, "sr", noise)
    (w,) = sampler.param_groups[0]["params"]
    heat = heating(sampler.state[w]["anchor"], lr)
    assert heat == pytest.approx({0.02: 2.5e-9, 1.0: 8e-6}[scale] / lr, rel=0.5)
    allowed = heat <= 0.01
    assert allowed == ((scale, lr) in [(0.02, 1e-4), (0.02, 1e-6)])
    assert ("remainder" in sampler.state[w]) == (not allowed)
    assert len(sampler.notes) == (not allowed)
    expected = float(exact.chain_variance(0.02 / lr, lr, 400)) * (1 + heat * allowed)
    assert variance == pytest.approx(expected, rel=0.01)


def test_half_precision_with_a_master_has_the_exact_variance():
    lr = 1e-6
    w = torch.nn.Parameter(
        (1 + 0.2 * torch.randn(400_000, generator=torch.Generator().manual_seed(5))).half()
    )
    sampler = llc_fast.SGLD([w], lr=lr, nbeta=30.0, localization=0.02 / lr, seed=6)
    for _ in range(400):
        sampler.step()
    master = sampler.state[w]["remainder"]
    assert torch.equal(master.half(), w.detach())
    variance = mean_square(master - sampler.state[w]["anchor"].float())
    assert variance == pytest.approx(float(exact.chain_variance(0.02 / lr, lr, 400)), rel=0.01)


def test_sums_of_a_selection_count_its_weights_alone():
    w = torch.randn(10, 8)
    sums = torch.zeros(1, 24, dtype=torch.float64)
    mask = torch.rand(10, 8) < 0.5
    g = torch.randn(10, 8)
    llc_fast.sgld_step_([w], [g], [w.clone()], masks=[mask], lr=1e-3, nbeta=2.0, seed=0, step=0, sums=sums)
    assert sums[0, INDEX["n"]] == mask.sum()
    assert float(sums[0, INDEX["g2"]]) == pytest.approx(float(g[mask].double().square().sum()), rel=1e-5)
