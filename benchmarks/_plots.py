"""Pictures of tables, drawn from their rows alone."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from io import BytesIO
from itertools import cycle
from pathlib import Path
from typing import Any

from ._table import Plot, Table

COLORS = {"ours": "#1f6feb", "floor": "#8c959f", "yardstick": "#57606a", "peer": "#d1662b"}
ROLES = {"ours": "llc_fast", "floor": "floor", "yardstick": "yardstick", "peer": "others"}
OURS = ("#1f6feb", "#54aeff", "#0a3069", "#218bff", "#80ccff", "#0550ae")
PEERS = ("#d1662b", "#2da44e", "#8250df", "#bf8700", "#cf222e", "#1b7c83", "#6e7781", "#9a6700", "#bc4c00")
FLOORS = ("#8c959f", "#57606a", "#afb8c1")
YARDSTICKS = ("#24292f", "#6e5494")
STYLES = {"ours": "-", "floor": "--", "yardstick": ":", "peer": "-"}


def draw(table: Table, path: Path, *, dpi: int = 130, note: str = "") -> bool:
    """Write the picture of a table as PNG, whole or not at all; False if it has none, or no row to show.

    note: kept in the file as its description.
    """
    plot = table.plot
    rows = [r for r in table.rows if plot is not None and _shown(r, plot)]
    if plot is None or not rows:
        path.unlink(missing_ok=True)  # of an earlier run
        return False
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    height = 0.9 + 0.32 * len(rows) if plot.kind == "bars" else 4.8
    figure, axes = pyplot.subplots(figsize=(8.4, height), layout="constrained")
    try:
        (_bars if plot.kind == "bars" else _curves)(axes, plot, rows)
        figure.suptitle(textwrap.fill(table.title, 100), fontsize=10, x=0.01, ha="left")
        axes.spines[["top", "right"]].set_visible(False)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        _save(figure, part, dpi, note)
        part.replace(path)
    finally:
        pyplot.close(figure)
    return True


def _save(figure: Any, path: Path, dpi: int, note: str) -> None:
    """As PNG of 128 colours, a third of the size."""
    from PIL import Image, PngImagePlugin  # comes with matplotlib

    full = BytesIO()
    figure.savefig(full, dpi=dpi, format="png")
    info = PngImagePlugin.PngInfo()
    info.add_text("Description", note)
    few = Image.open(full).convert("RGB").quantize(128, dither=Image.Dither.NONE)
    few.save(path, "PNG", pnginfo=info, optimize=True)


def _shown(row: dict[str, Any], plot: Plot) -> bool:
    """Whether a row has what its axes need; a logarithmic one has no place for zero."""
    needed = (
        [("y", row.get(plot.y))] if plot.kind == "bars" else [("x", row.get(plot.x)), ("y", row.get(plot.y))]
    )
    along = {"y": "x"} if plot.kind == "bars" else {}  # bars lie down: values run along x
    return "absent" not in row and all(
        isinstance(v, (int, float)) and (v > 0 or along.get(k, k) not in plot.log) for k, v in needed
    )


def _bars(axes: Any, plot: Plot, rows: list[dict[str, Any]]) -> None:
    names = [r["name"] for r in rows]
    values = [r[plot.y] * plot.scale for r in rows]
    for role in _unique(r["role"] for r in rows):
        chosen = [i for i, r in enumerate(rows) if r["role"] == role]
        heights = [values[i] for i in chosen]
        bars = axes.barh(chosen, heights, color=COLORS[role], height=0.7, label=ROLES[role])
        axes.bar_label(bars, labels=[f"{v:.3g}" for v in heights], padding=3, fontsize=8)
    axes.set_yticks(range(len(rows)), names, fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.12, y=0.02)
    if "x" in plot.log:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel(plot.label)
    for name, value in plot.lines.items():
        axes.axvline(value, color="black", linewidth=0.8, linestyle="--", label=name)
    if plot.lines or len({r["role"] for r in rows}) > 1:
        axes.legend(fontsize=8, loc="best")


def _curves(axes: Any, plot: Plot, rows: list[dict[str, Any]]) -> None:
    colors = {
        "ours": cycle(OURS),
        "peer": cycle(PEERS),
        "floor": cycle(FLOORS),
        "yardstick": cycle(YARDSTICKS),
    }
    names = _unique(str(r.get(plot.series, r["name"])) for r in rows)
    for name in names:
        chosen = [r for r in rows if str(r.get(plot.series, r["name"])) == name]
        points = sorted((r[plot.x], r[plot.y] * plot.scale) for r in chosen)
        role = chosen[0]["role"]
        style = {"color": next(colors[role]), "marker": "o", "markersize": 3.5, "label": name}
        axes.plot(*zip(*points, strict=True), STYLES[role], **style)
    along = sorted({r[plot.x] for r in rows})
    if "x" in plot.log:
        axes.set_xscale("log")
    elif len(along) <= 8:  # such as threads, of which there is no half
        axes.set_xticks(along)
    if "y" in plot.log:
        axes.set_yscale("log")
    for name, value in plot.lines.items():
        axes.axhline(value, color="black", linewidth=0.8, linestyle="--", label=name)
    axes.set_xlabel(plot.xlabel)
    axes.set_ylabel(plot.label)
    axes.grid(alpha=0.25)
    many = len(names) + len(plot.lines) > 6
    place = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)} if many else {"loc": "best"}
    axes.legend(fontsize=7.5, frameon=False, **place)


def _unique(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))
