"""A straight line through timings: what a call costs before it does any work, and what each element adds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEAST = 3  # points: two always lie on a line


@dataclass(frozen=True)
class Line:
    """overhead + n * slope, in seconds. error: the largest distance of a point from it, relative to the point."""

    overhead: float
    slope: float
    error: float

    @property
    def crossover(self) -> float:
        """The n at which half of the time is overhead."""
        return self.overhead / self.slope if self.slope else math.inf


def fit(points: Sequence[tuple[float, float]]) -> Line:
    """The line nearest to points (n, seconds) by relative distance, so that small n count as much as large ones.

    Neither overhead nor slope is negative: where the best line would have it so, it is 0 and the other alone is
    fitted. Raises ValueError for fewer than three sizes.
    """
    n, seconds = np.array(sorted(points), dtype=np.float64).reshape(-1, 2).T
    if len(set(n.tolist())) < LEAST:
        raise ValueError(f"{len(set(n.tolist()))} sizes were timed, a line needs {LEAST}")
    # Columns of the relative model: overhead / t + slope * n / t = 1, n scaled to keep the two alike.
    scale = float(n.max())
    terms = np.stack([1 / seconds, n / scale / seconds], axis=1)
    candidates = [np.linalg.lstsq(terms, np.ones(len(n)), rcond=None)[0]]
    for i in range(2):
        alone = np.zeros(2)
        alone[i] = terms[:, i].sum() / (terms[:, i] ** 2).sum()
        candidates.append(alone)
    allowed = [c for c in candidates if (c >= 0).all()]
    best = min(allowed, key=lambda c: float(((terms @ c - 1) ** 2).sum()))
    return Line(float(best[0]), float(best[1]) / scale, float(np.abs(terms @ best - 1).max()))
