"""Cells of a sweep as JSON and arrays."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..results import LLCResult

UNSETTLED, NO_MINIMUM = "†", "‡"
MARKS = {
    UNSETTLED: "chains died, have not settled (R-hat), or took too large steps",
    NO_MINIMUM: "not at a minimum of this dataset's loss: not to be ranked",
}


@dataclass(frozen=True)
class Cell:
    """One component on one dataset: its result, or why there is none; weights moved; seconds it took."""

    component: str
    dataset: str
    weights: int
    seconds: float
    result: LLCResult | None
    error: str = ""

    @property
    def llc(self) -> float:
        return math.nan if self.result is None else self.result.llc_mean

    @property
    def mcse(self) -> float:
        return math.nan if self.result is None else self.result.mcse

    @property
    def marks(self) -> str:
        """What its reader must see beside the number."""
        if self.result is None:
            return UNSETTLED
        return UNSETTLED * (not self.result.settled) + NO_MINIMUM * (not self.result.at_minimum)


class Table:
    """Cells by component and dataset, every one there."""

    def __init__(self, components: Sequence[str], datasets: Sequence[str], cells: Sequence[Cell]) -> None:
        self.components, self.datasets, self.cells = list(components), list(datasets), list(cells)
        self._at = {(cell.component, cell.dataset): cell for cell in cells}

    def __getitem__(self, key: tuple[str, str]) -> Cell:
        return self._at[key]

    def grid(self, name: str) -> npt.NDArray[Any]:
        """An attribute of every cell, as an array (components, datasets)."""
        return np.array([[getattr(self[c, d], name) for d in self.datasets] for c in self.components])


def to_json(header: Mapping[str, Any], table: Table) -> bytes:
    """header and a list of cells; numbers that are not finite become null."""
    cells = []
    for cell in table.cells:
        own = {
            "component": cell.component,
            "dataset": cell.dataset,
            "weights": cell.weights,
            "seconds": round(cell.seconds, 3),
            "error": cell.error or None,
            "marks": cell.marks,
        }
        cells.append(own | (cell.result.to_dict() if cell.result else {"llc_mean": None, "mcse": None}))
    text = json.dumps({**header, "cells": cells}, indent=1, allow_nan=False, ensure_ascii=False)
    return f"{text}\n".encode()


def to_npz(table: Table) -> bytes:
    """Arrays whose first two axes are component and dataset; NaN where a cell or a chain has none.

    components, datasets: names. llc_mean, llc_std, mcse, r_hat, r_hat_distance, ess, init_loss: numbers.
    llc_per_chain: with an axis of chains; loss_trace: and one of steps, fp32, before each update, burn-in too.
    """
    arrays: dict[str, npt.NDArray[Any]] = {
        "components": np.array(table.components),
        "datasets": np.array(table.datasets),
    }
    shape = len(table.components), len(table.datasets)
    known = [cell for cell in table.cells if cell.result is not None]
    for name, dtype in (
        ("llc_mean", "f8"),
        ("llc_std", "f8"),
        ("mcse", "f8"),
        ("r_hat", "f8"),
        ("r_hat_distance", "f8"),
        ("ess", "f8"),
        ("init_loss", "f8"),
        ("llc_per_chain", "f8"),
        ("loss_trace", "f4"),
    ):
        inner = np.shape(getattr(known[0].result, name)) if known else ()
        arrays[name] = np.full((*shape, *inner), math.nan, dtype=dtype)
        for cell in known:
            at = table.components.index(cell.component), table.datasets.index(cell.dataset)
            arrays[name][at] = getattr(cell.result, name)
    out = io.BytesIO()
    np.savez_compressed(out, **arrays)  # type: ignore[arg-type]
    return out.getvalue()
