"""What an estimate says: its numbers, what made them, and how to read them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from textwrap import fill
from typing import Any

import numpy as np

from .diagnostics import Array, t_quantile
from .errors import ArgumentError
from .scalars import check_scalar
from .verdict import Verdict

# Checks that say whether chains give a value to rely on, and whether it is one of a minimum.
SETTLING = ("dead chains", "R-hat", "R-hat of |w - w0|^2", "drift", "drift of |w - w0|^2", "half the weights")
MINIMUM = "gradient at w0"


@dataclass(frozen=True, eq=False)
class LLCResult:
    """A local learning coefficient, and what is known of its error.

    llc_mean: mean over the chains that lived of llc_per_chain; llc_std: their standard deviation (ddof 0).
    llc_per_chain: mean over draws of nbeta (L_b(w) - L_b(w0)), NaN for a dead chain; shape (chains,).
    target: what llc_mean estimates and its interval is for, in words.
    mcse: standard error of llc_mean, with autocorrelation counted, and dof its degrees of freedom; see `interval`.
    r_hat: rank-normalised split R-hat of the loss differences, r_hat_distance of |w - w0|^2, ess: bulk effective
    sample size of the loss differences. All three are of means over `basis`, not of draws. NaN where they cannot
    be had; `notes` says why.
    order_bias: about what the estimate gains by taking the loss on the batches that also give the gradients,
    lr nbeta^2 tr(C) / 4 over whole epochs of SGLD, C the covariance of batch gradients at w0; curvature lowers it.
    0 where losses were taken on other batches, NaN for RMSprop-SGLD and where C is not known.
    pool_bias: about what the estimate reads low for the data that the pool comes from: the estimate less that on
    random halves of h of the pool's S batches, times h/(S - h); pool_bias_error: its standard error, with that of the
    random cuts. NaN where no chains walked on halves, the error also for fewer than two pairs of them.
    gradient_term: mean of nbeta g0.(w - w0), g0 the pool's gradient at w0: the part of llc_mean that is due to w0
    not being a stationary point of this loss; llc_without_gradient: what remains. NaN where g0 is not known.
    llc_scalar: devinterp's number, nbeta (mean loss over every step, burn-in too, less init_loss).
    controlled: llc_mean corrected by control variates, controlled_mcse and controlled_dof: its error; None unless
    they were recorded and lower it.
    temperature: mean of d.a over weights and draws, 1 at equilibrium as lr goes to 0, NaN where not recorded.
    burnin_suggested: steps after which the chains look settled, None where no cut within half of them does.
    half_dead: chain -> what is strange about it; these are counted.
    init_loss: mean over the pool's batches of the loss at w0. loss_trace: loss before each update, burn-in too,
    NaN after a chain's death; shape (chains, steps).
    dead_chains: chain -> why it is not counted. settings: what made the result. verdict: every check, with its
    threshold and what to change. remarks: what else to know before using the result.
    """

    llc_mean: float
    llc_std: float
    llc_per_chain: Array
    target: str
    mcse: float
    dof: int
    r_hat: float
    r_hat_distance: float
    ess: float
    basis: str
    order_bias: float
    pool_bias: float
    pool_bias_error: float
    gradient_term: float
    llc_without_gradient: float
    llc_scalar: float
    controlled: float | None
    controlled_mcse: float | None
    controlled_dof: int | None
    temperature: float
    burnin_suggested: int | None
    half_dead: Mapping[int, str]
    init_loss: float
    loss_trace: Array
    dead_chains: Mapping[int, str]
    settings: Mapping[str, Any]
    verdict: Verdict = field(default_factory=Verdict)
    remarks: tuple[str, ...] = ()

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Bounds of a confidence interval of `target` by Student's t.

        It counts chance alone: not the way from w0 that burn-in leaves, nor what `verdict` says of biases. NaN where
        mcse is. Raises ArgumentError for a level outside (0, 1).
        """
        level = check_scalar("level", level)
        if not 0 < level < 1:
            raise ArgumentError(f"level is {level}: give a number between 0 and 1, such as 0.95")
        if math.isnan(self.mcse):
            return math.nan, math.nan
        half = t_quantile((1 + level) / 2, self.dof) * self.mcse
        return self.llc_mean - half, self.llc_mean + half

    @property
    def notes(self) -> tuple[str, ...]:
        """What to know before using the result: the advice of checks that failed, then `remarks`."""
        return (*(check.advice for check in self.verdict.failed), *self.remarks)

    @property
    def settled(self) -> bool:
        """Whether no chain died, R-hat and drift are as chance allows, and a minimum can have the value."""
        return not any(check.name in SETTLING for check in self.verdict.failed)

    @property
    def at_minimum(self) -> bool:
        """Whether w0 passes for a local minimum of this dataset's loss: only then is the value to be ranked."""
        return not any(check.name == MINIMUM for check in self.verdict.failed)

    def to_dict(self, *, arrays: bool = False) -> dict[str, Any]:
        """The result as JSON takes it: NaN and infinities become None; loss_trace is there if arrays are wanted."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        values |= {"interval_95": self.interval(), "notes": self.notes, "verdict": self.verdict.to_dict()}
        if not arrays:
            del values["loss_trace"]
        out: dict[str, Any] = _plain(values)
        return out

    def __str__(self) -> str:
        low, high = self.interval()
        chains = " ".join("dead" if math.isnan(x) else f"{x:.4g}" for x in self.llc_per_chain[:16])
        more = f" and {len(self.llc_per_chain) - 16} more" if len(self.llc_per_chain) > 16 else ""
        live = int(np.isfinite(self.llc_per_chain).sum())
        std = f" (std {self.llc_std:.2g})" if live > 1 else ""
        s = self.settings
        weights = f" ({s['weights']:,} weights)" if s.get("weights") else ""
        rows = [
            ("component", f"{s.get('component') or 'not known'}{weights}"),
            ("LLC", f"{self.llc_mean:.5g} ± {self.mcse:.2g}"),
            ("95 % interval", f"{low:.5g} to {high:.5g}"),
            ("chains", f"{chains}{more}{std}"),
            ("R-hat", f"{self.r_hat:.3f} of the loss, {self.r_hat_distance:.3f} of |w - w0|^2"),
            (
                "ESS",
                f"{self.ess:.0f}, of {live} chains x {self.basis}"
                if not math.isnan(self.ess)
                else "not known",
            ),
            ("loss at w0", f"{self.init_loss:.6g}"),
            ("settings", ", ".join(f"{name} {s[name]:g}" for name in ("lr", "nbeta", "localization"))),
        ]
        if self.controlled is not None:
            rows.insert(3, ("controlled", f"{self.controlled:.5g} ± {self.controlled_mcse:.2g}"))
        lines = [f"{name:<14}{value}" for name, value in rows]
        notes = [fill(n, 100, initial_indent="note: ", subsequent_indent="      ") for n in self.notes]
        return "\n".join(lines + notes)


def _plain(value: Any) -> Any:
    """Numbers, strings, lists and dicts alone, without NaN."""
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
