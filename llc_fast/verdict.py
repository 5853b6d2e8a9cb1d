"""What the checks of a result found: each with its value, its threshold and what to change."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload


@dataclass(frozen=True)
class Check:
    """One thing that can be wrong with an estimate.

    name: what is checked. value: what was found, NaN where nothing was. threshold: what it is held against.
    ok: whether it passed, None where it is not known. advice: what a value beyond the threshold means and what to
    change; where ok is None, why it is not known; "" where it passed. bound: how value must stand to threshold,
    "<=", ">=" or "==".
    """

    name: str
    value: float
    threshold: float
    ok: bool | None
    advice: str
    bound: str = "<="

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it: numbers that are not finite become None."""
        return {
            "name": self.name,
            "value": self.value if math.isfinite(self.value) else None,
            "bound": self.bound,
            "threshold": self.threshold if math.isfinite(self.threshold) else None,
            "ok": self.ok,
            "advice": self.advice,
        }


@dataclass(frozen=True)
class Verdict(Sequence[Check]):
    """All checks of a result, in the order in which they are to be read."""

    checks: tuple[Check, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether no check failed; those whose outcome is not known do not count."""
        return not self.failed

    @property
    def failed(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if check.ok is False)

    @property
    def unknown(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if check.ok is None)

    @overload
    def __getitem__(self, key: int | str) -> Check: ...
    @overload
    def __getitem__(self, key: slice) -> tuple[Check, ...]: ...
    def __getitem__(self, key: int | str | slice) -> Check | tuple[Check, ...]:
        """A check by its place or its name. Raises KeyError for a name that no check has."""
        if isinstance(key, str):
            for check in self.checks:
                if check.name == key:
                    return check
            raise KeyError(f"no check is called {key!r}: {', '.join(c.name for c in self.checks)}")
        return self.checks[key]

    def __len__(self) -> int:
        return len(self.checks)

    def __iter__(self) -> Iterator[Check]:
        return iter(self.checks)

    def __str__(self) -> str:
        """A table, one check a line; advice stands below those that did not pass."""
        rows = [
            (_WORDS[c.ok], c.name, _number(c.value), f"{c.bound} {_number(c.threshold)}") for c in self.checks
        ]
        widths = [max((len(row[i]) for row in rows), default=0) for i in range(4)]
        lines = []
        for check, (word, name, value, threshold) in zip(self.checks, rows, strict=True):
            cells = (
                f"{word:<{widths[0]}}  {name:<{widths[1]}}  {value:>{widths[2]}}  {threshold:<{widths[3]}}"
            )
            lines.append(cells.rstrip())
            if check.advice:
                lines.append(" " * (widths[0] + 2) + check.advice)
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return {"ok": self.ok, "checks": [check.to_dict() for check in self.checks]}


_WORDS = {True: "ok", False: "FAILED", None: "not known"}


def _number(x: float) -> str:
    return "-" if math.isnan(x) else f"{x:.4g}"


def hold(
    name: str,
    value: float,
    threshold: float,
    advice: str,
    *,
    unknown: str = "",
    bound: str = "<=",
    ok: bool | None = None,
) -> Check:
    """A check by its bound, unless `ok` says how it went; not known where value is NaN."""
    if math.isnan(value) or math.isnan(threshold):
        return Check(name, value, threshold, None, unknown, bound)
    if ok is None:
        ok = value >= threshold if bound == ">=" else value <= threshold
    return Check(name, value, threshold, ok, "" if ok else advice, bound)


def beyond(value: float, error: float) -> float:
    """How much of |value| is more than two standard errors; NaN where either is."""
    return max(abs(value) - 2 * error, 0.0 * error)


def share(part: float, whole: float) -> float:
    """|part| as a fraction of the estimate; infinite where that is 0 and part is not."""
    if whole:
        return abs(part) / whole
    return part if math.isnan(part) else math.inf if part else 0.0


def percent(part: float, whole: float) -> str:
    return f"{abs(part) / whole:.1%} of the estimate" if whole else "the estimate is 0"
