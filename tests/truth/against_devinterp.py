"""Side by side with devinterp 2.0.1: its functions on our trees, its sampler's results and ours, its code patched.

The samplers are compared on tiny trained models of three families, for the whole model, a head, an MLP and the
embedding, the same masks and the same batches given to both (what is in a batch decides how noisy gradients are, and
with that the value). devinterp's chains take them in one order over and over, ours in random ones: to first order in
the step that is the same, beyond it a fixed order reads higher. Each comparison has seeds of its own; standard errors
are from the spread of independent chains. Two values: the plain average over every step, devinterp's `llc_scalar`, and
the same without burn-in, our `llc_mean` with its paired baseline. Of 24 such comparisons at 3 standard errors one is
out by chance in a tenth of all seeds; these are fixed.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["TQDM_DISABLE"] = "1"

import devinterp.slt.bif
import devinterp.slt.llc
import devinterp.slt.sampling
import devinterp.slt.susceptibilities
import numpy as np
import torch
import xarray as xr
from frame import Near, Row, main
from rows import Between, Is
from tiny_models import SEQUENCES, data, dataset, trained
from torch import Tensor, nn

import llc_fast
from llc_fast.compat import patch_devinterp
from llc_fast.lm import token_losses
from llc_fast.tree_llc import result_of

BATCH = 8
EPOCH = SEQUENCES // BATCH
SETTINGS = {
    "lr": 5e-4,  # small enough that one fixed order of batches reads what random ones do
    "n_beta": 30.0,
    "localization": 50.0,
    "batch_size": BATCH,
    "num_init_loss_batches": EPOCH,  # the whole pool
}
FLOAT32 = 1e-3  # of a value: devinterp averages losses near 2 in float32, and multiplies by n_beta


# --- (i) its functions on our tree ---


def functions(ids: Tensor) -> Iterator[Row | str]:
    model = trained("gpt_neox", ids, 200)
    probe = dataset(data(1)[:16])
    trees = {
        name: llc_fast.sample(
            model,
            dataset(ids),
            {"train": (dataset(ids), 2), "probe": (probe, 2)},
            component=component,
            num_chains=3,
            num_draws=40,
            num_burnin_steps=8,
            **SETTINGS,
        )
        for name, component in (("full", "full"), ("l0h1", "l0h1"), ("mlp", "l1 mlp"))
    }
    tree = trees["full"]
    theirs, ours = devinterp.slt.llc.compute_llc(tree), llc_fast.compute_llc(tree)
    target = float(ours.llc_scalar)
    yield Near("compute_llc: its llc_scalar, ours", target, float(theirs.llc_scalar), 0.0, FLOAT32)
    yield Near("compute_llc: its llc_mean, our llc_scalar", target, float(theirs.llc_mean), 0.0, FLOAT32)
    for method in ("token", "sequence"):
        pair = [f(tree, correlation_method=method).influences for f in (llc_fast.compute_bif, _bif)]
        yield Between(f"compute_bif, {method}: largest difference", 0.0, 1e-3, _apart(*pair))
    pair = [
        f(trees, "train")["susceptibilities"].dataset["sus"]
        for f in (llc_fast.compute_susceptibilities, _susceptibilities)
    ]
    spread = float(pair[0].std())
    yield Between("compute_susceptibilities: largest difference/spread", 0.0, 1e-2, _apart(*pair) / spread)


def _bif(tree: xr.DataTree, **options: Any) -> xr.Dataset:
    with contextlib.redirect_stderr(io.StringIO()):  # a bar
        found: xr.Dataset = devinterp.slt.bif.compute_bif(tree, device="cpu", **options)
    return found


_susceptibilities = devinterp.slt.susceptibilities.compute_susceptibilities


def _apart(a: xr.DataArray, b: xr.DataArray) -> float:
    return float(np.abs(a.values - b.values).max())


# --- (ii) its sampler and ours ---


def chain_values(tree: xr.DataTree, burnin: int) -> np.ndarray:
    """Of each chain devinterp's average over every step, and the same without burn-in; (2, chains)."""
    root = tree.dataset
    trace = root.sampling_loss_micro.values.astype(np.float64).mean(axis=(2, 3))
    start = float(root.init_loss.values.astype(np.float64).mean())
    return SETTINGS["n_beta"] * np.stack([trace.mean(axis=1) - start, trace[:, burnin:].mean(axis=1) - start])


