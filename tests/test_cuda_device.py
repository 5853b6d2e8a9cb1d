"""The CUDA backend on a device: every kind of step, streams, threads, graphs, devices and sizes.

Known answers and fuzzed steps run on it in test_step.py, test_samplers.py and test_noise.py, as on every backend.
"""

from __future__ import annotations

import threading

import pytest
import torch
from cases import differing, draw, vary
from test_samplers import SAMPLERS, STORAGES, agree, magnitude, quiet
from torch import Tensor

import llc_fast
from conftest import ON_GPU
from llc_fast import backends, errors
from llc_fast.backends import cuda_backend
from llc_fast.plan import Plan
from llc_fast.scalars import Scalars
from llc_fast.sums import INDEX

pytestmark = ON_GPU
SCALARS = Scalars(lr=1e-3, nbeta=30.0, localization=5.0, weight_decay=0.1)
two_devices = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")


def tensors(n: int, device: str, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(device) for shape in ((n,), (33, 64), (5,))]


def chain(
    backend: str, device: str, steps: int, n: int, streams: list[torch.cuda.Stream], number: int = 2
) -> list[Tensor]:
    """Weights after some steps, every one with gradients elsewhere in memory, on one stream after the other."""
    params, anchors = tensors(n, device), tensors(n, device, 1)
    plan = Plan(params, anchors, seed=1, chain=number, backend=backend)
    grads = [tensors(n, device, 10 + i) for i in range(3)]
    for step in range(steps):
        given = [None if (step + i) % 5 == 0 else g for i, g in enumerate(grads[step % 3])]
        if streams:
            stream = streams[step % len(streams)]
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                plan.step(given, SCALARS, step)
            torch.cuda.current_stream().wait_stream(stream)
        else:
            plan.step(given, SCALARS, step)
    return params


def same(there: list[Tensor], here: list[Tensor]) -> bool:
    return [differing(a.cpu(), b.cpu()) for a, b in zip(there, here, strict=True)] == [0] * len(here)


# --- kinds of steps ---


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_kind_of_step_has_the_reference_s_bits(sampler, storage):
    dtype, state = STORAGES[storage]
    for seed in range(16):
        how = {"noise": ("gaussian", "ih4")[seed % 5 == 2], "masked": seed % 4 == 3, "state": state}
        case = vary(draw(3000 + seed, dtype, seed), seed, sampler=sampler, **how)
        agree(case, quiet(case, "reference"), "cuda", "cuda")


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_large_steps_and_their_sums_are_those_of_the_cpu(sampler):
    """More chunks than blocks that the device holds; the sums' bits are the same each time."""
    case = vary(draw(77, torch.float32, 7, length=10_000_019), 1, sampler=sampler, sums=True, calm=True)
    case.settings |= {"lr": 1e-3, "nbeta": 10.0, "weight_decay": 0.5, "localization": 0.5}
    expected = case.run("cpu")
    want = case.sums
    assert same(case.run("cuda", "cuda"), expected)
    found = case.sums
    for name, column in INDEX.items():
        bound = 1e-5 * magnitude(name, want)
        assert ((found.cpu() - want)[:, column].abs() <= bound).all(), name
    assert torch.equal(found[:, 0].cpu(), want[:, 0])
    case.run("cuda", "cuda")
    assert torch.equal(case.sums, found)


# --- streams, threads, devices ---


@pytest.mark.parametrize("streams", [0, 1, 3])
@pytest.mark.parametrize("n", [1000, 3_000_001])
def test_a_chain_runs_ahead_on_any_stream(streams, n):
    """Many more steps than the ring has slots, without waiting in between."""
    steps = 5 * cuda_backend.SLOTS + 3
    there = chain("cuda", "cuda", steps, n, [torch.cuda.Stream() for _ in range(streams)])
    assert same(there, chain("cpu", "cpu", steps, n, []))


def test_two_chains_on_two_streams():
    sides = [torch.cuda.Stream() for _ in range(2)]
    torch.cuda.synchronize()
    plans = []
    for number in range(2):
        params, anchors, grads = (tensors(2_000_001, "cuda", i) for i in range(3))
        plans.append((params, grads, Plan(params, anchors, seed=1, chain=number, backend="cuda")))
    torch.cuda.synchronize()
    for step in range(30):
        for side, (_, grads, plan) in zip(sides, plans, strict=True):
            with torch.cuda.stream(side):
                plan.step(grads, SCALARS, step)
    torch.cuda.synchronize()
    for number, (params, _, _) in enumerate(plans):
        want, anchors, grads = (tensors(2_000_001, "cpu", i) for i in range(3))
        plan = Plan(want, anchors, seed=1, chain=number, backend="cpu")
        for step in range(30):
            plan.step(grads, SCALARS, step)
        assert same(params, want)


@pytest.mark.parametrize("own_streams", [False, True])
def test_two_threads_step_two_chains(own_streams):
    found: dict[int, list[Tensor]] = {}

    def work(number: int) -> None:
        with torch.cuda.stream(torch.cuda.Stream() if own_streams else torch.cuda.current_stream()):
            found[number] = chain("cuda", "cuda", 40, 300_001, [], number)
            torch.cuda.current_stream().synchronize()

    workers = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for number in range(2):
        assert same(found[number], chain("cpu", "cpu", 40, 300_001, [], number))


