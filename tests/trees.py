"""Trees as `sample` writes them, of made-up losses: draws in the root, or the moments streamed from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from llc_fast.sampling.moments import Moments

xr = pytest.importorskip("xarray", reason="needs xarray: pip install 'llc-fast[store]'")

TOKENS = 5
SIZES = {"pile": 3, "code": 4, "wiki_en": 2}


def losses(seed: int, *, chains: int = 3, draws: int = 7, sizes: Mapping[str, int] = SIZES) -> dict[str, Any]:
    """float32 losses around 3, with common movement, chains that differ, and tokens unlike each other."""
    rng = np.random.default_rng(seed)
    common = rng.standard_normal((chains, draws, 1, 1)) + rng.standard_normal((chains, 1, 1, 1))
    return {
        name: (
            3
            + rng.standard_normal((1, 1, n, TOKENS))
            + 0.1 * rng.standard_normal((1, 1, n, TOKENS)) * common
            + 0.1 * rng.standard_normal((chains, draws, n, TOKENS))
        ).astype(np.float32)
        for name, n in sizes.items()
    }


def base(observed: Mapping[str, Any], *, ids: bool = True) -> dict[str, Any]:
    """What the root has with traces and without."""
    chains = len(next(iter(observed.values())))
    rng = np.random.default_rng(99)
    root = {"init_loss": (("chain", "token_pos"), np.full((chains, TOKENS), 2.9, np.float32))}
    for name, x in observed.items():
        if ids:
            dims = (f"batch_{name}", "token")
            root[f"input_ids_{name}"] = (dims, rng.integers(0, 50, (x.shape[2], x.shape[3] + 1)))
    return root


def traces(observed: Mapping[str, Any], **options: Any) -> Any:
    root = base(observed, **options)
    for name, x in observed.items():
        root[f"loss_{name}"] = (("chain", "draw", f"batch_{name}", "token_pos"), x)
    return xr.DataTree(xr.Dataset(root))


def stream(
    observed: Mapping[str, Any], *, groups: Sequence[Sequence[int]] | None = None, **options: Any
) -> Moments:
    """Moments that saw these draws: chains of a group together, groups one after another."""
    chains, draws = next(iter(observed.values())).shape[:2]
    moments = Moments({name: x.shape[2:] for name, x in observed.items()}, chains, **options)
    for group in [range(chains)] if groups is None else groups:
        for draw in range(draws):
            feed(moments, observed, list(group), draw)
    return moments


def feed(moments: Moments, observed: Mapping[str, Any], chains: list[int], draw: int) -> None:
    at_draw = {name: torch.from_numpy(x[chains, draw]) for name, x in observed.items()}
    moments.draw(chains, draw, at_draw, scalar_losses(observed)[chains, draw])


def scalar_losses(observed: Mapping[str, Any]) -> torch.Tensor:
    """Made-up sampling losses, (chain, draw)."""
    x = next(iter(observed.values()))
    return torch.from_numpy(x[:, :, 0, 0] * np.float32(2) + x[:, :, -1, -1])


def streamed(observed: Mapping[str, Any], *, ids: bool = True, **options: Any) -> Any:
    moments = stream(observed, **options)
    group = xr.Dataset(moments.arrays())
    return xr.DataTree.from_dict({"/": xr.Dataset(base(observed, ids=ids)), "/moments": group})
