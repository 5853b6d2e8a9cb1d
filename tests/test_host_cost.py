"""What a step costs the host: no call a tensor while nothing changes, and all of the checks once something does."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from llc_fast import SGLD, RMSpropSGLD, functional, steady
from llc_fast.errors import LlcFastError
from llc_fast.plan import Plan
from llc_fast.scalars import Scalars

SETTINGS = {"lr": 1e-3, "nbeta": 30.0, "localization": 5.0}
Outcome = tuple[object, ...]


class Operands:
    """Those of a plan of bf16 and fp32 matrices with remainders and buffers, the same at each construction."""

    def __init__(self, tensors: int = 4) -> None:
        generator = torch.Generator().manual_seed(1)
        dtypes = [(torch.bfloat16, torch.float32)[i % 2] for i in range(tensors)]

        def draw() -> list[Tensor]:
            return [torch.randn(4, 4, generator=generator).to(dtype) for dtype in dtypes]

        self.params, self.grads, self.anchors = [nn.Parameter(t) for t in draw()], draw(), draw()
        self.remainders = [
            torch.zeros(4, 4, dtype=torch.int16) if dtype == torch.bfloat16 else None for dtype in dtypes
        ]
        self.buffers = [torch.ones(4, 4) for _ in dtypes]
        self.scalars = Scalars.check(**SETTINGS, alpha=0.9, eps=0.1)

    def plan(self) -> Plan:
        kept = {"remainders": self.remainders, "buffers": self.buffers}
        return Plan(self.params, self.anchors, sampler="rmsprop_sgld", **kept, seed=3)

    def tensors(self) -> list[Tensor]:
        kept = [t for t in (*self.remainders, *self.buffers) if t is not None]
        return [t.detach().clone() for t in (*self.params, *kept)]


def outcome(operands: Operands, step: Callable[[], object]) -> Outcome:
    """What a step did: its error, and all that it may write."""
    error: object = None
    try:
        step()
    except LlcFastError as e:
        error = type(e), str(e)
    return error, operands.tensors()


def equal(a: Outcome, b: Outcome) -> bool:
    pairs = zip(a[1], b[1], strict=True)
    return a[0] == b[0] and all(
        torch.equal(s.reshape(-1).view(torch.uint8), t.reshape(-1).view(torch.uint8)) for s, t in pairs
    )


def set_grad(i: int, change: Callable[[Tensor], Any]) -> Callable[[Operands], None]:
    def apply(operands: Operands) -> None:
        operands.grads[i] = change(operands.grads[i])

    return apply


def set_data(name: str, i: int, change: Callable[[Tensor], Tensor]) -> Callable[[Operands], None]:
    def apply(operands: Operands) -> None:
        t = getattr(operands, name)[i]
        t.data = change(t.data)

    return apply


# Whether a step is refused after the change, and the change.
CHANGES: dict[str, tuple[bool, Callable[[Operands], None]]] = {
    "gradient moved": (False, set_grad(1, lambda g: g.clone())),
    "gradient None": (False, set_grad(1, lambda g: None)),
    "gradient transposed in place": (False, set_grad(1, lambda g: g.t())),
    "gradient expanded in place": (False, set_grad(1, lambda g: g.as_strided((4, 4), (0, 1)))),
    "gradient negated in place": (False, set_grad(1, torch._neg_view)),
    "gradient requires a gradient": (False, set_grad(1, lambda g: g.requires_grad_())),
    "gradient of another class": (False, set_grad(1, lambda g: nn.Parameter(g))),
    "gradients exchanged": (False, lambda o: o.grads.__setitem__(slice(None), o.grads[2:] + o.grads[:2])),
    "gradient used twice": (False, lambda o: o.grads.__setitem__(3, o.grads[1])),
    "gradient of another dtype in place": (True, set_grad(1, lambda g: g.view(torch.int32))),
    "gradient of another shape in place": (True, set_grad(1, lambda g: g.view(16))),
    "gradient elsewhere": (True, set_grad(1, lambda g: g.to("meta"))),
    "gradient sparse": (True, set_grad(1, lambda g: g.to_sparse())),
    "gradient no tensor": (True, set_grad(1, lambda g: "g")),
    "gradient a parameter": (True, lambda o: o.grads.__setitem__(1, o.params[1].detach())),
    "gradient in a remainder": (
        True,
        lambda o: o.grads.__setitem__(0, o.remainders[2].view(torch.bfloat16)),  # type: ignore[union-attr]
    ),
    "gradient missing": (True, lambda o: o.grads.pop()),
    "param moved": (False, set_data("params", 1, Tensor.clone)),
    "param refilled elsewhere": (False, set_data("params", 0, lambda t: t + 1)),
    "param transposed in place": (True, set_data("params", 1, lambda t: t.t())),
    "param reshaped in place": (True, set_data("params", 1, lambda t: t.view(16))),
    "param of another dtype in place": (True, set_data("params", 0, lambda t: t.view(torch.float16))),
    "param negated in place": (True, set_data("params", 1, torch._neg_view)),
    "param in another's place": (True, lambda o: setattr(o.params[3], "data", o.params[1].data)),
    "anchor moved": (False, set_data("anchors", 1, lambda t: t + 1)),
    "anchor in a param's place": (True, lambda o: setattr(o.anchors[3], "data", o.params[1].data)),
    "remainder moved": (False, set_data("remainders", 0, lambda t: t + 5)),
    "remainder transposed in place": (True, set_data("remainders", 0, lambda t: t.t())),
    "remainder of another dtype in place": (True, set_data("remainders", 0, lambda t: t.view(torch.float16))),
    "buffer moved": (False, set_data("buffers", 1, lambda t: t + 1)),
    "buffer in an anchor's place": (True, lambda o: setattr(o.buffers[1], "data", o.anchors[1].data)),
    "param frozen": (False, lambda o: o.params[1].requires_grad_(False)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_step_after_a_change_is_that_of_a_new_plan(name: str, facts: str):
    refused, change = CHANGES[name]
    ends = []
    for anew in (False, True):
        operands = Operands()
        plan = operands.plan()
        for step in range(3):
            plan.step(operands.grads, operands.scalars, step)
        change(operands)

        def make(operands: Operands = operands, plan: Plan = plan, anew: bool = anew) -> None:
            (operands.plan() if anew else plan).step(operands.grads, operands.scalars, 3)

        before = operands.tensors()
        ends.append(outcome(operands, make))
        if refused:
            assert equal((ends[-1][0], before), ends[-1]), "something was written"
            assert equal(ends[-1], outcome(operands, make)), "it is taken at the second time"
    assert (ends[0][0] is not None) == refused
    assert equal(*ends)


def test_changes_come_and_go(facts: str):
    """A gradient that is None, elsewhere, uneven or a param in some steps, against plans made anew for each step."""
    ways = ("same", "gradient None", "gradient moved", "gradient a parameter", "gradient transposed in place")
    order = [ways[i] for i in (0, 1, 0, 3, 0, 2, 4, 4, 1, 1, 3, 2, 0)]
    ends = []
    for anew in (False, True):
        operands = Operands()
        plan, found = operands.plan(), []
        first = list(operands.grads)
        for step, way in enumerate(order):
            operands.grads = list(first)
            if way != "same":
                CHANGES[way][1](operands)
            plan = operands.plan() if anew else plan
            found.append(outcome(operands, lambda p=plan, o=operands, n=step: p.step(o.grads, o.scalars, n)))
        ends.append(found)
    assert all(equal(*pair) for pair in zip(*ends, strict=True))
    assert [error is not None for error, _ in ends[0]] == [way == "gradient a parameter" for way in order]


def test_the_same_addresses_for_other_tensors(facts: str):
    ends = []
    for anew in (False, True):
        params = [torch.ones(2) for _ in range(2)]
        g, scalars = torch.ones(2), Scalars.check(lr=0.1, nbeta=1.0, noise_level=0.0)
        plan = Plan(params, None, seed=0)
        plan.step([g, None], scalars, 0)
        plan = Plan(params, None, seed=0) if anew else plan
        plan.step([None, g], scalars, 1)
        ends.append(params)
    assert all(map(torch.equal, *ends))
    assert torch.equal(*ends[0])  # each has moved once


def test_a_negated_view_is_read_as_what_it_says(facts: str):
    ends = []
    for negate in (torch._neg_view, torch.neg):
        operands = Operands()
        operands.grads, operands.anchors = (
            [negate(t) for t in ts] for ts in (operands.grads, operands.anchors)
        )
        plan = operands.plan()
        for step in range(2):
            plan.step(operands.grads, operands.scalars, step)
        ends.append((None, operands.tensors()))
    assert equal(*ends)


@pytest.mark.parametrize("last", [255, 256, 300])
def test_the_last_of_many_tensors_is_looked_at(last: int):
    params = [torch.ones(2) for _ in range(last + 1)]
    grads = [torch.ones(2) for _ in params]
    scalars = Scalars.check(lr=1e-3, nbeta=1.0)
    plan = Plan(params, None, seed=0)
    for step in range(2):
        plan.step(grads, scalars, step)
    with pytest.raises(LlcFastError, match=rf"grads\[{last}\] has shape"):
        plan.step([*grads[:-1], torch.ones(1)], scalars, 2)
    with pytest.raises(LlcFastError, match=rf"grads\[{last}\] share memory"):
        plan.step([*grads[:-1], params[0]], scalars, 2)
    params[-1].data = params[-1].data.view(2, 1)
    with pytest.raises(LlcFastError, match=rf"grads\[{last}\] has shape"):
        plan.step(grads, scalars, 2)


class Counts:
    """How often the full checks run."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: dict[str, int] = {}
        places = ((steady, "check_like"), (steady, "touches"), (Plan, "_place"))
        for owner, name in places:
            monkeypatch.setattr(owner, name, self._counted(name, getattr(owner, name)))

    def _counted(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any) -> Any:
            self.seen[name] = self.seen.get(name, 0) + 1
            return call(*arguments)

        return counted

    def take(self) -> dict[str, int]:
        seen, self.seen = self.seen, {}
        return seen


