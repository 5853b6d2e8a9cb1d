"""Chains of devinterp and of llc_fast at the published setting, and the figures that separate their numbers."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from published_model import BATCH, Size, Trained, trained
from torch import Tensor

from llc_fast import create_param_masks, diagnostics
from llc_fast.dropin import sample
from llc_fast.evidence import Evidence, assess
from llc_fast.lm import token_losses
from llc_fast.results import LLCResult
from llc_fast.tree_llc import evidence_of

if TYPE_CHECKING:
    import xarray as xr

# Wang et al. 2024, arXiv 2410.02984
SETTING: dict[str, Any] = {"lr": 1e-3, "n_beta": 30.0, "localization": 200.0, "batch_size": BATCH}
CHAINS, INIT_BATCHES = 4, 32
FEW = 2  # chains of the runs that change one thing


@dataclass(frozen=True)
class Plan:
    """heads: components beside the full model. burnin: steps left out by us."""

    size: Size
    draws: int
    burnin: int
    heads: tuple[str, ...]


FULL = Plan(Size(256, 8, 5000, 16, None, 800), draws=200, burnin=50, heads=("l0h0", "l1h0", "l1h4"))
QUICK = Plan(Size(32, 4, 300, 16, 30, 20), draws=40, burnin=8, heads=("l0h0",))


@dataclass(frozen=True)
class Laboratory:
    """The model, and its pool: as many batches as a chain of the published length takes. folder: of finished runs."""

    plan: Plan
    trained: Trained
    ids: Tensor
    folder: Path

    @classmethod
    def of(cls, plan: Plan) -> Laboratory:
        found = trained(plan.size)
        ids = found.rows[: plan.draws * BATCH].clone()
        made = hashlib.sha256(repr(asdict(plan)).encode())
        for tensor in (ids, *found.model.state_dict().values()):
            made.update(tensor.numpy().tobytes())
        folder = Path(tempfile.gettempdir(), "llc_fast_published", f"{made.hexdigest()[:16]}.runs")
        folder.mkdir(parents=True, exist_ok=True)
        return cls(plan, found, ids, folder)

    def masks(self, component: str) -> Any:
        return None if component == "full" else create_param_masks(self.trained.model, component)

    def ours(self, name: str, component: str, **changes: Any) -> tuple[xr.DataTree, float]:
        """A run of llc_fast, and its CPU seconds."""
        run = SETTING | {"num_chains": CHAINS, "num_draws": self.plan.draws, "device": "cpu"} | changes
        masks = self.masks(component)
        return self._finished(
            f"ours-{name}",
            lambda out: sample(
                self.trained.model,
                self.ids,
                {},
                param_masks=masks,
                output_path=out,
                checkpoint_every=1e6,
                **run,
            ),
        )

    def theirs(self, component: str) -> tuple[xr.DataTree, float]:
        """A run of devinterp, and its CPU seconds."""
        from datasets import Dataset

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its imports
            from devinterp.slt.sampling import sample as devinterp_sample
        dataset = Dataset.from_dict({"input_ids": self.ids.tolist()}).with_format("torch")
        run = SETTING | {"num_chains": CHAINS, "num_draws": self.plan.draws, "device": "cpu"}
        masks = self.masks(component)
        return self._finished(
            f"theirs-{component}",
            lambda out: devinterp_sample(
                self.trained.model, dataset, {}, param_masks=masks, output_path=out, **run
            ),
        )

    def _finished(self, name: str, walk: Callable[[Path], Any]) -> tuple[xr.DataTree, float]:
        """A run, unless an earlier call that was broken off later has finished it."""
        import xarray as xr

        done = self.folder / name
        if not done.is_dir():
            out = Path(tempfile.mkdtemp(dir=self.folder))
            start = time.process_time()
            with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
                warnings.simplefilter("ignore")
                walk(out / "samples.zarr")
            (out / "seconds.json").write_text(json.dumps(time.process_time() - start))
            out.rename(done)
        tree = xr.open_datatree(str(done / "samples.zarr"), engine="zarr", consolidated=False)
        return tree, json.loads((done / "seconds.json").read_text())


def compare(lab: Laboratory, component: str) -> dict[str, Any]:
    """Both libraries on one component, and what leads from one's number to the other's."""
    tree, seconds = lab.theirs(component)
    root, nbeta = tree.dataset, SETTING["n_beta"]
    losses = root.sampling_loss_micro.values.astype(np.float64).mean(axis=(2, 3))
    start = float(root.init_loss.values.mean())
    per_chain = nbeta * (losses.mean(axis=1) - start)  # devinterp.slt.llc.compute_llc
    theirs = {
        "llc_mean": per_chain.mean(),
        "llc_std": per_chain.std(),
        "seconds": seconds,
        "init_loss": start,
        "r_hat": diagnostics.r_hat(losses),
    }
    tree, seconds = lab.ours(component, component)
    evidence, burnin = evidence_of(tree), lab.plan.burnin
    assert evidence.baseline is not None
    assert evidence.weights is not None
    settled = after(evidence, burnin)
    assert settled.distance is not None
    whole = assess(evidence)
    first = float(evidence.baseline[:INIT_BATCHES].mean())
    apart = 1 / INIT_BATCHES - 1 / len(evidence.baseline)
    return {
        "weights": evidence.weights,
        "curvature": curvature(lab, component),
        "theirs": {name: float(value) for name, value in theirs.items()},
        "init_loss": first,
        "whole_init_loss": float(evidence.baseline.mean()),
        "formula": nbeta * (float(evidence.loss.mean()) - first),
        "formula_error": float(np.hypot(whole.mcse, per_chain.std(ddof=1) / CHAINS**0.5)),
        "baseline_error": nbeta * float(evidence.baseline.std(ddof=1)) * apart**0.5,
        "raw_r_hat": diagnostics.r_hat(evidence.loss),
        "batch_noise": nbeta * float(evidence.baseline.std(ddof=1)),
        "whole": told(whole),
        "settled": told(assess(settled)),
        "loss_of_draws": float(evidence.loss[:, burnin:].mean()),
        "distance_ratio": float(settled.distance.mean()) * SETTING["localization"] / evidence.weights,
        "seconds": seconds,
    }


def after(e: Evidence, burnin: int) -> Evidence:
    """The same chains with their first steps left out, every step being a draw."""
    cut = {name: getattr(e, name)[:, burnin:] for name in ("gains", "distance", "dot", "boxed")}
    settings = dict(e.settings) | {"num_burnin_steps": burnin, "num_draws": e.gains.shape[1] - burnin}
    return replace(e, num_burnin_steps=burnin, settings=settings, **cut)


def told(result: LLCResult) -> dict[str, Any]:
    """What the section says of a result."""
    names = (
        "llc_mean",
        "llc_std",
        "mcse",
        "r_hat",
        "r_hat_distance",
        "ess",
        "basis",
        "order_bias",
        "gradient_term",
        "temperature",
        "burnin_suggested",
    )
    every = result.to_dict()
    checks = {c["name"]: c for c in every["verdict"]["checks"]}
    return {
        **{name: every[name] for name in names},
        "interval": every["interval_95"],
        "r_hat_by_chance": checks["R-hat"]["threshold"],
        "drift": [checks["drift"]["value"], checks["drift"]["threshold"]],
        "failed": [name for name, check in checks.items() if check["ok"] is False],
    }


def fresh(lab: Laboratory, component: str) -> dict[str, Any]:
    """The same chains with draws on other batches: what the order of the batches adds."""
    plain = evidence_of(lab.ours(component, component)[0])
    other = evidence_of(lab.ours(f"fresh-{component}", component, num_chains=FEW, fresh_batches=True)[0])
    burnin, nbeta = lab.plan.burnin, SETTING["n_beta"]
    assert plain.distance is not None
    assert other.distance is not None
    own, apart = plain.gains[:FEW, burnin:], other.gains[:, burnin:]
    error, _ = diagnostics.mcse(own - apart)
    return {
        "same": bool(np.allclose(plain.distance[:FEW], other.distance, rtol=1e-6, atol=0)),
        "own": nbeta * float(own.mean()),
        "apart": nbeta * float(apart.mean()),
        "difference": nbeta * float((own - apart).mean()),
        "difference_error": nbeta * error,
    }


def half_step(lab: Laboratory, component: str) -> dict[str, Any]:
    """At half the lr, with twice the burn-in."""
    draws, burnin = lab.plan.draws, 2 * lab.plan.burnin
    changes = {"lr": SETTING["lr"] / 2, "num_chains": FEW, "num_burnin_steps": burnin, "num_draws": draws}
    return told(assess(evidence_of(lab.ours(f"half-{component}", component, **changes)[0])))


def curvature(lab: Laboratory, component: str, times: int = 12) -> float:
    """The largest eigenvalue of the Hessian of two batches at w0, by power iteration on differences of gradients."""
    model, batch = lab.trained.model, lab.ids[: 2 * BATCH]
    own = dict(model.named_parameters())
    masks = lab.masks(component) or dict.fromkeys(own)
    chosen = [own[name] for name in masks]
    kept = [p.detach().clone() for p in chosen]
    generator = torch.Generator().manual_seed(0)
    v = _unit([torch.randn(p.shape, generator=generator) for p in chosen], list(masks.values()))
    found = 0.0
    try:
        for _ in range(times):
            grads = []
            for sign in (1, -1):
                with torch.no_grad():
                    for p, w, x in zip(chosen, kept, v, strict=True):
                        p.copy_(w + sign * _REACH * x)
                grads.append(torch.autograd.grad(token_losses(model, batch).mean(), chosen))
            product = [(a - b) / (2 * _REACH) for a, b in zip(*grads, strict=True)]
            found = sum(float((a * b).sum()) for a, b in zip(product, v, strict=True))
            v = _unit(product, list(masks.values()))
    finally:
        with torch.no_grad():
            for p, w in zip(chosen, kept, strict=True):
                p.copy_(w)
    return found


_REACH = (
    1e-3  # |w - w0| from where gradients are taken; ten times as far the full model's loss is not quadratic
)


def _unit(v: list[Tensor], masks: list[Any]) -> list[Tensor]:
    v = [x if m is None else x * m for x, m in zip(v, masks, strict=True)]
    norm = torch.stack([x.norm() for x in v]).norm()
    return [x / norm for x in v]
