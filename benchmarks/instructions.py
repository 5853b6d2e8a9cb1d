"""How many instructions does an element take? A guard against slower kernels that needs no clock and no GPU.

    python -m llc_fast.benchmarks.instructions [--part cpu:avx2] [--only REGEX] [--json FILE] [--update]

Counts the CPU's kernels as they run (`_counting`) and the GPU's in their main loop (`sass`), and compares them with the
bounds in instructions.json. Exit status 1: more than its bound; 2: no checkout with the sources.

A bound is what its compiler made of the sources on the day of --update. The same compiler repeats it exactly, so there
more than it is refused but for EXACT, which is less than an instruction a vector; another release of the same line
may be off by LIKE; what yet another compiler makes is not compared.

An H200 can issue, for each element, the instructions that its 132 multiprocessors issue while memory moves the
element: 132 * 4 warps of 32 lanes a cycle, at 1.755 to 1.98 GHz, while it copies 4.3e12 bytes a second. That gives 110
to 124 instructions at 16 bytes, 83 to 93 at 12, 55 to 62 at 8. A kernel above it waits for its own arithmetic.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ._counting import STEPS, compiler_version, cpu_counts, isa_flags
from ._kernels import STORAGES, Missing, checkout, compiled, version
from ._machine import machine
from ._table import Column, Report, Table
from ._work import traffic
from .sass import per_element

BOUNDS = Path(__file__).with_name("instructions.json")
EXACT, LIKE = 0.001, 0.05
LINE = {"gcc": 1, "clang": 1, "nvcc": 2, "triton": 2}  # numbers of a version that releases of one line share
ARCH = "90"
ISSUED, CLOCKS, COPY = 132 * 4 * 32, (1.755e9, 1.98e9), 4.3e12


@dataclass(frozen=True)
class Counts:
    """Instructions per element by kernel, and who compiled them."""

    compiler: str
    counts: dict[str, float]


def parts() -> list[str]:
    return [*(f"cpu:{isa}" for isa in reversed(isa_flags())), "cuda", "triton"]


def count(part: str, only: str = "", cache: Path | None = None) -> Counts:
    """Of the kernels whose names match. Raises Missing where they cannot be built or counted here."""
    if part.startswith("cpu:"):
        names = [name for name in STEPS if re.search(only, name)]
        return Counts(compiler_version(), cpu_counts(part.removeprefix("cpu:"), cache, names))
    kernels = [k for k in compiled(part, ARCH, only, cache) if k.step]
    return Counts(version(part), {k.name: per_element(k) for k in kernels})


# --- bounds ---


def bounds() -> dict[str, Counts]:
    """By part; none before the first --update."""
    text = BOUNDS.read_text() if BOUNDS.exists() else "{}"
    return {part: Counts(**found) for part, found in json.loads(text).items()}


def margin(found: str, bound: str) -> float | None:
    """What one compiler's counts may exceed another's by; None: they are not compared."""
    if found == bound:
        return EXACT
    name, _, number = found.partition(" ")
    other, _, taken = bound.partition(" ")
    digits = LINE.get(name, 1)
    return LIKE if name == other and number.split(".")[:digits] == taken.split(".")[:digits] else None


def exceeded(found: Counts, bound: Counts) -> list[str]:
    """The kernels that take more than they may, or have no bound, in words."""
    allowed = margin(found.compiler, bound.compiler)
    if allowed is None:
        return []
    lines = []
    for name, each in found.counts.items():
        limit = bound.counts.get(name)
        if limit is None:
            lines.append(f"{name}: has no bound")
        elif not each <= limit * (1 + allowed):
            lines.append(
                f"{name}: {each:.3f} instructions per element, {each / limit - 1:+.1%} of {limit:.3f}"
            )
    return lines


def updated(found: Counts, bound: Counts | None, whole: bool = True) -> tuple[Counts, list[str]]:
    """New bounds, and what is new about them. whole: all kernels were counted, so others are gone."""
    old = bound.counts if bound else {}
    kept = old if bound and bound.compiler == found.compiler and not whole else {}
    rounded = {name: round(each, 3) for name, each in found.counts.items()}
    lines = []
    for name, each in rounded.items():
        if name not in old:
            lines.append(f"{name}: new, {each:.3f}")
        elif old[name] != each:
            lines.append(f"{name}: {old[name]:.3f} -> {each:.3f} ({each / old[name] - 1:+.1%})")
    lines += [f"{name}: gone" for name in sorted(old.keys() - kept.keys() - rounded.keys())]
    return Counts(found.compiler, dict(sorted({**kept, **rounded}.items()))), lines


# --- tables ---


def budget(nbytes: float) -> tuple[float, float]:
    """Instructions that an H200 can issue while it moves so many bytes, at either clock."""
    low, high = (ISSUED * clock * nbytes / COPY for clock in CLOCKS)
    return low, high


def moved(name: str) -> int:
    """Bytes an element of a GPU kernel; anchors are read where they are needed."""
    storage = next(s for s in STORAGES if re.search(rf"(?<![a-z]){s}(?![a-z])", name))
    samplers = {"rmsprop": "rmsprop_sgld", "momentum": "sghmc"}
    sampler = next((samplers[s] for s in samplers if s in name.lower()), "sgld")
    anchored = re.search(r"^any|sums|localization|box", name)
    return traffic(sampler, storage) - (0 if anchored else 4 if storage == "float32" else 2)


READING = "Instructions an element takes, {how}. Bound: instructions.json, of {bound}; counted with {found}{judged}."
JUDGED = {EXACT: "", LIKE: f", so up to {LIKE:.0%} above it passes", None: ", so they are not compared"}


def cpu_table(counted: dict[str, Counts | str], limits: dict[str, Counts]) -> Table:
    """Kinds of steps by instruction set. counted: counts, or why there are none."""
    columns = []
    for part in counted:
        isa = part.removeprefix("cpu:")
        columns += [Column(part, isa, ".2f"), Column(f"{part} bound", "bound", ".2f")]
    table = Table("instructions-cpu", "Instructions per element of the CPU's step", columns)
    runs = {part: found for part, found in counted.items() if isinstance(found, Counts)}
    for name in dict.fromkeys(name for found in runs.values() for name in found.counts):
        values: dict[str, Any] = {part: found.counts.get(name) for part, found in runs.items()}
        values |= {f"{part} bound": limits[part].counts.get(name) for part in runs if part in limits}
        table.add(name, "floor" if name.startswith("floor") else "ours", **values)
    for part, found in counted.items():
        if isinstance(found, str):
            table.add(part, absent=found)
    table.reading = _reading("counted as the compiled kernel runs", runs, limits)
    return table


def gpu_table(part: str, found: Counts | str, limits: dict[str, Counts]) -> Table:
    """Kernels beside the H200's budget."""
    columns = [
        Column("bytes", "bytes"),
        Column("each", "instructions", ".2f"),
        Column("bound", "bound", ".2f"),
        Column("least", "H200 from", ".0f"),
        Column("most", "to", ".0f"),
        Column("share", "of it", ".0%"),
    ]
    table = Table(
        f"instructions-{part}", f"Instructions per element of the {part} kernels for sm_{ARCH}", columns
    )
    if isinstance(found, str):
        table.add(part, absent=found)
        return table
    bound = limits[part].counts if part in limits else {}
    for name, each in found.counts.items():
        low, high = budget(moved(name))
        limit = bound.get(name)
        table.add(name, bytes=moved(name), each=each, bound=limit, least=low, most=high, share=each / low)
    table.reading = _reading("counted in the main loop of the machine code", {part: found}, limits)
    table.reading += (
        " H200: what it can issue while it copies as many bytes at 4.3 TB/s, at 1.755 and at 1.98 GHz; of it: at the "
        'lower clock. Kernels named "any" are told their terms and hold code for all of them, of which they execute a '
        "part: their counts are upper limits."
    )
    return table


