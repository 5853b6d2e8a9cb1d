"""How much memory does a sampler need, and how much more does it take while it steps?

One table: bytes a parameter of our samplers, of what people use otherwise, and of AdamW.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch

import llc_fast
from llc_fast import optim

from . import _machine, _peers, _rotate
from ._memory_row import Allocated, Job, Resident, ask, measure
from ._table import Column, Plot, Table
from ._timing import Call, reason
from ._work import LOCALIZATION, LR, NBETA, Setting, Shapes, Work, gpt2_shapes, release

PATIENCE = 300.0  # seconds for one process
ROOM = 24  # bytes a parameter, allowed for what a step takes before it is known
# Freed blocks go back to the system at once, so that what is resident is what is in use.
JAX = f"{_peers.__name__}:blackjax"
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536"}


@dataclass(frozen=True)
class Row:
    """A sampler. state: the bytes a parameter that its definition asks for, beside weights and gradients.

    scratch: bytes that it keeps besides for each element of the largest tensor.
    """

    job: Job
    state: float
    role: str = "ours"
    scratch: float = 0.0

    @property
    def model(self) -> int:
        """Bytes a parameter of weights and gradients."""
        return 2 * torch.empty(0, dtype=getattr(torch, self.job.dtype)).element_size()


def sampler(work: Work, kind: str, **options: Any) -> Call:
    """A step of our optimizers, as a user makes it."""
    made = getattr(optim, kind)(_peers.leaves(work), lr=LR, nbeta=NBETA, localization=LOCALIZATION, **options)
    if made.notes:  # another storage than the row says
        raise llc_fast.LlcFastError(made.notes[0])
    call: Call = made.step
    return call


def _ours(name: str, kind: str, state: float, dtype: str = "float32", /, **options: Any) -> Row:
    return Row(Job(name, f"{__name__}:sampler", dtype, {"kind": kind, **options}), state)


def _peer(
    name: str, function: str, state: float, role: str = "peer", scratch: float = 0.0, /, **options: Any
) -> Row:
    return Row(Job(name, f"{_peers.__name__}:{function}", options=options), state, role, scratch)


# Expected: anchors, and a copy for the metrics, as wide as the weights; remainders 2 (bf16) or 4 (fp16); buffers 4.
ROWS = [
    _ours("SGLD fp32", "SGLD", 4),
    _ours("SGLD fp32, metrics", "SGLD", 4, save_metrics=True),
    _ours("SGLD split bf16", "SGLD", 4, "bfloat16"),
    _ours("SGLD sr bf16", "SGLD", 2, "bfloat16", state="sr"),
    _ours("SGLD fp16 with master", "SGLD", 6, "float16"),
    _ours("RMSprop-SGLD fp32", "RMSpropSGLD", 8),
    _ours("RMSprop-SGLD split bf16", "RMSpropSGLD", 8, "bfloat16"),
    _ours("SGHMC fp32", "SGHMC", 8),
    _peer("devinterp SGMCMC.sgld", "devinterp", 4),
    _peer("devinterp SGMCMC.sgld, save_metrics", "devinterp", 8, save_metrics=True),
    _peer("devinterp SGMCMC.rmsprop_sgld", "devinterp", 8, method="rmsprop_sgld"),
    _peer("posteriors sgmcmc.sgld", "posteriors", 4),
    _peer("posteriors sgmcmc.sghmc", "posteriors", 8, method="sghmc"),
    _peer("blackjax sgld (JAX)", "blackjax", 4),
    _peer("PyTorch eager", "eager", 4),
    _peer("PyTorch in place (normal_, lerp_, add_)", "in_place", 4, "peer", 4),
    _peer("PyTorch _foreach", "foreach", 8),
    _peer("PyTorch fused AdamW (no sampler)", "adamw", 8, "yardstick"),
]
COLUMNS = [
    Column("model", "weights + gradients", ".0f"),
    Column("expected", "state, expected", ".2f"),
    Column("state", "state, measured", ".2f"),
    Column("peak", "in a step", ".2f"),
    Column("total", "together", ".1f"),
    Column("seven", "7B model", ".0f", " GB"),
]


def shapes_of(setting: Setting) -> Shapes:
    """Blocks of a transformer, so many that no tensor is more of it than the embedding is of a 7B model, 2 %."""
    blocks = setting.pick(gpt2_shapes(18, 768, 3072, 768), gpt2_shapes(18, 320, 1280, 320), [(16, 16)] * 50)
    return list(blocks)


def tables(setting: Setting) -> Iterator[Table]:
    shapes = shapes_of(setting)
    numel = sum(torch.Size(s).numel() for s in shapes)
    largest = max(torch.Size(s).numel() for s in shapes)
    table = Table(
        "memory",
        f"Memory of samplers, bytes a parameter: {_rotate.short(numel)} parameters in {len(shapes)} tensors",
        COLUMNS,
        "state: what the sampler keeps beside the model's weights and gradients, anchors included: expected from its "
        "definition, and measured. in a step: what a step allocates besides, at its worst moment; where that is a "
        "multiple of single tensors it depends on the largest, here "
        f"{largest / numel:.1%} of all parameters, about the share that the embedding of a 7B model has: in a small "
        "model, whose embedding is a larger part, such steps take more. together: with weights and gradients, what "
        "has to fit; a 7B model needs 7 billion times that (activations not counted). "
        + (
            "Read from PyTorch's allocator."
            if setting.cuda
            else "Each row is the resident memory of a process of its own, exact to about 1 MB "
            f"({1e6 / numel:.2f} bytes a parameter); that of JAX includes the program that it has compiled, "
            "which does not grow with the tensors, so that it says nothing of 7B."
        ),
        plot=Plot("bars", "beside", "bytes a parameter beside weights and gradients: state + in a step"),
    )
    found = _on_device(setting, shapes, numel) if setting.cuda else _in_processes(setting, shapes, numel)
    for row, values in zip(ROWS, found, strict=True):
        if "absent" in values:
            table.add(row.job.name, row.role, values["absent"])
            continue
        beside = values["state"] + values["peak"]
        table.add(
            row.job.name,
            row.role,
            model=row.model,
            expected=row.state + row.scratch * largest / numel,
            **values,
            beside=beside,
            total=row.model + beside,
            **({} if row.job.build == JAX else {"seven": 7 * (row.model + beside)}),
        )
    yield table


def _needs(row: Row, numel: int) -> float:
    return numel * (row.model + row.state + ROOM)


def _on_device(setting: Setting, shapes: Shapes, numel: int) -> Iterator[dict[str, Any]]:
    """One after the other, here."""
    for row in ROWS:
        setting.say(f"memory: {row.job.name}")
        release(setting)
        why = _rotate.shortage(_needs(row, numel), setting.device)
        if row.job.build == JAX:
            why = "JAX has an allocator of its own, which is not PyTorch's to read"
        if why is not None:
            yield {"absent": why}
            continue
        try:
            yield dict(measure(row.job, shapes, setting.device, Allocated(setting.device)))
        except Exception as e:
            yield {"absent": reason(e)}


def _in_processes(setting: Setting, shapes: Shapes, numel: int) -> Iterator[dict[str, Any]]:
    """Each in a process of its own, some at a time; all in one where only the code is tried."""
    if (why := Resident.missing()) is not None:
        yield from ({"absent": why} for _ in ROWS)
        return
    lacks = [_rotate.shortage(_needs(row, numel), "cpu") for row in ROWS]
    jobs = [row.job for row, why in zip(ROWS, lacks, strict=True) if why is None]
    groups = [jobs] if setting.scale == "tiny" else [[job] for job in jobs]
    most = max(_needs(row, numel) for row in ROWS)
    together = max(1, min(os.cpu_count() or 1, int(_rotate.ALL * _machine.memory("cpu") / most)))

    def say_and_run(group: list[Job]) -> dict[str, dict[str, Any]]:
        setting.say(f"memory: {', '.join(job.name for job in group)}")
        return answer(group, shapes)

    with ThreadPoolExecutor(together) as pool:
        found = {
            name: values
            for each in pool.map(say_and_run, filter(None, groups))
            for name, values in each.items()
        }
    yield from (
        found[row.job.name] if why is None else {"absent": why} for row, why in zip(ROWS, lacks, strict=True)
    )


def answer(jobs: list[Job], shapes: Shapes, patience: float = PATIENCE) -> dict[str, dict[str, Any]]:
    """What a fresh process finds for some jobs, by name; why it finds nothing for those after which it died."""
    try:
        run = subprocess.run(
            [sys.executable, "-P", "-W", "ignore", "-m", f"{__package__}._memory_row"],
            input=ask(jobs, shapes, torch.get_num_threads()),
            capture_output=True,
            text=True,
            timeout=patience,
            env=os.environ | ALLOCATOR,
        )
        out, why = run.stdout, _death(run)
    except subprocess.TimeoutExpired as e:
        out = e.stdout.decode() if isinstance(e.stdout, bytes) else e.stdout or ""
        why = f"took more than {patience:.0f} s"
    except OSError as e:
        out, why = "", reason(e)
    found = {job.name: {"absent": why} for job in jobs}
    for line in out.splitlines():
        if line.startswith('{"name": '):
            values = json.loads(line)
            found[values.pop("name")] = values
    return found


def _death(run: subprocess.CompletedProcess[str]) -> str:
    if run.returncode < 0:
        name = signal.Signals(-run.returncode).name
        return f"killed ({name}{', probably out of memory' if name == 'SIGKILL' else ''})"
    last = run.stderr.strip().splitlines()
    return f"its process ended with code {run.returncode}{': ' + last[-1][:80] if last else ''}"
