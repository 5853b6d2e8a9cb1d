"""What an audit found: both estimates, every check, and what the store does not tell."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..foreign import Reported
from ..results import LLCResult
from ..verdict import Verdict

NAN = math.nan


@dataclass(frozen=True, eq=False)
class Audit:
    """What `audit` found.

    source: the store's path, "" for a tree in memory. writer: "devinterp" or "llc_fast". completed: whether the store
    says that its run has ended. chains: how many were asked for. reported: what devinterp's compute_llc says of it,
    None without traces. result: the analysis without dead chains and burn-in, None where nothing can be said;
    refusal: why not, else "". llc: the estimate as it should have been reported; error: its standard error, with what
    comparing with other batches at w0 adds; dof: of its t distribution; low, high: 95 % interval. burnin: steps left
    out. as_set: the estimate with the burn-in that the run was set to, None where that is the one used.
    without_half_dead: the estimate without those chains, None where there are none or no others. verdict: every
    check. notes: what else to know.
    """

    source: str
    writer: str
    completed: bool
    chains: int
    reported: Reported | None
    result: LLCResult | None = None
    refusal: str = ""
    llc: float = NAN
    error: float = NAN
    dof: float = NAN
    low: float = NAN
    high: float = NAN
    burnin: int = 0
    as_set: float | None = None
    without_half_dead: float | None = None
    verdict: Verdict = field(default_factory=Verdict)
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether there is an estimate and no check failed."""
        return not self.refusal and self.verdict.ok

    @property
    def unknown(self) -> Mapping[str, str]:
        """Check -> why the store does not tell how it went."""
        return {check.name: check.advice for check in self.verdict.unknown}

    @property
    def line(self) -> str:
        """The estimate as it should have been reported, or why there is none."""
        if self.refusal:
            return f"no estimate: {self.refusal}"
        if math.isnan(self.error):
            return f"LLC {self.llc:.5g}, without a standard error or an interval"
        return f"LLC {self.llc:.5g} ± {self.error:.2g}, 95 % interval {self.low:.5g} to {self.high:.5g}"

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it: numbers that are not finite become None."""
        told, result = self.reported, self.result
        before = told and {name: getattr(told, name) for name in _REPORTED} | {
            "llc_per_chain": told.llc_per_chain.tolist()
        }
        now = result and {
            "llc": self.llc,
            "standard_error": self.error,
            "dof": self.dof,
            "interval_95": [self.low, self.high],
            "burnin": self.burnin,
            "with_burnin_as_set": self.as_set,
            "without_half_dead": self.without_half_dead,
        }
        values = {
            "format": "llc_fast audit 1",
            **{name: getattr(self, name) for name in ("source", "writer", "completed", "chains", "ok")},
            "reported": before,
            "corrected": now,
            "refusal": self.refusal or None,
            "verdict": self.verdict.to_dict(),
            "unknown": dict(self.unknown),
            "notes": list(self.notes),
            "result": result and result.to_dict(),
        }
        plain: dict[str, Any] = _plain(values)
        return plain


_REPORTED = ("llc_mean", "llc_std", "llc_scalar", "init_loss")


def _plain(value: Any) -> Any:
    """Without NaN and infinities, which JSON does not have."""
    if isinstance(value, Mapping):
        return {key: _plain(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
