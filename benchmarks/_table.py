"""A benchmark's answer: rows under columns, how to read them, and the picture to draw; as text, Markdown and JSON."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ._timing import Timing

SCHEMA = 1
WIDTH = 118


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
    """

    key: str
    title: str
    columns: list[Column]
    reading: str = ""
    rows: list[dict[str, Any]] = field(default_factory=list)
    plot: Plot | None = None

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
                yield row, [row["name"], *(c.text(row.get(c.key)) for c in self.columns)]

    def text(self) -> str:
        """For a terminal."""
        cells = list(self.cells())
        full = [texts for row, texts in cells if "absent" not in row]
        widths = [max(len(t[i]) for t in [self.heads(), *full]) for i in range(len(self.columns) + 1)]
        widths[0] = max([widths[0], *(len(texts[0]) for _, texts in cells)])
        lines = [self.title, ""]
        for texts in [self.heads(), *(texts for _, texts in cells)]:
            named = texts[0].ljust(widths[0])
            rest = [t.rjust(w) for t, w in zip(texts[1:], widths[1:], strict=False)]
            lines.append("  ".join([named, *(rest if len(texts) == len(widths) else texts[1:])]).rstrip())
        return "\n".join([*lines, "", *textwrap.wrap(self.reading, WIDTH)])

    def markdown(self) -> str:
        lines = ["| " + " | ".join(self.heads()) + " |", "|---|" + "---:|" * len(self.columns)]
        for _, texts in self.cells():
            texts = texts + [""] * (len(self.columns) + 1 - len(texts))
            lines.append("| " + " | ".join(t.replace("|", "\\|") for t in texts) + " |")
        return "\n".join(lines)

    @classmethod
    def load(cls, found: Mapping[str, Any]) -> Table:
        plot = found.get("plot")
        columns = [Column(**c) for c in found["columns"]]
        return cls(**{**found, "columns": columns, "plot": Plot(**plot) if plot else None})


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
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        part.write_text(json.dumps(asdict(self), indent=1) + "\n")
        part.replace(path)

    @classmethod
    def read(cls, path: Path) -> Report:
        found = json.loads(path.read_text())
        if not isinstance(found, dict) or found.get("schema") != SCHEMA:
            raise ValueError(f"{path} is no report of llc-fast bench (schema {SCHEMA})")
        return cls(**{**found, "tables": [Table.load(t) for t in found["tables"]]})

    def heading(self) -> str:
        """The machine, in two lines."""
        m = self.machine
        gpu = m.get("gpu")
        names = [f"{m['cpu']}, {m['threads']} of {m['cores']} threads, {m['isa'] or 'no vector extension'}"]
        if gpu:
            names.append(f"{gpu['name']}, CUDA {gpu['cuda']}")
        versions = ", ".join(f"{k} {v}" for k, v in m["versions"].items() if v)
        return f"{'; '.join(names)}; load {m['load']}; {m['date']}; commit {m['commit'] or 'unknown'}\n{versions}"

    def markdown(self) -> str:
        parts = ["# llc_fast benchmarks", f"`{self.command}`", *self.heading().splitlines()]
        for table in self.tables:
            parts += [f"## {table.title}", table.markdown()]
            if table.plot:
                parts.append(f"![{table.title}]({table.key}.png)")
            parts += [table.reading] if table.reading else []
        return "\n\n".join(parts) + "\n"


def spread(timing: Timing, per: float = 1.0) -> dict[str, float | int]:
    """A timing as a row's values, in nanoseconds per so many elements."""
    return {
        "ns": timing.median / per * 1e9,
        "low": timing.low / per * 1e9,
        "high": timing.high / per * 1e9,
        "samples": timing.samples,
        "calls": timing.calls,
    }
