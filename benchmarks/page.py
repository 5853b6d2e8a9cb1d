"""Fill the tables of docs/performance.md from the committed runs, so that no figure is typed by hand.

    python -m llc_fast.benchmarks.page [--check]

Between a marker and `<!-- end -->` stands what the marker asks for:

    <!-- run: cpu.json -->                 the command, the machine and its state
    <!-- table: cpu.json step -->          the table of that key
    <!-- tables: cpu.json curves -->       every table that answers a question
    <!-- instructions: cpu REGEX -->       the bounds of `make instructions`, of parts that begin so, kernels that match

Curves get a picture in docs/performance/. Exit status of --check: 1 if the page or a picture is not what the runs say.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from ._plots import draw
from ._table import Column, Report, Table, write_whole

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "performance.md"
RESULTS = ROOT / "benchmarks" / "results"
INSTRUCTIONS = ROOT / "benchmarks" / "instructions.json"
MARKER = re.compile(
    r"(<!-- (run|tables?|instructions): (\S+)(?: ((?!-->)[^\n]+?))? -->\n)(.*?)(<!-- end -->)", re.S
)
DPI = 100  # of a picture on the page: below 60 kB


class PageError(ValueError):
    """A marker that cannot be filled."""


def fill(text: str, results: Path = RESULTS, pictures: Callable[[Table, str], None] | None = None) -> str:
    """The page with every table as the runs in `results` have it. pictures: told of each with curves, and its file."""

    def replace(match: re.Match[str]) -> str:
        head, kind, source, choice, _, end = match.groups()
        if kind == "instructions":
            return f"{head}\n{_instructions(source, choice)}\n\n{end}"
        if not (results / source).exists():
            raise PageError(f"{match[1].strip()}: there is no {results / source}")
        report = Report.read(results / source)
        if kind == "run":
            return f"{head}\n{_run(report)}\n\n{end}"
        if choice is None:
            raise PageError(f"{match[1].strip()}: say which table")
        if kind == "table":
            chosen = [t for t in report.tables if t.key == choice]
            if not chosen:
                known = ", ".join(t.key for t in report.tables)
                raise PageError(f"{match[1].strip()}: {source} has {known}")
        else:
            chosen = [t for t in report.tables if t.question == choice]
        parts = [_table(t, Path(source).stem, pictures) for t in chosen]
        return f"{head}\n{chr(10).join(parts) if parts else _absent(report, choice)}\n{end}"

    filled, found = MARKER.subn(replace, text)
    markers = len(re.findall(r"<!-- (?:run|tables?|instructions):", text))
    if found != markers or text.count("<!-- end -->") != markers:
        raise PageError(f"{markers} markers, {text.count('<!-- end -->')} ends, {found} that belong together")
    return filled


def _run(report: Report) -> str:
    lines = [f"`{report.command}`, {report.seconds / 60:.0f} minutes:", *report.heading().splitlines()]
    return "  \n".join(lines)


def _table(table: Table, stem: str, pictures: Callable[[Table, str], None] | None) -> str:
    parts = [f"**{table.title}**", table.markdown()]
    if table.plot is not None and table.plot.kind == "curves":
        name = f"{stem}-{table.key}.png"
        parts.append(f"![{table.title}](performance/{name})")
        if pictures is not None:
            pictures(table, name)
    return "\n\n".join([*parts, table.reading]).rstrip() + "\n"


def _absent(report: Report, question: str) -> str:
    return f"Not in this run (`{report.command}`): `llc-fast bench {question}` prints it.\n"


def _instructions(part: str, pattern: str | None) -> str:
    """Bounds by kernel, with a column for each part."""
    bounds = {k: v for k, v in json.loads(INSTRUCTIONS.read_text()).items() if k.startswith(part)}
    if not bounds:
        raise PageError(f"instructions: {part}: {INSTRUCTIONS.name} has no such part")
    table = Table("", "", [Column(k, f"{k} ({v['compiler']})", ".2f") for k, v in bounds.items()])
    names = dict.fromkeys(name for found in bounds.values() for name in found["counts"])
    for name in (n for n in names if re.search(pattern or "", n)):
        table.add(name, **{k: v["counts"][name] for k, v in bounds.items() if name in v["counts"]})
    return table.markdown()


def digest(table: Table) -> str:
    """What a picture was drawn from."""
    return hashlib.sha256(json.dumps(asdict(table), sort_keys=True).encode()).hexdigest()[:32]


def stale(page: Path = PAGE, results: Path = RESULTS) -> list[str]:
    """What is not as the runs say, in words; pictures are known by the digest of their rows."""
    found = []

    def seen(table: Table, name: str) -> None:
        picture = page.parent / "performance" / name
        if not picture.exists() or digest(table).encode() not in picture.read_bytes():
            found.append(f"{picture} is not of these rows")

    text = page.read_text(encoding="utf-8")
    if fill(text, results, seen) != text:
        found.append(f"{page} is not what the runs say")
    return found


def update(page: Path = PAGE, results: Path = RESULTS) -> None:
    """Write the page and its pictures, and remove pictures that it no longer shows."""
    folder = page.parent / "performance"
    shown = set()

    def drawn(table: Table, name: str) -> None:
        if draw(table, folder / name, dpi=DPI, note=digest(table)):
            shown.add(name)

    write_whole(page, fill(page.read_text(encoding="utf-8"), results, drawn))
    for picture in set(folder.glob("*.png")) - {folder / name for name in shown}:
        picture.unlink()


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m llc_fast.benchmarks.page", description="Fill the tables of docs/performance.md."
    )
    parser.add_argument(
        "--check", action="store_true", help="change nothing; 1 if the page is not up to date"
    )
    arguments = parser.parse_args(words)
    if not PAGE.exists():
        print(f"{PAGE} is not there: run this in a checkout", file=sys.stderr)
        return 2
    try:
        if not arguments.check:
            update()
        problems = stale()
    except (PageError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    print("\n".join(problems) or f"{PAGE} is up to date")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
