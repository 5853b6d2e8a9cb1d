"""Closed forms against published values, direct recursions, quadrature and simulation.

Simulations are seeded and allow 5 standard errors: a right formula fails one comparison in 1.7 million seeds.
"""

import doctest
import importlib
import itertools
import math
import pkgutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llc_fast import exact
from llc_fast.errors import ArgumentError

H = np.array([1.0, 0.3, 0.0])
SETTINGS = {"nbeta": 10.0, "localization": 2.0, "weight_decay": 0.5}
A = 10.0 * H + 2.5
GRADIENT = np.array([0.4, -0.2, 0.1])
ANCHOR = np.array([1.0, -2.0, 3.0])
NOISE = np.array([0.05, 0.2, 0.01])


def agree(values, expected, errors=5.0):
    """The mean of independent samples (first axis) lies within some standard errors of what is expected."""
    values = np.asarray(values)
    se = values.std(axis=0, ddof=1) / math.sqrt(len(values))
    assert np.all(np.abs(values.mean(axis=0) - expected) < errors * se), (values.mean(axis=0), expected, se)


def sgld(rng, replicas, steps, lr, gradient=0.0, anchor=0.0, noise=0.0, keep=lambda t: False):
    """Yield u before each kept update: the sampler's own recursion, written out."""
    u = np.zeros((replicas, len(H)))
    for t in range(steps):
        if keep(t):
            yield u
        g = H * u + gradient + np.sqrt(noise) * rng.standard_normal(u.shape)
        drift = 10.0 * g + 0.5 * (anchor + u) + 2.0 * u
        u = u - lr / 2 * drift + math.sqrt(lr) * rng.standard_normal(u.shape)
    yield u


def lyapunov(step, noise, sweeps=3000):
    """Covariance that u <- step u + noise reaches, by going on until it does not change."""
    s = np.zeros_like(noise)
    for _ in range(sweeps):
        s = step @ s @ step.T + noise
    return s


MODULES = [m.name for m in pkgutil.iter_modules(exact.__path__)]


@pytest.mark.parametrize("module", MODULES)
def test_examples_run(module):
    assert doctest.testmod(importlib.import_module(f"llc_fast.exact.{module}")).failed == 0


# Quadratic losses


@pytest.mark.parametrize("lr", [0.04 / 12.5, 0.4 / 12.5, 2 / 12.5, 3.5 / 12.5])
def test_variance_is_the_recursion_s(lr):
    noise = np.diag(lr + lr**2 * 100 * NOISE / 4)
    expected = np.diag(lyapunov(np.diag(1 - lr * A / 2), noise))
    np.testing.assert_allclose(
        exact.quadratic_variance(A, lr, drift_variance=100 * NOISE), expected, rtol=1e-10
    )


def test_noise_level_scales_every_variance():
    lr, t = 0.1, np.arange(4)
    assert exact.quadratic_variance(3.0, lr, noise_level=0.5) == exact.quadratic_variance(3.0, lr) / 4
    np.testing.assert_allclose(
        exact.chain_variance(3.0, lr, t, noise_level=0.5), exact.chain_variance(3.0, lr, t) / 4
    )
    colder = exact.quadratic_covariance(np.diag(A), lr, noise_level=0.5)
    np.testing.assert_allclose(colder, exact.quadratic_covariance(np.diag(A), lr) / 4)
    colder = exact.sghmc_variance(A, lr, 0.5, noise_level=0.5)
    np.testing.assert_allclose(colder, exact.sghmc_variance(A, lr, 0.5) / 4)


def test_bias_of_the_step():
    for rate, excess in ((0.04, 0.01), (0.4, 0.11), (2.0, 1.0)):
        llc = exact.quadratic_llc([1.0], nbeta=10.0, lr=rate / 10)
        assert llc / 0.5 - 1 == pytest.approx(excess, abs=0.002)


def test_stability_limit():
    limit = exact.stability_limit(A)
    assert limit == pytest.approx(4 / 12.5)
    assert exact.chain_variance(12.5, limit * 1.01, 5000) > 1e6
    assert exact.chain_variance(12.5, limit * 0.99, 5000) == pytest.approx(
        exact.quadratic_variance(12.5, limit * 0.99)
    )


