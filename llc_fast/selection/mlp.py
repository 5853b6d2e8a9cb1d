"""Which slices of the MLP's parameters make up a neuron or an expert."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..errors import ComponentError, ModelError
from ..types import Box
from .anatomy import Anatomy
from .boxes import span, whole
from .projections import Axis, Projection


@dataclass(frozen=True)
class Neurons:
    """The neurons of one layer, and the axes along which they lie: from each of the starts on."""

    count: int
    axes: tuple[tuple[Axis, tuple[int, ...]], ...]

    def boxes(self, which: range) -> Iterator[tuple[str, Box]]:
        for axis, starts in self.axes:
            yield from (axis.cut(start + which.start, start + which.stop) for start in starts)


@dataclass(frozen=True)
class Experts:
    """The experts of one layer: modules of a list, or slices of parameters along their first axis."""

    model: Anatomy
    paths: tuple[str, ...]
    fused: tuple[str, ...]
    count: int

    def boxes(self, which: range) -> Iterator[tuple[str, Box]]:
        parameters = self.model.tree.parameters
        for name in self.fused:
            yield name, span(tuple(parameters[name].shape), 0, which.start, which.stop)
        for path in self.paths[which.start : which.stop]:
            for name in self.model.tree.inside(path):
                yield from ((name, box) for box in whole(parameters[name].shape))


def neurons(model: Anatomy, layer: str) -> Neurons:
    """The neurons between a layer's projections up and down.

    Raises ComponentError where the layer has none, ModelError where its projections are not known or do
    not fit together.
    """
    if model.present(layer, "experts"):
        raise ComponentError(
            f"{layer} has experts, whose neurons have no names of their own; select an expert"
        )
    ups, halves, downs = (model.present(layer, field) for field in ("up", "gate_up", "down"))
    if len(downs) != 1 or not ups + halves:
        paths = model.mlp(layer)
        parts = [p.rpartition(".")[2] for path in paths or [layer] for p in model.tree.children(path)]
        raise model.unknown(
            f"{' and '.join(paths) or layer} has no projections of a known name into its neurons and out of "
            f"them; it has {', '.join(parts) or 'no modules'}"
        )
    sides = [Projection.of(model.tree, path) for path in (*ups, *halves, *downs)]
    count = sides[-1].into
    sizes = [side.out for side in sides[:-1]]
    if sizes != [count] * len(ups) + [2 * count] * len(halves):
        text = ", ".join(f"{side.path}: {side.size}" for side in sides)
        raise ModelError(f"the projections of the MLP of {layer} ({text}) do not meet in the same neurons")
    axes: list[tuple[Axis, tuple[int, ...]]] = []
    for side, size in zip(sides, sizes, strict=False):
        axes += [(axis, tuple(range(0, size, count))) for axis in side.outputs()]
    axes += [(axis, (0,)) for axis in sides[-1].inputs()]
    return Neurons(count, tuple(axes))


def experts(model: Anatomy, layer: str) -> Experts:
    """The experts of a layer. Raises ComponentError where it has none."""
    found = model.present(layer, "experts")
    if not found:
        raise ComponentError(f"{layer} has no experts" + _hint(model))
    paths = tuple(model.tree.children(found[0]))
    if paths and all(path.rpartition(".")[2].isdigit() for path in paths):
        return Experts(model, paths, (), len(paths))
    own = [n for n in model.tree.inside(found[0]) if n.rpartition(".")[0] == found[0]]
    shapes = {name: tuple(model.tree.parameters[name].shape) for name in own}
    counts = {shape[0] for shape in shapes.values() if len(shape) == 3}
    if len(counts) != 1:
        text = ", ".join(f"{name} {shape}" for name, shape in shapes.items()) or "no parameters"
        raise ModelError(f"{found[0]} has no list of experts, nor parameters with one a row: {text}")
    count = counts.pop()
    return Experts(model, (), tuple(name for name, shape in shapes.items() if shape[0] == count), count)


def _hint(model: Anatomy) -> str:
    return (
        "" if model.entry else "; an entry for this family (llc_fast.selection.register_family) can name them"
    )
