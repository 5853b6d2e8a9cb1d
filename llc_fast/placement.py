"""Where a model is sampled: moved there, and back where it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from . import lm
from .errors import ArgumentError


def place(device: str | torch.device | None, model: nn.Module) -> torch.device:
    """Where to sample: as asked, else a GPU if there is one and the model is on one CPU, else where the model is."""
    own = {p.device for p in model.parameters()}
    if device is None:
        if len(own) == 1 and own == {torch.device("cpu")} and torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return next(iter(model.parameters())).device if own else torch.device("cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError, TypeError) as e:
        raise ArgumentError(
            f"device is {device!r}, which cannot be used here ({e}): give another, as 'cpu'"
        ) from e
    if len(own) > 1:
        raise ArgumentError(
            f"device is {device!r}, but the model is on {', '.join(map(str, own))}: leave it out to sample it there"
        )
    return chosen


@contextmanager
def placed(model: nn.Module, device: torch.device) -> Iterator[None]:
    """The model on a device, and back where it was at the end."""
    own = {p.device for p in model.parameters()}
    if len(own) != 1 or own == {device}:
        yield
        return
    silent: dict[str, Any] = {"print_details": False} if lm.is_lens(model) else {}
    try:
        model.to(device, **silent)
        yield
    finally:
        model.to(own.pop(), **silent)
