"""A benchmark's answer: rows under columns, how to read them, and the picture to draw; as text, Markdown and JSON."""

from __future__ import annotations

import itertools
import json
import math
import re
import shutil
import textwrap
from collections.abc import Container, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ._timing import Timing

SCHEMA = 1
TOLERATED = 0.04  # share of the processors that other work may take while a table is timed
WIDTH = 118
NARROWEST = 60
UNKNOWN = "-"  # a number that came out as none, such as NaN; where there is none to expect, a cell is empty


@dataclass(frozen=True)
class Column:
    """A column of numbers. form: as `format` takes it, applied after multiplying by `scale`."""

    key: str
    head: str
    form: str = ".3g"
    suffix: str = ""
    scale: float = 1.0

    def text(self, value: Any) -> str:
        if value is None or isinstance(value, str):
            return value or ""
        if not math.isfinite(value):
            return UNKNOWN
        return format(value * self.scale if self.scale != 1.0 else value, self.form) + self.suffix


@dataclass(frozen=True)
class Plot:
    """What to draw of a table. kind: "bars", one a row, or "curves", y against x for each value of `series`.

    log: the axes that are logarithmic, such as "xy". lines: horizontal, by what they are.
    """

    kind: str
    y: str
    label: str
    x: str = "name"
    xlabel: str = ""
    series: str = "series"
    log: str = ""
    scale: float = 1.0
    lines: dict[str, float] = field(default_factory=dict)


@dataclass
class Table:
    """The answer to one question.

    key: names its files. reading: how to read it, in words for somebody who sees it first. rows: dicts with `name`,
    `role` ("ours", "floor", "peer" or "yardstick"), the columns' values, and `absent`, why a row has none.
    question: what it answers, one of `run.QUESTIONS`. others: the share of the processors that other work took
    meanwhile, where it is known. `run.ask` sets both.
    """

    key: str
    title: str
    columns: list[Column]
    reading: str = ""
    rows: list[dict[str, Any]] = field(default_factory=list)
    plot: Plot | None = None
    question: str = ""
    others: float | None = None

    def add(self, name: str, role: str = "ours", absent: str | None = None, **values: Any) -> None:
        self.rows.append({"name": name, "role": role, **values, **({"absent": absent} if absent else {})})

    def heads(self) -> list[str]:
        return ["", *(c.head for c in self.columns)]

    def cells(self) -> Iterable[tuple[dict[str, Any], list[str]]]:
        """Each row with its cells; an absent one has its reason alone."""
        for row in self.rows:
            if "absent" in row:
                yield row, [row["name"], f"not run: {row['absent']}"]
            else:
                yield row, [row["name"], *(self._cell(row, c) for c in self.columns)]

    @staticmethod
    def _cell(row: Mapping[str, Any], column: Column) -> str:
        # JSON has no NaN: it is stored as null.
        return UNKNOWN if row.get(column.key, "") is None else column.text(row.get(column.key))

    def text(self, width: int | None = None) -> str:
        """For a terminal, in its width or the given one; heads and names are folded where there is no room."""
        width = max(NARROWEST, width) if width else terminal()
        prose = min(width, WIDTH)
        lines = [*textwrap.wrap(self.title, prose), "", *self._grid(width)]
        return "\n".join([*lines, "", *textwrap.wrap(self.reading, prose)]).rstrip()

    def _grid(self, width: int) -> list[str]:
        cells = list(self.cells())
        full = [texts[1:] for row, texts in cells if "absent" not in row]
        heads = [[c.head] for c in self.columns]
        named = max((len(texts[0]) for _, texts in cells), default=0)
        if named + sum(2 + n for n in _widths(heads, full)) > width:
            room = [max(8, n) for n in _widths([[]] * len(heads), full)]
            heads = [textwrap.wrap(c.head, n) for c, n in zip(self.columns, room, strict=True)]
        numbers = _widths(heads, full)
        named = max(16, min(named, width - sum(2 + n for n in numbers)))
        lines = []
        for i in range(max(map(len, heads), default=0)):
            tops = [head[i] if i < len(head) else "" for head in heads]
            lines.append(_line("", named, tops, numbers))
        for row, texts in cells:
            names = textwrap.wrap(texts[0], named) or [""]
            if "absent" in row:
                reason = textwrap.wrap(texts[1], max(24, width - named - 2))
                pairs = itertools.zip_longest(names, reason, fillvalue="")
                lines += [f"{a:{named}}  {b}".rstrip() for a, b in pairs]
            else:
                lines += [_line(names[0], named, texts[1:], numbers), *names[1:]]
        return lines

    def markdown(self) -> str:
        lines = ["| " + " | ".join(map(_escaped, self.heads())) + " |", "|---|" + "---:|" * len(self.columns)]
        for _, texts in self.cells():
            texts = texts + [""] * (len(self.columns) + 1 - len(texts))
            lines.append("| " + " | ".join(map(_escaped, texts)) + " |")
        return "\n".join(lines)

    @classmethod
    def load(cls, found: Mapping[str, Any]) -> Table:
        plot = found.get("plot")
        columns = [Column(**c) for c in found["columns"]]
        return cls(**{**found, "columns": columns, "plot": Plot(**plot) if plot else None})


