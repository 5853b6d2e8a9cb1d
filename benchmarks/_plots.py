"""Pictures of tables, drawn from their rows alone."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ._table import Plot, Table

COLORS = {"ours": "#1f6feb", "floor": "#8c959f", "yardstick": "#57606a", "peer": "#d1662b"}
PEERS = ("#d1662b", "#2da44e", "#8250df", "#bf8700", "#cf222e", "#1b7c83", "#6e7781", "#9a6700", "#bc4c00")


def draw(table: Table, path: Path) -> bool:
    """Write the picture of a table as PNG; False if it has none, or no row to show."""
    plot = table.plot
    rows = [r for r in table.rows if plot is not None and "absent" not in r and r.get(plot.y) is not None]
    if plot is None or not rows:
        return False
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    height = 0.9 + 0.32 * len(rows) if plot.kind == "bars" else 4.8
    figure, axes = pyplot.subplots(figsize=(8.4, height), layout="constrained")
    (_bars if plot.kind == "bars" else _curves)(axes, plot, rows)
    axes.set_title(table.title, fontsize=10, loc="left", wrap=True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
    return True


def _bars(axes: Any, plot: Plot, rows: list[dict[str, Any]]) -> None:
    names = [r["name"] for r in rows]
    values = [r[plot.y] * plot.scale for r in rows]
    bars = axes.barh(range(len(rows)), values, color=[COLORS[r["role"]] for r in rows], height=0.7)
    axes.bar_label(bars, labels=[f"{v:.3g}" for v in values], padding=3, fontsize=8)
    axes.set_yticks(range(len(rows)), names, fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    if "x" in plot.log:
        axes.set_xscale("log")
    axes.set_xlabel(plot.label)
    for name, value in plot.lines.items():
        axes.axvline(value, color="black", linewidth=0.8, linestyle="--", label=name)
    if plot.lines:
        axes.legend(fontsize=8, frameon=False)


def _curves(axes: Any, plot: Plot, rows: list[dict[str, Any]]) -> None:
    colors = iter(PEERS)
    for name in _unique(r[plot.series] for r in rows):
        points = sorted((r[plot.x], r[plot.y] * plot.scale) for r in rows if r[plot.series] == name)
        role = next(r["role"] for r in rows if r[plot.series] == name)
        color = next(colors, "#d1662b") if role == "peer" else None
        style = {"ours": "-", "floor": "--", "yardstick": ":", "peer": "-"}[role]
        axes.plot(*zip(*points, strict=True), style, marker="o", markersize=3.5, color=color, label=name)
    if "x" in plot.log:
        axes.set_xscale("log")
    if "y" in plot.log:
        axes.set_yscale("log")
    for name, value in plot.lines.items():
        axes.axhline(value, color="black", linewidth=0.8, linestyle="--", label=name)
    axes.set_xlabel(plot.xlabel)
    axes.set_ylabel(plot.label)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=7.5, frameon=False)


def _unique(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))
