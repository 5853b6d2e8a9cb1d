"""Stretches of draws over which the noise of batches averages out."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

MIN_DRAWS = 8  # below this no R-hat


def block_means(values: Array, *, pool: int, burnin: int, thinning: int) -> tuple[Array, str]:
    """Means of draws over stretches in which batch noise averages out, and what the stretches are.

    values: one for each draw, (chains, draws), of a chain that passes over `pool` batches in whole epochs
    from its step 0 and takes its draws every `thinning` steps after `burnin` steps. Whole epochs where every
    step is a draw and there are at least 8, else 16 equal blocks, or 8 where draws are below 64. Fewer than 8
    draws give (chains, 0). Draws before the first stretch are left out.
    """
    chains, draws = values.shape
    if thinning == 1 or pool == 1:
        skip = 0 if pool == 1 else -burnin % pool
        epochs = max(0, draws - skip) // pool
        if epochs >= MIN_DRAWS:
            kept = values[:, skip : skip + epochs * pool].reshape(chains, epochs, pool)
            return kept.mean(axis=2), f"{epochs} whole epochs of {pool} draw{'s' if pool > 1 else ''}"
    if draws < MIN_DRAWS:
        return np.empty((chains, 0)), f"none: {draws} draws are fewer than {MIN_DRAWS}"
    count = 16 if draws >= 64 else MIN_DRAWS
    length = draws // count
    kept = values[:, draws - count * length :].reshape(chains, count, length)
    return kept.mean(axis=2), f"{count} blocks of {length} draw{'s' if length > 1 else ''}"
