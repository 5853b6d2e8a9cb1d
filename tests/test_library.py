"""The step and its noise as ops of PyTorch: `opcheck`, the same bits and errors, version counters, threads."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from cases import draw, threads, vary
from test_samplers import quiet
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import llc_fast
from conftest import Target
from llc_fast import LlcFastError, Tile, library, ops
from llc_fast.backends import cpu_backend

TILES = [Tile(0, 3, 4, 13, 12, 100, 20), Tile(0, 1, 5, 60, 5, 2**40, 5, 2**64 - 9)]
STEP: dict[str, Any] = {"lr": 1e-3, "nbeta": 30.0, "seed": 2**64 - 5, "step": 3}
PULL = {"localization": 5.0, "weight_decay": 0.1, "box": 0.5}

Run = Callable[..., Any]


def tensors(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """w, g, w0, fp32 state, remainder."""
    generator = torch.Generator().manual_seed(0)
    w, g, w0, v = (torch.randn(8, 12, generator=generator) for _ in range(4))
    rest = {torch.bfloat16: torch.zeros(8, 12, dtype=torch.int16), torch.float16: w.half().float()}
    return [w.to(dtype), g.to(dtype), w0.to(dtype), v.abs(), rest.get(dtype, torch.zeros(0))]


def sgld(t: list[Tensor], **changes: Any) -> None:  # without |, which Dynamo has only learnt lately
    remainders = [t[4]] if t[4].numel() and changes.get("state") != "sr" else None
    llc_fast.sgld_step_([t[0]], [t[1]], [t[2]], **{**STEP, **PULL, "remainders": remainders, **changes})


def rmsprop(t: list[Tensor], **changes: Any) -> None:
    llc_fast.rmsprop_sgld_step_([t[0]], [t[1]], [t[2]], [t[3]], **{**STEP, **PULL, "alpha": 0.9, **changes})


def sghmc(t: list[Tensor], **changes: Any) -> None:
    llc_fast.sghmc_step_([t[0]], [None], [t[2]], [t[3]], **{**STEP, **PULL, "friction": 0.3, **changes})


def sums() -> Tensor:
    return torch.full((1, 24), 7.0, dtype=torch.float64)


def thermostat() -> Tensor:
    return torch.full((1,), 0.2, dtype=torch.float64)


# --- the ops ---

CALLS: dict[str, Run] = {
    "fp32": lambda: sgld(tensors()),
    "parameter": lambda: sgld([t.requires_grad_() if i == 0 else t for i, t in enumerate(tensors())]),
    "nothing but noise": lambda: llc_fast.sgld_step_([tensors()[0]], [None], None, **STEP),
    "split": lambda: sgld(tensors(torch.bfloat16), sums=sums()),
    "sr": lambda: sgld(tensors(torch.bfloat16), state="sr", noise="ih4"),
    "fp16": lambda: sgld(tensors(torch.float16)),
    "tiles": lambda: sgld(tensors(), tiles=TILES, tensor_ids=[2**32 - 1]),
    "mask": lambda: sgld(tensors(), masks=[tensors()[1] > 0]),
    "rmsprop": lambda: rmsprop(tensors(), sums=sums()),
    "sghmc": lambda: sghmc(tensors(), backend="reference"),
    "sgnht": lambda: sghmc(tensors(), thermostat=thermostat()),
    "normal": lambda: llc_fast.normal(7, seed=2**63, chain=1, step=2**32 - 1, tensor_id=3, start=2**57),
}


class Caught(TorchDispatchMode):
    """Keeps the arguments of our ops and does not run them."""

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if op.namespace == "llc_fast":
            self.op, self.args = op, args
            return torch.zeros(7) if "Tensor" in str(op._schema.returns) else None
        return op(*args, **kwargs or {})


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """The functions call the ops, as they do while torch.compile traces."""
    monkeypatch.setattr(ops, "_step", library.trace_step)
    monkeypatch.setattr(ops, "_normal", library.trace_normal)


@pytest.mark.parametrize("call", CALLS)
def test_opcheck(call, traced):
    with Caught() as caught:
        CALLS[call]()
    result = torch.library.opcheck(caught.op, caught.args)
    assert len(result) >= 4
    assert set(result.values()) == {"SUCCESS"}


@pytest.mark.parametrize("sampler", ["sgld", "rmsprop_sgld", "sghmc", "sgnht"])
def test_the_op_is_the_step(sampler, traced):
    direct = pytest.MonkeyPatch()
    for seed in range(16):
        dtype = (torch.float32, torch.bfloat16, torch.float16)[seed % 3]
        state = "sr" if dtype == torch.bfloat16 and seed % 2 else "split"
        case = vary(
            draw(seed, dtype), seed, sampler=sampler, state=state, masked=seed % 4 == 3, sums=seed % 2 == 0
        )
        through = quiet(case, "auto"), case.sums, case.thermostat
        with direct.context() as patch:
            patch.setattr(ops, "_step", lambda *a, **k: llc_fast.once.step(*a, **k))
            plain = quiet(case, "auto"), case.sums, case.thermostat
        assert all(equal(a, b) for a, b in zip(through[0], plain[0], strict=True)), case.label
        for a, b in zip(through[1:], plain[1:], strict=True):
            assert (a is None and b is None) or equal(a, b), case.label


def equal(a: Tensor, b: Tensor) -> bool:
    """Equal in their bits."""
    return torch.equal(*(t.detach().reshape(-1).contiguous().view(torch.uint8) for t in (a, b)))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"lr": -1.0}, "lr is -1.0"),
        ({"box": float("nan")}, "box is nan"),
        ({"step": 2**32}, "step is 4294967296"),
        ({"step": 1.0}, "step is 1.0: give an integer"),
        ({"step": torch.tensor(0.5)}, "step is 0.5: give an integer"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**64}, "seed is 18446744073709551616"),
        ({"lr": None}, "lr is None: give a number"),
        ({"remainders": [torch.zeros(3)]}, r"remainders\[0\] is given"),
        ({"masks": []}, "masks has 0 entries for 1 params"),
        ({"tiles": [5]}, r"tiles\[0\] is a int"),
        ({"tiles": [Tile(0, 1, 1.5, 0, 1, 0, 1)]}, r"tiles"),
        ({"tiles": TILES, "masks": [None]}, "tiles and masks are both given"),
        ({"sums": torch.zeros(3)}, "sums must be a float64 tensor"),
    ],
    ids=repr,
)
def test_the_op_s_errors_are_the_step_s(changes, match, traced):
    t = tensors()
    with pytest.raises(LlcFastError, match=match):
        sgld(t, **changes)
    assert torch.equal(t[0], tensors()[0])


# --- version counters ---


def operands(target: Target, dtype: torch.dtype) -> list[Tensor]:
    return [t.to(target.device) for t in tensors(dtype)]


def versions(written: list[Tensor], kept: list[Tensor], run: Run) -> None:
    """Autograd is told of what is written, and of nothing else."""
    before, still = [t._version for t in written], [t._version for t in kept]
    run()
    assert all(t._version > v for t, v in zip(written, before, strict=True))
    assert [t._version for t in kept] == still


@pytest.mark.parametrize("through", ["directly", "the op"])
def test_every_tensor_that_is_written_counts_it(target: Target, through, request):
    if through == "the op":
        request.getfixturevalue("traced")
    found, xi = sums().to(target.device), thermostat().to(target.device)
    more: dict[str, Any] = {"backend": target.backend, "sums": found}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        w, g, w0, v, rest = operands(target, dtype)
        run = sgld if dtype == torch.float32 else lambda t, **k: sgld(t, remainders=[t[4]], **k)
        written = [w, found] if dtype == torch.float32 else [w, rest, found]
        versions(written, [g, w0, v], lambda t=(w, g, w0, v, rest), run=run: run(t, **more))
    w, g, w0, v, _ = operands(target, torch.float32)
    versions([w, v, found], [g, w0], lambda: rmsprop([w, g, w0, v], **more))
    versions([w, v, found, xi], [g, w0], lambda: sghmc([w, g, w0, v], thermostat=xi, **more))


def test_autograd_refuses_what_a_step_has_changed():
    w, g, w0, v, _ = tensors()
    one = torch.ones((), requires_grad=True)
    losses = [(one * t).sum() for t in (w, v)]
    rmsprop([w, g, w0, v])
    for loss in losses:
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


# --- threads ---


def walk(seed: int, start: threading.Barrier | None = None) -> list[Tensor]:
    """The weights of a chain after some steps, of an optimizer and of the function."""
    generator = torch.Generator().manual_seed(seed)
    w = [torch.nn.Parameter(torch.randn(300, 500, generator=generator)) for _ in range(2)]
    sampler = llc_fast.SGHMC([(str(i), p) for i, p in enumerate(w)], nbeta=30.0, seed=seed, save_metrics=True)
    lone, kept = torch.ones(100_000, dtype=torch.bfloat16), torch.zeros(100_000, dtype=torch.int16)
    if start is not None:
        start.wait()
    for step in range(20):
        for p in w:
            p.grad = p.detach().sin()
        sampler.step()
        llc_fast.sgld_step_([lone], [-lone], None, remainders=[kept], **STEP | {"seed": seed, "step": step})
    noise = llc_fast.normal(100_000, seed=seed, step=0, tensor_id=0)
    return [*(p.detach() for p in w), lone, kept, noise, sampler.get_metrics().distance]


@pytest.mark.parametrize("cores", [1, 2])
def test_chains_in_threads_are_those_one_after_another(cores):
    with threads(cores):
        expected = [walk(seed) for seed in range(2)]
        start = threading.Barrier(2)
        with ThreadPoolExecutor(2) as pool:
            results = list(pool.map(lambda seed: walk(seed, start), range(2)))
    for got, want in zip(results, expected, strict=True):
        assert all(equal(a, b) for a, b in zip(got, want, strict=True))
    assert not equal(results[0][0], results[1][0])


def ticks_during(call: Callable[[], None], tries: int) -> int:
    """How often another Python thread ran during a call, which is repeated until it did."""
    inside, done = threading.Event(), threading.Event()
    seen = rounds = 0

    def count() -> None:
        nonlocal seen, rounds
        while not done.is_set():
            rounds += 1
            seen += inside.is_set()
            time.sleep(0.0002)

    interval, other = sys.getswitchinterval(), threading.Thread(target=count)
    other.start()
    sys.setswitchinterval(
        1000.0
    )  # from its next round on, a thread keeps the lock until it gives it up itself
    try:
        for _ in range(tries):
            now = rounds
            while rounds < now + 2:
                time.sleep(0.001)
            inside.set()
            call()
            inside.clear()
            if seen:
                break
    finally:
        sys.setswitchinterval(interval)
        done.set()
        other.join()
    return seen


def test_other_threads_run_during_a_step(monkeypatch):
    """In the C++ function alone: PyTorch's own functions around it let others run, too."""
    if not cpu_backend.isas():
        pytest.skip("needs the compiled extension")
    kernel, ticks = cpu_backend._cpu.sgld_step, []
    w = torch.ones(30_000_000)

    def watched(*arguments: Any) -> None:
        ticks.append(ticks_during(lambda: kernel(*arguments), 20))

    monkeypatch.setattr(cpu_backend._cpu, "sgld_step", watched)
    llc_fast.sgld_step_([w], [None], None, **STEP, backend="cpu:generic")
    assert ticks[0] > 0
    assert ticks_during(lambda: sum(range(3_000_000)), 3) == 0  # so it is seen where others cannot
