"""The picture: LLCs as a heat map, heads as layers x heads, and the difference where there are two datasets."""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Marks = npt.NDArray[np.str_]

_HEAD = re.compile(r"l(\d+)h(\d+)")
_ROOMY = 24  # columns up to which a square has room for its error
_DPI = 150


@dataclass(frozen=True)
class _Panel:
    title: str
    rows: list[str]
    columns: list[str]
    values: Floats
    errors: Floats
    marks: Marks
    signed: bool = False


def heatmap(
    components: Sequence[str],
    datasets: Sequence[str],
    values: Floats,
    errors: Floats,
    marks: Marks,
    *,
    title: str,
    footer: str,
) -> bytes:
    """A PNG of LLCs; values, standard errors and marks have shape (components, datasets), NaN where unknown.

    A mark is a short string set beside its value, or "".
    Components that are all heads make a panel of layers x heads for each dataset; others make one row each.
    Two datasets add a panel of the first minus the second, with the root of the summed squares as its error.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = _panels(list(components), list(datasets), values, errors, marks)
    rows, columns = len(panels[0].rows), [max(len(p.columns), 1.6) for p in panels]
    roomy = max(columns) <= _ROOMY
    cell_width, cell_height = (0.86, 0.66) if roomy else (0.5, 0.36)
    stacked = len(panels) > 1 and bool(panels[0].title) and columns[0] >= 2 * rows
    label = 0.085 * max(len(row) for row in panels[0].rows)
    if stacked:
        width, height = columns[0] * cell_width + label + 1.3, len(panels) * (rows * cell_height + 0.75) + 1.0
        layout: dict[str, Any] = {"nrows": len(panels)}
    else:
        width, height = sum(columns) * cell_width + label + 1.1 * len(panels) + 0.6, rows * cell_height + 1.7
        layout = {"ncols": len(panels), "width_ratios": columns}
    with rc_context({"font.family": "DejaVu Sans", "font.size": 9.5}):
        figure = Figure(figsize=(max(width, 6.4), max(height, 2.8)), dpi=_DPI, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(squeeze=False, **layout).ravel()
        for signed, legend in ((False, "LLC"), (True, "difference of LLC")):
            group = [(ax, panel) for ax, panel in zip(axes, panels, strict=True) if panel.signed is signed]
            if not group:
                continue
            low, high = _range([panel for _, panel in group])
            for ax, panel in group:
                image = _draw(ax, panel, low, high, roomy=roomy, rows=stacked or ax is axes[0])
            shared = [ax for ax, _ in group] if stacked else group[-1][0]
            bar = figure.colorbar(image, ax=shared, fraction=0.08, aspect=18, pad=0.03)
            bar.set_label(legend)
            cast(Any, bar.outline).set_visible(False)
        figure.suptitle(title, fontsize=12, fontweight="bold")
        lines = textwrap.wrap(footer, int(15 * figure.get_figwidth()))
        figure.supxlabel("\n".join(lines), fontsize=8, color="#555555")
        out = io.BytesIO()
        figure.savefig(out, format="png", metadata={"Title": title, "Software": "llc_fast"})
    return out.getvalue()


def _panels(
    components: list[str], datasets: list[str], values: Floats, errors: Floats, marks: Marks
) -> list[_Panel]:
    difference: tuple[Floats, Floats, Marks] | None = None
    if len(datasets) == 2:
        difference = (
            values[:, :1] - values[:, 1:],
            np.asarray(np.hypot(errors[:, :1], errors[:, 1:])),
            np.array([["".join(sorted(set("".join(row))))] for row in marks]),
        )
    minus = " − ".join(datasets)
    heads = [_HEAD.fullmatch(name) for name in components]
    if len(components) < 2 or not all(heads):
        panels = [_Panel("", components, datasets, values, errors, marks)]
        if difference:
            panels.append(_Panel(minus, components, [""], *difference, signed=True))
        return panels
    places = [(int(m[1]), int(m[2])) for m in heads if m]
    layers, numbers = sorted({p[0] for p in places}), sorted({p[1] for p in places})
    at = [layers.index(p[0]) for p in places], [numbers.index(p[1]) for p in places]

    def grid(title: str, v: Floats, e: Floats, k: Marks, *, signed: bool = False) -> _Panel:
        shape = len(layers), len(numbers)
        spread = np.full(shape, np.nan), np.full(shape, np.nan), np.zeros(shape, dtype="U4")
        for to, column in zip(spread, (v, e, k), strict=True):
            to[at] = column
        rows, columns = [f"layer {n}" for n in layers], [f"head {n}" for n in numbers]
        return _Panel(title, rows, columns, *spread, signed=signed)

    panels = [grid(name, values[:, j], errors[:, j], marks[:, j]) for j, name in enumerate(datasets)]
    if difference:
        v, e, k = difference
        panels.append(grid(minus, v[:, 0], e[:, 0], k[:, 0], signed=True))
    return panels


def _range(panels: list[_Panel]) -> tuple[float, float]:
    """One colour scale for panels that show the same quantity."""
    values = np.concatenate([p.values[np.isfinite(p.values)] for p in panels]) if panels else np.zeros(0)
    if not values.size:
        return 0.0, 1.0
    if panels[0].signed:
        most = float(np.abs(values).max()) or 1.0
        return -most, most
    low, high = min(float(values.min()), 0.0), float(values.max())
    return (low, high) if high > low else (low, low + 1.0)


def _draw(ax: Any, panel: _Panel, low: float, high: float, *, roomy: bool, rows: bool) -> Any:
    import matplotlib

    colours = matplotlib.colormaps["RdBu_r" if panel.signed else "viridis"].with_extremes(bad="#e6e6e6")
    image = ax.imshow(np.ma.masked_invalid(panel.values), cmap=colours, vmin=low, vmax=high, aspect="auto")
    ax.set_title(panel.title, fontsize=11, pad=8)
    ax.set_xticks(range(len(panel.columns)), panel.columns, rotation=0 if roomy else 90)
    ax.set_yticks(range(len(panel.rows)), panel.rows if rows else [""] * len(panel.rows))
    ax.tick_params(length=0)
    ax.set_xticks(np.arange(len(panel.columns) + 1) - 0.5, minor=True)
    ax.set_yticks(np.arange(len(panel.rows) + 1) - 0.5, minor=True)
    ax.grid(which="minor", color="white", linewidth=2)
    ax.tick_params(which="minor", length=0)
    ax.spines[:].set_visible(False)
    for (i, j), value in np.ndenumerate(panel.values):
        dark = False
        if np.isfinite(value):
            red, green, blue, _ = colours((value - low) / (high - low))
            dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.55
        text = _number(value, panel.signed) + (f" {panel.marks[i, j]}" if panel.marks[i, j] else "")
        colour = "white" if dark else "#1a1a1a"
        error = float(panel.errors[i, j])
        second = roomy and np.isfinite(error)
        ax.text(
            j, i - 0.12 * second, text, ha="center", va="center", color=colour, fontsize=9.5 if roomy else 7
        )
        if second:
            ax.text(j, i + 0.22, f"± {_number(error)}", ha="center", va="center", color=colour, fontsize=7.5)
    return image


def _number(x: float, signed: bool = False) -> str:
    if not np.isfinite(x):
        return "none"
    digits = 0 if abs(x) >= 1000 else 1 if abs(x) >= 100 else 2
    return f"{x:+.{digits}f}".replace("-", "−") if signed else f"{x:.{digits}f}".replace("-", "−")
