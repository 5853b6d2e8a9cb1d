"""Where each step stands under the two roofs of the device: a copy's bandwidth, and the instructions it issues."""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ._table import Column, Table

COUNTS = Path(__file__).with_name("instructions.json")
# The kernel of each kind, as `sass` names it. The CUDA backend's with statistics are told their terms at run time: what
# they execute is not known from counting.
KERNELS = {
    "cuda": {
        "fp32": "sgld_step float32 localization+noise",
        "split": "sgld_step split localization+noise",
        "sr": "sgld_step sr localization+noise",
        "sr ih4": "sgld_step sr localization+noise ih4",
        "RMSprop fp32": "rmsprop_step float32 localization+noise",
        "RMSprop split": "rmsprop_step split localization+noise",
        "SGHMC fp32": "momentum_step float32 localization+noise",
    },
    "triton": {
        "fp32": "sgld_step float32 localization+noise",
        "split": "sgld_step split localization+noise",
        "sr": "sgld_step sr localization+noise",
        "sr ih4": "sgld_step ih4_sr localization+noise",
        "RMSprop fp32": "sgld_step rmsprop_float32 localization+noise",
        "RMSprop split": "sgld_step rmsprop_split localization+noise",
        "SGHMC fp32": "sgld_step momentum_float32 localization+noise",
        "fp32 statistics": "sgld_step sums_sgld_float32 localization+noise",
    },
}
LANES = 128  # threads whose instruction a multiprocessor issues in a cycle, since compute capability 8.0
H200 = {"multiprocessors": 132, "mhz": 1980.0}


def counted(extension: Path) -> dict[str, float]:
    """Instructions a parameter of the CUDA kernels in a built extension, by name; raises where that cannot be had."""
    from ._kernels import Kernel, disassemble, variant
    from .sass import per_element

    found = {}
    for symbol, (sass, registers, stack) in disassemble(extension).items():
        name = variant(symbol)
        if name in KERNELS["cuda"].values():
            elements = 4 if "float32" in name else 8
            found[name] = per_element(Kernel(name, "", sass, registers, stack, 256, True, elements=elements))
    return found


def instructions() -> tuple[dict[str, dict[str, float]], str]:
    """Instructions a parameter by backend and kind, and where the CUDA kernels' are from."""
    from llc_fast.backends import cuda_backend

    known = json.loads(COUNTS.read_text(encoding="utf-8"))
    counts: dict[str, dict[str, float]] = {backend: known[backend]["counts"] for backend in KERNELS}
    where = "counted beforehand, sm_90"
    extension = cuda_backend._cuda
    if (
        extension is not None and "," not in extension.archs
    ):  # of several, each would be counted over the other
        with suppress(Exception, SystemExit):  # no cuobjdump, or one that prints something else
            counts["cuda"] |= counted(Path(extension.__file__))
            where = f"counted in the extension that ran ({extension.archs})"
    by_kind = {
        backend: {kind: counts[backend][name] for kind, name in names.items() if name in counts[backend]}
        for backend, names in KERNELS.items()
    }
    return by_kind, where


def clock() -> float | None:
    """The multiprocessors' highest clock in MHz."""
    query = ["nvidia-smi", "--query-gpu=clocks.max.sm", "--format=csv,noheader,nounits"]
    try:
        run = subprocess.run(query, capture_output=True, text=True, timeout=20)
        return float(run.stdout.split()[0])
    except (OSError, subprocess.TimeoutExpired, ValueError, IndexError):
        return None


def roofline(bandwidth: Table, gpu: Mapping[str, Any] | None) -> Table:
    """From the bandwidth table's rows: of each kind and backend, the fastest size.

    Without a GPU, the roofs are those of an H200.
    """
    per, where = instructions()
    units = int((gpu or H200)["multiprocessors"])
    mhz = (clock() if gpu else None) or H200["mhz"]
    issue = units * LANES * mhz * 1e6
    table = Table(
        "gpu-roofline",
        "Steps under the roofs of bandwidth and of instructions",
        [
            Column("instructions", "instr/param", ".1f"),
            Column("intensity", "instr/byte", ".2f"),
            Column("gbs", "GB/s", ".0f"),
            Column("copy", "copy GB/s", ".0f"),
            Column("issue", "issue GB/s", ".0f"),
            Column("share", "of the roof", ".0%"),
        ],
        f"Issue: bytes moved if every cycle issued an instruction on {units} multiprocessors at {mhz:.0f} MHz; the "
        f"roof is the lower of the two. Instructions of the CUDA kernels: {where}.",
    )
    best: dict[tuple[str, str], dict[str, Any]] = {}
    for row in bandwidth.rows:
        key = row["kind"], row["backend"]
        rates = row.get("gbs"), row.get("copy")
        if all(isinstance(r, float) and math.isfinite(r) for r in rates) and (
            key not in best or row["gbs"] > best[key]["gbs"]
        ):
            best[key] = row
    for (kind, backend), row in sorted(best.items(), key=lambda item: item[0][::-1]):
        # a dry run has the CPU in the place of the CUDA backend
        count = per["triton" if backend == "triton" else "cuda"].get(kind)
        name, facts = f"{kind}, {row['size']}, {backend}", {"kind": kind, "backend": backend}
        if count is None:
            table.add(name, absent="its instructions are not counted", **facts)
            continue
        roof = row["bytes"] * issue / count / 1e9
        table.add(
            name,
            instructions=count,
            intensity=count / row["bytes"],
            gbs=row["gbs"],
            copy=row["copy"],
            issue=roof,
            share=row["gbs"] / min(roof, row["copy"]),
            roof=issue / 1e9,
            **facts,
        )
    return table
