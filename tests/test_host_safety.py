"""What a plan that is stepped again must not take over: changes beside it, broken-off work, other groups."""

from __future__ import annotations

import ctypes
import struct
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from llc_fast import SGLD, RMSpropSGLD, functional
from llc_fast.backends import cpu_backend
from llc_fast.errors import BackendError, LlcFastError
from llc_fast.plan import Plan
from llc_fast.scalars import Scalars
from llc_fast.tiles import pack

SETTINGS = {"lr": 1e-2, "nbeta": 3.0, "localization": 5.0}
SCALARS = Scalars.check(**SETTINGS, friction=0.3)


class Operands:
    """Those of a masked SGNHT plan, the same at each construction."""

    def __init__(self, transposed: bool = False) -> None:
        torch.manual_seed(0)
        self.params, self.anchors, self.grads, self.buffers = (
            [torch.randn(4, 4) for _ in range(2)] for _ in range(4)
        )
        if transposed:
            self.anchors[0] = self.anchors[0].t()
        self.masks = [pack(torch.rand(4, 4) > 0.5), None]
        self.thermostat = torch.full((1,), 0.3, dtype=torch.float64)

    def plan(self) -> Plan:
        kept: dict[str, Any] = {name: getattr(self, name) for name in ("buffers", "masks", "thermostat")}
        return Plan(self.params, self.anchors, sampler="sgnht", **kept, seed=1)

    def step(self, plan: Plan, step: int) -> tuple[object, ...]:
        """Its error, and all that was written."""
        error = None
        try:
            plan.step(self.grads, SCALARS, step)
        except LlcFastError as e:
            error = type(e), str(e)
        return error, [t.clone() for t in (*self.params, *self.buffers, self.thermostat)]


def equal(a: Any, b: Any) -> bool:
    return a[0] == b[0] and all(map(torch.equal, a[1], b[1]))


# --- what is beside the parameters ---


def data(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[Operands], None]:
    def apply(operands: Operands) -> None:
        t = getattr(operands, name)
        t = t[0] if isinstance(t, list) else t
        t.data = change(t.data)

    return apply


BESIDE: dict[str, Callable[[Operands], object]] = {
    "anchor transposed": lambda o: o.anchors[0].t_(),
    "anchor expanded": data("anchors", lambda t: t.as_strided((4, 4), (0, 1))),
    "anchor negated": data("anchors", torch._neg_view),
    "anchor of another dtype": data("anchors", lambda t: t.view(torch.int32)),
    "anchor resized": lambda o: o.anchors[0].resize_(2, 2),
    "mask elsewhere": data("masks", lambda t: torch.full_like(t, 255)),
    "mask set": lambda o: o.masks[0].set_(torch.full((70,), 255, dtype=torch.uint8)),  # type: ignore[union-attr]
    "mask too short": data("masks", lambda t: t[:2]),
    "mask of another dtype": data("masks", lambda t: t.view(torch.int8)),
    "thermostat elsewhere": data("thermostat", lambda t: t + 5),
    "thermostat set": lambda o: o.thermostat.set_(torch.full((1,), 5.0, dtype=torch.float64)),
    "thermostat of another dtype": data("thermostat", Tensor.float),
}


@pytest.mark.parametrize("name", BESIDE)
def test_a_change_beside_the_parameters_is_seen(name: str, facts: str):
    ends = []
    for anew in (False, True):
        operands = Operands()
        plan = operands.plan()
        for step in range(2):
            operands.step(plan, step)
        BESIDE[name](operands)
        try:
            ends.append(operands.step(operands.plan() if anew else plan, 2))
        except LlcFastError as e:
            ends.append(((type(e), str(e)), ends[0][1]))
    assert equal(*ends)
    refused = ("resized", "too short", "another dtype")
    assert (ends[0][0] is not None) == any(word in name for word in refused)


def test_an_anchor_in_pieces_is_read_as_it_is_at_each_step(facts: str):
    ends = []
    for anew in (False, True):
        operands = Operands(transposed=True)
        plan = operands.plan()
        operands.step(plan, 0)
        operands.anchors[0].add_(1)
        ends.append(operands.step(operands.plan() if anew else plan, 1))
    assert equal(*ends)


# --- what was broken off ---


def test_a_plan_that_could_not_be_located_goes_on_when_all_is_as_before():
    p, g, scalars = [torch.zeros(8)], [torch.ones(8)], Scalars.check(lr=1e-2, nbeta=1.0)
    plan = Plan(p, None, seed=1, backend="cpu")
    plan.step(g, scalars, 0)
    old = p[0].data
    p[0].data = old.double()
    with pytest.raises(BackendError):
        plan.step(g, scalars, 1)
    p[0].data = old
    plan.step(g, scalars, 1)
    other = [torch.zeros(8)]
    for step in range(2):
        Plan(other, None, seed=1, backend="cpu").step(g, scalars, step)
    assert torch.equal(p[0], other[0])