def test_chain_variance_is_the_recursion_s():
    a = np.array([-1.0, 0.0, 1e-9, 1.0, 20.0, 40.0])
    s = np.zeros(6)
    for t in range(30):
        np.testing.assert_allclose(exact.chain_variance(a, 0.1, t), s, rtol=1e-12)
        s = (1 - 0.05 * a) ** 2 * s + 0.1


def test_stationary_llc_by_simulation():
    lr, rng = 0.08, np.random.default_rng(1)
    *_, u = sgld(rng, 40_000, 60, lr, GRADIENT, ANCHOR, NOISE)
    llc = 10.0 * (u * GRADIENT + H * u**2 / 2).sum(axis=1)
    expected = exact.quadratic_llc(
        H, lr=lr, gradient=GRADIENT, anchor=ANCHOR, gradient_variance=NOISE, **SETTINGS
    )
    agree(llc, expected)
    drift = 10.0 * (H * u + GRADIENT) + 0.5 * (u + ANCHOR) + 2.0 * u
    variance = exact.quadratic_variance(A, lr, drift_variance=100 * NOISE)
    agree((u * drift).mean(axis=1), (A * variance).mean())
    assert exact.virial(A, lr) == pytest.approx((1 / (1 - lr * A / 4)).mean())
    centre = exact.quadratic_centre(H, gradient=GRADIENT, anchor=ANCHOR, **SETTINGS)
    agree(u, centre)


def test_finite_chain_by_simulation():
    lr, draws, burnin, stride, rng = 0.08, 5, 3, 2, np.random.default_rng(2)
    kept = range(burnin, burnin + draws * stride, stride)
    states = sgld(rng, 40_000, burnin + draws * stride, lr, GRADIENT, ANCHOR, NOISE, keep=lambda t: t in kept)
    losses = np.stack([(u * GRADIENT + H * u**2 / 2).sum(axis=1) for u in states][:draws], axis=1)
    arguments = dict(lr=lr, gradient=GRADIENT, anchor=ANCHOR, gradient_variance=NOISE, **SETTINGS)
    agree(losses, exact.chain_loss(H, list(kept), **arguments))
    expected = exact.chain_llc(
        H, num_draws=draws, num_burnin_steps=burnin, num_steps_bw_draws=stride, **arguments
    )
    agree(10.0 * losses.mean(axis=1), expected)
    late = exact.chain_llc(H, num_draws=3, num_burnin_steps=10_000, **arguments)
    assert late == pytest.approx(exact.quadratic_llc(H, **arguments), rel=1e-12)


def test_a_direction_without_curvature_drifts_off():
    # h = 0 and no localization: a random walk that slides down the gradient
    loss = exact.chain_loss([0.0], [7], nbeta=2.0, lr=0.1, gradient=3.0)
    assert loss == pytest.approx(-3.0 * 7 * 0.1 / 2 * 2.0 * 3.0)


def test_shift_by_quadrature():
    h, g, nbeta, gamma = 0.7, 1.3, 5.0, 2.0
    u = np.linspace(-15, 15, 20_001)
    loss = g * u + h * u**2 / 2
    weight = np.exp(-nbeta * loss - gamma * u**2 / 2 - 60)
    expected = nbeta * (weight * loss).sum() / weight.sum()
    assert exact.quadratic_llc([h], nbeta=nbeta, localization=gamma, gradient=g) == pytest.approx(expected)
    shift = exact.quadratic_shift([h], nbeta=nbeta, localization=gamma, gradient=g)
    a = nbeta * h + gamma
    assert shift == pytest.approx(-((nbeta * g) ** 2) / a * (1 - nbeta * h / (2 * a)))
    assert expected < 0  # where negative estimates come from


