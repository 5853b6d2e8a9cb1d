"""Attributes as JSON that every reader takes, always in the same order; and how two of them differ."""

from __future__ import annotations

import math
from collections.abc import Mapping
from os import PathLike, fspath
from typing import Any

import numpy as np

from ..errors import ArgumentTypeError

SHOWN = 12  # differences that a message lists
WIDTH = 60  # characters of a value in it


def plain(value: Any, where: str = "attrs") -> Any:
    """The value in JSON's types, keys sorted. NaN and infinities become words that `float` reads."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, np.generic | np.ndarray):
        return plain(value.tolist(), where)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if math.isfinite(value):
            return float(value)
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    if isinstance(value, Mapping):
        return {str(k): plain(value[k], f"{where}[{k!r}]") for k in sorted(value, key=str)}
    if isinstance(value, list | tuple):
        return [plain(v, f"{where}[{i}]") for i, v in enumerate(value)]
    if isinstance(value, PathLike):
        return fspath(value)
    raise ArgumentTypeError(f"{where} is a {type(value).__name__}, which JSON cannot hold")


def differences(stored: Any, now: Any) -> str:
    """Lines that say where two plain values differ; empty if they do not."""
    a, b = dict(_leaves(stored, "")), dict(_leaves(now, ""))
    lines = [
        f"\n  {key}: stored {_short(a, key)}, now {_short(b, key)}"
        for key in sorted(a.keys() | b.keys())
        if key not in a or key not in b or a[key] != b[key]
    ]
    more = f"\n  and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
    return "".join(lines[:SHOWN]) + more


def _leaves(value: Any, key: str) -> list[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        return [leaf for k, v in value.items() for leaf in _leaves(v, f"{key}.{k}" if key else str(k))]
    return [(key, value)]


def _short(values: Mapping[str, Any], key: str) -> str:
    text = repr(values[key]) if key in values else "nothing"
    return text if len(text) <= WIDTH else f"{text[: WIDTH - 3]}..."
