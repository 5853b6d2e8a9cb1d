"""What does a step cost besides moving bytes: launches, the host's time, and many small tensors instead of one?"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator
from typing import Any

from ._gpu_bandwidth import KINDS, Kind
from ._gpu_device import Bench, device_times, launched
from ._table import Column, Table, spread
from ._timing import host_seconds, reason
from ._work import even_shapes, make, ours, release

NUMEL = 67_200_000  # 10,000 tensors of whole vectors
COUNTS = (1, 100, 10_000)
UNSEEN = "Some are not counted"
HOST_CALLS = 5  # fewer than the CUDA backend lets its host be ahead


def launches(bench: Bench) -> Iterator[Table]:
    setting = bench.setting
    numel, counts = setting.pick((NUMEL, COUNTS), (NUMEL, COUNTS), (480, (1, 2, 3)))
    table = Table(
        "gpu-launches",
        f"One step of {numel:,} parameters in 1 to {counts[-1]:,} tensors",
        [
            Column("kernels", "kernels a step", ".0f"),
            Column("host_us", "host us", ".0f"),
            Column("device_us", "device us", ".1f"),
            Column("low", "from", ".1f"),
            Column("high", "to", ".1f"),
            Column("ratio", "x one tensor", ".3f"),
        ],
        "Kernels: counted in a profiler's trace, in which the copy of the step's scalars to the device is none. Host: "
        "what the step costs the thread that makes it. Device: its time with a full queue, without the host.",
    )
    for kind in KINDS[:2]:
        for backend in bench.backends:
            one: dict[str, Any] = {}
            for count in counts:
                _row(table, bench, kind, backend, numel, count, one)
                bench.alive()
            yield table


def _row(
    table: Table, bench: Bench, kind: Kind, backend: str, numel: int, count: int, one: dict[str, Any]
) -> None:
    """one: the row of one tensor, filled in when it is there."""
    facts = {"kind": kind.name, "backend": backend, "tensors": count}
    name = f"{kind.name}, {count:,} tensor{'s' * (count > 1)}, {backend}"
    why = bench.absent(backend, kind.memory(even_shapes(numel, count)))
    if why is not None:
        table.add(name, absent=why, **facts)
        return
    bench.setting.say(f"launches: {name}")
    values: dict[str, Any] = {}
    try:
        work = make(even_shapes(numel, count), kind.dtype, bench.setting.device)
        call = ours(work, backend, **kind.options)
        times, absent = device_times({"step": call}, bench)
        if "step" not in times:
            table.add(name, absent=absent["step"], **facts)
            return
        scaled = spread(times["step"], 1e3)
        values |= {"device_us": scaled["ns"], "low": scaled["low"], "high": scaled["high"]}
        tries = bench.setting.pick(3, 3, 1)
        values["host_us"] = statistics.median(host_seconds(call, HOST_CALLS) for _ in range(tries)) * 1e6
        if count == 1:
            one |= values
        if one:
            values["ratio"] = values["device_us"] / one["device_us"]
        try:
            names = launched(call, bench)
            values |= {"kernels": len(names), "names": dict(Counter(n[:80] for n in names))}
        except Exception as e:  # the times are there all the same
            values["unseen"] = reason(e)
            if UNSEEN not in table.reading:
                table.reading += f" {UNSEEN}: {reason(e)}."
        table.add(name, **facts, **values)
    except Exception as e:
        table.add(name, absent=reason(e), **facts)
    finally:
        release(bench.setting)