def test_preconditioned_covariance():
    rng = np.random.default_rng(3)
    root = rng.standard_normal((4, 4))
    matrix, p, lr = root @ root.T + np.eye(4), np.array([0.5, 1.0, 2.0, 0.8]), 0.1
    drift = np.cov(rng.standard_normal((4, 9))) * 5
    step = np.eye(4) - lr / 2 * p[:, None] * matrix
    noise = exact.innovation_covariance(lr, drift, preconditioner=p)
    np.testing.assert_allclose(noise, lr * np.diag(p) + lr**2 * np.diag(p) @ drift @ np.diag(p) / 4)
    s = exact.quadratic_covariance(matrix, lr, preconditioner=p, drift_covariance=drift)
    np.testing.assert_allclose(s, lyapunov(step, noise), rtol=1e-9, atol=1e-12)
    at_zero = exact.quadratic_covariance(matrix, preconditioner=p, drift_covariance=drift)
    np.testing.assert_allclose(at_zero, np.linalg.inv(matrix), rtol=1e-9)
    u = np.zeros((20_000, 4))
    gradient_noise = np.linalg.cholesky(drift)
    for _ in range(250):
        total = u @ matrix + rng.standard_normal(u.shape) @ gradient_noise.T
        u = u - lr / 2 * p * total + np.sqrt(lr * p) * rng.standard_normal(u.shape)
    agree(u[:, :, None] * u[:, None, :], s)
    hessian = (matrix - np.eye(4)) / 3
    agree(1.5 * np.einsum("ri,ij,rj->r", u, hessian, u), exact.gaussian_llc(hessian, s, nbeta=3.0))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 5), st.floats(0.1, 100.0))
def test_restricted_llcs_cover_the_full_one(seed, cut, nbeta):
    root = np.random.default_rng(seed).standard_normal((6, 3))
    hessian = root @ root.T
    parts = [
        exact.restricted_llc(hessian, part, nbeta=nbeta, localization=1.0)
        for part in (range(cut), range(cut, 6))
    ]
    full = exact.quadratic_llc(np.linalg.eigvalsh(hessian), nbeta=nbeta, localization=1.0)
    assert sum(parts) >= full - 1e-9
    block = hessian[:cut, :cut]
    direct = nbeta / 2 * np.trace(block @ np.linalg.inv(nbeta * block + np.eye(cut)))
    assert parts[0] == pytest.approx(direct, rel=1e-6)


@pytest.mark.parametrize("stride", [1, 3])
def test_estimate_std_by_simulation(stride):
    lr, draws, chains, rng = 0.08, 20, 2, np.random.default_rng(4)
    start, replicas = 60, 8_000
    states = sgld(
        rng,
        replicas * chains,
        start + draws * stride,
        lr,
        GRADIENT,
        keep=lambda t: t >= start and (t - start) % stride == 0,
    )
    total = (
        sum(10.0 * (u * GRADIENT + H * u**2 / 2).sum(axis=1) for u in itertools.islice(states, draws)) / draws
    )
    estimates = total.reshape(replicas, chains).mean(axis=1)
    expected = exact.estimate_std(
        H, lr=lr, num_draws=draws, num_steps_bw_draws=stride, num_chains=chains, gradient=GRADIENT, **SETTINGS
    )
    agree((estimates - estimates.mean()) ** 2, expected**2)


def test_estimate_std_of_long_chains():
    rho = 1 - 0.1 * 2.0 / 2
    variance = exact.quadratic_variance([2.0], 0.1)[0]
    tau = (1 + rho**2) / (1 - rho**2)
    expected = math.sqrt(2 * (0.5 * 2.0 * variance) ** 2 * tau / 100_000)
    std = exact.estimate_std([2.0], nbeta=1.0, lr=0.1, num_draws=100_000)
    assert std == pytest.approx(expected, rel=1e-4)


# Samplers with a velocity


@pytest.mark.parametrize(("lr", "friction"), [(0.01, 0.1), (0.2, 0.5), (0.1, 1.0), (0.02, 1.8)])
def test_sghmc_is_the_recursion_s(lr, friction):
    variance = exact.sghmc_variance(A, lr, friction, drift_variance=100 * NOISE)
    velocity = exact.sghmc_velocity_variance(A, lr, friction, drift_variance=100 * NOISE)
    for i, a in enumerate(A):
        step = np.array([[1 - lr * a, 1 - friction], [-lr * a, 1 - friction]])
        noise = (2 * friction * lr + lr**2 * 100 * NOISE[i]) * np.ones((2, 2))
        s = lyapunov(step, noise)
        np.testing.assert_allclose([variance[i], velocity[i]], [s[0, 0], s[1, 1]], rtol=1e-9)


def test_sghmc_by_simulation_and_as_sgld():
    lr, friction, rng = 0.1, 0.6, np.random.default_rng(5)
    u = v = np.zeros((40_000, 3))
    for _ in range(100):
        noise = math.sqrt(2 * friction * lr) * rng.standard_normal(u.shape)
        v = v - (lr * A * u + friction * v) + noise
        u = u + v
    agree(u**2, exact.sghmc_variance(A, lr, friction))
    agree(v**2, exact.sghmc_velocity_variance(A, lr, friction))
    np.testing.assert_allclose(
        exact.sghmc_variance(A, lr, 1.0), exact.quadratic_variance(A, 2 * lr), rtol=1e-12
    )


