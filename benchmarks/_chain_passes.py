"""How often a model is passed through, forward and backward, by whoever uses it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass
class Passes:
    """Passes through a model so far."""

    forward: int = 0
    backward: int = 0


@contextlib.contextmanager
def counted(model: nn.Module) -> Iterator[Passes]:
    """Counts the passes through a model, and through copies made of it within."""
    passes = Passes()

    class Through(torch.autograd.Function):
        """The logits as they are; a backward pass goes through here once."""

        generate_vmap_rule = False

        @staticmethod
        def forward(logits: Tensor) -> Tensor:
            return logits.view_as(logits)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
            pass

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            passes.backward += 1
            return gradient

    def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
        passes.forward += 1
        output.logits = Through.apply(output.logits)
        return output

    handle = model.register_forward_hook(hook)
    try:
        yield passes
    finally:
        handle.remove()