def test_what_has_not_changed_is_not_checked_again(monkeypatch: pytest.MonkeyPatch, facts: str):
    operands = Operands()
    plan = operands.plan()
    counts, groups = Counts(monkeypatch), plan.groups

    def step() -> dict[str, int]:
        plan.step(operands.grads, operands.scalars, 0)
        return counts.take()

    assert step() == {"check_like": 4, "touches": 1}  # the first one
    assert step() == {}
    operands.grads = [g.clone() for g in operands.grads]
    assert step() == {"touches": 1}
    operands.grads[2] = None
    assert step() == {"check_like": 3, "touches": 1}
    assert step() == {}
    operands.grads[1] = operands.grads[1].t()
    assert step() == {"check_like": 3, "touches": 1}
    assert step().keys() <= {"touches"}  # it is copied, perhaps to the same place
    operands.grads[1] = operands.grads[1].t()
    step()
    operands.params[0].requires_grad_(False)
    assert step() == {}
    with torch.autocast("cpu"):
        assert step().keys() <= {"check_like", "touches"}
    assert step().keys() <= {"check_like", "touches"}
    with torch.inference_mode():
        assert step().keys() <= {"check_like", "touches"}
    assert plan.groups is groups  # so that what a device has is kept
    operands.params[1].data = operands.params[1].data.clone()
    assert step()["_place"] == 1