@pytest.mark.parametrize("a", [np.full(3000, 4.0), np.repeat([2.0, 6.0, 11.0], 1000)])
def test_sgnht_by_simulation(a):
    # The thermostat averages over 3000 directions; its own fluctuation is about 1e-3 of xi.
    lr, factor, rng = 0.05, 0.1, np.random.default_rng(6)
    xi, u, v = factor, np.zeros_like(a), np.zeros_like(a)
    frictions, squares = [], []
    for t in range(4000):
        v = v - (lr * a * u + xi * v) + math.sqrt(2 * factor * lr) * rng.standard_normal(len(a))
        u = u + v
        xi += (v**2).mean() - lr
        if t >= 1000:
            frictions.append(xi)
            squares.append([(u**2)[part].mean() for part in np.array_split(np.arange(len(a)), 3)])
    expected = exact.sgnht_variance(a, lr, factor)
    assert np.mean(frictions) == pytest.approx(exact.sgnht_friction(a, lr, factor), rel=0.01)
    np.testing.assert_allclose(np.mean(squares, axis=0), expected[[0, 1500, 2999]], rtol=0.01)


def test_sgnht_rests_where_the_velocity_has_variance_lr():
    lr, factor, hot = 0.05, 0.1, {"noise_level": 0.9, "drift_variance": 30 * NOISE}
    xi, variance = exact.sgnht_friction(A, lr, factor, **hot), exact.sgnht_variance(A, lr, factor, **hot)
    velocity = []
    for i, a in enumerate(A):
        step = np.array([[1 - lr * a, 1 - xi], [-lr * a, 1 - xi]])
        noise = (2 * factor * lr * 0.81 + lr**2 * 30 * NOISE[i]) * np.ones((2, 2))
        s = lyapunov(step, noise)
        assert variance[i] == pytest.approx(s[0, 0])
        velocity.append(s[1, 1])
    assert np.mean(velocity) == pytest.approx(lr)


def test_sgnht_with_equal_directions():
    lr, factor, a = 0.05, 0.1, 4.0
    xi = exact.sgnht_friction([a], lr, factor)
    assert xi * (4 - 2 * xi - lr * a) == pytest.approx(4 * factor)
    assert xi < (4 - lr * a) / 4  # the smaller root
    assert exact.sgnht_variance([a], lr, factor)[0] == pytest.approx((1 - xi / 2) / a)


# Learning coefficients


@pytest.mark.parametrize(
    ("widths", "rank", "value", "multiplicity"),
    [
        ([1, 1, 1], 0, 1 / 2, 2),
        ([2, 2, 2], 0, 3 / 2, 1),
        ([3, 3, 3], 0, 7 / 2, 2),
        ([5, 5, 5], 2, 23 / 2, 2),
        ([4, 4, 4, 4], 0, 11 / 2, 3),
        ([10, 20, 15, 10], 3, 99 / 2, 1),
        ([7, 3], 2, 21 / 2, 1),
    ],
)
def test_deep_linear_values(widths, rank, value, multiplicity):
    assert exact.deep_linear(widths, rank) == (value, multiplicity)


def test_reduced_rank_is_deep_linear_at_depth_two():
    cases = [
        (m, h, n, r) for m, h, n in itertools.product(range(1, 9), repeat=3) for r in range(min(m, h, n) + 1)
    ]
    assert len(cases) == 1808
    for m, h, n, r in cases:
        assert exact.reduced_rank(m, h, n, r) == exact.deep_linear([m, h, n], r)


