"""The weights of one projection: on which axis its outputs and its inputs lie, its bias and its adapters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..errors import ModelError
from ..types import Box
from .boxes import span
from .names import Tree

# PEFT's LoRA: which of its parameters run along the outputs (on axis 0) and along the inputs (on the last).
_OUTWARD = ("lora_B", "lora_magnitude_vector")
_INWARD = ("lora_A",)


@dataclass(frozen=True)
class Axis:
    """One axis of a parameter, to be cut up."""

    name: str
    shape: tuple[int, ...]
    axis: int

    def cut(self, start: int, stop: int) -> tuple[str, Box]:
        return self.name, span(self.shape, self.axis, start, stop)


@dataclass(frozen=True)
class Projection:
    """A projection's weight and bias, its sizes, and which axis of the weight its outputs lie on.

    path: of a module, or of a bare parameter, whose bias has the same name with b for W.
    """

    tree: Tree
    path: str
    weight: str
    bias: str
    axis: int

    @classmethod
    def of(cls, tree: Tree, path: str) -> Projection:
        """Raises ModelError where this is no Linear, Conv1D or bare parameter."""
        if path in tree.parameters:
            owner, _, name = path.rpartition(".")
            return cls(tree, path, path, f"{owner}.{name.replace('W', 'b', 1)}", 1)
        module, weight = tree.modules[path], tree.parameters.get(f"{path}.weight")
        # Hugging Face's Conv1D, told by its `nf`, stores its weight as (in, out).
        transposed = hasattr(module, "nf") and not hasattr(module, "out_features")
        if weight is None or weight.ndim != 2 or not (transposed or hasattr(module, "out_features")):
            shape = "no weight" if weight is None else f"a weight of shape {tuple(weight.shape)}"
            kind = type(module).__name__
            raise ModelError(f"{path} is a {kind} with {shape}; heads and neurons need a Linear or a Conv1D")
        return cls(tree, path, f"{path}.weight", f"{path}.bias", int(transposed))

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tree.parameters[self.weight].shape)

    @property
    def out(self) -> int:
        return self.shape[self.axis]

    @property
    def into(self) -> int:
        return self.shape[1 - self.axis]

    @property
    def size(self) -> str:
        return f"{self.into} -> {self.out}" if len(self.shape) == 2 else str(self.shape)

    def outputs(self) -> Iterator[Axis]:
        """Where its outputs lie: in its weight, its bias and its adapters."""
        yield self.along(self.weight, self.axis)
        if self.bias in self.tree.parameters:
            yield self.along(self.bias, 0)
        yield from (self.along(name, 0) for name in self._adapters(_OUTWARD, self.out, 0))

    def inputs(self) -> Iterator[Axis]:
        """Where its inputs lie: in its weight and its adapters."""
        yield self.along(self.weight, 1 - self.axis)
        yield from (self.along(name, 1) for name in self._adapters(_INWARD, self.into, -1))

    def along(self, name: str, axis: int) -> Axis:
        """An axis of a parameter, which goes by its smallest name."""
        return Axis(self.tree.smallest[name], tuple(self.tree.parameters[name].shape), axis)

    def _adapters(self, kinds: tuple[str, ...], size: int, axis: int) -> Iterator[str]:
        for name, parameter in self.tree.parameters.items():
            if name.startswith(tuple(f"{self.path}.{kind}." for kind in kinds)):
                if parameter.shape[axis] != size:
                    shape = tuple(parameter.shape)
                    raise ModelError(
                        f"adapter {name} of shape {shape} does not fit {self.path} ({self.size})"
                    )
                yield name
