"""Runs that are stopped anywhere and continued: their stores are those of unbroken runs, byte for byte."""

import functools
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from test_sample import LM, SHORT, tokens
from torch import nn

from llc_fast.code_digest import loss_digest
from llc_fast.dropin import sample
from llc_fast.errors import ChainError, OutputError
from llc_fast.lm import token_losses
from llc_fast.store import open_tree
from llc_fast.tree_llc import compute_llc

pytest.importorskip("xarray")
pytest.importorskip("zarr")


class Stop(Exception):
    pass


def stopping(after):
    """A progress that stops the run at its call number `after`."""
    calls = iter(range(10**9))

    def progress(*_):
        if next(calls) == after:
            raise Stop

    return progress


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


class Normed(nn.Module):
    """Dropout and batch statistics: a chain that depends on PyTorch's random state and on buffers."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.e, self.n, self.d, self.u = (
            nn.Embedding(11, 6),
            nn.BatchNorm1d(4),
            nn.Dropout(0.2),
            nn.Linear(6, 11),
        )

    def forward(self, x):
        h = self.n(self.e(x)[:, :4])
        return self.u(self.d(torch.cat([h, self.e(x)[:, 4:]], dim=1)))


RUNS = {
    "one by one": (LM, {"stacked": False}),
    "stacked": (LM, {"stacked": True, "num_burnin_steps": 2}),
    "bf16": (lambda: LM().bfloat16(), {"stacked": False, "lr": 1e-5}),
    "fp16": (lambda: LM().half(), {}),
    "sr": (lambda: LM().bfloat16(), {"state": "sr", "lr": 1e-2}),
    "rmsprop": (
        LM,
        {"sampling_method": "rmsprop_sgld", "gradient_accumulation_steps": 2, "save_metrics": True},
    ),
    "sghmc": (LM, {"sampling_method": "sghmc", "lr": 1e-4, "component": "u.weight", "stacked": False}),
    "sgnht": (LM, {"sampling_method": "sgnht", "lr": 1e-4}),
    "dropout": (Normed, {"eval_mode": False}),
    "moments": (LM, {"traces": False, "moments": ("sequence",), "scalar": "p", "stacked": False}),
    "halves": (LM, {"pool_check": True, "control_variates": True, "fresh_batches": True, "stacked": False}),
    "own pools": (LM, {"match_sampling_input_ids_across_chains": False, "init_noise": 0.01}),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(name, tmp_path):
    make, settings = RUNS[name]
    run = SHORT | settings
    observed = {"p": tokens(2)}
    sample(make(), tokens(1), observed, output_path=tmp_path / "whole.zarr", **run)
    path = tmp_path / "broken.zarr"
    for after in (0, 5, 1, 7, 2, 9, 4, 1):  # of the calls that each new attempt makes
        try:
            sample(
                make(),
                tokens(1),
                observed,
                output_path=path,
                resume=True,
                checkpoint_every=0.0,
                progress=stopping(after),
                **run,
            )
        except Stop:
            continue
    sample(make(), tokens(1), observed, output_path=path, resume=True, **run)
    assert files(path) == files(tmp_path / "whole.zarr")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["broken.zarr", "whole.zarr"]


def test_a_store_is_returned_where_all_agrees_and_refused_elsewhere(tmp_path):
    path, steps = tmp_path / "x.zarr", []

    def run(model=None, data=None, **changes):
        return sample(
            model or LM(),
            tokens(1) if data is None else data,
            output_path=path,
            progress=lambda *_: steps.append(1),
            **SHORT | changes,
        )

    first = compute_llc(run())
    made = len(steps)
    assert made
    before = files(path)
    assert compute_llc(run()).equals(first)
    assert len(steps) == made
    other = LM()
    with torch.no_grad():
        other.u.bias += 1e-3
    for changes, word in (
        ({"lr": 2e-3}, "lr"),
        ({"seed": 1}, "seed"),
        ({"component": "u.weight"}, "component"),
        ({"model": other}, "weights_sha256"),
        ({"data": tokens(3)}, "data_sha256"),
        ({"loss_fn": lambda m, b: 2 * token_losses(m, b)}, "loss"),
        ({"traces": False}, "traces"),
    ):
        with pytest.raises(OutputError, match=word):
            run(**changes)
    assert files(path) == before


class Scaled:
    """A loss that is an object, and looks at itself, a default and a global."""

    def __init__(self, scale):
        self.scale = scale

    def __call__(self, model, batch):
        return self.scale * FACTOR["of all"] * token_losses(model, batch)

    def method(self, model, batch, *, more=1.0):
        return more * self(model, batch)


FACTOR = {"of all": 1.0}


def test_what_a_loss_looks_at_is_part_of_it(monkeypatch):
    def closing(scale):
        return lambda m, b: scale * token_losses(m, b)

    def wrapped(scale):
        @functools.wraps(token_losses)
        def wrapper(m, b):
            return scale * token_losses(m, b)

        return wrapper

    def scaled(m, b, scale=1.0):
        return scale * token_losses(m, b)

    makers = [
        Scaled,
        closing,
        wrapped,
        lambda s: functools.partial(scaled, scale=s),
        lambda s: Scaled(s).method,
    ]
    digests = [[loss_digest(make(s)) for s in (1.0, 1.0, 5.0)] for make in makers]
    for one, same, other in digests:
        assert one == same != other
    assert len({one for one, *_ in digests}) == len(makers)
    before = loss_digest(Scaled(1.0))
    monkeypatch.setitem(FACTOR, "of all", 2.0)
    assert loss_digest(Scaled(1.0)) != before


def test_a_model_that_changed_elsewhere_is_another(tmp_path):
    """Weights that chains do not move, and buffers, decide the loss all the same."""
    model, run = Normed().eval(), SHORT | {"component": "u.weight", "output_path": tmp_path / "x.zarr"}
    sample(model, tokens(1), **run)
    sample(model, tokens(1), **run)
    model.n.running_var.mul_(2)
    with pytest.raises(OutputError, match="model_sha256"):
        sample(model, tokens(1), **run)
    model.n.running_var.div_(2)
    with torch.no_grad():
        model.e.weight.mul_(2)
    with pytest.raises(OutputError, match="model_sha256"):
        sample(model, tokens(1), **run)


@pytest.mark.parametrize("stacked", [True, False])
def test_a_run_whose_chains_all_died_says_so_again(tmp_path, stacked):
    """Its store is whole, with everything under /dead, and never a number."""
    path = tmp_path / "x.zarr"
    for _ in range(2):
        with pytest.raises(ChainError, match=r"every chain died.*bounding_box_size.*under /dead of"):
            sample(
                LM(),
                tokens(1),
                output_path=path,
                bounding_box_size=1e-3,
                stacked=stacked,
                pool_check=True,
                **SHORT,
            )
    tree = open_tree(path)
    assert tree.dataset.sizes["chain"] == 0
    assert tree["dead"].dataset.sizes["dead_chain"] == 3
    assert [p.name for p in tmp_path.iterdir()] == ["x.zarr"]
    with pytest.raises(ChainError):
        compute_llc(tree)


def test_an_unfinished_run_is_not_overwritten(tmp_path):
    path = tmp_path / "x.zarr"
    with pytest.raises(Stop):
        sample(LM(), tokens(1), output_path=path, checkpoint_every=0.0, progress=stopping(5), **SHORT)
    before = files(tmp_path)
    with pytest.raises(OutputError, match="resume=True"):
        sample(LM(), tokens(1), output_path=path, **SHORT)
    with pytest.raises(OutputError, match="lr"):
        sample(LM(), tokens(1), output_path=path, resume=True, **SHORT | {"lr": 0.5})
    assert files(tmp_path) == before


def test_two_runs_cannot_write_one_store(tmp_path):
    """The second is refused while the first walks, which ends as if nothing had been."""
    path, refused = tmp_path / "x.zarr", []

    def second(*_):
        if not refused:
            with pytest.raises(OutputError, match="writ") as e:
                sample(LM(), tokens(1), output_path=path, resume=True, **SHORT)
            refused.append(str(e.value))

    sample(LM(), tokens(1), output_path=path, progress=second, **SHORT)
    assert str(os.getpid()) in refused[0]
    sample(LM(), tokens(1), output_path=tmp_path / "y.zarr", **SHORT)
    assert files(path) == files(tmp_path / "y.zarr")


PROGRAM = """
import os, signal, sys
sys.path.insert(0, {tests!r})
import torch
from test_sample import LM, SHORT, tokens
from llc_fast.dropin import sample
model = LM()
before = [p.clone() for p in model.parameters()]
calls = iter(range(1000))
def progress(*_):
    if next(calls) == 11:
        os.kill(os.getpid(), signal.SIGINT)
