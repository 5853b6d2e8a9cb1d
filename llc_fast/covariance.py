"""Covariances and correlations between losses, block by block from draws, or from sums of products."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .diagnostics import Array

_ROWS = 2**13  # tokens of a block of covariances on either side: 512 MiB


@torch.no_grad()
def between_draws(
    losses: Any,
    first: Any,
    second: Any,
    *,
    chains: str,
    covariance: bool,
    average: bool,
    batch_size: int,
    device: str | torch.device | None,
    dtype: np.dtype[Any],
) -> Any:
    """Covariance, or correlation, of the losses of `first` sequences with those of `second`, (n1, n2, T, T).

    losses: (chain, draw, sequence, T). first, second: places of sequences. chains: "stack" takes deviations from the
    mean of all draws, "within" from the chain's own, "mean" averages chains draw by draw first. average: the
    mean over both T, which are then 1. batch_size: sequences of a block, at most. Sums are float64.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    tokens = losses.shape[3]
    step = max(1, min(batch_size, _ROWS // tokens))
    out = 1 if average else tokens
    result = np.empty((len(first), len(second), out, out), dtype=dtype)

    def rows(places: Any) -> Tensor:
        block = torch.as_tensor(losses[:, :, places].astype(np.float64), device=device)
        r = _deviations(block, chains)
        r = r if covariance else r / r.square().sum(dim=2, keepdim=True).sqrt()
        return r.mean(dim=1, keepdim=True) if average else r

    shape = losses.shape[:2]
    dof = {"stack": shape[0] * shape[1] - 1, "within": shape[0] * (shape[1] - 1), "mean": shape[1] - 1}[
        chains
    ]
    for i in range(0, len(first), step):
        a = rows(first[i : i + step])
        for j in range(0, len(second), step):
            b = rows(second[j : j + step])
            block = (a.flatten(0, 1) @ b.flatten(0, 1).T).view(*a.shape[:2], *b.shape[:2])
            if covariance:
                block = block / dof  # of one draw, 0 / 0
            result[i : i + step, j : j + step] = block.transpose(1, 2).cpu().numpy()
    return result


def from_comoments(
    comoments: Array, dof: float, first: Any, second: Any, *, covariance: bool, average: bool
) -> Array:
    """The same from sums of products of deviations, (sequence, T, sequence, T), with `dof` degrees of freedom."""
    block = comoments[np.ix_(first, range(comoments.shape[1]), second, range(comoments.shape[3]))]
    with np.errstate(divide="ignore", invalid="ignore"):
        if covariance:
            block = block / np.float64(dof)
        else:
            norm = np.sqrt(np.einsum("stst->st", comoments))
            block = block / (norm[first][:, :, None, None] * norm[second])
    if average:
        block = block.mean(axis=(1, 3), keepdims=True)
    matrix: Array = block.transpose(0, 2, 1, 3)
    return matrix


def _deviations(block: Tensor, chains: str) -> Tensor:
    """Draws (chain, draw, sequence, T) as deviations (sequence, T, draws)."""
    if chains == "mean":
        block = block.nanmean(dim=0, keepdim=True)
    centre = block.mean(dim=1 if chains == "within" else (0, 1), keepdim=True)
    return (block - centre).permute(2, 3, 0, 1).flatten(2)
