"""The truth scripts coverage, against_devinterp and kill at tiny sizes: what they compute, and that they can fail."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from llc_fast import estimate_llc, exact
from llc_fast.sampling import Schedule

TRUTH = Path(__file__).parent / "truth"
sys.path.insert(0, str(TRUTH))

import coverage  # noqa: E402
from epochs import Epochs, Regression  # noqa: E402
from rows import Between, Is  # noqa: E402
from runs import files, left, same  # noqa: E402

HOW = {"lr": 0.02, "nbeta": 20.0, "localization": 2.0}


def regression(batches: int, samples: int = 3, d: int = 2) -> Regression:
    g = torch.Generator().manual_seed(3)
    x, y = torch.randn(batches, samples, d, generator=g), torch.randn(batches, samples, generator=g)
    return Regression.of(x, y, torch.randn(d, generator=g))


# --- the exact mean over epochs ---


def test_epochs_of_one_batch_are_the_quadratic_chain():
    problem = regression(1)
    h, basis = np.linalg.eigh(problem.hessians[0])
    gradient = basis.T @ problem.gradients[0]
    epochs = Epochs(problem, **HOW)
    assert epochs.llc() == pytest.approx(exact.quadratic_llc(h, gradient=gradient, **HOW), rel=1e-10)
    for burnin, draws in ((0, 1), (0, 7), (5, 3)):
        chain = exact.chain_llc(h, gradient=gradient, num_draws=draws, num_burnin_steps=burnin, **HOW)
        assert epochs.llc_from_start(burnin, draws) == pytest.approx(chain, rel=1e-10, abs=1e-12)


def test_epochs_are_the_mean_over_all_orders():
    """Two epochs from w0, every one of the 6 x 6 orders of three batches walked by itself."""
    problem = regression(3)
    orders = list(itertools.permutations(range(3)))
    values = [[], []]
    for pair in itertools.product(orders, orders):
        mean, second = np.zeros(2), np.zeros((2, 2))
        for epoch, order in enumerate(pair):
            for b in order:
                g, h = problem.gradients[b], problem.hessians[b]
                values[epoch].append(g @ mean + (h * second).sum() / 2)
                m = np.eye(2) - HOW["lr"] / 2 * (HOW["nbeta"] * h + HOW["localization"] * np.eye(2))
                c = -HOW["lr"] / 2 * HOW["nbeta"] * g
                second = m @ second @ m.T + np.outer(m @ mean, c) + np.outer(c, m @ mean) + np.outer(c, c)
                second += HOW["lr"] * np.eye(2)
                mean = m @ mean + c
    epochs = Epochs(problem, **HOW)
    for epoch in range(2):
        expected = HOW["nbeta"] * float(np.mean(values[epoch]))
        assert epochs.llc_from_start(epoch, 1) == pytest.approx(expected, rel=1e-10)
    assert epochs.llc_from_start(300, 1) == pytest.approx(epochs.llc(), rel=1e-8)


# --- coverage ---


def test_long_run_is_the_recursion():
    """Its first draw is after one step from 0: |BA|^2/2 of 8 normals of variance lr has mean 4 lr^2."""
    problem = coverage.reduced_rank()
    value, error = coverage.long_run(problem, 20_000, Schedule(1, 1, 1))
    assert (
        abs(value - problem.nbeta * 4 * problem.lr**2) < 5 * error
    )  # by chance in one seed of 10^6; it is fixed
    assert error < 0.02 * value


def test_replicates_are_chains_of_one_run():
    problem, _ = coverage.gaussian(batches=4, samples=3, d=2)
    results = coverage.walked(problem, Schedule(16, 8, 1), 2, seed=7)
    together = estimate_llc(
        problem.model,
        problem.loss,
        problem.pool,
        lr=problem.lr,
        nbeta=problem.nbeta,
        localization=problem.localization,
        num_chains=8,
        num_draws=16,
        num_burnin_steps=8,
        seed=7,
        stacked=True,
    )
    found = np.concatenate([r.llc_per_chain for r in results])
    np.testing.assert_array_equal(found, together.llc_per_chain)
    assert results[0].settings["num_chains"] == coverage.CHAINS


def test_planted_chain_starts_elsewhere():
    problem, start = coverage.unmixed()
    result = coverage.walked(problem, Schedule(8, 0, 1), 2, seed=7, planted=start)[1]
    w0, size = problem.model.weight.detach()[0], len(problem.pool)
    x = torch.cat([x for x, _ in problem.pool])
    y = torch.cat([y for _, y in problem.pool])[:, 0]
    level = ((x @ start - y).square() - (x @ w0 - y).square()).mean() / 2
    early = result.loss_trace[:, :size].mean(axis=1) - result.init_loss
    assert early[-1] == pytest.approx(float(level), rel=0.5)
    assert abs(early[:-1]).max() < float(level)


def test_covered_counts():
    """Targets at 1.9, 2.5 and 5 of a standard deviation over chains, half as long an interval of ours."""
    results = [
        SimpleNamespace(llc_mean=m, llc_std=1.0, interval=lambda m=m: (m - 0.5, m + 0.5))
        for m in (0.4, 0.9, 1.9, 5)
    ]
    assert coverage.covered(results, 0.0) == {"ours": 0.25, "std": 0.75, "std/sqrt": 0.5}
    assert coverage.margin(1000) == 2


@pytest.mark.parametrize(
    ("row", "passed"),
    [
        (Between("", 93, 97, 93.0), True),
        (Between("", 93, 97, 92.9), False),
        (Between("", 93, 97, math.nan), False),
        (Between("", 1.1, math.inf, 1.0), False),
        (Is("", 3, 3), True),
        (Is("", True, False), False),
    ],
)
def test_rows(row, passed):
    assert row.passed is passed
    assert len(row.cells()) == 5


# --- kill ---


def test_same_sees_a_changed_and_a_left_over_file(tmp_path):
    store = tmp_path / "run.zarr"
    (store / "loss").mkdir(parents=True)
    (store / "loss" / "0").write_bytes(b"abc")
    expected = files(store)
    assert same(store, expected)
    assert left(store) == "when all was done"
    beside = tmp_path / "run.zarr.run"
    beside.mkdir()
    assert not same(store, expected)
    assert left(store) == "before a checkpoint"
    (beside / "checkpoint").touch()
    assert left(store) == "after a checkpoint"
    (beside / "moved").touch()
    assert left(store) == "while it finished"
    (beside / "moved").unlink()
    (beside / "checkpoint").unlink()
    beside.rmdir()
    (store / "loss" / "0").write_bytes(b"abd")
    assert not same(store, expected)


SMALL = """
import os, random, signal, sys
from functools import partial
from pathlib import Path
sys.path.insert(0, {truth!r})
import torch
torch.set_num_threads(1)
import disk, kill, runs
from workers import Worker, counting