def _reading(how: str, runs: dict[str, Counts], limits: dict[str, Counts]) -> str:
    """All parts of a table have one compiler."""
    for part, found in runs.items():
        bound = limits.get(part, Counts("nobody yet", {})).compiler
        judged = JUDGED[margin(found.compiler, bound)]
        return READING.format(how=how, bound=bound, found=found.compiler, judged=judged)
    return ""


# --- the command ---


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m llc_fast.benchmarks.instructions",
        description="Instructions per element of every kernel, and the bounds that they keep.",
    )
    parser.add_argument("--part", action="append", help="cpu:avx2, cuda, triton ...; again for more of them")
    parser.add_argument("--only", default="", help="regular expression for names of kernels")
    parser.add_argument("--json", type=Path, help="the tables as JSON")
    parser.add_argument("--update", action="store_true", help="make what is counted now the bounds")
    arguments = parser.parse_args(words)
    try:
        checkout()
    except Missing as e:
        print(f"instructions: {e}")
        return 2
    chosen = arguments.part or parts()
    if unknown := set(chosen) - set(parts()):
        parser.error(f"--part {', '.join(sorted(unknown))}: use {', '.join(parts())}")
    limits = bounds()
    counted = {part: attempt(part, arguments.only) for part in chosen}
    report = Report(" ".join([parser.prog, *(sys.argv[1:] if words is None else words)]), machine())
    if cpu := {part: found for part, found in counted.items() if part.startswith("cpu:")}:
        report.tables.append(cpu_table(cpu, limits))
    report.tables += [gpu_table(p, found, limits) for p, found in counted.items() if not p.startswith("cpu:")]
    print("\n\n".join(table.text() for table in report.tables))
    if arguments.json:
        report.write(arguments.json)
    if arguments.update:
        return update(counted, limits, whole=not arguments.only)
    return judge(counted, limits)


def attempt(part: str, only: str) -> Counts | str:
    print(f"counting {part}", file=sys.stderr, flush=True)
    try:
        return count(part, only)
    except Missing as e:
        return str(e)


def judge(counted: dict[str, Counts | str], limits: dict[str, Counts]) -> int:
    over, aside = [], []
    for part, found in counted.items():
        bound = limits.get(part)
        if isinstance(found, str):
            aside.append(f"{part}, not counted: {found}")
        elif bound is None:
            over.append(f"{part}: has no bounds")
        elif margin(found.compiler, bound.compiler) is None:
            aside.append(
                f"{part}, not compared: counted with {found.compiler}, the bounds are of {bound.compiler}"
            )
        else:
            over += [f"{part}, {line}" for line in exceeded(found, bound)]
    verdict = "--update makes the counts the bounds" if over else "every bound that was compared is kept"
    print("\n" + "\n".join([*aside, *over, verdict]))
    return 1 if over else 0


def update(counted: dict[str, Counts | str], limits: dict[str, Counts], whole: bool) -> int:
    print()
    for part, found in counted.items():
        if isinstance(found, str):
            print(f"{part}, not counted: {found}")
            continue
        limits[part], lines = updated(found, limits.get(part), whole)
        print("\n".join(f"{part}, {line}" for line in lines) or f"{part}: as before")
    BOUNDS.write_text(json.dumps({part: asdict(limits[part]) for part in sorted(limits)}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
