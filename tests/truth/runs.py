"""Small runs of `sample` in every way that it keeps its state, for stores that are to be compared byte by byte."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from llc_fast.dropin import sample

ALPHABET, LENGTH, CHAINS = 12, 6, 4


class Tiny(nn.Module):
    """Next-token logits from the token alone."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(ALPHABET, 6)
        self.out = nn.Linear(6, ALPHABET)

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.out(self.embed(ids))
        return logits


def losses(model: nn.Module, ids: Tensor) -> Tensor:
    """(batch, length - 1)."""
    logits = model(ids)[:, :-1]
    flat = cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    return flat.view(len(ids), -1)


def fragile(model: nn.Module, ids: Tensor) -> Tensor:
    """The same, but not a number where a bias has gone far: chains that get there die."""
    far = model.out.bias.square().sum() > FAR
    return losses(model, ids) + torch.where(far, torch.nan, 0.0)


FAR = 2.6


def problem() -> tuple[nn.Module, Tensor, Tensor]:
    """Model, data, and an observable's data."""
    torch.manual_seed(0)
    return Tiny(), torch.randint(ALPHABET, (48, LENGTH)), torch.randint(ALPHABET, (8, LENGTH))


CASES: dict[str, dict[str, Any]] = {
    "stacked, traces, pool_check": {"pool_check": True},
    "stacked, moments": {"traces": False, "moments": ("sequence", "token")},
    "stacked, chains die": {"loss_fn": fragile},
    "stacked, SGNHT": {"sampling_method": "sgnht", "pool_check": True},
    "single, traces, RMSprop": {"stacked": False, "sampling_method": "rmsprop_sgld", "save_metrics": True},
    "single, moments, SGNHT": {"stacked": False, "traces": False, "sampling_method": "sgnht"},
    "single, chains die": {"stacked": False, "loss_fn": fragile, "control_variates": True},
    "single, two batches a step": {"stacked": False, "gradient_accumulation_steps": 2, "pool_check": True},
}


def run(
    path: Path,
    case: Mapping[str, Any],
    *,
    progress: Callable[[int], None] | None = None,
    keep: Callable[[nn.Module], None] | None = None,
) -> dict[str, Any]:
    """A run, new or continued, to its end; says at which chain and step it began. keep gets the model before."""
    model, data, seen = problem()
    if keep is not None:
        keep(model)
    first: list[list[int]] = []

    def told(chain: int, step: int, steps: int, loss: float) -> None:
        if not first:
            first.append([chain, step])
        if progress is not None:
            progress(step)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sample(
            model,
            data,
            {"seen": (seen, 2)},
            **{
                "lr": 1e-2,
                "n_beta": 20.0,
                "localization": 5.0,
                "num_chains": CHAINS,
                "num_draws": 40,
                "num_steps_bw_draws": 2,
                "num_burnin_steps": 13,
                "batch_size": 4,
                "loss_fn": losses,
                "resume": True,
                "checkpoint_every": 0.0,
                "output_path": path,
                "progress": told,
                **case,
            },
        )
    return {"first": first[0] if first else None}


def files(store: Path) -> dict[str, str]:
    """Digests of all files under a folder, by their path in it."""
    return {
        str(p.relative_to(store)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(store.rglob("*"))
        if p.is_file()
    }


SAVED = "after a checkpoint"


def left(store: Path) -> str:
    """How far a killed run had come, from what is on the disk."""
    beside = store.with_name(f"{store.name}.run")
    if not store.exists():
        return "before the store was there"
    if not beside.exists():
        return "when all was done"
    names = {p.name for p in beside.iterdir()}
    if "moved" in names:
        return "while it finished"
    if "checkpoint.tmp" in names:
        return "while it wrote a checkpoint"
    return SAVED if "checkpoint" in names else "before a checkpoint"


def same(store: Path, expected: Mapping[str, str]) -> bool:
    """Whether a finished store is the expected one, with nothing beside it."""
    return files(store) == expected and sorted(p.name for p in store.parent.iterdir()) == [store.name]