folder = Path({folder!r})

def job():
    for i in range(3):
        (folder / "a").touch()
        os.replace(folder / "a", folder / str(i))
    return {{}}

ended = Worker(counting(job, 2)).wait()
print("operations", ended.killed, sorted(p.name for p in folder.iterdir()), Worker(counting(job)).wait().said)
print("errors", Worker(lambda: 1 / 0).wait())
short = {{**runs.CASES["stacked, chains die"], "num_draws": 20}}
case = kill.Killed(folder, "small", short)
right, kills, anew = case.once(0, random.Random(1))
print("once", right, len(kills) > 0, anew, case.dead, case.repeats)
case.expected = {{**case.expected, "more": ""}}
print("twice", case.once(1, random.Random(1))[0])
(folder / "disk").mkdir()
whole = folder / "whole" / "run.zarr"
whole.parent.mkdir()
first = Worker(partial(runs.run, whole, runs.CASES["stacked, SGNHT"])).wait().said["first"]
for row in disk._filled(folder / "disk", "stacked, SGNHT", 50, False, runs.files(whole), first):
    print(row if isinstance(row, str) else ("disk", row.passed, row.expected))
"""


def test_kill_and_resume(tmp_path):
    """In a process of its own: pytest's has threads, which do not outlive a fork."""
    text = SMALL.format(truth=str(TRUTH), folder=str(tmp_path))
    ended = subprocess.run(
        [sys.executable, "-c", text], capture_output=True, text=True, timeout=300, check=False
    )
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    assert lines[0] == "operations True ['0', '1', 'a'] {'operations': 3}"
    assert (
        lines[1] == "errors Ended(status=1, said={'error': 'division by zero', 'type': 'ZeroDivisionError'})"
    )
    once = lines[2].split()
    assert once[:4] == ["once", "True", "True", "0"]
    assert once[4] in "123"
    assert once[5] == "True"
    assert lines[3] == "twice False"
    assert "resume=True continues" in lines[4]
    assert lines[5:] == ["('disk', True, True)"] * 3


# --- against devinterp ---


def against():
    pytest.importorskip("devinterp.slt.sampling", reason="needs devinterp 2.0.1: pip install 'llc-fast[dev]'")
    import against_devinterp

    return against_devinterp


def test_chain_values_are_devinterp_s(recwarn):
    module = against()
    from tiny_models import data, trained

    ids = data()
    model = trained("llama", ids, 5)
    schedule = {"num_chains": 2, "num_burnin_steps": 8, "num_draws": 8}
    ours, tree = module.sampled(model, ids, "l0h1", schedule)
    every, drawn = module.chain_values(tree, 8)
    from devinterp.slt.llc import compute_llc

    np.testing.assert_allclose(every, compute_llc(tree).llc_per_chain.values, rtol=1e-4, atol=1e-4)
    both = module.chain_values(tree.isel(step=slice(8, None)), 0)[0]
    np.testing.assert_allclose(drawn, both, rtol=1e-12)
    assert ours.sizes == {"chain": 2, "step": 16}


@pytest.mark.slow
def test_audit_of_a_store_with_a_dead_chain(recwarn):
    from tiny_models import data

    rows = [row for row in against().audited(data()) if not isinstance(row, str)]
    assert len(rows) == 4
    assert [row.cells()[0] for row in rows if not row.passed] == []