try:
    sample(model, tokens(1), output_path={path!r}, stacked=False, progress=progress, **SHORT)
finally:
    print("restored", all(torch.equal(a, b) for a, b in zip(before, model.parameters())), next(calls), flush=True)
"""


def test_ctrl_c_saves_and_exits_130(tmp_path):
    """The step goes on to its end, and resuming starts after it."""
    path = tmp_path / "x.zarr"
    program = textwrap.dedent(PROGRAM).format(tests=str(Path(__file__).parent), path=str(path))
    done = subprocess.run(
        ["bash", "-c", '"$0" -c "$1"; exit $?', sys.executable, program],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 130, done.stderr[-1000:]
    assert "restored True 12" in done.stdout
    steps = []
    tree = sample(
        LM(),
        tokens(1),
        output_path=path,
        stacked=False,
        resume=True,
        progress=lambda *a: steps.append(a[:2]),
        **SHORT,
    )
    assert steps[0] == (1, 4)  # eleven steps and the twelfth were made: 8 of chain 0 and 4 of chain 1
    assert len(steps) == 3 * 8 - 12
    whole = sample(LM(), tokens(1), stacked=False, **SHORT)
    np.testing.assert_array_equal(tree["llc_fast"].loss, whole["llc_fast"].loss)


def test_without_a_path_ctrl_c_raises_too():
    with pytest.raises(KeyboardInterrupt):
        sample(LM(), tokens(1), progress=lambda *_: os.kill(os.getpid(), signal.SIGINT), **SHORT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
