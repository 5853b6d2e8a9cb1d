"""Trees as devinterp writes them: of made-up losses, and by devinterp itself on models small enough for tests."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

xr = pytest.importorskip("xarray", reason="needs xarray: pip install 'llc-fast[store]'")
pytest.importorskip("zarr", reason="needs zarr: pip install 'llc-fast[store]'")

SAMPLER = {
    "lr": 1e-3,
    "n_beta": 10.0,
    "localization": 5.0,
    "batch_size": 3,
    "num_burnin_steps": 0,
    "num_init_loss_batches": 32,
    "gradient_accumulation_steps": 1,
    "init_seed": 100,
    "noise_level": 1.0,
    "llc_weight_decay": 0.0,
    "sampling_method": "sgmcmc_sgld",
    "init_noise": None,
    "match_sampling_input_ids_across_chains": True,
}


def made(loss: Any, ids: Any, init: Any, *, completed: bool = True, **sampler: Any) -> Any:
    """loss: of samples, (chains, steps, samples), NaN where nothing was recorded; ids: their numbers, from 1, or None;
    init: mean loss at w0 of each chain. Two tokens a sample, half a unit above and below its loss."""
    loss = np.asarray(loss, dtype=np.float64)
    apart = np.array([-0.5, 0.5])
    root = {
        "init_loss": (("chain", "token_pos"), (np.asarray(init)[:, None] + apart).astype(np.float32)),
        "sampling_loss_micro": (
            ("chain", "step", "batch_sampling", "token_pos"),
            (loss[..., None] + apart).astype(np.float32),
        ),
    }
    if ids is not None:
        tokens = np.asarray(ids)[..., None] * np.array(
            [1, 7, 49]
        )  # 0 where there is none, as what zarr fills in
        root["sampling_input_ids_micro"] = (("chain", "step", "batch_sampling", "token"), tokens)
    config = SAMPLER | {"num_chains": len(loss), "num_draws": loss.shape[1]} | sampler
    attrs: dict[str, Any] = {"metadata": {"config": {"sampler": config}}}
    if completed:
        attrs["completed"] = 1
    return xr.DataTree(xr.Dataset(root, attrs=attrs))


def cycled(chains: int, steps: int, pool: int, size: int = 3, *, orders: Any = None) -> Any:
    """Numbers of sequences, (chains, steps, size): a pool of batches over and over; orders: each chain's own."""
    order = np.arange(pool * size) if orders is None else None
    rows = []
    for chain in range(chains):
        batches = (order if order is not None else orders[chain]).reshape(pool, size) + 1
        rows.append(batches[np.arange(steps) % pool])
    return np.stack(rows)


class LM(nn.Module):
    """A language model that sees one token."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.e, self.u, self.dropout = nn.Embedding(11, 4), nn.Linear(4, 11), nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.u(self.dropout(torch.tanh(self.e(x))))
        return out


def tokens(count: int, length: int = 6, vocabulary: int = 11) -> torch.Tensor:
    return torch.randint(0, vocabulary, (count, length), generator=torch.Generator().manual_seed(1))


def devinterp_store(path: Path, model: nn.Module | None = None, ids: Any = None, **arguments: Any) -> Path:
    """A store that devinterp's sample() wrote; `spoil` changes the losses of its chains."""
    sampling = pytest.importorskip(
        "devinterp.slt.sampling", reason="needs devinterp 2.0.1", exc_type=ImportError
    )
    from datasets import Dataset

    data = Dataset.from_dict({"input_ids": (tokens(24) if ids is None else ids).tolist()}).with_format(
        "torch"
    )
    settings = {
        "lr": 1e-2,
        "n_beta": 10.0,
        "localization": 20.0,
        "num_chains": 3,
        "num_draws": 48,
        "batch_size": 4,
    }
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")
        # Most of the time of a short run goes there.
        patch.setattr("devinterp.slt.sampler._gc_and_empty_cache", lambda: None)
        sampling.sample(
            LM() if model is None else model, data, {}, output_path=path, device="cpu", **settings | arguments
        )
    return path


def spoiled(start: int, steps: int, spoil: Callable[[int, int, torch.Tensor], torch.Tensor]) -> Any:
    """A loss_fn for devinterp that hands losses of (chain, step) to `spoil`, after `start` evaluations at w0."""
    from devinterp.slt.lm_loss import compute_per_token_loss

    calls = -start

    def loss_fn(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        loss: torch.Tensor = compute_per_token_loss(model, ids)
        calls += 1
        if calls > 0:
            loss = spoil(*divmod(calls - 1, steps), loss)
        return loss

    return loss_fn
