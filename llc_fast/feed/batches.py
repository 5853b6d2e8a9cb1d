"""Batches of any kind: tensors, alone or in tuples, lists and dictionaries, samples first."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor


def mapped(batch: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The batch with every tensor of it changed."""
    if isinstance(batch, Tensor):
        return change(batch)
    if isinstance(batch, Mapping):
        changed = {key: mapped(value, change) for key, value in batch.items()}
        return changed if type(batch) is dict else _rebuilt(batch, changed)
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(mapped(value, change) for value in batch))
    if isinstance(batch, list | tuple):
        return type(batch)(mapped(value, change) for value in batch)
    return batch


def _rebuilt(batch: Mapping[Any, Any], changed: dict[Any, Any]) -> Any:
    try:
        return type(batch)(changed)  # type: ignore[call-arg]
    except TypeError:
        return changed


def moved(batch: Any, device: torch.device | str) -> Any:
    """The batch with its tensors on a device."""
    return mapped(batch, lambda t: t.to(device, non_blocking=True))


def leaves(batch: Any) -> list[Tensor]:
    """The tensors of a batch, in order."""
    found: list[Tensor] = []
    mapped(batch, lambda t: found.append(t) or t)  # type: ignore[func-returns-value]
    return found


def size_of(batch: Any) -> int | None:
    """How many samples a batch has: what its tensors have rows; None where they do not agree on it."""
    rows = {t.shape[0] if t.dim() else None for t in leaves(batch)}
    return rows.pop() if len(rows) == 1 else None
