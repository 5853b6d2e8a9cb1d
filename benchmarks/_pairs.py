"""Tables that `compare` alone does not give: steps with something and without it, and rows in microseconds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ._table import Column, Table, spread
from ._timing import Call, interleave, reason
from ._work import Setting, Subject, compare, release

COLUMNS = [
    Column("ns", "ns/param with", ".3f"),
    Column("low", "from", ".3f"),
    Column("high", "to", ".3f"),
    Column("without", "without", ".3f"),
    Column("least", "from", ".3f"),
    Column("most", "to", ".3f"),
    Column("more", "costs", "+.1%"),
]
CACHES = Column("caches", "data/cache", ".2f")


@dataclass(frozen=True)
class Pair:
    """A row: builders of the step with and without. per: its parameters."""

    name: str
    more: Callable[[], Call]
    less: Callable[[], Call]
    per: float
    role: str = "ours"


def compare_pairs(table: Table, pairs: Sequence[Pair], setting: Setting) -> None:
    """Time all of them in one run of interleaved rounds and add a row for each."""
    setting.say(table.title)
    calls: dict[str, Call] = {}
    absent: dict[str, str] = {}
    for pair in pairs:
        try:
            calls |= {f"{pair.name}+": pair.more(), f"{pair.name}-": pair.less()}
        except Exception as e:  # a row, not a crash
            absent[pair.name] = reason(e)
    times, failed = interleave(calls, setting.pace, setting.device)
    for pair in pairs:
        more, less = times.get(f"{pair.name}+"), times.get(f"{pair.name}-")
        if more is None or less is None:
            why = [absent.get(pair.name), failed.get(f"{pair.name}+"), failed.get(f"{pair.name}-")]
            table.add(pair.name, pair.role, next(filter(None, why), "no sample was taken"))
            continue
        loud, quiet = spread(more, pair.per), spread(less, pair.per)
        table.add(
            pair.name,
            pair.role,
            absent=None,
            **loud,
            without=quiet["ns"],
            least=quiet["low"],
            most=quiet["high"],
            more=more.median / less.median - 1,
        )
    calls.clear()
    release(setting)


def timed(
    table: Table, subjects: Sequence[Subject], setting: Setting, extra: Mapping[str, dict[str, Any]]
) -> None:
    """Compare, with microseconds and more values for each row by name."""
    pace = replace(setting.pace, budget=setting.pace.budget / 3)
    found = Table(table.key, "", [])
    compare(found, subjects, replace(setting, pace=pace))
    for row, subject in zip(found.rows, subjects, strict=True):
        if "ns" in row:
            row["us"] = row["ns"] * subject.per / 1e3
        table.rows.append(row | extra.get(subject.name, {}))
