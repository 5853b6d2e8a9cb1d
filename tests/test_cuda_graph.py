"""CUDA graphs without a GPU: what a capture records and refuses, and that no noise comes twice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import cuda_host
import pytest
import torch
from cases import differing
from cuda_host import Emulated, Nodes

from llc_fast import errors
from llc_fast.plan import Plan
from llc_fast.scalars import Scalars

host, emulated = cuda_host.host, cuda_host.emulated  # fixtures
SCALARS = Scalars(lr=1e-3, nbeta=30.0, localization=5.0)


class Chain:
    """A small chain with fixed gradients."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.params, self.grads, self.anchors = (
            [torch.randn(n, generator=generator) for n in (100, 7)] for _ in range(3)
        )
        self.plan = Plan(self.params, self.anchors, seed=1, chain=2, backend="cuda")

    def step(self, step: int, scalars: Scalars = SCALARS) -> None:
        self.plan.step(self.grads, scalars, step)

    def device_step(self) -> int | None:
        ((backend, group),) = self.plan.groups
        return backend.device_step(group)

    def follows(self, steps: list[int]) -> bool:
        """Whether the weights are those after the given steps, none of them in a graph."""
        other = Chain()
        for step in steps:
            other.step(step)
        return [differing(*pair) for pair in zip(self.params, other.params, strict=True)] == [0, 0]


@contextmanager
def capture(emulated: Emulated) -> Iterator[Nodes]:
    emulated.graph = nodes = []
    try:
        yield nodes
    finally:
        emulated.graph = None


def replay(nodes: Nodes, times: int = 1) -> None:
    for _ in range(times):
        for node in nodes:
            node()


def test_replays_are_the_chain_s_next_steps(emulated: Emulated):
    chain = Chain()
    assert chain.device_step() is None
    chain.step(0)
    with capture(emulated) as nodes:
        chain.step(1)
    assert len(nodes) == 2
    assert chain.follows([0])
    replay(nodes, 5)
    assert chain.follows(list(range(6)))
    assert chain.device_step() == 5


def test_a_graph_of_several_steps_and_several_graphs(emulated: Emulated):
    chain = Chain()
    chain.step(7)
    with capture(emulated) as two:
        chain.step(8)
        chain.step(9)
    replay(two, 2)
    with capture(emulated) as one:
        chain.step(10)  # the device has passed it, which the host need not know
    replay(one)
    replay(two)
    assert chain.follows(list(range(7, 15)))
    assert chain.device_step() == 14


def test_a_step_after_replays_takes_no_number_again(emulated: Emulated):
    chain = Chain()
    chain.step(0)
    with capture(emulated) as nodes:
        chain.step(1)
    replay(nodes, 3)
    chain.step(2)  # is step 4
    assert chain.follows(list(range(5)))
    replay(nodes)
    assert chain.follows(list(range(6)))
    chain.step(20)
    replay(nodes)
    assert chain.follows([*range(6), 20, 21])


def test_what_cannot_be_captured(emulated: Emulated):
    chain = Chain()
    first = r"no step was made before it.*one step just before"
    with capture(emulated), pytest.raises(errors.BackendError, match=first):
        chain.step(0)
    chain.step(3)
    for step, scalars, words in (
        (4, Scalars(lr=2e-3, nbeta=30.0, localization=5.0), "settings differ"),
        (4, Scalars(lr=1e-3, nbeta=30.0, localization=5.0, box=1.0), "settings differ"),
        (5, SCALARS, "step 5 does not follow step 3"),
        (3, SCALARS, "step 3 does not follow step 3"),
    ):
        with capture(emulated) as nodes, pytest.raises(errors.BackendError, match=words):
            chain.step(step, scalars)
        assert nodes == []
    kept = chain.grads
    chain.grads = [g.clone() for g in kept]
    with (
        capture(emulated) as nodes,
        pytest.raises(errors.BackendError, match=r"elsewhere.*set_to_none=False"),
    ):
        chain.step(4)
    chain.grads = kept
    with capture(emulated), pytest.raises(errors.BackendError, match="cannot be read while"):
        chain.device_step()
    with capture(emulated) as nodes:
        chain.step(4)
    replay(nodes)
    assert chain.follows([3, 4])


def test_the_last_number_there_is(emulated: Emulated):
    chain = Chain()
    chain.step(2**32 - 2)
    with capture(emulated) as nodes:
        chain.step(2**32 - 1)
    replay(nodes)
    with pytest.raises(errors.BackendError, match="all there are"):
        chain.step(0)
