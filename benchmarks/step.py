"""How long is one step, against its own noise-free floor, a copy, and what people use otherwise?

GPT-2's 148 tensors; three tables: the step against its peers, our samplers and storages, and the instruction sets.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from llc_fast.backends import cpu_backend

from . import _peers
from ._table import Plot, Table, count
from ._work import (
    COLUMNS,
    READING,
    Setting,
    Subject,
    Work,
    cached,
    compare,
    copy_of,
    gpt2_shapes,
    make,
    ours,
    traffic,
)

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
# Name of a row, dtype, how it is stored, options; its floor is the same without noise and sums.
SAMPLERS: list[tuple[str, torch.dtype, str, dict[str, Any]]] = [
    ("SGLD fp32", FP32, "float32", {}),
    ("SGLD fp32, sums", FP32, "float32", {"sums": True}),
    ("SGLD split bf16", BF16, "split", {}),
    ("SGLD split bf16, sums", BF16, "split", {"sums": True}),
    ("SGLD sr bf16", BF16, "sr", {"state": "sr"}),
    ("SGLD sr bf16, ih4", BF16, "sr", {"state": "sr", "noise": "ih4"}),
    ("SGLD fp16 with master", FP16, "float16", {}),
    ("RMSprop-SGLD fp32", FP32, "float32", {"sampler": "rmsprop_sgld"}),
    ("RMSprop-SGLD split bf16", BF16, "split", {"sampler": "rmsprop_sgld"}),
    ("SGHMC fp32", FP32, "float32", {"sampler": "sghmc"}),
    ("SGNHT fp32", FP32, "float32", {"sampler": "sgnht"}),
]
SAMPLER_PEERS = [
    ("devinterp SGMCMC.sgld, save_metrics", partial(_peers.devinterp, save_metrics=True), "SGLD fp32, sums"),
    ("devinterp SGMCMC.rmsprop_sgld", partial(_peers.devinterp, method="rmsprop_sgld"), "RMSprop-SGLD fp32"),
    ("posteriors sgmcmc.sghmc", partial(_peers.posteriors, method="sghmc"), "SGHMC fp32"),
]
# Which of these are the same step, and what differs.
SAMPLERS_READING = (
    "Each sampler and storage is timed with its floor and the copy in a stretch of its own. Sums: the step's "
    "statistics, taken in the same pass; devinterp's save_metrics are norms and dot products of the same parts. "
    "posteriors' SGHMC has our friction and step (its lr is the square root of ours) and a mass of 1; it moves the "
    "weights before it renews the velocity, ours after."
)


def tables(setting: Setting) -> Iterator[Table]:
    shapes = setting.pick(gpt2_shapes(), gpt2_shapes(3, 384, 16000), gpt2_shapes(1, 16, 64, 8))
    work = {dtype: make(shapes, dtype, setting.device) for dtype in (FP32, BF16, FP16)}
    size = f"{count(work[FP32].numel)} parameters in {len(shapes)} tensors"
    yield against_peers(setting, work, size)
    yield samplers(setting, work, size)
    if not setting.cuda and setting.backend.partition(":")[0] in ("auto", "cpu") and cpu_backend.isas():
        yield instruction_sets(setting, work, size)


def against_peers(setting: Setting, work: dict[torch.dtype, Work], size: str) -> Table:
    table = Table(
        "step",
        f"One SGLD step of {size}: ours and what people use otherwise",
        COLUMNS,
        READING + cached(work[FP32], setting.device),
        plot=Plot("bars", "ns", "nanoseconds a parameter (logarithmic)", log="x"),
    )
    full = work[FP32]
    pairs = [("llc_fast fp32", FP32, "float32"), ("llc_fast split bf16", BF16, "split")]
    subjects = []
    for backend in setting.backends:
        for name, dtype, storage in pairs:
            floor = setting.named(name.replace("llc_fast", "floor: no noise,"), backend)
            for title, role, level in ((setting.named(name, backend), "ours", 1.0), (floor, "floor", 0.0)):
                build = partial(ours, work[dtype], backend, level)
                subjects.append(Subject(title, build, full.numel, traffic("sgld", storage), role, floor))
    subjects.append(copy_of(setting.device, traffic() * full.numel, traffic()))
    floor, mine = "floor: no noise, fp32", "llc_fast fp32"
    for name, build, role, least in _peers.STEP:
        subjects.append(Subject(name, partial(build, full), full.numel, least, role, floor, mine))
    compare(table, subjects, setting)
    return table


def samplers(setting: Setting, work: dict[torch.dtype, Work], size: str) -> Table:
    table = Table(
        "samplers",
        f"One step of {size}: samplers, storages and sums",
        COLUMNS,
        f"{READING} {SAMPLERS_READING}{cached(work[FP32], setting.device)}",
        plot=Plot("bars", "ns", "nanoseconds a parameter (logarithmic)", log="x"),
    )
    subjects: dict[str, Subject] = {}
    for name, dtype, storage, options in SAMPLERS:
        floor = "floor: " + name.partition(",")[0]
        quiet = {k: v for k, v in options.items() if k not in ("sums", "noise")}
        bytes_each = traffic(options.get("sampler", "sgld"), storage)
        common = {"per": work[dtype].numel, "bytes": bytes_each, "stretch": name.partition(",")[0]}
        run = partial(ours, work[dtype], setting.backend)
        subjects[name] = Subject(name, partial(run, **options), floor=floor, **common)
        subjects.setdefault(
            floor, Subject(floor, partial(run, noise_level=0.0, **quiet), role="floor", floor=floor, **common)
        )
    numel = work[FP32].numel
    subjects["copy"] = copy_of(setting.device, traffic() * numel, traffic())
    for name, build, mine in SAMPLER_PEERS:
        floor = "floor: " + mine.partition(",")[0]
        subjects[name] = Subject(name, partial(build, work[FP32]), numel, 0, "peer", floor, mine)
    compare(table, list(subjects.values()), setting)
    return table


def instruction_sets(setting: Setting, work: dict[torch.dtype, Work], size: str) -> Table:
    table = Table(
        "instruction-sets",
        f"One SGLD step of {size}: instruction sets of this CPU",
        COLUMNS[:-1],
        "The best is taken by default; backend='cpu:avx2' asks for another.",
        plot=Plot("bars", "ns", "nanoseconds a parameter"),
    )
    subjects = []
    isas = cpu_backend.isas()
    for dtype, storage, kind in ((FP32, "float32", "fp32"), (BF16, "split", "split bf16")):
        common = {"per": work[dtype].numel, "bytes": traffic("sgld", storage), "floor": f"floor: {kind}"}
        for isa in isas:
            subjects.append(Subject(f"{isa}, {kind}", partial(ours, work[dtype], f"cpu:{isa}"), **common))
        build = partial(ours, work[dtype], f"cpu:{isas[0]}", 0.0)
        subjects.append(Subject(f"floor: {kind}", build, role="floor", **common))
    subjects.append(copy_of(setting.device, traffic() * work[FP32].numel, traffic()))
    compare(table, subjects, setting)
    return table
