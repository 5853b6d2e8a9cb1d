"""What an optimizer's last step was made of: as long as nothing of it has changed, it is not worked out again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter, is_
from typing import Any

from torch import Tensor

from ..plan import Plan
from ..scalars import Scalars

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
        if known is not None and _same(known[0], values):
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
        """Forget the plans if other tensors than before are kept for any parameter."""
        kept = [value for own in state.values() for value in own.values()]
        if not _same(kept, self._kept):
            self._kept = kept
            self._plans = {}

    def known_plan(
        self, index: int, chosen: object, params: list[Tensor]
    ) -> tuple[list[Tensor], Plan] | None:
        """What moves of a group, and its plan. chosen: what else the plan was made of."""
        if index not in self._plans:
            return None
        same, known, trained, moving, plan = self._plans[index]
        if same != chosen or not _same(known, params) or list(map(_trained, params)) != trained:
            return None
        return moving, plan

    def keep_plan(
        self, index: int, chosen: object, params: list[Tensor], moving: list[Tensor], plan: Plan
    ) -> None:
        self._plans[index] = chosen, list(params), list(map(_trained, params)), moving, plan


def _same(a: Sequence[object], b: Sequence[object]) -> bool:
    """Whether they hold the same objects."""
    return len(a) == len(b) and all(map(is_, a, b))