def test_deep_linear_is_the_diversity_of_a_product_channel():
    # P(|product|^2 < 1/snr) of complex Gaussian matrices falls as snr^-sum(c), Yang & Belfiore 2007,
    # arXiv 0708.0386, theorem on the Rayleigh product channel; real ones halve it.
    for widths in itertools.product(range(1, 6), repeat=4):
        n = sorted(widths)
        diversity = sum(
            1 - i + min((sum(n[: k + 1]) - i) // k for k in range(1, len(n))) for i in range(1, n[0] + 1)
        )
        assert exact.deep_linear(widths, 0).value == diversity / 2


def test_local_coefficients():
    assert exact.reduced_rank_local(35, 6, 18, rank=1, first_rank=1, second_rank=6).value == 111.0
    assert exact.reduced_rank(35, 6, 18, 1).value == 68.5
    rng = np.random.default_rng(7)
    for m, h, n in itertools.product(range(1, 5), repeat=3):
        for a, b in itertools.product(range(min(m, h) + 1), range(min(n, h) + 1)):
            for r in range(max(0, a + b - h), min(a, b) + 1):
                local = exact.reduced_rank_local(m, h, n, r, a, b)
                least = exact.reduced_rank(m, h, n, r)
                assert local == least if a == b == r else local.value >= least.value
                if min(m - a, h - a - b + r, n - b) == 0:  # smooth: half the rank of the differential
                    first = rng.standard_normal((h, a)) @ rng.standard_normal((a, m))
                    second = rng.standard_normal((n, b)) @ rng.standard_normal((b, h))
                    parts = [np.kron(np.eye(n), first.T), np.kron(second, np.eye(m))]
                    assert local.value == np.linalg.matrix_rank(np.hstack(parts)) / 2


def test_powers_and_regression():
    assert exact.regular(7) == (3.5, 1)
    assert exact.linear_regression(rank=4, outputs=3) == (6.0, 1)
    assert exact.power_product([2]) == exact.power_sum([2]) == (0.25, 1)
    assert exact.power_product([1, 2, 2], prior=[1, 0, 0]) == (0.25, 2)
    assert exact.power_sum([1, 2], prior=[1, 0]) == (1.25, 1)


@pytest.mark.parametrize(
    ("name", "features", "loss", "value"),
    [
        ("6-gon", 6, 0.048192, 8.5),
        ("5-gon", 6, 0.068744, 7.0),
        ("5+-gon", 6, 0.061799, 8.5),
        ("5-gon", 5, 0.015826, 7.0),
    ],
)
def test_toy_model(name, features, loss, value):
    point = exact.toy_model(name, features)
    assert point.loss == pytest.approx(loss, abs=6e-7)
    assert point.coefficient == (value, 1)
    t = (np.arange(20_000) + 0.5) / 20_000
    outputs = np.maximum((point.weights @ point.weights.T)[:, :, None] * t + point.bias[:, None, None], 0)
    squares = (np.eye(features)[:, :, None] * t - outputs) ** 2
    assert point.loss == pytest.approx(squares.mean(axis=2).sum() / features, rel=1e-6)

    w, size, e = np.concatenate([point.weights.ravel(), point.bias]), 3 * features, 1e-4
    hessian, gradient = np.zeros((size, size)), np.zeros(size)

    def shifted(*moves):
        v = w.copy()
        for i, step in moves:
            v[i] += step
        return exact.toy_model_loss(v[: 2 * features].reshape(features, 2), v[2 * features :])

    for i in range(size):
        gradient[i] = (shifted((i, e)) - shifted((i, -e))) / (2 * e)
        for j in range(i + 1):
            corners = [s * u * shifted((i, s * e), (j, u * e)) for s in (1, -1) for u in (1, -1)]
            hessian[i, j] = hessian[j, i] = sum(corners) / (4 * e * e)
    assert np.abs(gradient).max() < 1e-7
    curvature = np.linalg.eigvalsh(hessian)
    assert (curvature > 0.01).sum() / 2 == value
    assert np.abs(curvature[curvature < 0.01]).max() < 1e-4
    if name == "6-gon":
        assert curvature[curvature > 0.01].min() == pytest.approx(0.0206, abs=1e-4)


# Singular losses at a finite nbeta

TABLE = [(1e1, 0.2249, 0.2903, 1.1550), (1e2, 0.2417, 0.3542, 1.3563), (1e4, 0.2492, 0.4123, 1.4769)]


@pytest.mark.parametrize(("nbeta", "quartic", "squares", "rank_zero"), TABLE)
def test_singular_values(nbeta, quartic, squares, rank_zero):
    setting = {"nbeta": nbeta, "localization": 1.0}
    assert exact.power_product_llc([2], **setting) == pytest.approx(quartic, abs=6e-5)
    assert exact.power_sum_llc([2, 2], **setting) == pytest.approx(2 * quartic, abs=1.2e-4)
    assert exact.power_product_llc([1, 1], **setting) == pytest.approx(squares, abs=6e-5)
    assert exact.reduced_rank_llc(2, 2, 2, **setting) == pytest.approx(rank_zero, abs=6e-5)


def test_power_products_by_quadrature():
    w = (np.arange(1200) + 0.5) / 1200 * 6
    energy = 20 * w[:, None] ** 2 * w**4
    weight = np.exp(-energy - 1.5 * (w[:, None] ** 2 + w**2))
    expected = (weight * energy).sum() / weight.sum()
    assert exact.power_product_llc([1, 2], nbeta=20.0, localization=3.0) == pytest.approx(expected, rel=1e-6)


def test_reduced_rank_llc_agrees_with_its_relations():
    for m, h, n in ((2, 2, 5), (1, 3, 2), (2, 3, 2), (4, 1, 3), (3, 2, 1)):
        one, other = (
            exact.reduced_rank_llc(*widths, nbeta=300.0, localization=0.7)
            for widths in ((m, h, n), (n, h, m))
        )
        assert one == pytest.approx(other, rel=1e-9)  # by transposition: another integral
    half = exact.power_product_llc([1, 1], nbeta=150.0, localization=0.7)
    assert exact.reduced_rank_llc(1, 1, 1, nbeta=300.0, localization=0.7) == pytest.approx(half, rel=1e-9)
    for widths in ((2, 2, 2), (3, 2, 1), (2, 5, 2), (1, 4, 2)):
        value, multiplicity = exact.reduced_rank(*widths, 0)
        assert multiplicity == 1
        limit = exact.reduced_rank_llc(*widths, nbeta=1e20, localization=1.0)
        assert limit == pytest.approx(value, abs=1e-4)
    slow = exact.reduced_rank_llc(1, 1, 1, nbeta=1e20, localization=1.0)
    assert slow == pytest.approx(0.5 - 1 / math.log(1e20), abs=2e-3)  # multiplicity 2


def within(estimate, expected, errors=5.0):
    assert abs(estimate.value - expected) < errors * estimate.standard_error, (estimate, expected)


def test_gibbs_at_zero():
    zero = [np.zeros((2, 2))] * 2
    estimate = exact.deep_linear_llc(zero, nbeta=100.0, localization=1.0, num_sweeps=4000, seed=1)
    assert estimate.standard_error < 0.003
    within(estimate, 1.3563)


def test_gibbs_at_any_anchor():
    u, v = np.linspace(-5, 7, 1200)[:, None], np.linspace(-7, 5, 1200)
    loss = (u * v + 1.5) ** 2 / 2
    weight = np.exp(-30 * loss - 0.8 / 2 * ((u - 1.5) ** 2 + (v + 1.0) ** 2))
    expected = 30 * (weight * loss).sum() / weight.sum()
    estimate = exact.deep_linear_llc(
        [[[1.5]], [[-1.0]]], nbeta=30.0, localization=0.8, num_sweeps=3000, seed=2
    )
    within(estimate, expected)


def test_gibbs_sees_the_local_coefficient_only_when_held():
    # A = 0 and B of rank 2: 4.5 there, 4 at B = 0
    layers = [np.zeros((3, 4)), np.diag([3.0, 3.0, 0.0])]
    assert exact.reduced_rank_local(4, 3, 3, 0, 0, 2).value == 4.5
    held = exact.deep_linear_llc(layers, nbeta=1e8, localization=100.0, num_sweeps=500, seed=3)
    assert held.value == pytest.approx(4.5, abs=0.06)
    free = exact.deep_linear_llc(layers, nbeta=1e8, localization=1.0, num_sweeps=500, seed=3)
    assert free.value == pytest.approx(4.0, abs=0.06)


# Linear regression


def test_observables_of_linear_regression():
    rng = np.random.default_rng(8)
    design, w, e = rng.standard_normal((6, 3)), rng.standard_normal(3), rng.standard_normal(6)
    covariance = exact.quadratic_covariance(
        exact.precision(design.T @ design / 6, nbeta=4.0, localization=0.5), preconditioner=2.0
    )
    np.testing.assert_allclose(covariance, np.linalg.inv(4 * design.T @ design / 6 + 0.5 * np.eye(3)))
    kernel = exact.loss_kernel(design, e, covariance)
    draws = w + rng.standard_normal((200_000, 3)) @ np.linalg.cholesky(covariance).T
    losses = (design @ w + e - draws @ design.T) ** 2 / 2
    centred = losses - losses.mean(axis=0)
    agree(centred[:, :, None] * centred[:, None, :], kernel)
    np.testing.assert_array_equal(exact.bayesian_influence(design, e, covariance), -kernel)
    assert exact.functional_variance(design, e, covariance) == np.trace(kernel)


# Errors


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda: exact.precision([1.0], nbeta=0.0), "nbeta"),
        (lambda: exact.precision([1.0], nbeta=math.inf), "nbeta"),
        (lambda: exact.precision([[1.0, 2.0]], nbeta=1.0), "hessian"),
        (lambda: exact.precision([[1.0, 2.0], [0.0, 1.0]], nbeta=1.0), "hessian"),
        (lambda: exact.precision([], nbeta=1.0), "hessian"),
        (lambda: exact.stability_limit([-1.0]), "precision"),
        (lambda: exact.quadratic_variance([1.0], lr=4.0), "lr"),
        (lambda: exact.quadratic_variance([0.0], lr=0.1), "localization"),
        (lambda: exact.quadratic_variance([math.nan]), "precision"),
        (lambda: exact.quadratic_variance([1.0], drift_variance=[1.0, 2.0]), "drift_variance"),
        (lambda: exact.quadratic_covariance([[1.0]], preconditioner=0.0), "preconditioner"),
        (lambda: exact.gaussian_llc([1.0], [[1.0]], nbeta=1.0), "covariance"),
        (lambda: exact.quadratic_llc([1.0], nbeta=1.0, gradient=["a"]), "gradient"),
        (lambda: exact.quadratic_llc([1.0], nbeta=1.0, gradient_variance=-1.0), "gradient_variance"),
        (lambda: exact.restricted_llc([[1.0]], [1], nbeta=1.0), "coordinates"),
        (lambda: exact.chain_llc([1.0], nbeta=1.0, lr=0.1, num_draws=0), "num_draws"),
        (lambda: exact.chain_loss([1.0], [-1], nbeta=1.0, lr=0.1), "step"),
        (lambda: exact.estimate_std([1.0], nbeta=1.0, lr=0.0, num_draws=1), "lr"),
        (lambda: exact.sghmc_variance([1.0], lr=0.1, friction=2.0), "friction"),
        (lambda: exact.sghmc_variance([1.0], lr=2.0, friction=1.0), "lr"),
        (lambda: exact.sgnht_friction([1.0], lr=0.1, diffusion_factor=0.6), "diffusion_factor"),
        (lambda: exact.sgnht_friction([1.0], lr=5.0, diffusion_factor=0.1), "lr"),
        (lambda: exact.power_product([0]), "exponents"),
        (lambda: exact.power_product([1], prior=[1, 1]), "prior"),
        (lambda: exact.reduced_rank(2, 2, 2, 3), "rank"),
        (lambda: exact.reduced_rank(2, 2.5, 2, 1), "hidden"),
        (lambda: exact.reduced_rank_local(2, 2, 2, 0, 2, 1), "rank"),
        (lambda: exact.deep_linear([3], 0), "widths"),
        (lambda: exact.power_sum_llc([], nbeta=1.0, localization=1.0), "exponents"),
        (lambda: exact.reduced_rank_llc(3, 3, 3, nbeta=1.0, localization=1.0), "deep_linear_llc"),
        (lambda: exact.deep_linear_llc([], nbeta=1.0, localization=1.0), "layers"),
        (lambda: exact.deep_linear_llc([[[1.0]], [[1.0, 1.0]]], nbeta=1.0, localization=1.0), "layers"),
        (lambda: exact.deep_linear_llc([[[1.0]]], nbeta=1.0, localization=0.0), "localization"),
        (lambda: exact.loss_kernel([[1.0]], [1.0, 2.0], [[1.0]]), "residuals"),
        (lambda: exact.loss_kernel([[1.0]], [1.0], [[-1.0]]), "covariance"),
        (lambda: exact.toy_model("4-gon", 6), "name"),
        (lambda: exact.toy_model_loss([[1.0]], [1.0, 2.0]), "bias"),
    ],
)
def test_bad_input_is_named(call, argument):
    with pytest.raises(ArgumentError, match=argument):
        call()
