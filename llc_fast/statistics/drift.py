"""Whether chains still move away from where they started, and after how many steps they do not."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .blocks import Array
from .error import TIMES, autocorrelation_time
from .special import t_quantile

EARLY, LATE = 0.2, 0.5  # what is compared: the first and the last part of chains
LEVEL = 0.01
_CUTS = 20
_MIN_VALUES = 10


@dataclass(frozen=True)
class Drift:
    """How far the late part of chains is from the early one; error: its standard error; dof: of its t distribution.

    All NaN, and dof 0, where there are too few values.
    """

    change: float
    error: float
    dof: int

    @property
    def ratio(self) -> float:
        """|change| over its error."""
        return abs(self.change) / self.error if self.error else math.nan

    def bound(self, level: float = LEVEL) -> float:
        """What `ratio` exceeds by chance with this probability."""
        return t_quantile(1 - level / 2, self.dof) if self.dof else math.nan

    @property
    def quiet(self) -> bool:
        """Whether there is no more drift than chance makes in one case of a hundred; also where nothing is known."""
        return not self.ratio > self.bound()


def drift_test(values: Array) -> Drift:
    """Compare the mean of the first fifth of chains with that of their last half.

    values: (chains, values), best epoch means. What chains do in common is what is tested, so that the error
    comes from how they differ: from means of batches of at least ten autocorrelation times, or, where those are
    too few, from the differences of four chains or more. One chain is held against the fluctuations of its last half.
    Source: Geweke 1992, Bayesian Statistics 4:169, with t for the normal distribution and chains together.
    """
    chains, size = values.shape
    if size < _MIN_VALUES or not chains or not np.isfinite(values).all() or np.ptp(values) == 0:
        return Drift(math.nan, math.nan, 0)
    early, late = max(1, int(EARLY * size)), max(1, int(LATE * size))
    changes = values[:, -late:].mean(axis=1) - values[:, :early].mean(axis=1)
    change = float(changes.mean())
    own = values - values.mean(axis=0) if chains > 1 else values[:, -late:]
    kept = own.shape[1]
    time = autocorrelation_time(own)
    freedom = max(1, chains - 1)
    count = int(min(kept / (TIMES * time), max(8.0, 32 / chains), kept // 2))
    if freedom * (count - 1) < 6:
        if chains >= 4:
            return Drift(change, float(changes.std(ddof=1)) / math.sqrt(chains), chains - 1)
        count = min(-(-4 // freedom) + 1, kept // 2)
    length = kept // count
    means = own[:, kept - count * length :].reshape(chains, count, length).mean(axis=2)
    means = means - means.mean(axis=1, keepdims=True)
    dof = freedom * (count - 1)
    variance = float((means**2).sum()) / dof * length
    variance /= max(0.25, 1 - (time - 1) / (2 * length))
    return Drift(change, math.sqrt(variance * (1 / early + 1 / late) / chains), dof)


def burnin(values: Array) -> int | None:
    """How many of the first values to leave out so that the rest does not drift; None if more than half.

    values: (chains, values) from the chains' start, best epoch means. The smallest of twenty cuts after which
    `drift_test` is quiet. Compare `mser`.
    """
    size = int(values.shape[1])
    for i in range(_CUTS // 2 + 1):
        cut = i * size // _CUTS
        if drift_test(values[:, cut:]).quiet:
            return cut
    return None


def mser(values: Array, *, batch: int = 5) -> int:
    """How many of the first values to leave out by the marginal standard error rule, at most half of them.

    values: (chains, values); their mean over chains is cut where the variance of what is left over its number is
    least, in steps of `batch` values. Source: White 1997, Simulation 69:323 (MSER-5).
    """
    size = values.shape[1] // batch
    if size < 2:
        return 0
    means = values[:, : size * batch].mean(axis=0).reshape(size, batch).mean(axis=1)
    scores = [float(means[cut:].var()) / (size - cut) for cut in range(size // 2 + 1)]
    return int(np.argmin(scores)) * batch
