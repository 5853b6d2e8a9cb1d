"""What devinterp's metrics of steps tell, where they were recorded."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..diagnostics import Array
from ..evidence import Evidence
from ..store.reading import values
from .records import mean

if TYPE_CHECKING:
    import xarray as xr


def metric(tree: xr.DataTree, name: str, chains: int, steps: int) -> Array | None:
    """One of the arrays that save_metrics=True records, (chains, steps)."""
    if f"metrics_{name}" not in tree.dataset:
        return None
    found = values(tree.dataset[f"metrics_{name}"][:chains, :steps], f"metrics_{name}", tree)
    return found.astype(np.float64)


def virial_of(
    tree: xr.DataTree,
    sampler: Mapping[str, Any],
    squared: Array | None,
    weights: Any,
    chains: int,
    steps: int,
) -> Array | None:
    """d.a over the weights, from devinterp's product of the steps that gradient and pull make; SGLD alone."""
    half, pull = float(sampler["lr"]) / 2, float(sampler.get("localization") or 0.0)
    dot = metric(tree, "dot_grad_prior", chains, steps)
    if dot is None or squared is None or not weights or not half or not pull:
        return None
    if sampler.get("llc_weight_decay") or sampler.get("sampling_method") != "sgmcmc_sgld":
        return None
    virial: Array = (dot / (half * half * pull) + pull * squared) / float(weights)
    return virial


def order_bound(tree: xr.DataTree, e: Evidence) -> float:
    """Order bias with the mean square of steps' gradients in place of their variance at w0, which is less."""
    norms = metric(tree, "unscaled_grad", len(e.gains), e.loss.shape[1])
    if norms is None or not e.lr or e.sampler != "sgld" or e.epoch is None:
        return math.nan
    square = float(mean((norms[e.live] * 2 / e.lr) ** 2))  # of nbeta g
    return e.lr / 4 * square
