"""Operands from step to step: whether they are still what was checked, at a fraction of what a check costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter, is_
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .checks import as_list, check_addresses, check_count, check_like, straight
from .group import Gradients
from .tiles import check_memory, spans, touches

_CHUNK = 256  # tensors looked at together, twice while they are in the cache
_PLAIN = {Tensor, torch.nn.Parameter}
_pointer, _nested = Tensor.data_ptr, attrgetter("is_nested")


class Facts:
    """What tensors are like, all but where they lie; the mode that PyTorch is in, such as autocast, counts too."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._count = len(tensors)
        self._parts = [_Part(i, tensors[i : i + _CHUNK]) for i in range(0, len(tensors), _CHUNK)]

    def pointers(self, tensors: Sequence[Any], last: list[int] | None) -> list[int] | None:
        """Where these lie, or None if they are not tensors like those; last: where the last ones lay.

        It is returned itself where these lie there.
        """
        if len(tensors) != self._count:
            return None
        found: list[int] = []
        same_places = True
        for part in self._parts:
            those = tensors[part.start : part.start + _CHUNK]
            pointers = _pointers(those)
            if pointers is None:
                return None
            moved = last is None or pointers != last[part.start : part.start + _CHUNK]
            if not part.alike(those, moved):
                return None
            found += pointers
            same_places = same_places and not moved
        return last if same_places else found


class _Part:
    """Some of the tensors, from `start` on."""

    def __init__(self, start: int, tensors: Sequence[Tensor]) -> None:
        self.start = start
        self._guard = _guard(tensors)
        self._facts = [] if self._guard is not None else list(map(_fact, tensors))

    def alike(self, tensors: Sequence[Any], moved: bool) -> bool:
        """Whether they are like these. moved: whether any lies elsewhere than the last one, and so may be anything."""
        if self._guard is None:
            return _facts(tensors) == self._facts
        # A guard ends the process where a nested tensor is of the class that it looks for.
        if moved and (not _PLAIN.issuperset(map(type, tensors)) or any(map(_nested, tensors))):
            return False
        return self._guard(*tensors)


def _pointers(tensors: Sequence[Any]) -> list[int] | None:
    """Where these lie, None if any is no tensor or will not say."""
    try:
        return list(map(_pointer, tensors))
    except Exception:  # whatever the code of a tensor's class raises
        return None


def _guard(tensors: Sequence[Tensor]) -> Callable[..., bool] | None:
    """PyTorch's own comparison with these, where it can be trusted with them."""
    guards = _guards()
    if guards is None or len(set(map(id, tensors))) < len(tensors):  # they take no tensor twice
        return None
    if not _PLAIN.issuperset(map(type, tensors)) or any(map(_nested, tensors)):
        return None
    try:
        check: Callable[..., bool] = guards(*tensors).check
    except Exception:  # a mode that PyTorch is in has its say in building them
        return None
    return check


def _facts(tensors: Sequence[Any]) -> list[object] | None:
    try:
        return list(map(_fact, tensors))
    except Exception:  # whatever the code of a tensor's class raises
        return None


def _fact(t: object) -> object:
    if not isinstance(t, Tensor):
        return None
    if t.layout != torch.strided or t.is_nested:
        return type(t), t.layout, t.is_nested
    return type(t), t.layout, t.shape, t.stride(), t.dtype, t.device, t.is_neg()


_found: list[Callable[..., Any]] = []  # what `_guards` has found


def _guards() -> Callable[..., Any] | None:
    """What torch.compile guards its inputs with, if this PyTorch has it and it tells tensors apart as it should.

    Only success is kept: PyTorch may be in a mode that hinders it now, such as that of fake tensors.
    """
    if not _found:
        build = _probe()
        if build is None:
            return None
        _found.append(build)
    return _found[0]


def _probe() -> Callable[..., Any] | None:
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
    except Exception:  # it is not there, not as known, or in a mode that fails
        pass
    return None


