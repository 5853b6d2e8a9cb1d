"""SGLD as a torch.optim.Optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from . import backends
from .errors import ArgumentError, ArgumentTypeError, LlcFastError
from .functional import plain_name
from .plan import Plan, check_param
from .scalars import MAX_STEP, Scalars, check_stream
from .tiles import check_memory

_SCALARS = ("lr", "nbeta", "localization", "weight_decay", "noise_level")
_SETTINGS = (*_SCALARS, "bounding_box_size", "seed", "chain", "step")


class SGLD(torch.optim.Optimizer):
    """Stochastic gradient Langevin dynamics, localized at the weights it is constructed with.

    w <- w - lr/2 (nbeta g + weight_decay w + localization (w - w0)) + sqrt(lr) noise_level z, clamped to
    w0 +- bounding_box_size if that is given (Welling & Teh 2011; Lau et al. 2023, arXiv 2308.12108).

    params: tensors, (name, tensor) pairs, or groups of either. Names, where all have one, count the noise by
    their sorted order, else positions do: give all of a model's parameters. lr: step size eps. nbeta: inverse
    temperature times sample size, required. seed, chain: unsigned 64-bit, the noise's only source. Parameters
    with requires_grad=False stay; ones without a gradient move by prior and noise. bf16 parameters get an int16
    remainder in the state, without which the chain would freeze.
    Raises ArgumentError and ArgumentTypeError naming the argument.

    >>> layer = torch.nn.Linear(2, 2)
    >>> sampler = SGLD(layer.named_parameters(), lr=1e-4, nbeta=30.0, localization=100.0, seed=7)
    >>> layer(torch.ones(1, 2)).sum().backward()
    >>> sampler.step()
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.01,
        *,
        nbeta: float,
        localization: float = 0.0,
        weight_decay: float = 0.0,
        noise_level: float = 1.0,
        bounding_box_size: float | None = None,
        seed: int = 0,
        chain: int = 0,
        backend: str = "auto",
    ) -> None:
        defaults = {
            "lr": lr,
            "nbeta": nbeta,
            "localization": localization,
            "weight_decay": weight_decay,
            "noise_level": noise_level,
            "bounding_box_size": bounding_box_size,
            "seed": seed,
            "chain": chain,
            "step": 0,
        }
        _check(defaults)
        self._backend = backends.check_name(backend)
        if backend != "auto":
            backends.load(backend)
        self._plans: dict[int, tuple[tuple[int, ...], Plan]] = {}
        with _ours("params"):
            super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds parameters, with the weights they have now as their anchors."""
        if any(group["step"] for group in self.param_groups):
            raise ArgumentError(
                "param_group comes after the first step: noise is counted over all parameters"
            )
        with _ours("params"):
            super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            _check(group)
            for i, p in enumerate(group["params"]):
                check_param(i, p)
            every = [p for g in self.param_groups for p in g["params"]]
            check_memory([(f"params[{i}]", p) for i, p in enumerate(every)], [])
            self._tensor_ids()
        except Exception:
            self.param_groups.pop()
            raise
        for p in group["params"]:
            self.state[p] = self._start(p)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every group; returns what `closure`, which recomputes the loss, returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        ids = self._tensor_ids()
        work = []
        for index, group in enumerate(self.param_groups):  # all groups are checked before one is written
            scalars = _check(group)
            if group["step"] > MAX_STEP:
                raise ArgumentError(
                    f"step is {group['step']}: a chain has at most 2^32 updates, start another"
                )
            moving = [(p, i) for p, i in zip(group["params"], ids[index], strict=True) if p.requires_grad]
            if moving:
                plan = self._plan(index, group, moving)
                work.append((plan, plan.check([p.grad for p, _ in moving], scalars), scalars, group["step"]))
        for plan, grads, scalars, step in work:
            plan.run(grads, scalars, step)
        for group in self.param_groups:
            group["step"] += 1
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores a chain: anchors, remainders and step numbers; the weights are the caller's to restore."""
        self._check_saved(state_dict)
        with _ours("state_dict"):
            super().load_state_dict(state_dict)
        index = [i for group in state_dict["param_groups"] for i in group["params"]]
        params = [p for group in self.param_groups for p in group["params"]]
        for i, p in zip(index, params, strict=True):  # torch casts to the parameter's dtype: int16 is ruined
            saved = state_dict["state"].get(i, {}).get("remainder")
            if saved is not None:
                self.state[p]["remainder"] = saved.to(p.device, copy=True)
        self._plans.clear()

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_backend": self._backend}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._plans = {}
        super().__setstate__(state)

    def _check_saved(self, state_dict: dict[str, Any]) -> None:
        """Raise unless it is an SGLD's state over the same parameters, by name where they have names."""
        remedy = "give what state_dict() of an SGLD over the same parameters returned"
        if not isinstance(state_dict, dict) or not {"state", "param_groups"} <= state_dict.keys():
            raise ArgumentTypeError(f"state_dict is a {type(state_dict).__name__} without a state: {remedy}")
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=False):
            missing = [name for name in _SETTINGS if name not in saved]
            if missing:
                raise ArgumentError(f"state_dict has no {missing[0]!r} in a group: {remedy}")
            names = [[plain_name(n) for n in g.get("param_names", [])] for g in (group, saved)]
            if names[0] and names[0] != names[1]:
                raise ArgumentError(f"state_dict names other parameters, or in another order: {remedy}")
            for i, p in zip(saved["params"], group["params"], strict=False):
                have, want = state_dict["state"].get(i, {}), self.state[p]
                for name, t in want.items():
                    if name not in have or have[name].shape != t.shape or have[name].dtype != t.dtype:
                        raise ArgumentError(f"state_dict has no {name} that fits parameter {i}: {remedy}")

    def _start(self, p: Tensor) -> dict[str, Tensor]:
        state = {"anchor": p.detach().clone(memory_format=torch.contiguous_format)}
        if p.dtype == torch.bfloat16:
            state["remainder"] = torch.zeros(p.shape, dtype=torch.int16, device=p.device)
        return state

    def _plan(self, index: int, group: dict[str, Any], moving: list[tuple[Tensor, int]]) -> Plan:
        states = [self.state[p] for p, _ in moving]
        tensors = [t for (p, _), s in zip(moving, states, strict=True) for t in (p, *s.values())]
        stamp = (group["seed"], group["chain"], *(i for _, i in moving), *(id(t) for t in tensors))
        if index not in self._plans or self._plans[index][0] != stamp:
            plan = Plan(
                [p for p, _ in moving],
                [s["anchor"] for s in states],
                remainders=[s.get("remainder") for s in states],
                tensor_ids=[i for _, i in moving],
                seed=group["seed"],
                chain=group["chain"],
                backend=self._backend,
            )
            self._plans[index] = (stamp, plan)
        return self._plans[index][1]

    def _tensor_ids(self) -> list[list[int]]:
        """The tensor_id of every parameter, group by group."""
        sizes = [len(group["params"]) for group in self.param_groups]
        names = [plain_name(n) for group in self.param_groups for n in group.get("param_names", [])]
        flat = list(range(sum(sizes)))
        if len(names) == len(flat):
            if len(set(names)) != len(names):
                raise ArgumentError("params has a name twice: give each parameter once, under its own name")
            rank = {name: i for i, name in enumerate(sorted(names))}
            flat = [rank[name] for name in names]
        ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
        return [flat[end - size : end] for end, size in zip(ends, sizes, strict=True)]


@contextmanager
def _ours(name: str) -> Iterator[None]:
    """What PyTorch says about an argument, as an error of ours that names it."""
    try:
        yield
    except LlcFastError:
        raise
    except TypeError as e:
        raise ArgumentTypeError(f"{name}: {e}") from e
    except (KeyError, ValueError) as e:
        raise ArgumentError(f"{name}: {e}") from e


def _check(group: dict[str, Any]) -> Scalars:
    if "nbeta" not in group:
        raise ArgumentTypeError("nbeta is missing: give it, there is no default")
    check_stream(seed=group["seed"], chain=group["chain"])
    return Scalars.check(
        **{name: group[name] for name in _SCALARS},
        box=group["bounding_box_size"],
        box_name="bounding_box_size",
    )