def test_gradients_are_not_kept(facts: str):
    operands = Operands()
    plan = operands.plan()
    for step in range(2):
        plan.step(operands.grads, operands.scalars, step)
    gone = [weakref.ref(g) for g in operands.grads]
    operands.grads.clear()
    assert [r() for r in gone] == [None] * len(gone)


def test_this_pytorch_has_guards():
    """Without them a step is several times dearer for the host, which should be known."""
    assert steady._guards() is not None


# --- calls ---


def calls(call: Callable[[], object]) -> int:
    """How many functions Python calls in it, its own and built-in ones."""
    seen = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal seen
        seen += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        call()
    finally:
        sys.setprofile(None)
    return seen


def through_plan(n: int) -> Callable[[], object]:
    t = [[torch.ones(2) for _ in range(n)] for _ in range(3)]
    plan, scalars = Plan(t[0], t[1], seed=0), Scalars.check(**SETTINGS)
    return lambda: plan.step(t[2], scalars, 0)


def trained(n: int) -> list[tuple[str, nn.Parameter]]:
    named = [(f"layers.{i}.weight", nn.Parameter(torch.ones(2))) for i in range(n)]
    for _, p in named:
        p.grad = torch.ones(2)
    return named


def through_optimizer(n: int) -> Callable[[], object]:
    return SGLD(trained(n), **SETTINGS).step


