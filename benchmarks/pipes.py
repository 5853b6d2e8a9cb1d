"""Which pipe of a multiprocessor, or the memory, bounds each GPU kernel: from its instructions, without a GPU.

    python -m llc_fast.benchmarks.pipes [--arch 90] [--only REGEX] [--language cuda] [--clock GHZ] [--bandwidth TB/S]

A prediction from SASS and published rates, not a measurement. An element of the main loop takes the memory some time,
its bytes at the bandwidth of a copy shared by all multiprocessors, and every pipe the instructions that go there at
the pipe's rate. Columns of pipes are the second as a share of the first: above 100 % the kernel waits for that pipe,
and the last column is the share of the copy's bandwidth that remains at best. Dependencies and stalls are not in it,
but for what has to be in flight: kilobytes of a multiprocessor that the loads of all resident warps hold, beside what
the latency asks for.

Rates are of the CUDA programming guide's table of arithmetic instructions for compute capability 9.0 (8.0 has the
same but for conversions), in threads per clock of a multiprocessor. NVIDIA publishes none for products of 64 bits;
they are counted twice. What only moves or steers (uniform registers, branches) is issued and no more. Triton's kernels
count from the entry, so the search for their tile is in it.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ._kernels import SOURCES, Instruction, Kernel, Missing, compiled
from .sass import WARPS, main_loop, occupancy

# Threads per clock. "heavy" is the half of "fma" that multiplies integers.
RATES = {"issue": 128, "alu": 64, "fma": 128, "heavy": 64, "xu": 16, "lsu": 32}
# Where an instruction goes besides being issued, how often it counts there; the first that matches.
PIPES: tuple[tuple[str, dict[str, int]], ...] = (
    (r"IMAD\.(WIDE|HI)", {"heavy": 2, "fma": 2}),
    (r"IMAD|IDP", {"heavy": 1, "fma": 1}),
    (r"FADD|FMUL|FFMA|HADD2|HMUL2|HFMA2", {"fma": 1}),
    (r"MUFU|FCHK|POPC|FLO|F2F\.|F2I|I2F\.", {"xu": 1}),
    (r"(LDG|STG)\.E.*\.128", {"lsu": 4}),
    (r"LD|ST|SHFL|ATOM|RED", {"lsu": 1}),
    (r"U[A-Z]|R2UR|S2UR|S2R|CS2R|VOTE", {}),
    (r"BRA|BSSY|BSYNC|BREAK|CALL|RET|EXIT|NOP|WARPSYNC|BAR|YIELD|DEPBAR|MEMBAR", {}),
    (
        r"I?ADD3|IADD|VIADD|IMNMX|VIMNMX|IABS|LEA|LOP3?|PLOP3|SHF|SGXT|BMSK|BREV|PRMT|SEL|MOV|P2R|R2P",
        {"alu": 1},
    ),
    (r"I?SETP|ISETP|FSETP|FSET|FSEL|FMNMX|PSETP|I2FP|F2FP|I2I|VABSDIFF", {"alu": 1}),
)


@dataclass(frozen=True)
class Device:
    """What the time of a kernel follows from; the defaults are an H200's, at the lower of its usual clocks."""

    processors: int = 132
    clock: float = 1.755e9
    bandwidth: float = 4.3e12  # of a copy, read and written together
    latency: float = 700e-9  # of a load from memory


@dataclass(frozen=True)
class Load:
    """What an element of a kernel's main loop takes. clocks: of each pipe and of the memory. flying, needed: bytes."""

    instructions: float
    traffic: float
    clocks: dict[str, float]
    memory: float
    flying: float
    needed: float

    @property
    def bound(self) -> str:
        """What takes longest."""
        pipe = max(self.clocks, key=self.clocks.__getitem__)
        return pipe if self.clocks[pipe] > self.memory else "memory"

    @property
    def share(self) -> float:
        """Of the copy's bandwidth, at best."""
        return min(1.0, self.memory / max(self.clocks.values()))


def pipes_of(instruction: Instruction) -> dict[str, int]:
    """The pipes that an instruction goes to, and how often it counts there."""
    for pattern, pipes in PIPES:
        if re.match(pattern, instruction.op):
            return {"issue": 1} | pipes
    raise ValueError(f"{instruction.op} is in no pipe: add it to PIPES")


def load_of(kernel: Kernel, arch: str, device: Device) -> Load | None:
    """None where there is no main loop."""
    loop = main_loop(kernel)
    wide = kernel.count(r"(LDG|STG)\.E.*128", loop)
    if not wide:
        return None
    reads = kernel.count(r"LDG\.E.*128", loop)
    elements = kernel.elements or 4 * (wide - reads)
    counts: Counter[str] = Counter()
    for instruction in loop:
        counts.update(pipes_of(instruction))
    clocks = {pipe: counts[pipe] / rate / elements for pipe, rate in RATES.items()}
    each = device.bandwidth / device.processors  # bytes a second
    warps = occupancy(kernel, arch) * WARPS.get(arch, 64)
    return Load(
        instructions=counts["issue"] / elements,
        traffic=16 * wide / elements,
        clocks=clocks,
        memory=16 * wide / elements / each * device.clock,
        flying=warps * 32 * 16 * reads,
        needed=each * device.latency * reads / wide,
    )


HEAD = (
    f"{'kernel':<52} bytes  instr"
    + "".join(f"{pipe:>7}" for pipe in RATES)
    + "  in flight  bound   of a copy"
)


def row(name: str, load: Load) -> str:
    pipes = "".join(f"{clocks / load.memory:>7.0%}" for clocks in load.clocks.values())
    flying = f"{load.flying / 1024:.0f}/{load.needed / 1024:.0f} KB"
    return (
        f"{name:<52} {load.traffic:>5.0f} {load.instructions:>6.1f}{pipes}"
        f"{flying:>11}  {load.bound:<7} {load.share:>8.0%}"
    )


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m llc_fast.benchmarks.pipes",
        description="Which pipe or the memory bounds each GPU kernel, predicted from its instructions.",
    )
    parser.add_argument("--arch", default="90", help="compute capability times ten (default: 90)")
    parser.add_argument("--only", default="_step", help="regular expression for names of kernels")
    parser.add_argument("--language", choices=SOURCES, help="only these kernels")
    parser.add_argument("--processors", type=int, default=Device.processors, help="multiprocessors")
    parser.add_argument("--clock", type=float, default=Device.clock / 1e9, help="GHz")
    parser.add_argument("--bandwidth", type=float, default=Device.bandwidth / 1e12, help="TB/s of a copy")
    arguments = parser.parse_args(words)
    device = Device(arguments.processors, arguments.clock * 1e9, arguments.bandwidth * 1e12)
    try:
        for language in [arguments.language] if arguments.language else SOURCES:
            print(f"{language}, sm_{arguments.arch}: predicted\n{HEAD}", flush=True)
            for kernel in compiled(language, arguments.arch, arguments.only):
                load = load_of(kernel, arguments.arch, device)
                if load is not None:
                    print(row(kernel.name, load), flush=True)
    except Missing as e:
        print(f"pipes: {e}")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