@two_devices
def test_the_current_device_stays():
    params, anchors, grads = (tensors(5000, "cuda:1", i) for i in range(3))
    llc_fast.sgld_step_(params, grads, anchors, lr=1e-3, nbeta=1.0, localization=1.0, seed=0, step=0)
    assert torch.cuda.current_device() == 0
    assert backends.resolve("auto", "cuda", "float32").name == "cuda"


@two_devices
def test_parameters_on_two_devices():
    devices = ["cuda:0", "cuda:1", "cuda:0"]
    params, anchors, grads = (
        [t.to(d) for t, d in zip(tensors(100_001, "cpu", i), devices, strict=True)] for i in range(3)
    )
    plan = Plan(params, anchors, seed=1, chain=2, backend="cuda")
    want, w0, g = (tensors(100_001, "cpu", i) for i in range(3))
    here = Plan(want, w0, seed=1, chain=2, backend="cpu")
    for step in range(20):
        plan.step(grads, SCALARS, step)
        here.step(g, SCALARS, step)
    assert same(params, want)


@pytest.mark.parametrize("stream", ["current", "side"])
def test_plans_may_be_dropped_at_once(stream):
    """Memory that a running launch reads is not handed out again."""
    side = torch.cuda.Stream() if stream == "side" else torch.cuda.current_stream()
    params, anchors, grads = (tensors(2_000_000, "cuda", i) for i in range(3))
    torch.cuda.synchronize()
    settings = {"lr": 1e-3, "nbeta": 30.0, "localization": 5.0, "seed": 3}
    with torch.cuda.stream(side):
        for step in range(30):
            llc_fast.sgld_step_(params, grads, anchors, step=step, backend="cuda", **settings)
            torch.zeros(1 << 16, dtype=torch.uint8, device="cuda")
    torch.cuda.synchronize()
    want, anchors, grads = (tensors(2_000_000, "cpu", i) for i in range(3))
    for step in range(30):
        llc_fast.sgld_step_(want, grads, anchors, step=step, backend="cpu", **settings)
    assert same(params, want)


def test_more_elements_than_31_bits_count():
    n = 2**31 + 12_345
    if torch.cuda.mem_get_info()[0] < 4 * n + 2**30:
        pytest.skip("needs 9.6 GB of free device memory")
    w = torch.zeros(n, device="cuda")
    llc_fast.sgld_step_([w], [None], None, lr=1.0, nbeta=1.0, seed=4, step=5, backend="cuda")
    for start in (0, 2**30 + 1, 2**31 - 500, n - 1000):
        z = llc_fast.normal(1000, seed=4, step=5, tensor_id=0, start=start, backend="reference")
        assert differing(w[start : start + 1000].cpu(), z) == 0
        there = llc_fast.normal(1000, seed=4, step=5, tensor_id=0, start=start, device="cuda", backend="cuda")
        assert differing(there.cpu(), z) == 0


# --- graphs ---


def test_the_step_counter_of_a_graph_advances():
    packed = torch.frombuffer(bytearray(SCALARS.pack(41)), dtype=torch.uint8).cuda()
    cuda_backend._cuda.advance_step(0, torch.cuda.current_stream().cuda_stream, packed.data_ptr())
    assert bytes(packed.cpu().numpy()) == SCALARS.pack(42)


def eager(steps: list[int]) -> list[Tensor]:
    params, anchors, grads = (tensors(100_001, "cuda", i) for i in range(3))
    plan = Plan(params, anchors, seed=1, chain=2, backend="cuda")
    for step in steps:
        plan.step(grads, SCALARS, step)
    return params


def test_replays_of_a_captured_step_are_the_chain_s_next_steps():
    params, anchors, grads = (tensors(100_001, "cuda", i) for i in range(3))
    plan = Plan(params, anchors, seed=1, chain=2, backend="cuda")
    plan.step(grads, SCALARS, 0)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        plan.step(grads, SCALARS, 1)
    for _ in range(5):
        graph.replay()
    assert same(params, eager(list(range(6))))
    ((backend, group),) = plan.groups
    assert backend.device_step(group) == 5
    plan.step(grads, SCALARS, 2)  # is step 6: no noise comes twice
    graph.replay()
    assert same(params, eager(list(range(8))))


def test_a_graph_reads_gradients_where_they_are():
    params, anchors, grads = (tensors(100_001, "cuda", i) for i in range(3))
    want, w0, g = (tensors(100_001, "cpu", i) for i in range(3))
    plan = Plan(params, anchors, seed=1, chain=2, backend="cuda")
    here = Plan(want, w0, seed=1, chain=2, backend="cpu")
    plan.step(grads, SCALARS, 0)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        plan.step(grads, SCALARS, 1)
    here.step(g, SCALARS, 0)
    for step in range(1, 4):
        for there, gradient in zip(grads, g, strict=True):
            gradient.mul_(-0.5)
            there.copy_(gradient)
        graph.replay()
        here.step(g, SCALARS, step)
    assert same(params, want)


def test_a_first_step_cannot_be_captured():
    w, g = torch.ones(64, device="cuda"), torch.ones(64, device="cuda")
    plan = Plan([w], [w.clone()], seed=0, backend="cuda")
    with (
        pytest.raises(errors.BackendError, match="one step just before the capture"),
        torch.cuda.graph(torch.cuda.CUDAGraph()),
    ):
        plan.step([g], SCALARS, 0)