def sampled(
    model: nn.Module, ids: Tensor, component: str, schedule: dict[str, int], seed: int = 100
) -> tuple[xr.Dataset, xr.DataTree]:
    """Our result and devinterp's tree, with one set of masks and one pool."""
    masks = llc_fast.create_param_masks(model, component)
    common = {**SETTINGS, **schedule, "param_masks": masks, "init_seed": seed}
    ours = llc_fast.llc(model, dataset(ids), {}, **common)
    with tempfile.TemporaryDirectory() as place, contextlib.redirect_stderr(io.StringIO()):
        store = f"{place}/theirs.zarr"
        theirs = devinterp.slt.sampling.sample(model, dataset(ids), {}, output_path=store, **common)
        theirs = theirs.load()
    return ours, theirs


def samplers(ids: Tensor, quick: bool) -> Iterator[Row | str]:
    schedule = {
        "num_chains": 3 if quick else 4,
        "num_burnin_steps": 4 * EPOCH,
        "num_draws": (8 if quick else 12) * EPOCH,
    }
    pools = 2 if quick else 3
    chains, burnin, seed = pools * schedule["num_chains"], schedule["num_burnin_steps"], 0
    yield f"{chains} chains x {schedule['num_draws']} draws of each, {pools} pools; target: devinterp's"
    for family in ("gpt_neox", "qwen2", "llama"):
        model = trained(family, ids, 200)
        for component in ("full", "l0h1") if quick else ("full", "l0h1", "l1 mlp", "embed"):
            pairs = []
            for _ in range(pools):
                seed += 1000
                pairs.append(sampled(model, ids, component, schedule, seed))
            theirs = np.concatenate([chain_values(tree, burnin) for _, tree in pairs], axis=1)
            every = [r.loss_trace.values.mean(axis=1) - float(r.init_loss) for r, _ in pairs]
            drawn = [r.llc_per_chain.values for r, _ in pairs]
            ours = np.stack([SETTINGS["n_beta"] * np.concatenate(every), np.concatenate(drawn)])
            for i, name in enumerate(("llc_scalar", "llc_mean")):
                value = np.mean([float(r[name]) for r, _ in pairs])
                error = math.hypot(*(x[i].std(ddof=1) / math.sqrt(chains) for x in (theirs, ours)))
                yield Near(f"{family} {component}: {name}", float(theirs[i].mean()), float(value), error)


# --- (iii) its quickstart, patched ---


