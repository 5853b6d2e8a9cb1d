"""State dicts of the samplers: what makes one fit, and what PyTorch's loading would spoil."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from ..errors import ArgumentError, ArgumentTypeError
from ..functional import plain_name

FORMAT = 1  # of a state dict; another one is refused
SAME = ("sampler", "state", "noise", "component", "format")

Settings = Callable[[Mapping[str, Any]], tuple[str, ...]]  # names of what a group must have


@contextmanager
def guarded(sampler: Optimizer, state_dict: object, settings: Settings) -> Iterator[None]:
    """While PyTorch loads a state dict: refuse one that does not fit, and keep the dtypes of one that does.

    After the hooks of others that adapt what is loaded, and before those that look at what was.
    """
    _check_dict(sampler, state_dict)
    seen: dict[str, Any] = {}

    def check(_: Optimizer, adapted: dict[str, Any]) -> None:
        _check_dict(sampler, adapted)
        _check(sampler, adapted, settings)
        seen.update(adapted)

    hooks = [
        sampler.register_load_state_dict_pre_hook(check),
        sampler.register_load_state_dict_post_hook(lambda _: _restore(sampler, seen), prepend=True),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _remedy(sampler: Optimizer) -> str:
    return f"give what state_dict() of a {type(sampler).__name__} over the same parameters returned"


def _check_dict(sampler: Optimizer, state_dict: object) -> None:
    if not isinstance(state_dict, dict) or not {"state", "param_groups"} <= state_dict.keys():
        kind = type(state_dict).__name__
        raise ArgumentTypeError(f"state_dict is a {kind} without a state: {_remedy(sampler)}")


def _check(sampler: Optimizer, state_dict: dict[str, Any], settings: Settings) -> None:
    """Raise unless it is the state of such a sampler over the same parameters, by name where they have names."""
    remedy = _remedy(sampler)
    for group, saved in zip(sampler.param_groups, state_dict["param_groups"], strict=False):
        missing = [name for name in ("params", *settings(group)) if name not in saved]
        if missing:
            raise ArgumentError(f"state_dict has no {missing[0]!r} in a group: {remedy}")
        for name in SAME:
            if saved[name] != group[name]:
                raise ArgumentError(
                    f"state_dict has {name} {saved[name]!r}, expected {group[name]!r}: {remedy}"
                )
        names = [[plain_name(n) for n in g.get("param_names", [])] for g in (group, saved)]
        if names[0] and names[0] != names[1]:
            raise ArgumentError(f"state_dict names other parameters, or in another order: {remedy}")
        for i, p in zip(saved["params"], group["params"], strict=False):
            have, want = state_dict["state"].get(i, {}), sampler.state.get(p, {})
            for name, t in want.items():
                if not _fits(have.get(name), t):
                    raise ArgumentError(f"state_dict has no {name} that fits parameter {i}: {remedy}")
            later = {"remainder"} if group["state"] == "sr" else set()  # where lr was lowered since
            extra = sorted(have.keys() - want.keys() - later)
            if extra:
                raise ArgumentError(f"state_dict has a {extra[0]} for parameter {i}, expected none: {remedy}")


def _fits(value: object, t: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == t.shape and value.dtype == t.dtype


def _restore(sampler: Optimizer, state_dict: dict[str, Any]) -> None:
    """Undo PyTorch's casting of state to the parameters' dtype, which ruins remainders, masters and counters."""
    index = [i for group in state_dict["param_groups"] for i in group["params"]]
    params = [p for group in sampler.param_groups for p in group["params"]]
    for i, p in zip(index, params, strict=True):
        for name, value in state_dict["state"].get(i, {}).items():
            sampler.state[p][name] = value.detach().to(p.device, copy=True)
