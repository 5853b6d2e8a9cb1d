"""Further kinds of rows for `frame`: a value between two bounds, and something that is so or not."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Between:
    """From low to high, both included. error: standard error of value, nan where it has none."""

    name: str
    low: float
    high: float
    value: float
    error: float = math.nan
    beside: str = ""

    @property
    def passed(self) -> bool:
        return self.low <= self.value <= self.high

    def cells(self) -> tuple[str, str, str, str, str]:
        if math.isinf(self.high):
            target = f">= {self.low:g}"
        elif math.isinf(self.low):
            target = f"<= {self.high:g}"
        else:
            target = f"{self.low:.4g}..{self.high:.4g}"
        error = "" if math.isnan(self.error) else f"{self.error:.2g}"
        return self.name, target, f"{self.value:.5g}", error, self.beside


@dataclass(frozen=True)
class Is:
    """What was expected is what was seen."""

    name: str
    expected: object
    seen: object
    beside: str = ""

    @property
    def passed(self) -> bool:
        return self.seen == self.expected

    def cells(self) -> tuple[str, str, str, str, str]:
        return self.name, str(self.expected), str(self.seen), "", self.beside
