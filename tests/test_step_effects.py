"""What a step does besides its numbers: nothing hidden, autograd told, little memory, no element but its own."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from cases import differing, draw

import llc_fast
from conftest import Target
from llc_fast import Tile

ARGUMENTS = {"lr": 1e-3, "nbeta": 30.0, "localization": 100.0, "seed": 3, "step": 4}


def python(program: str, **environment: str) -> str:
    """What a program prints, run by an interpreter of its own."""
    command = [sys.executable, "-P", "-c", textwrap.dedent(program)]  # not the checkout's own sources
    environment = os.environ | environment
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_a_step_depends_on_its_arguments_alone(target: Target):
    case = draw(41, torch.float32, 15)
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first = case.run(target.backend, target.device)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    draw(42, torch.bfloat16, 15).run(target.backend, target.device)
    torch.manual_seed(2)
    again = case.run(target.backend, target.device)
    assert [differing(a, b) for a, b in zip(first, again, strict=True)] == [0] * len(first)


def test_gradients_and_anchors_are_left_as_they_are(target: Target):
    w, g, w0 = (torch.randn(999, device=target.device) for _ in range(3))
    copies = g.clone(), w0.clone()
    llc_fast.sgld_step_([w], [g], [w0], box=0.1, backend=target.backend, **ARGUMENTS)
    assert torch.equal(g, copies[0])
    assert torch.equal(w0, copies[1])


def test_autograd_sees_the_step(target: Target):
    w = torch.nn.Parameter(torch.ones(5, device=target.device))
    frozen = torch.ones(5, device=target.device)
    loss = (w * w * frozen).sum()
    versions = w._version, frozen._version
    llc_fast.sgld_step_([w], [None], None, lr=0.1, nbeta=1.0, seed=0, step=0, backend=target.backend)
    assert (w._version, frozen._version) == (versions[0] + 1, versions[1])
    assert w.is_leaf
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_autograd_sees_every_tensor_of_a_mixed_call():
    params = [torch.ones(3), torch.ones(3, dtype=torch.float64), torch.ones(3, dtype=torch.bfloat16)]
    still = torch.ones(3)
    remainders = [None, None, torch.zeros(3, dtype=torch.int16), None]
    tiles = [Tile(i, 1, 3, 0, 3, 0, 3) for i in range(3)]
    llc_fast.sgld_step_(
        [*params, still],
        [None] * 4,
        None,
        lr=0.1,
        nbeta=1.0,
        seed=0,
        step=0,
        remainders=remainders,
        tiles=tiles,
    )
    assert all(p._version > 0 for p in params)
    assert still._version == 0


def test_inference_tensors_move():
    with torch.inference_mode():
        w = torch.ones(5)
    llc_fast.sgld_step_([w], [None], None, lr=0.1, nbeta=1.0, seed=0, step=0)
    assert not torch.any(w == 1)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_a_step_takes_less_than_a_megabyte():
    # The resident set's peak, which sees every allocator: nothing above 64 kB comes from memory freed before.
    # The last number proves that 2 MB would be seen.
    out = python(
        """
        import torch, llc_fast

        def resident(name):
            lines = open("/proc/self/status").read().splitlines()
            return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))

        def extra(f):
            before = resident("VmRSS")
            open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew
            f()
            return resident("VmHWM") - before

        def operands(shapes, dtype):
            w, g, w0 = ([torch.ones(s, dtype=dtype) for s in shapes] for _ in range(3))
            return w, g, w0, [torch.ones(s, dtype=torch.int16) for s in shapes]

        def step(w, g, w0, lo):
            split = w[0].dtype == torch.bfloat16
            llc_fast.sgld_step_(w, g, w0, lr=1e-4, nbeta=1.0, localization=1.0, weight_decay=1.0, box=0.1, seed=0,
                                step=0, remainders=lo if split else None, backend="cpu")

        torch.set_num_threads(2)
        for dtype in (torch.float32, torch.bfloat16):
            step(*operands([(768, 175)], dtype))  # starts threads, imports modules
            many = operands([(768, 175)] * 147 + [(20_000_000 - 147 * 768 * 175,)], dtype)
            print(extra(lambda: step(*many)))
        print(extra(lambda: torch.ones(1 << 19)))
        """,
        MALLOC_MMAP_THRESHOLD_="65536",
    )
    fp32, bf16, control = map(int, out.split())
    assert fp32 < 1 << 20, out
    assert bf16 < 1 << 20
    assert control > 1 << 20, out


def test_a_head_s_step_reads_and_writes_the_head_s_memory_only(isa: str):
    # Rows of a page each; all but the head's are taken away, and reading them would end the process.
    out = python(
        f"""
        import ctypes, mmap, torch, llc_fast

        page = mmap.PAGESIZE
        cols, libc = page // 4, ctypes.CDLL(None, use_errno=True)
        def matrix(rows):
            memory = mmap.mmap(-1, rows * page)
            t = torch.frombuffer(memory, dtype=torch.float32).view(rows, cols)
            return t.copy_(torch.randn(rows, cols, generator=torch.Generator().manual_seed(1)))
        def protect(t, row, rows, mode):
            address = ctypes.c_void_p(t.data_ptr() + row * page)
            assert libc.mprotect(address, ctypes.c_size_t(rows * page), mode) == 0
        operands = [matrix(9) for _ in range(3)]
        whole = [t.clone() for t in operands]
        step = dict(lr=1e-3, nbeta=3.0, localization=5.0, box=1.0, seed=0, step=0, backend={isa!r})
        tiles = [llc_fast.Tile(0, 3, cols, 4 * cols, cols, 4 * cols, cols)]
        llc_fast.sgld_step_(*[[t] for t in whole], tiles=tiles, **step)
        for t in operands:
            protect(t, 0, 4, 0)
            protect(t, 7, 2, 0)
        protect(operands[1], 4, 3, 1)
        protect(operands[2], 4, 3, 1)
        llc_fast.sgld_step_(*[[t] for t in operands], tiles=tiles, **step)
        print(torch.equal(operands[0][4:7], whole[0][4:7]))
        """
    )
    assert out.split() == ["True"]
