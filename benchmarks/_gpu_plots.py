"""The suite's two pictures: the share of copy bandwidth by size, and the roofline."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ._table import Table

COLORS = ("#1f6feb", "#2da44e", "#d1662b", "#8250df", "#bf8700", "#cf222e", "#1b7c83", "#6e7781", "#bc4c00")


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _unique(rows: Sequence[dict[str, Any]], key: str) -> list[Any]:
    return list(dict.fromkeys(row[key] for row in rows))


def curves(table: Table, path: Path) -> bool:
    """Share of copy bandwidth against parameters, a panel for each backend; False if there is nothing to draw."""
    rows = [row for row in table.rows if row.get("share") is not None]
    if not rows:
        return False
    pyplot = _pyplot()
    backends, kinds = _unique(rows, "backend"), _unique(rows, "kind")
    figure, panels = pyplot.subplots(
        1, len(backends), figsize=(6.0 * len(backends), 4.8), sharey=True, squeeze=False, layout="constrained"
    )
    for axes, backend in zip(panels[0], backends, strict=True):
        for kind, color in zip(kinds, COLORS * len(kinds), strict=False):
            points = sorted(
                (r["numel"], 100 * r["share"]) for r in rows if r["backend"] == backend and r["kind"] == kind
            )
            if points:
                axes.plot(*zip(*points, strict=True), marker="o", markersize=3.5, color=color, label=kind)
        axes.axhline(100, color="black", linewidth=0.8, linestyle="--", label="a copy")
        axes.set_xscale("log")
        axes.set_ylim(bottom=0)
        axes.set_title(backend, fontsize=10, loc="left")
        axes.set_xlabel("parameters")
        axes.grid(alpha=0.25)
    panels[0][0].set_ylabel("bytes a step must move, % of a copy's")
    panels[0][-1].legend(fontsize=7.5, frameon=False, loc="lower right")
    _save(pyplot, figure, path)
    return True


def roofline(table: Table, path: Path) -> bool:
    """Achieved bandwidth against instructions a byte, under both roofs; False if there is nothing to draw."""
    rows = [row for row in table.rows if row.get("gbs") is not None]
    if not rows:
        return False
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(figsize=(8.4, 5.4), layout="constrained")
    copy, issue = max(row["copy"] for row in rows), rows[0]["roof"]
    ends = min(r["intensity"] for r in rows) / 2, max(r["intensity"] for r in rows) * 2
    ridge = min(max(issue / copy, ends[0]), ends[1])
    axes.plot([ends[0], ridge], [copy, copy], "k--", linewidth=0.9, label="copy")
    slope = [ridge, ends[1]]
    axes.plot(slope, [issue / x for x in slope], "k-.", linewidth=0.9, label="instructions issued")
    kinds = _unique(rows, "kind")
    for row in rows:
        triton = row["backend"] == "triton"
        color = COLORS[kinds.index(row["kind"]) % len(COLORS)]
        axes.plot(
            row["intensity"],
            row["gbs"],
            "s" if triton else "o",
            color=color,
            fillstyle="none" if triton else "full",
        )
        axes.annotate(
            f"{row['kind']}, {row['backend']}",
            (row["intensity"], row["gbs"]),
            textcoords="offset points",
            xytext=(5, 4),
            fontsize=7,
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("instructions a byte")
    axes.set_ylabel("GB/s")
    axes.grid(alpha=0.25, which="both")
    axes.set_title(table.title, fontsize=10, loc="left")
    axes.legend(fontsize=8, frameon=False)
    _save(pyplot, figure, path)
    return True


def _save(pyplot: Any, figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