def terminal() -> int:
    """Characters a line: those of the terminal, if it is one."""
    return max(NARROWEST, shutil.get_terminal_size((WIDTH, 24)).columns)


def _widths(heads: list[list[str]], rows: list[list[str]]) -> list[int]:
    return [
        max((len(t) for t in (*head, *(row[i] for row in rows))), default=0) for i, head in enumerate(heads)
    ]


def _line(name: str, width: int, texts: list[str], widths: list[int]) -> str:
    return "  ".join([name.ljust(width), *(t.rjust(w) for t, w in zip(texts, widths, strict=True))]).rstrip()


def _escaped(text: str) -> str:
    """For a cell of Markdown: names such as normal_ and _foreach are no emphasis, a reason is no markup."""
    text = re.sub(r"[\\|*`<\[]|(?<!\w)_|_(?!\w)", r"\\\g<0>", text)
    return " ".join(text.split())


@dataclass
class Report:
    """Tables of one run, with the machine they belong to."""

    command: str
    machine: dict[str, Any]
    tables: list[Table] = field(default_factory=list)
    seconds: float = 0.0
    schema: int = SCHEMA

    def write(self, path: Path) -> None:
        """As JSON, whole or not at all."""
        write_whole(path, json.dumps(_plain(asdict(self)), indent=1, allow_nan=False) + "\n")

    @classmethod
    def read(cls, path: Path) -> Report:
        """A report written before; raises ValueError for anything else."""
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(found, dict) or found.get("schema") != SCHEMA:
                raise ValueError(f"its schema is not {SCHEMA}")
            return cls(**{**found, "tables": [Table.load(t) for t in found["tables"]]})
        except (ValueError, TypeError, KeyError) as e:
            raise ValueError(f"{path} is no report of llc-fast bench ({e})") from e

    def heading(self) -> str:
        """The machine, its state and the versions, in a few lines; a warning where the state spoils timings."""
        m = self.machine
        parts = [f"{m['cpu']}, {m['threads']} of {m['cores']} threads, {m['isa'] or 'no vector extension'}"]
        if gpu := m.get("gpu"):
            parts.append(f"{gpu['name']}, CUDA {gpu['cuda']}")
        if m.get("clock_mhz"):
            parts.append(f"{_before_after(m, 'clock_mhz', str)} MHz")
        if m.get("load"):
            parts.append(f"load {_before_after(m, 'load', lambda load: str(load[0]))}")
        parts += [m["date"], f"commit {m['commit'] or 'unknown'}"]
        versions = ", ".join(f"{k} {v}" for k, v in m["versions"].items() if v)
        return "\n".join(["; ".join(parts), versions, *self.warnings()])

    def warnings(self) -> list[str]:
        """What makes these timings doubtful: other work on the machine; by its load, where no table knows better."""
        known = [t.others for t in self.tables if t.others is not None]
        if known and max(known) <= TOLERATED:
            return []
        m = self.machine
        after = m.get("after") or {}
        found = []
        for state, when, own in ((m, "before the run", 0), (after, "after it", m["threads"])):
            load = (state.get("load") or [0.0])[0]
            if load > own + 0.25 * m["cores"]:
                found.append(
                    f"WARNING: load {load} on {m['cores']} cores {when}: timings are not to be trusted"
                )
        return found

    def markdown(self, pictures: Container[str] | None = None) -> str:
        """pictures: keys of the tables that have one beside the page; by default all that could."""
        parts = ["# llc_fast benchmarks", f"`{self.command}`", *self.heading().splitlines()]
        for table in self.tables:
            parts += [f"## {table.title}", table.markdown()]
            if table.plot and (pictures is None or table.key in pictures):
                parts.append(f"![{table.title}]({table.key}.png)")
            parts += [table.reading] if table.reading else []
        return "\n\n".join(parts) + "\n"


def write_whole(path: Path, text: str) -> None:
    """Replace a file by one that is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _plain(value: Any) -> Any:
    """For JSON, which has neither NaN nor infinity: null."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _before_after(machine: Mapping[str, Any], key: str, text: Any) -> str:
    """A state of the machine before the run and after it; once if they are the same."""
    states = [machine[key], (machine.get("after") or {}).get(key)]
    return " to ".join(dict.fromkeys(text(s) for s in states if s))


def spread(timing: Timing, per: float = 1.0) -> dict[str, float | int]:
    """A timing as a row's values, in nanoseconds per so many elements."""
    return {
        "ns": timing.median / per * 1e9,
        "low": timing.low / per * 1e9,
        "high": timing.high / per * 1e9,
        "samples": timing.samples,
        "calls": timing.calls,
    }


def count(number: float) -> str:
    """A number of parameters or weights: 4,464, 124M, 7.24B."""
    for unit, sign in ((1e9, "B"), (1e6, "M")):
        if number >= 0.9995 * unit:
            return f"{number / unit:.3g}{sign}" if number < 999.5 * unit else f"{number / unit:,.0f}{sign}"
    return f"{number:,.0f}"


def size_text(nbytes: float) -> str:
    """A size in decimal units: 53.6 kB, 1.49 GB."""
    for unit, sign in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if nbytes >= 0.9995 * unit:
            return f"{nbytes / unit:.3g} {sign}" if nbytes < 999.5 * unit else f"{nbytes / unit:,.0f} {sign}"
    return f"{nbytes:,.0f} B"
