"""Operands from step to step: whether they are still what was checked, at a fraction of what a check costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .checks import as_list, check_count, check_like, straight
from .group import Gradients
from .tiles import check_memory, spans, touches

_CHUNK = 256  # tensors looked at together, twice while they are in the cache
_pointer = Tensor.data_ptr


class Facts:
    """What tensors are like, all but where they lie; the mode that PyTorch is in, such as autocast, counts too."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._count = len(tensors)
        starts = range(0, len(tensors), _CHUNK)
        self._parts = [(i, _comparison(tensors[i : i + _CHUNK])) for i in starts]

    def pointers(self, tensors: Sequence[Any]) -> list[int] | None:
        """Where these lie, or None if they are not tensors like those."""
        if len(tensors) != self._count:
            return None
        found: list[int] = []
        for start, alike in self._parts:
            part = tensors[start : start + _CHUNK]
            if not alike(*part):
                return None
            found += map(_pointer, part)
        return found


def _comparison(tensors: Sequence[Tensor]) -> Callable[..., bool]:
    """A function of as many tensors: whether they are like these."""
    guards = _guards()
    if guards is not None and len(set(map(id, tensors))) == len(tensors):  # they take no tensor twice
        alike: Callable[..., bool] = guards(*tensors).check
        return alike
    facts = list(map(_fact, tensors))
    return lambda *others: list(map(_fact, others)) == facts


def _fact(t: object) -> object:
    if not isinstance(t, Tensor):
        return None
    return type(t), t.layout, t.shape, t.stride(), t.dtype, t.device, t.is_neg()


@cache
def _guards() -> Callable[..., Any] | None:
    """What torch.compile guards its inputs with, if this PyTorch has it and it tells tensors apart as it should."""
    try:
        from torch._C._dynamo.guards import TensorGuards

        def build(*tensors: Tensor) -> Any:
            return TensorGuards(*tensors, dynamic_dims_sizes=None, dynamic_dims_strides=None)

        with torch.inference_mode(False):
            t, same = (torch.zeros(2, 3, dtype=torch.float32, device="cpu") for _ in range(2))
            others = (
                t.double(),
                t.to("meta"),
                t.view(3, 2),
                t.view(6),
                t.as_strided((2, 3), (1, 2)),
                t.to_sparse(),
                torch._neg_view(t),
                torch.nn.Parameter(t, requires_grad=False),
                None,
            )
            guard = build(t)
            if guard.check(same) is True and all(guard.check(other) is False for other in others):
                return build
    except (ImportError, AttributeError, TypeError, RuntimeError):
        pass
    return None


class Still:
    """Whether what a plan keeps is where it was and like it was.

    params: looked at as they are then; written, read: what is kept beside them, which stays the same tensors.
    """

    def __init__(self, params: Sequence[Tensor], written: Sequence[Tensor], read: Sequence[Tensor]) -> None:
        self._written, self._read = tuple(written), tuple(read)
        tensors = (*params, *written)
        self._each = list(map(_fact, tensors))
        self._facts = Facts(tensors)
        self._pointers = list(map(_pointer, tensors)), list(map(_pointer, read))

    def holds(self, params: Sequence[Tensor]) -> bool:
        tensors = (*params, *self._written) if self._written else params
        pointers = self._facts.pointers(tensors)
        if pointers is None and list(map(_fact, tensors)) == self._each:
            self._facts = Facts(tensors)  # PyTorch is in another mode, or a parameter was frozen
            pointers = list(map(_pointer, tensors))
        return (pointers, list(map(_pointer, self._read))) == self._pointers


class GradientCheck:
    """Checks the gradients of each step: in full where anything about them is new, else that nothing is.

    params: their parameters; written: what a step writes, by name, none of which they may share memory with.
    No gradient is kept, only what it was like and where.
    """

    def __init__(self, params: Sequence[Tensor], written: Sequence[tuple[str, Tensor]]) -> None:
        self._params, self._written = params, written
        self._spans = spans([t for _, t in written])
        self._sizes = np.array([p.nbytes for p in params], dtype=np.uint64)
        self._facts: Facts | None = None
        self._absent: list[int] = []
        self._uneven: list[int] = []  # copied at each step, to lie in one piece
        self._pointers: list[int] | None = None  # of those that there are
        self._addresses = np.zeros(0, dtype=np.int64)

    def check(self, grads: Sequence[Tensor | None]) -> Gradients:
        """The gradients as a backend takes them; raises if they do not fit."""
        out = Gradients(grads if type(grads) is list else as_list("grads", grads))
        pointers = self._recall(out)
        if pointers is None:
            self._look(out)
        if pointers is None or self._uneven:
            pointers = list(map(_pointer, _present(out)))
        if pointers != self._pointers:
            self._locate(out, pointers)
        out.addresses = self._addresses
        return out

    def _recall(self, values: list[Tensor | None]) -> list[int] | None:
        """Where those that there are lie, if all are as the last ones were when they came; else None."""
        if self._facts is None:
            return None
        if self._absent:
            pointers = self._facts.pointers(_present(values)) if _absent(values) == self._absent else None
        else:
            pointers = self._facts.pointers(values)
        if pointers is not None:
            for i in self._uneven:
                values[i] = straight(values[i])  # type: ignore[arg-type]
        return pointers

    def _look(self, values: list[Tensor | None]) -> None:
        """Check each by itself, and put those in one piece that are not."""
        self._facts = self._pointers = None
        check_count("grads", values, self._params)
        given = list(values)
        for i, (g, p) in enumerate(zip(given, self._params, strict=True)):
            if g is not None:
                values[i] = check_like(f"grads[{i}]", g, p)
        self._absent = _absent(given)
        self._uneven = [i for i, (g, t) in enumerate(zip(given, values, strict=True)) if g is not t]
        self._facts = Facts(_present(given))

    def _locate(self, values: list[Tensor | None], pointers: list[int]) -> None:
        self._pointers = None
        addresses = np.array(pointers, dtype=np.int64)
        if self._absent:
            there = np.ones(len(values), dtype=bool)
            there[self._absent] = False
            addresses, given = np.zeros(len(values), dtype=np.int64), addresses
            addresses[there] = given
        if touches(self._spans, addresses.view(np.uint64), self._sizes):
            read = [(f"grads[{i}]", g) for i, g in enumerate(values) if g is not None]
            check_memory(self._written, read)
        self._pointers, self._addresses = pointers, addresses


def _present(values: Sequence[Tensor | None]) -> list[Tensor]:
    return [t for t in values if t is not None]


def _absent(values: Sequence[Tensor | None]) -> list[int]:
    return [i for i, t in enumerate(values) if t is None]
