"""What do chains of a small model gain by walking at once?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import llc_fast
from llc_fast.lm import token_losses

from ._chain_slope import Rounds, slopes, wall
from ._chains import LOCALIZATION, LR, NBETA
from ._table import Column, Table
from ._work import Setting

COLUMNS = [
    Column("weights", "weights", ",d"),
    Column("chains", "chains", "d"),
    Column("alone", "ms one by one", ",.2f", scale=1e3),
    Column("together", "ms at once", ",.2f", scale=1e3),
    Column("gain", "gain", ".1f", "x"),
]
READING = (
    "Milliseconds of a step of all chains, medians. At once: stacked weights, one forward and backward pass by "
    "torch.func.vmap and one launch of the step, as estimate_llc and sample do by themselves below a million weights. "
    "What is gained is the cost of starting operations: it shrinks as the model's own arithmetic grows."
)


class Factored(nn.Module):
    """Reduced rank regression, the smallest model that a learning coefficient is known for."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(2, 2))

    def forward(self, _: Tensor) -> Tensor:
        return (self.b @ self.a).square().sum() / 2


class Language(nn.Module):
    """A language model without attention, for its shapes alone."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Embedding(vocabulary, width),
            nn.Linear(width, 4 * width),
            nn.GELU(),
            nn.Linear(4 * width, width),
            nn.Linear(width, vocabulary),
        )

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.layers(ids)
        return logits


def tables(setting: Setting) -> Iterator[Table]:
    out = Table("stacked", "A step of all chains of a small model", COLUMNS, READING)
    for name, model, loss, pool, chains in _cases(setting):
        values: dict[str, Any] = {"weights": sum(p.numel() for p in model.parameters()), "chains": chains}
        setting.say(f"{name}, {chains} chains")
        runs = {
            kind: partial(_run, model, loss, pool, chains, kind == "together")
            for kind in ("alone", "together")
        }
        for run in runs.values():
            run(2)
        budget = setting.pick(20.0, 4.0, 0.0)
        lengths = setting.pick((20, 120), (10, 50), (2, 4))
        rounds = Rounds(budget, *setting.pick((5, 15), (3, 9), (1, 1)))
        found, absent = slopes(runs, lengths, rounds, wall(setting.device))
        if absent:
            out.add(name, absent="; ".join(absent.values()))
            continue
        alone, together = found["alone"].step.median, found["together"].step.median
        out.add(name, **values, alone=alone, together=together, gain=alone / together)
    yield out


def _run(
    model: nn.Module,
    loss: Callable[[Any, Any], Tensor],
    pool: Sequence[Tensor],
    chains: int,
    stacked: bool,
    steps: int,
) -> None:
    llc_fast.estimate_llc(
        model,
        loss,
        pool,
        lr=LR,
        nbeta=NBETA,
        localization=LOCALIZATION,
        num_chains=chains,
        num_draws=steps,
        stacked=stacked,
    )


def _cases(setting: Setting) -> list[tuple[str, nn.Module, Callable[[Any, Any], Tensor], list[Tensor], int]]:
    device, few = setting.device, setting.pick(4, 4, 2)
    torch.manual_seed(0)
    mlp = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1)).to(
        device
    )
    language = Language(*setting.pick((1000, 128), (500, 64), (20, 4))).to(device)
    ids = torch.randint(0, 20, (4, 8, 32), device=device)
    x = torch.randn(4, 64, 16, device=device)
    return [
        ("reduced rank regression", Factored().to(device), _scalar, [torch.zeros(1, device=device)], few),
        (
            "the same, many chains",
            Factored().to(device),
            _scalar,
            [torch.zeros(1, device=device)],
            setting.pick(256, 64, 3),
        ),
        ("MLP, 64 samples", mlp, lambda m, b: m(b).square().mean(dim=1), list(x), few),
        ("language model, 256 tokens", language, token_losses, list(ids), few),
    ]


def _scalar(model: nn.Module, batch: Tensor) -> Tensor:
    loss: Tensor = model(batch)
    return loss