def through_functional(n: int) -> Callable[[], object]:
    params = {name: p.detach() for name, p in trained(n)}
    grads = {name: torch.ones(2) for name in params}
    state = functional.init(params)

    def step() -> None:
        nonlocal state
        state = functional.update(grads, state, params, **SETTINGS)

    return step


@pytest.mark.parametrize(
    ("way", "fixed", "each"),  # an optimizer asks each state for its values
    [(through_plan, 60, 0), (through_optimizer, 220, 1), (through_functional, 220, 0)],
)
def test_python_calls_nothing_for_each_tensor(
    way: Callable[[int], Callable[[], object]], fixed: int, each: int
):
    counts = {}
    for n in (1, 100, 1000):
        step = way(n)
        for _ in range(2):
            step()
        counts[n] = calls(step)
    assert 0 < counts[1] <= fixed
    assert counts[100] - counts[1] == 99 * each
    assert counts[1000] - counts[1] - 999 * each <= 1000 // 20  # some for each 256 tensors


# --- the optimizers ---


def in_group(**values: Any) -> Callable[[Any], None]:
    return lambda optimizer: optimizer.param_groups[0].update(values)


def swap_state(optimizer: Any) -> None:
    kept = optimizer.state[optimizer.param_groups[0]["params"][0]]
    kept["anchor"] = kept["anchor"] + 1


def reload(optimizer: Any) -> None:
    saved = optimizer.state_dict()
    saved["state"][0]["anchor"] = saved["state"][0]["anchor"] + 1
    optimizer.load_state_dict(saved)


OPTIMIZER_CHANGES: dict[str, tuple[bool, Callable[[Any], None]]] = {
    "nothing": (False, lambda o: None),
    "lr": (False, in_group(lr=2e-3)),
    "lr a bool": (True, in_group(lr=True)),
    "weight_decay a bool that equals it": (True, in_group(weight_decay=False)),
    "lr negative": (True, in_group(lr=-1e-3)),
    "nbeta": (False, in_group(nbeta=1e3)),
    "seed": (False, in_group(seed=9)),
    "chain": (False, in_group(chain=9)),
    "step": (False, in_group(step=9)),
    "eps": (False, in_group(eps=0.5)),
    "state replaced": (False, swap_state),
    "state loaded": (False, reload),
    "frozen": (False, lambda o: o.param_groups[0]["params"][1].requires_grad_(False)),
    "unfrozen": (False, lambda o: o.param_groups[0]["params"][2].requires_grad_()),
    "renamed": (False, lambda o: o.param_groups[0]["param_names"].reverse()),
    "gradient None": (False, lambda o: setattr(o.param_groups[0]["params"][0], "grad", None)),
    "gradient a parameter": (
        True,
        lambda o: setattr(o.param_groups[0]["params"][0], "grad", o.param_groups[0]["params"][1].detach()),
    ),
    "param moved": (False, lambda o: setattr(o.param_groups[0]["params"][0], "data", torch.ones(2))),
    "params reversed": (False, lambda o: o.param_groups[0]["params"].reverse()),
    "metrics": (False, lambda o: setattr(o, "save_metrics", True)),
}


@pytest.mark.parametrize("name", OPTIMIZER_CHANGES)
def test_an_optimizer_s_step_after_a_change_is_that_of_a_new_one(name: str):
    refused, change = OPTIMIZER_CHANGES[name]
    ends = []
    for anew in (False, True):
        named = trained(4)
        named[2][1].requires_grad_(False)
        optimizer = RMSpropSGLD(named, **SETTINGS, seed=1)
        for _ in range(2):
            optimizer.step()
        change(optimizer)
        named[2][1].grad = torch.ones(2)
        if anew:
            optimizer._fresh()
        before = [p.detach().clone() for _, p in named]
        error = None
        try:
            optimizer.step()
        except LlcFastError as e:
            error = type(e), str(e)
        ends.append((error, [p.detach().clone() for _, p in named]))
        assert (error is not None) == refused
        assert all(map(torch.equal, before, ends[-1][1])) == refused
    assert equal(*ends)
