"""Whole LLC chains on one model, by us and by what people use: same weights, loss, batches and number of steps.

Each builder takes a `Walk` and gives a function of the number of draws, a step each, that runs one chain from the
model's weights and returns its LLC; the bare passes have none. Where a package is not installed it raises
ModuleNotFoundError.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import itertools
import statistics
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import llc_fast
from llc_fast.selection import named_parameters

from ._models import token_losses

# Steps that move the loss of an untrained model within a few draws, and keep it finite.
LR, NBETA, LOCALIZATION = 1e-4, 30.0, 100.0
Chain = Callable[[int], float | None]


@dataclass(frozen=True)
class Walk:
    """What a chain walks on: a model, the component that moves, and the pool of batches."""

    model: nn.Module
    component: str
    pool: Sequence[Tensor]

    @property
    def device(self) -> torch.device:
        return self.pool[0].device


def bare(walk: Walk) -> Chain:
    """The passes that every chain makes, forward and backward to what moves, and nothing else."""
    params = [parameter for parameter, _ in chosen(walk).values()]
    moving = {id(p) for p in params}

    def run(draws: int) -> None:
        flags = [(p, p.requires_grad) for p in walk.model.parameters()]
        try:
            for p, _ in flags:
                p.requires_grad_(id(p) in moving)
            for tokens in itertools.islice(itertools.cycle(walk.pool), draws):
                torch.autograd.grad(token_losses(walk.model, tokens).mean(), params)
        finally:
            for p, flag in flags:
                p.requires_grad_(flag)

    return run


def chosen(walk: Walk) -> dict[str, tuple[Tensor, Tensor | None]]:
    """The parameters that a component is in, each with the mask of what moves of it, None for all."""
    selection = llc_fast.select(walk.model, walk.component)
    known = named_parameters(walk.model)
    return {
        name: (known[name], None if selection.covers(name) else selection.mask(name).to(walk.device))
        for name, boxes in selection.boxes.items()
        if boxes
    }


def ours(walk: Walk, backend: str = "auto") -> Chain:
    def run(draws: int) -> float:
        result = llc_fast.estimate_llc(
            walk.model,
            token_losses,
            walk.pool,
            component=walk.component,
            lr=LR,
            nbeta=NBETA,
            localization=LOCALIZATION,
            num_chains=1,
            num_draws=draws,
            backend=backend,
        )
        return result.llc_mean

    return run


def devinterp(walk: Walk) -> Chain:
    """devinterp's llc(), its results in a temporary folder; no observables, so no losses but those of its steps."""
    with _quiet():
        from datasets import Dataset
        from devinterp.slt.llc import llc

    masks = devinterp_masks(walk)
    tokens = torch.cat(list(walk.pool)).tolist()
    dataset = Dataset.from_dict({"input_ids": tokens}).with_format("torch")

    def run(draws: int) -> float:
        with tempfile.TemporaryDirectory(prefix="llc_fast_bench_") as folder, _quiet() as said:
            result = llc(
                walk.model,
                dataset,
                {},
                lr=LR,
                n_beta=NBETA,
                localization=LOCALIZATION,
                param_masks=masks,
                loss_fn=token_losses,
                num_chains=1,
                num_draws=draws,
                batch_size=len(walk.pool[0]),
                num_init_loss_batches=len(walk.pool),
                shuffle=False,
                device=str(walk.device),
                output_path=Path(folder) / "samples.zarr",
            )
            value = float(result.llc_mean)
        for warning in said:
            if "Chain failed" in str(warning.message):  # it goes on, with zeros for losses
                raise ArithmeticError(str(warning.message))
        return value

    return run


def devinterp_masks(walk: Walk) -> dict[str, Tensor | None]:
    """The component as devinterp has it."""
    from devinterp.slt.weight_restrictions import create_param_masks

    masks: dict[str, Tensor | None] = create_param_masks(walk.model, walk.component)
    return masks


def posteriors(walk: Walk) -> Chain:
    """posteriors' SGLD of the whole model, its gradients its own, in the loop that its users write around it."""
    with _quiet():  # of its own imports, about its dependencies
        transforms = importlib.import_module("posteriors.sgmcmc.sgld")
    anchors = {name: p.detach() for name, p in walk.model.named_parameters()}

    def log_posterior(params: dict[str, Tensor], tokens: Tensor) -> tuple[Tensor, Tensor]:
        def model(**inputs: Any) -> Any:
            return torch.func.functional_call(walk.model, params, (), inputs)

        loss = token_losses(model, tokens).mean()
        pull = sum((params[name] - w0).square().sum() for name, w0 in anchors.items())
        return -NBETA * loss - LOCALIZATION / 2 * pull, loss.detach()

    # Its steps are lr grad + N(0, 2 lr T): half of our lr at T = 1 is the same step.
    built = transforms.build(log_posterior, lr=LR / 2, temperature=1.0)

    def run(draws: int) -> float:
        with torch.no_grad():
            start = statistics.fmean(float(token_losses(walk.model, tokens).mean()) for tokens in walk.pool)
        state = built.init({name: w0.clone() for name, w0 in anchors.items()})
        losses = []
        for tokens in itertools.islice(itertools.cycle(walk.pool), draws):
            state, loss = built.update(state, tokens, inplace=True)
            losses.append(float(loss))
        return NBETA * (statistics.fmean(losses) - start)

    return run


@contextlib.contextmanager
def _quiet() -> Iterator[list[warnings.WarningMessage]]:
    """Without progress bars; the warnings are the caller's to look at."""
    with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        yield said