@pytest.mark.parametrize("line", range(1, 12))
def test_gradient_addresses_that_were_broken_off_are_found_again(line: int):
    class Stop(BaseException):
        pass

    p, g, scalars = [torch.zeros(8)], [torch.ones(8)], Scalars.check(lr=1e-2, nbeta=1.0)
    plan, left = Plan(p, None, seed=1, backend="cpu"), [line]

    def trace(frame: Any, event: str, argument: object) -> Any:
        if event == "call":
            return trace if frame.f_code.co_name == "gradient_addresses" else None
        left[0] -= event == "line"
        if left[0] == 0:
            raise Stop
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        plan.step(g, scalars, 0)
    except Stop:
        pass
    finally:
        sys.settrace(before)
    plan.step(g, scalars, 0)
    assert not torch.equal(p[0], torch.zeros(8))


def test_a_step_has_its_own_scalars(monkeypatch: pytest.MonkeyPatch):
    """Another thread steps the same plan after the first one's scalars were packed, before they are read."""
    p, g = [torch.zeros(8)], [torch.ones(8)]
    plan, given = Plan(p, None, seed=1, backend="cpu"), cpu_backend._cpu.sgld_step
    others, read = [1], []

    def late(rows: int, grads: int, tiles: int, scalars: int, *rest: Any) -> None:
        if others:
            plan.step(g, Scalars.check(lr=0.5, nbeta=1.0), others.pop())
        read.append(struct.unpack_from("<I", ctypes.string_at(scalars, 64))[0])
        given(rows, grads, tiles, scalars, *rest)

    monkeypatch.setattr(cpu_backend._cpu, "sgld_step", late)
    plan.step(g, Scalars.check(lr=0.1, nbeta=1.0), 7)
    assert read == [1, 7]


def test_guards_are_found_after_a_mode_that_hides_them():
    code = (
        "import torch; from torch._subclasses.fake_tensor import FakeTensorMode; from llc_fast import steady\n"
        "with FakeTensorMode(): steady._guards()\n"
        "assert steady._guards() is not None"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- the optimizers ---


def trained(n: int = 2) -> list[tuple[str, nn.Parameter]]:
    torch.manual_seed(0)
    named = [(f"w{i}", nn.Parameter(torch.rand(4, 4) + 1)) for i in range(n)]
    for _, p in named:
        p.grad = torch.ones(4, 4)
    return named


def in_groups() -> tuple[Any, list[nn.Parameter]]:
    params = [p for _, p in trained()]
    optimizer = SGLD([{"params": [p]} for p in params], **SETTINGS)
    optimizer.step()
    return optimizer, params


def set_anchor(optimizer: Any, params: list[nn.Parameter]) -> None:
    optimizer.state[params[1]]["anchor"] = params[0].detach()


GROUPS: dict[str, Callable[[Any, list[nn.Parameter]], None]] = {
    r"params\[0\] and param_groups\[1\] grads\[0\] share": lambda o, p: setattr(p[1], "grad", p[0].detach()),
    r"params\[0\] and param_groups\[1\] params\[0\] share": lambda o, p: setattr(p[1], "data", p[0].data),
    r"params\[0\] and param_groups\[1\] anchors\[0\] share": set_anchor,
    r"step is 1\.5": lambda o, p: o.param_groups[1].update(step=1.5),
    r"step is np\.float64\(2\.0\)|step is 2\.0": lambda o, p: o.param_groups[1].update(step=np.float64(2)),
    r"step is -1": lambda o, p: o.param_groups[1].update(step=-1),
}


@pytest.mark.parametrize("message", GROUPS)
def test_groups_are_checked_together_before_one_is_written(message: str):
    optimizer, params = in_groups()
    GROUPS[message](optimizer, params)
    before = [p.detach().clone() for p in params]
    for _ in range(2):
        with pytest.raises(LlcFastError, match=message):
            optimizer.step()
    assert all(map(torch.equal, before, [p.detach() for p in params]))


def exchange_states(optimizer: Any, params: list[nn.Parameter]) -> None:
    first, second = (optimizer.state.pop(p) for p in params)
    optimizer.state[params[1]], optimizer.state[params[0]] = first, second


def exchange_names(optimizer: Any, params: list[nn.Parameter]) -> None:
    kept = optimizer.state[params[0]]
    anchor, average = kept.pop("anchor"), kept.pop("square_avg")
    kept["square_avg"], kept["anchor"] = anchor, average


@pytest.mark.parametrize("change", [exchange_states, exchange_names])
def test_a_state_belongs_to_its_parameter_by_its_name(change: Callable[..., None]):
    ends = []
    for anew in (False, True):
        named = trained()
        optimizer = RMSpropSGLD(named, **SETTINGS)
        optimizer.step()
        change(optimizer, [p for _, p in named])
        if anew:
            optimizer._fresh()
        optimizer.step()
        ends.append([p.detach().clone() for _, p in named])
    assert all(map(torch.equal, *ends))


def test_a_plan_keeps_the_tensors_that_it_is_known_by():
    """Else another one in the place of a freed one would be taken for it."""
    params = {"w": torch.zeros(4, 4)}
    state = functional.init(params)._replace(anchors=(torch.ones(4, 4).t(),))
    state = functional.update({"w": torch.ones(4, 4)}, state, params, **SETTINGS)
    assert any(t is state.anchors[0] for t in state.plan.origin[1])
    named = trained()
    optimizer = SGLD(named, **SETTINGS)
    optimizer.step()
    known = optimizer._plans[0][1]
    assert all(any(t is p for t in known) for _, p in named)
