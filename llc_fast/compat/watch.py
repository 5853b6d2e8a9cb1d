"""What happens at the draws of a chain, as devinterp 1.3.2's callbacks see it."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import ArgumentError, ArgumentTypeError
from ..feed import moved

# They read the optimizer's noise, or gradients in .grad, which fused steps do not leave behind.
_REFUSED = ("MalaAcceptanceRate", "NoiseNorm", "GradientNorm", "GradientDistribution")
_ABSENT = ("optimizer", "optimizer_metrics", "ref_model", "pbar")


def check_callbacks(callbacks: Iterable[Any]) -> None:
    """Raise for those that need what is not there."""
    for callback in callbacks:
        if not callable(callback):
            raise ArgumentTypeError(f"callbacks has a {type(callback).__name__}: give functions")
        name = getattr(callback, "__name__", type(callback).__name__)
        if kinds := [c.__name__ for c in type(callback).__mro__ if c.__name__ in _REFUSED]:
            raise ArgumentError(
                f"callbacks has a {kinds[0]}, which reads an optimizer's noise or .grad, and there is neither: leave "
                "it out; norms of gradients and noise are in llc_fast.sample(..., save_metrics=True)"
            )
        needs = [
            p.name
            for p in inspect.signature(callback).parameters.values()
            if p.name in _ABSENT and p.default is p.empty and p.kind is not p.VAR_KEYWORD
        ]
        if needs:
            raise ArgumentError(
                f"callbacks has {name}, which takes {needs[0]!r}: there is none, leave it out"
            )


class Watched:
    """A loss on groups of batches that remembers its values, and calls back at draws.

    groups: a step's batches each. evaluate(model, batch): the loss, alone, first of a tuple, under "loss" in a
    dictionary, or an attribute. given: further arguments of callbacks. gains: loss less the same batches' at w0,
    (chains, draws), NaN where a chain was dead.
    """

    def __init__(
        self,
        groups: Sequence[Sequence[Any]],
        evaluate: Callable[[nn.Module, Any], Any],
        *,
        device: torch.device,
        use_amp: bool,
        callbacks: Sequence[Callable[..., Any]],
        draws: Mapping[int, int],
        num_chains: int,
        init_loss: float | None,
        given: Mapping[str, Any],
        verbose: bool,
    ) -> None:
        self.evaluate, self.device, self.use_amp = evaluate, device, use_amp
        self.callbacks, self.draws, self.given, self.verbose = callbacks, draws, given, verbose
        self.init_loss = init_loss
        self.places = {id(group): i for i, group in enumerate(groups)}
        self.baseline: dict[int, float] = {}
        self.place = -1
        self.seen: dict[str, Any] = {}
        self.bar: Any = None
        self.model: nn.Module | None = None
        self.losses, self.gains = (np.full((num_chains, len(draws)), math.nan) for _ in range(2))

    def loss(self, model: nn.Module, group: Sequence[Any]) -> Tensor:
        """Mean loss over a group's batches."""
        self.model, self.place = model, self.places[id(group)]
        losses = []
        for batch in group:
            data = moved(batch, self.device)
            amp = torch.autocast(self.device.type, torch.float16) if self.use_amp else nullcontext()
            with amp:
                loss, results = split_results(self.evaluate(model, data))
            if not isinstance(loss, Tensor) or loss.numel() != 1:
                what = (
                    f"of shape {tuple(loss.shape)}"
                    if isinstance(loss, Tensor)
                    else f"a {type(loss).__name__}"
                )
                raise ArgumentTypeError(
                    f"evaluate returned a loss that is {what}: return the mean loss, a scalar"
                )
            losses.append(loss.float().reshape(()) if loss.dtype != torch.float64 else loss.reshape(()))
            self.seen = {"data": data, "results": results}
        total = torch.stack(losses).mean()
        self.baseline.setdefault(self.place, float(total.detach()))  # the pool is taken at w0 before any step
        return total

    def step(self, chain: int, step: int, steps: int, loss: float) -> None:
        """Before the update of a chain's step."""
        if chain == step == 0:
            self._tell()
        self._show(chain, step, steps)
        draw = self.draws.get(step)
        if draw is None or not math.isfinite(loss):
            return
        self.losses[chain, draw] = loss
        self.gains[chain, draw] = loss - self.baseline[self.place]
        value = torch.tensor(loss, dtype=torch.float32, device=self.device)
        seen = {
            "chain": chain,
            "draw": draw,
            "loss": value,
            "cumulative_loss": value,
            "model": self.model,
            "i": step,
        }
        with torch.no_grad():
            for callback in self.callbacks:
                callback(**{**self.given, **self.seen, **seen, "num_steps": steps})

    def _tell(self) -> None:
        """Callbacks that compare losses with a baseline get it, the pool's mean at w0 unless one was given."""
        for callback in self.callbacks:
            if hasattr(callback, "init_loss"):
                mean = sum(self.baseline.values()) / len(self.baseline)
                callback.init_loss = mean if self.init_loss is None else self.init_loss

    def _show(self, chain: int, step: int, steps: int) -> None:
        """A bar for each chain, where tqdm is installed."""
        if not self.verbose:
            return
        if step == 0:
            try:
                from tqdm.auto import tqdm
            except ImportError:
                self.verbose = False
                return
            self.close()
            self.bar = tqdm(desc=f"Chain {chain}", total=steps)
        if self.bar is not None:
            self.bar.update(1)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def split_results(results: Any) -> tuple[Any, Any]:
    """The loss, and what came with it."""
    if isinstance(results, Tensor):
        return results, None
    if isinstance(results, Mapping) and "loss" in results:
        return results["loss"], {key: value for key, value in results.items() if key != "loss"}
    if isinstance(results, tuple) and results and not hasattr(results, "loss"):
        return results[0], results[1:]
    if hasattr(results, "loss"):
        return results.loss, results
    raise ArgumentTypeError(
        f"evaluate returned a {type(results).__name__}: return a loss, (loss, results), or a dictionary with 'loss'"
    )
