"""What the samplers have in common as torch.optim.Optimizers: groups, state, steps, metrics, saving and loading."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._compile import _disable_dynamo

from .. import backends
from ..checks import check_noise, check_param, check_state
from ..errors import ArgumentError, ArgumentTypeError, ComponentError, LlcFastError
from ..kept import refusal, start
from ..metrics import Metrics, metrics
from ..plan import Plan
from ..samplers import find
from ..scalars import MAX_STEP, Scalars, check_integer, check_stream
from ..shard import local, prepare, refuse_unsharded
from ..steady import same
from ..sums import COLUMNS
from ..tiles import check_memory, pack
from ..types import Box, Selection
from .chosen import chosen_boxes, given_masks, moving_tiles, tensor_ids
from .memo import Apart, Memo
from .saved import FORMAT, SAME, guarded
from .sketches import Sketches

SCALARS = ("lr", "nbeta", "localization", "weight_decay", "noise_level")
SETTINGS = (*SCALARS, "bounding_box_size", "seed", "chain", "step", *SAME)


class Langevin(torch.optim.Optimizer):
    """Base of the samplers; groups hold numbers and names only, tensors are in the state."""

    def __init__(
        self,
        params: Iterable[Any],
        defaults: dict[str, Any],
        *,
        seed: int,
        chain: int,
        backend: str,
        state: str,
        noise: str,
        mask: Any = None,
        save_metrics: bool = False,
        sketch_dim: int | None = None,
        sketch_seed: int = 0,
        selection: Selection | None = None,
    ) -> None:
        defaults |= {"seed": seed, "chain": chain, "step": 0, "format": FORMAT}
        defaults |= {"state": check_state(state), "noise": check_noise(noise)}
        defaults["component"] = selection.component if isinstance(selection, Selection) else None
        self._checked(defaults, self._own(defaults))
        self._backend = backends.check_name(backend)
        if backend != "auto":
            backends.load(backend)
        if not isinstance(selection, Selection | None):
            raise ArgumentTypeError(
                f"selection is a {type(selection).__name__}: give what llc_fast.select returned"
            )
        if sketch_dim is not None:
            check_integer("sketch_dim", sketch_dim, minimum=1)
        if defaults["noise_level"] != 1.0:
            warnings.warn(
                f"noise_level is {defaults['noise_level']}, not 1: the chain does not sample the posterior",
                stacklevel=3,
            )
        if defaults["nbeta"] == 1.0:
            warnings.warn(
                "nbeta is 1, which is seldom meant: it multiplies the mean loss, n / log n is usual",
                stacklevel=3,
            )
        self.save_metrics = bool(save_metrics)
        self.notes: list[str] = []
        self._selection, self._mask = selection, mask
        self._chosen: dict[Tensor, tuple[Box, ...]] = {}
        self._fresh()
        if isinstance(params, Tensor | dict):
            params = [params]
        with _ours("params"):
            super().__init__(params, defaults)
        if selection is not None and not self._chosen:
            raise ComponentError(
                f"{selection.component!r} selects none of the given parameters: give model.named_parameters()"
            )
        self._sketches = None
        if sketch_dim is not None:
            self._sketches = Sketches(self.param_groups, sketch_dim, sketch_seed)
        self.save_sketches = self._sketches is not None

    def _fresh(self) -> None:
        """Forget what is rebuilt where missing."""
        self._plans: dict[int, tuple[tuple[object, ...], list[Tensor], Plan]] = {}
        self._apart = Apart()
        self._last: dict[int, tuple[Plan, Scalars]] = {}
        self._memo = Memo()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds parameters, with the weights they have now as their anchors; `mask` as for the constructor."""
        if any(group["step"] for group in self.param_groups):
            raise ArgumentError(
                "param_group comes after the first step: noise is counted over all parameters"
            )
        mask = self._mask
        if isinstance(param_group, dict):
            param_group = dict(param_group)
            mask = param_group.pop("mask", self._mask)
        with _ours("params"):
            super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            scalars = self._scalars(group)
            for i, p in enumerate(group["params"]):
                check_param(i, p)
            every = [p for g in self.param_groups for p in g["params"]]
            refuse_unsharded(every)
            check_memory([(f"params[{i}]", local(p)) for i, p in enumerate(every)], [])
            tensor_ids(self.param_groups, self._selection)
            chosen = chosen_boxes(group, self._selection)
            given = given_masks(mask, group["params"])
            self._chosen |= chosen
            group["rounded"] = scalars.lr * scalars.noise_level**2
            self._start(group, given, scalars)
        except Exception:
            self.param_groups.pop()
            raise

    def _start(self, group: dict[str, Any], given: list[Tensor | None], scalars: Scalars) -> None:
        sampler = find(group["sampler"])
        names = group.get("param_names") or [f"params[{i}]" for i in range(len(group["params"]))]
        notes, states = [], {}
        for name, p, mask in zip(names, group["params"], given, strict=True):
            if self._selection is not None and p not in self._chosen:
                continue
            if self._selection is not None and mask is not None:
                raise ArgumentError("mask and selection are both given: give one of them")
            kept, note = start(name, p, sampler, group["state"], scalars.lr, scalars.noise_level)
            if mask is not None:
                kept["mask"] = pack(mask.to(p.device))
            states[p] = kept
            notes += [note] if note else []
        if sampler.thermostat and states:  # one a group: it is kept with the first parameter
            first = next(iter(states))
            friction = float(scalars.friction or 0.0)
            states[first]["thermostat"] = torch.full((1,), friction, dtype=torch.float64, device=first.device)
        for p in group["params"]:  # each has a state, which torch.distributed.checkpoint misses otherwise
            self.state[p] = states.get(p, {})
        self._tell(notes, 5)

    def _tell(self, notes: list[str], level: int) -> None:
        """Keep notes, and warn once of them all."""
        self.notes += notes
        if notes:
            more = f", and {len(notes) - 1} more in .notes" if len(notes) > 1 else ""
            warnings.warn(notes[0] + more, stacklevel=level + 1)

    def _cool(self, group: dict[str, Any], scalars: Scalars) -> None:
        """Split what stochastic rounding would heat, now that a step has less noise than any before."""
        noise = scalars.lr * scalars.noise_level**2
        if group["state"] != "sr" or noise >= group["rounded"]:
            return
        names = group.get("param_names") or [f"params[{i}]" for i in range(len(group["params"]))]
        notes = []
        for name, p in zip(names, group["params"], strict=True):
            kept = self.state[p]
            if p.dtype != torch.bfloat16 or "remainder" in kept or "anchor" not in kept:
                continue
            sampler = find(group["sampler"])
            note = refusal(name, kept["anchor"], sampler, scalars.lr, scalars.noise_level)
            if note is not None:
                kept["remainder"] = torch.zeros_like(kept["anchor"], dtype=torch.int16)
                notes.append(note)
        group["rounded"] = noise
        self._tell(notes, 4)

    def _follow(self) -> None:
        """Count the steps that CUDA graphs have made."""
        for index, group in enumerate(self.param_groups):
            if index in self._plans:
                group["step"] = max(group["step"], self._plans[index][-1].next_step())

    def state_dict(self) -> dict[str, Any]:
        """Everything but the weights, see PyTorch's; reads the step number back where CUDA graphs have made steps."""
        self._follow()
        return super().state_dict()

    @_disable_dynamo  # compiled code breaks off here, as it does for PyTorch's own; `ops` are what it takes in
    @torch.no_grad()
    def step(
        self, closure: Callable[[], Any] | None = None, noise_generator: torch.Generator | None = None
    ) -> Any:
        """One update of every group; returns what `closure`, which recomputes the loss, returned.

        noise_generator: gives this step's seed instead of the group's, by one draw from it.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            check_integer("step", group["step"])
        self._follow()
        ids = self._memo.ids(self.param_groups, lambda: tensor_ids(self.param_groups, self._selection))
        work = []
        seed = None if noise_generator is None else _seed_from(noise_generator)
        numbers = []
        for group in self.param_groups:  # all groups are checked before one is written
            numbers.append(self._scalars(group))
            self._cool(group, numbers[-1])
            if group["step"] > MAX_STEP:
                raise ArgumentError(
                    f"step is {group['step']}: a chain has at most 2^32 updates, start another"
                )
        self._memo.look(self.state)
        for index, (group, scalars) in enumerate(zip(self.param_groups, numbers, strict=True)):
            moving, plan = self._moving(index, group, ids[index], seed)
            if plan is not None:
                grads = plan.check([p.grad for p in moving], scalars)
                work.append((index, plan, grads, scalars, group["step"]))
        if len(work) > 1:
            self._apart.check([(f"param_groups[{i}]", plan.operands, grads) for i, plan, grads, _, _ in work])
        if self._sketches is not None:
            self._sketches.take([(plan, grads, scalars, step) for _, plan, grads, scalars, step in work])
        self._last = {}
        try:
            for index, plan, grads, scalars, step in work:
                plan.run(grads, scalars, step)
                self._last[index] = (plan, scalars)
        finally:  # a step that overflowed was made: its noise must not come again
            for group in self.param_groups:
                group["step"] += 1
        return loss

    def iter_group_metrics(self) -> Iterator[Metrics]:
        """The metrics of the last step of each group, on its device; needs save_metrics=True."""
        if not self.save_metrics:
            raise ArgumentError("metrics were not asked for: construct the sampler with save_metrics=True")
        for index, group in enumerate(self.param_groups):
            plan, scalars = self._last.get(index, (None, self._scalars(group)))
            total = torch.zeros(COLUMNS, dtype=torch.float64)
            if plan is not None:
                total = plan.totals().sum(dim=0)
            yield metrics(total, scalars, find(group["sampler"]))

    def get_metrics(self) -> Metrics:
        """The metrics of the last step over all groups, on the CPU; needs save_metrics=True."""
        return Metrics.aggregate(self.iter_group_metrics())

    def get_sketches(self) -> Any:
        """Count sketches of the parts of the last step, on the CPU; needs sketch_dim."""
        if self._sketches is None:
            raise ArgumentError("sketches were not asked for: construct the sampler with sketch_dim")
        return self._sketches.buffer()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores a chain: anchors, remainders, buffers and step numbers; the weights are the caller's to restore."""
        with _ours("state_dict"), guarded(self, state_dict, lambda group: (*SETTINGS, *self._own(group))):
            super().load_state_dict(state_dict)

    def __getstate__(self) -> dict[str, Any]:
        own = (
            "_backend",
            "save_metrics",
            "save_sketches",
            "notes",
            "_selection",
            "_sketches",
            "_mask",
            "_chosen",
        )
        return super().__getstate__() | {name: getattr(self, name) for name in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._fresh()
        super().__setstate__(state)

    def _own(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        """Names in a group of what its sampler alone has, in the order of `Sampler.settings`."""
        return find(group["sampler"]).settings

    def _scalars(self, group: Mapping[str, Any]) -> Scalars:
        """The group's numbers, checked."""
        names = self._own(group)
        every = ("sampler", "seed", "chain", "bounding_box_size", *SCALARS, *names)
        return self._memo.scalars(group, every, lambda: self._checked(group, names))

    def _checked(self, group: Mapping[str, Any], names: tuple[str, ...]) -> Scalars:
        if "nbeta" not in group:
            raise ArgumentTypeError("nbeta is missing: give it, there is no default")
        check_stream(seed=group["seed"], chain=group["chain"])
        own = dict(zip(find(group["sampler"]).settings, (group[name] for name in names), strict=True))
        if "friction" in own:
            own["friction_name"] = names[0]
        return Scalars.check(
            **{name: group[name] for name in SCALARS},
            **own,
            box=group["bounding_box_size"],
            box_name="bounding_box_size",
        )

    def _moving(
        self, index: int, group: dict[str, Any], ids: list[int], seed: int | None
    ) -> tuple[list[Tensor], Plan | None]:
        """The parameters of a group that move, and their plan; None if there are none."""
        seed = group["seed"] if seed is None else seed
        settings = group["chain"], group["noise"], group["state"], group["sampler"], self.save_metrics
        chosen = seed, *settings, ids
        known = self._memo.known_plan(index, chosen, group["params"])
        if known is not None:
            return known
        moving = [(p, i) for p, i in zip(group["params"], ids, strict=True) if p.requires_grad]
        if self._selection is not None:
            moving = [(p, i) for p, i in moving if p in self._chosen]
        params = [p for p, _ in moving]
        if not moving:
            return params, None
        plan = self._plan(index, group, moving, seed)
        self._memo.keep_plan(index, chosen, group["params"], params, plan)
        return params, plan

    def _plan(self, index: int, group: dict[str, Any], moving: list[tuple[Tensor, int]], seed: int) -> Plan:
        states = [self.state[p] for p, _ in moving]
        tensors = [t for (p, _), s in zip(moving, states, strict=True) for t in (p, *s.values())]
        chosen = seed, group["chain"], group["noise"], group["state"], group["sampler"], self.save_metrics
        stamp = (*chosen, *(i for _, i in moving), *(name for s in states for name in s))
        known = self._plans.get(index)
        if known is None or known[0] != stamp or not same(known[1], tensors):
            sampler = find(group["sampler"])
            params = [p for p, _ in moving]
            tiles, bits = moving_tiles(
                params,
                None if self._selection is None else [self._chosen[p] for p in params],
                [s.get("mask") for s in states],
            )
            plan = prepare(
                params,
                [s["anchor"] for s in states],
                sampler=sampler.name,
                remainders=[s.get("remainder") for s in states],
                buffers=[s.get(sampler.buffer or "") for s in states],
                masks=bits,
                tensor_ids=[i for _, i in moving],
                tiles=tiles,
                seed=seed,
                chain=group["chain"],
                state=group["state"],
                noise=group["noise"],
                thermostat=self._thermostat(group),
                sums=self.save_metrics,
                backend=self._backend,
            )
            known = self._plans[index] = stamp, tensors, plan
        return known[-1]

    def _thermostat(self, group: dict[str, Any]) -> Tensor | None:
        kept = (self.state[p].get("thermostat") for p in group["params"] if p in self.state)
        return next((t for t in kept if t is not None), None)


def _seed_from(generator: object) -> int:
    if not isinstance(generator, torch.Generator):
        raise ArgumentTypeError(
            f"noise_generator is a {type(generator).__name__}: give a torch.Generator, or seed= at construction"
        )
    return int(torch.randint(2**63 - 1, (), generator=generator, device=generator.device))


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