def quickstart(ids: Tensor) -> Iterator[Row | str]:
    """What devinterp's quickstart script calls, in its order, on a tiny model."""
    from devinterp.slt.bif import bif
    from devinterp.slt.llc import llc
    from devinterp.slt.susceptibilities import susceptibilities
    from devinterp.slt.weight_restrictions import create_param_masks, preview_weight_restriction
    from devinterp.utils import default_nbeta

    model, ds, probe = trained("qwen2", ids, 200), dataset(ids), dataset(data(1))
    before = [p.detach().clone() for p in model.parameters()]
    common = {
        "lr": 1e-4,
        "n_beta": default_nbeta(4),
        "num_chains": 2,
        "num_draws": 50,
        "batch_size": 4,
        "num_init_loss_batches": 4,
    }
    with (
        patch_devinterp(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        result = llc(model=model, dataset=ds, observables={"train": ds}, **common)
        own = devinterp.slt.sampling.sample(model=model, dataset=ds, observables={}, **common)
        head = create_param_masks(model, "l0h0")
        preview_weight_restriction(model, head)
        tasks = {"train": (ds, 2), "probe": (probe, 2)}
        restrictions = {"full": None, "l0h0": head, "l0h1": create_param_masks(model, "l0h1")}
        found = susceptibilities(
            model=model,
            dataset=ds,
            observables=tasks,
            weight_restrictions=restrictions,
            sampling_task="train",
            **common,
        )
        influence = bif(model=model, dataset=ds, observables={"probe": (probe, 2)}, **common)
    sus = found["susceptibilities"].dataset["sus"]
    tokens = ids.shape[1] - 1
    yield Is("patched llc: shape of llc_per_chain", (2,), result.llc_per_chain.shape)
    yield Is("patched llc: finite", True, math.isfinite(float(result.llc_mean)))
    yield Is("patched sample: the tree is ours", True, "llc_fast" in own.attrs)
    yield Is("patched susceptibilities: shape", (8 * tokens, 2), sus.shape)
    yield Is("patched susceptibilities: finite", True, bool(np.isfinite(sus.values).all()))
    yield Is("patched bif: shape", (8, 8, tokens, tokens), influence.influences.shape)
    unchanged = all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
    yield Is("the model is as it was", True, unchanged)
    undone = devinterp.slt.llc.sample.__module__
    yield Is("after the patch: its own sample again", "devinterp.slt.sampling", undone)


# --- (iv) audit of its store ---


class Breaking:
    """A loss that is not a number from some call of a chain on: the chain dies."""

    def __init__(self, steps: range) -> None:
        self.steps, self.calls = steps, 0

    def __call__(self, model: nn.Module, ids: Tensor) -> Tensor:
        self.calls += 1
        return token_losses(model, ids) * (math.nan if self.calls in self.steps else 1.0)


def audited(ids: Tensor) -> Iterator[Row | str]:
    chains, steps, dies = 3, 64, 20  # chain 1 at its step 20
    start = chains * EPOCH + steps + dies  # calls before: losses at w0 of all chains, and chain 0
    with tempfile.TemporaryDirectory() as place, contextlib.redirect_stderr(io.StringIO()):
        store = Path(place) / "theirs.zarr"
        tree = devinterp.slt.sampling.sample(
            trained("llama", ids, 200),
            dataset(ids),
            {},
            loss_fn=Breaking(range(start + 1, start + 2)),
            num_chains=chains,
            num_draws=steps,
            output_path=str(store),
            **SETTINGS,
        )
        trace = tree.sampling_loss_micro.values.astype(np.float64).mean(axis=(2, 3))
        init = tree.init_loss.values.astype(np.float64).mean()
        living = SETTINGS["n_beta"] * (trace[[0, 2]].mean() - init)
        naive = float(devinterp.slt.llc.compute_llc(tree).llc_mean)
        yield f"  devinterp's own number for its store with a dead chain: {naive:.4g}"
        result = result_of(tree)
        yield Is("audit: dead chains", [1], sorted(result.dead_chains))
        yield Near("audit: plain average of those that lived", living, result.llc_scalar, 0.0, FLOAT32)
        command = [str(Path(sys.executable).with_name("llc-fast")), "audit", str(store)]
        told = subprocess.run(command, capture_output=True, text=True, check=False)
        text = told.stdout + told.stderr
        yield Is(
            "llc-fast audit: names the dead chain", True, bool(re.search(r"chain\W+1\b.*(dead|died)", text))
        )
        numbers = [float(number) for number in re.findall(r"\d+\.\d+", text)]
        near = any(math.isclose(number, result.llc_mean, rel_tol=FLOAT32) for number in numbers)
        yield Is("llc-fast audit: has the estimate", True, near, f"{result.llc_mean:.5g}")


def rows(quick: bool) -> Iterator[Row | str]:
    warnings.simplefilter("ignore")
    ids = data()
    yield "its functions on our trees"
    yield from functions(ids)
    yield "its sampler and ours"
    yield from samplers(ids, quick)
    yield "its quickstart with our sampler under it"
    yield from quickstart(ids)
    yield "audit of a store that devinterp wrote"
    yield from audited(ids)


if __name__ == "__main__":
    main(__doc__ or "", rows)
