"""What an optimizer's last step was made of: as long as nothing of it has changed, it is not worked out again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ..group import Gradients
from ..plan import Plan
from ..scalars import Scalars
from ..steady import Operands, same
from ..tiles import check_memory, spans, touches

_PLAIN = {float, int, str, type(None)}  # which nobody can change in place
_trained = attrgetter("requires_grad")


class Memo:
    """Scalars, tensor_ids and plans of the last step; each `known_*` gives None where it has to be found anew."""

    def __init__(self) -> None:
        self._scalars: dict[int, tuple[list[object], Scalars]] = {}
        self._ids: tuple[object, list[list[int]]] | None = None
        self._kept: list[object] = []
        self._plans: dict[int, tuple[object, list[Tensor], list[bool], list[Tensor], Plan]] = {}

    def scalars(
        self, group: Mapping[str, Any], names: Sequence[str], check: Callable[[], Scalars]
    ) -> Scalars:
        """The checked numbers of a group, which are among its values of these names."""
        values = [group.get(name) for name in names]
        known = self._scalars.get(id(group))
        if known is not None and same(known[0], values):
            return known[1]
        scalars = check()
        if all(type(value) in _PLAIN for value in values):
            self._scalars[id(group)] = values, scalars
        return scalars

    def ids(
        self, groups: Sequence[Mapping[str, Any]], find: Callable[[], list[list[int]]]
    ) -> list[list[int]]:
        """The tensor_ids of all groups, which follow from the sizes of the groups and the names in them."""
        sizes = [len(group["params"]) for group in groups]
        key = sizes, [name for group in groups for name in group.get("param_names", ())]
        if self._ids is None or self._ids[0] != key:
            self._ids = key, find()
        return self._ids[1]

    def look(self, state: Mapping[Tensor, Mapping[str, Any]]) -> None:
        """Forget the plans if anything else than before, or by another name, is kept for any parameter."""
        kept = [entry for p, own in state.items() for entry in (p, *own, *own.values())]
        if not same(kept, self._kept):
            self._kept = kept
            self._plans = {}

    def known_plan(
        self, index: int, chosen: object, params: list[Tensor]
    ) -> tuple[list[Tensor], Plan] | None:
        """What moves of a group, and its plan. chosen: what else the plan was made of."""
        if index not in self._plans:
            return None
        made, known, trained, moving, plan = self._plans[index]
        if made != chosen or not same(known, params) or list(map(_trained, params)) != trained:
            return None
        return moving, plan

    def keep_plan(
        self, index: int, chosen: object, params: list[Tensor], moving: list[Tensor], plan: Plan
    ) -> None:
        self._plans[index] = chosen, list(params), list(map(_trained, params)), moving, plan


class Apart:
    """Checks that no plan of several that step one after the other writes what another one reads or writes."""

    def __init__(self) -> None:
        self._operands: list[Operands] = []
        self._spans = spans([])
        self._sizes = np.zeros(0, dtype=np.uint64)
        self._addresses: list[npt.NDArray[np.int64]] = []

    def check(self, plans: Sequence[tuple[str, Operands, Gradients]]) -> None:
        """Raises if any does; with each comes its name."""
        operands, addresses = [o for _, o, _ in plans], [g.addresses for _, _, g in plans]
        if not same(operands, self._operands):
            self._operands, self._addresses = [], []
            self._in_full([(name, o, None) for name, o, _ in plans])
            self._spans = spans([t for o in operands for _, t in o.written])
            self._sizes = np.array([p.nbytes for o in operands for p in o.params], dtype=np.uint64)
            self._operands = operands
        if not same(addresses, self._addresses):
            self._addresses = []
            if touches(self._spans, np.concatenate(addresses).view(np.uint64), self._sizes):
                self._in_full(plans)
            self._addresses = addresses

    def _in_full(self, plans: Sequence[tuple[str, Operands, Gradients | None]]) -> None:
        written, read = [], []
        for name, operands, grads in plans:
            written += [(f"{name} {own}", t) for own, t in operands.written]
            read += [(f"{name} {own}", t) for own, t in operands.read]
            read += [(f"{name} grads[{i}]", g) for i, g in enumerate(grads or ()) if g is not None]
        check_memory(written, read)
