"""What does noise cost: a normal number by itself, and the noise of a step?

Two tables: generators of normal numbers, and steps with noise over the same steps without.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

import llc_fast
from llc_fast import backends
from llc_fast.noise import KINDS, STEP_NOISE, chain_key

from . import _pairs, _peers
from ._pairs import Pair, compare_pairs
from ._rotate import lacking, short
from ._table import Column, Plot, Table
from ._timing import Call
from ._work import Setting, Subject, compare, gpt2_shapes, make, ours

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
STORAGES: list[tuple[str, torch.dtype, dict[str, Any]]] = [
    ("SGLD fp32", FP32, {}),
    ("SGLD split bf16", BF16, {}),
    ("SGLD sr bf16", BF16, {"state": "sr"}),
    ("SGLD sr bf16, ih4", BF16, {"state": "sr", "noise": "ih4"}),
    ("SGLD fp16 with master", FP16, {}),
    ("RMSprop-SGLD fp32", FP32, {"sampler": "rmsprop_sgld"}),
]
COLUMNS = [
    Column("ns", "ns/sample", ".3f"),
    Column("low", "from", ".3f"),
    Column("high", "to", ".3f"),
    Column("gbs", "GB/s", ".1f"),
    Column("floors", "x fill", ".2f"),
    Column("gain", "ours is faster by", ".1f", "x"),
]


def tables(setting: Setting) -> Iterator[Table]:
    yield generators(setting)
    yield steps(setting)


# --- normal numbers by themselves ---


def generators(setting: Setting) -> Table:
    count = setting.pick(1 << 26, 1 << 23, 1 << 10)
    table = Table(
        "noise-generators",
        f"{short(count)} normal numbers in fp32, from our generator and others",
        COLUMNS,
        "ns/sample: median time of one number, with the middle half of the samples from .. to. GB/s: what is written, "
        "4 bytes a number. x fill: over writing zeros, the least that any generator takes. Rows with (new) allocate "
        "their result, as the public functions do; the others write to memory that is there. Each is compared with "
        "our gaussian and the zeros of its kind. ih4 is our coarser noise of 1,021 values, for weights "
        "that are rounded to bf16 anyway. NumPy uses one thread, JAX as many as it likes. A step of ours writes no "
        "noise to memory at all: see the next table.",
        plot=Plot("bars", "ns", "nanoseconds a normal number (logarithmic)", log="x"),
    )
    if lacking(table, 4 * count * (4 + 2 * len(setting.backends) + 2), setting.device):  # a buffer a row
        return table
    subjects = []

    def add(name: str, role: str, build: Callable[[], Call]) -> None:
        new = " (new)" if name.endswith(" (new)") else ""
        mine = f"llc_fast gaussian{new}" if role == "peer" else ""
        subjects.append(Subject(name, build, count, 4, role, f"fill with zeros{new}", mine))

    add("fill with zeros", "floor", lambda: _torch(count, setting.device, "zero_"))
    add("fill with zeros (new)", "floor", lambda: lambda: _zeros(count, setting.device))
    for backend, kind in itertools.product(setting.backends, KINDS):
        name = setting.named(f"llc_fast {kind}", backend)
        add(name, "ours", partial(_buffered, count, setting.device, backend, kind))
        add(f"{name} (new)", "ours", partial(_fresh, count, setting.device, backend, kind))
    add("PyTorch normal_", "peer", lambda: _torch(count, setting.device, "normal_"))
    add("PyTorch randn (new)", "peer", lambda: lambda: torch.randn(count, device=setting.device))
    add("NumPy standard_normal, fp32", "peer", lambda: _numpy(count, setting, True))
    add("NumPy standard_normal, fp32 (new)", "peer", lambda: _numpy(count, setting, False))
    add("jax.random.normal, jit (new)", "peer", lambda: _jax(count, setting))
    compare(table, subjects, setting)
    return table


def _fresh(count: int, device: str, backend: str, kind: str) -> Call:
    steps = itertools.count()
    return lambda: llc_fast.normal(
        count, seed=0, step=next(steps), tensor_id=0, noise=kind, device=device, backend=backend
    )


def _buffered(count: int, device: str, backend: str, kind: str) -> Call:
    """What `llc_fast.normal` calls, without its allocation."""
    out = torch.empty(count, device=device)
    chosen = backends.resolve(backend, out.device.type, "float32")
    key, steps = chain_key(0, 0), itertools.count()
    return lambda: chosen.normal(
        out, start=0, key=key, step=next(steps), tensor_id=0, domain=STEP_NOISE, kind=kind
    )


def _torch(count: int, device: str, method: str) -> Call:
    call: Call = getattr(torch.empty(count, device=device), method)
    return call


def _zeros(count: int, device: str) -> torch.Tensor:
    """Zeros that are written: `torch.zeros` on a CPU leaves them to the kernel."""
    return torch.empty(count, device=device).zero_()


def _numpy(count: int, setting: Setting, buffered: bool) -> Call:
    import numpy as np

    if setting.cuda:
        raise NotImplementedError("NumPy computes on the CPU only")
    generator = np.random.default_rng(0)
    out = np.empty(count, dtype=np.float32) if buffered else None
    return lambda: generator.standard_normal(count, dtype=np.float32, out=out)


def _jax(count: int, setting: Setting) -> Call:
    jax, where = _peers.jax_on("cuda" if setting.cuda else "cpu")
    key = jax.device_put(jax.random.key(0), where)
    draw = jax.jit(lambda k, i: jax.random.normal(jax.random.fold_in(k, i), (count,)))
    steps = itertools.count()
    return lambda: jax.block_until_ready(draw(key, next(steps)))


# --- noise in a step ---


def steps(setting: Setting) -> Table:
    shapes = setting.pick(gpt2_shapes(), gpt2_shapes(3, 384, 16000), [(40, 16), (33,)])
    numel = sum(torch.Size(s).numel() for s in shapes)
    table = Table(
        "noise-in-a-step",
        f"What noise adds to a step of {short(numel)} parameters in {len(shapes)} tensors",
        _pairs.COLUMNS,
        "The same step with noise and without (noise_level 0: no number is drawn), all timed in turn in one run: "
        "median ns a parameter, the middle half of the samples from .. to, and what noise adds. A step without noise "
        "only waits for memory, so the less a storage has to fetch, the more of the noise is seen. sr rounds at random "
        "with and without noise, and the bits for that are in both columns.",
        plot=Plot("bars", "more", "percent that noise adds to a step", scale=100),
    )
    if lacking(
        table, (24 + 40 * len(setting.backends)) * numel, setting.device
    ):  # three dtypes, what is kept
        return table
    work = {dtype: make(shapes, dtype, setting.device) for dtype in (FP32, BF16, FP16)}
    pairs = []
    for backend in setting.backends:
        for name, dtype, options in STORAGES:
            build = partial(ours, work[dtype], backend, **options)
            quiet = {k: v for k, v in options.items() if k != "noise"}
            less = partial(ours, work[dtype], backend, 0.0, **quiet)
            pairs.append(Pair(setting.named(name, backend), build, less, numel))
    compare_pairs(table, pairs, setting)
    return table