class Still:
    """Whether what a plan was made of is where it was and like it was.

    params: looked at as they are then; beside: all that is written or read with them, which stays the same tensors.
    """

    def __init__(self, params: Sequence[Tensor], beside: Sequence[Tensor]) -> None:
        self._beside = tuple(beside)
        tensors = (*params, *beside)
        self._each = list(map(_fact, tensors))
        self._facts = Facts(tensors)
        self._pointers = list(map(_pointer, tensors))

    def holds(self, params: Sequence[Tensor]) -> bool:
        tensors = (*params, *self._beside)
        pointers = self._facts.pointers(tensors, self._pointers)
        if pointers is None and _facts(tensors) == self._each:
            self._facts = Facts(tensors)  # PyTorch is in another mode, or a parameter was frozen
            pointers = _pointers(tensors)
        return pointers is self._pointers or pointers == self._pointers


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
        self._located: tuple[list[int], npt.NDArray[np.int64]] | None = (
            None  # pointers of those there are, addresses
        )

    def check(self, grads: Sequence[Tensor | None]) -> Gradients:
        """The gradients as a backend takes them; raises if they do not fit."""
        out = Gradients(grads if type(grads) is list else as_list("grads", grads))
        pointers = self._recall(out)
        if pointers is None:
            self._look(out)
        if pointers is None or self._uneven:
            pointers = list(map(_pointer, _present(out)))
        located = self._located
        if located is None or (pointers is not located[0] and pointers != located[0]):
            located = self._located = pointers, self._locate(out, pointers)
        out.addresses = located[1]
        return out

    def _recall(self, values: list[Tensor | None]) -> list[int] | None:
        """Where those that there are lie, if all are as the last ones were when they came; else None."""
        if self._facts is None:
            return None
        if self._absent and _absent(values) != self._absent:
            return None
        last = None if self._located is None else self._located[0]
        pointers = self._facts.pointers(_present(values) if self._absent else values, last)
        if pointers is not None:
            for i in self._uneven:
                values[i] = straight(values[i])  # type: ignore[arg-type]
        return pointers

    def _look(self, values: list[Tensor | None]) -> None:
        """Check each by itself, and put those in one piece that are not."""
        self._facts = self._located = None
        check_count("grads", values, self._params)
        given = list(values)
        for i, (g, p) in enumerate(zip(given, self._params, strict=True)):
            if g is not None:
                values[i] = check_like(f"grads[{i}]", g, p)
        self._absent = _absent(given)
        self._uneven = [i for i, (g, t) in enumerate(zip(given, values, strict=True)) if g is not t]
        self._facts = Facts(_present(given))

    def _locate(self, values: list[Tensor | None], pointers: list[int]) -> npt.NDArray[np.int64]:
        """Their addresses; raises if any has none, or is in what a step writes."""
        self._located = None
        addresses = np.array(pointers, dtype=np.int64)
        if self._absent:
            there = np.ones(len(values), dtype=bool)
            there[self._absent] = False
            addresses, given = np.zeros(len(values), dtype=np.int64), addresses
            addresses[there] = given
        lost = np.flatnonzero((addresses == 0) & (self._sizes > 0))
        if len(lost):
            check_addresses("grads", [int(i) for i in lost if values[i] is not None])
        if touches(self._spans, addresses.view(np.uint64), self._sizes):
            read = [(f"grads[{i}]", g) for i, g in enumerate(values) if g is not None]
            check_memory(self._written, read)
        return addresses


def _present(values: Sequence[Tensor | None]) -> list[Tensor]:
    return [t for t in values if t is not None]


def _absent(values: Sequence[Tensor | None]) -> list[int]:
    return [i for i, t in enumerate(values) if t is None]


@dataclass(frozen=True, eq=False)
class Operands:
    """The tensors of a plan, written and read by name, the gradients aside."""

    params: Sequence[Tensor]
    written: Sequence[tuple[str, Tensor]]
    read: Sequence[tuple[str, Tensor]]


def same(a: Sequence[object], b: Sequence[object]) -> bool:
    """Whether they hold the same objects."""
    return len(a) == len(b) and all(map(is_, a, b))
