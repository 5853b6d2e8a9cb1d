"""Instructions per element of the CPU's step: of the compiled kernel as it runs, without a clock.

csrc/cpu/count.cpp runs a step on two lengths; the difference over the elements between them is what an element takes,
free of what comes once a step. Two counters: callgrind, an outside one, and the processor's trap after each
instruction, which is slower but needs no tool and knows AVX-512. Both repeat exactly, and agree where both can count.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from llc_fast.backends import cpu_backend
from llc_fast.group import STORAGE_CODES, Storage
from llc_fast.noise import KINDS as NOISES
from llc_fast.samplers import find
from llc_fast.scalars import LOCALIZATION, NOISE

from ._kernels import ROOT, Missing, checkout, digest

LENGTHS = 1024, 2048  # elements, whole blocks
EVERY_TERM = 15


@dataclass(frozen=True)
class Step:
    """A step that is counted: what the kernel is told."""

    sampler: str = "sgld"
    storage: Storage = "float32"
    noise: str = "gaussian"
    terms: int = LOCALIZATION | NOISE
    sums: bool = False

    def case(self, elements: int) -> str:
        """As the program takes it."""
        codes = STORAGE_CODES[self.storage], NOISES.index(self.noise), self.terms, int(self.sums), elements
        return ",".join([find(self.sampler).kernel, *map(str, codes)])


STEPS = {
    "SGLD fp32": Step(),
    "floor: SGLD fp32": Step(terms=LOCALIZATION),
    "SGLD fp32, sums": Step(sums=True),
    "SGLD fp32, every term": Step(terms=EVERY_TERM),
    "SGLD split bf16": Step(storage="split"),
    "floor: SGLD split bf16": Step(storage="split", terms=LOCALIZATION),
    "SGLD split bf16, sums": Step(storage="split", sums=True),
    "SGLD sr bf16": Step(storage="sr"),
    "SGLD sr bf16, ih4": Step(storage="sr", noise="ih4"),
    "floor: SGLD sr bf16": Step(storage="sr", terms=LOCALIZATION),
    "SGLD fp16 with master": Step(storage="float16"),
    "floor: SGLD fp16 with master": Step(storage="float16", terms=LOCALIZATION),
    "RMSprop-SGLD fp32": Step("rmsprop_sgld"),
    "RMSprop-SGLD split bf16": Step("rmsprop_sgld", "split"),
    "SGHMC fp32": Step("sghmc"),
}


# --- building: as CMakeLists.txt builds the extension, which a test compares ---


def isa_flags(lists: Path = ROOT / "CMakeLists.txt") -> dict[str, list[str]]:
    """The compiler's flags for each instruction set."""
    text = lists.read_text()
    standard = re.search(r"set\(CMAKE_CXX_STANDARD (\d+)\)", text)[1]  # type: ignore[index]
    exact = re.search(r"set\(LLCF_EXACT ([^)]*)\)", text)[1].split()  # type: ignore[index]
    common = ["-O3", "-DNDEBUG", f"-std=gnu++{standard}", "-fPIC", "-fvisibility=hidden", *exact]
    defined = dict(re.findall(r"target_compile_definitions\(llcf_(\w+) PRIVATE ([^)]*)\)", text))
    flags = {}
    for isa, own in re.findall(r"^ *llcf_isa\((\w+)([^)]*)\)", text, re.M):
        names = [f"LLCF_ISA={isa}", f'LLCF_ISA_NAME="{isa}"', *defined.get(isa, "").split()]
        flags[isa] = [*common, *own.split(), *(f"-D{name}" for name in names)]
    return flags


def compiler() -> list[str]:
    """The one that CMake would take."""
    found = shlex.split(os.environ.get("CXX", "")) or [shutil.which("c++") or shutil.which("g++") or ""]
    if shutil.which(found[0]) is None:
        raise Missing(f"no C++ compiler: {found[0] or 'c++'} is not on PATH")
    return found


def compiler_version() -> str:
    """Such as "gcc 12.2.0"."""

    def ask(option: str) -> str:
        return subprocess.run([*compiler(), option], check=True, capture_output=True, text=True).stdout

    said = ask("--version")
    name = "clang" if "clang" in said else "gcc" if "Free Software Foundation" in said else "compiler"
    number = ask("-dumpfullversion") if name == "gcc" else re.search(r"\d+(\.\d+)+|$", said)[0]  # type: ignore[index]
    return f"{name} {number.strip()}"


def build(isa: str, folder: Path, csrc: Path = ROOT / "csrc", more: Iterable[str] = ()) -> Path:
    """The program that runs steps of one instruction set; taken from `folder` if it has been made of the same sources.

    more: flags behind those of the extension.
    """
    checkout()
    flags = isa_flags()
    if isa not in flags or (isa != "generic" and os.uname().machine != "x86_64"):
        raise Missing(f"the CPU kernel has no {isa} here")
    includes = [f"-I{csrc / name}" for name in ("include", "cpu")]
    command = [*compiler(), *includes, *flags[isa], *more, "-c", str(csrc / "cpu" / "isa.cpp")]
    sources = digest(*command, compiler_version(), of=[csrc / "cpu", csrc / "include"])
    program = folder / f"count_{isa}_{sources}"
    if not program.exists():
        kernel, part = program.with_suffix(".o"), program.with_suffix(".part")
        subprocess.run([*command, "-o", str(kernel)], check=True)
        runner = [*compiler(), "-std=c++17", "-O2", *includes, f"-DLLCF_ISA={isa}"]
        runner += [str(csrc / "cpu" / "count.cpp"), str(kernel), "-o", str(part)]
        subprocess.run(runner, check=True)
        part.replace(program)
    return program


# --- counting ---

Counter = Callable[[Path, list[str]], list[int]]


def by_callgrind(program: Path, cases: list[str]) -> list[int]:
    """Instructions of each case, as valgrind's virtual processor executes them."""
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        raise Missing("valgrind is not on PATH")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        options = ["--tool=callgrind", "--toggle-collect=measured", "--dump-after=measured", "-q"]
        _run([valgrind, *options, f"--callgrind-out-file={out}", str(program), *cases])
        texts = [out.with_name(f"out.{i + 1}").read_text() for i in range(len(cases))]
    return [int(re.search(r"^totals: (\d+)", text, re.M)[1]) for text in texts]  # type: ignore[index]


def by_steps(program: Path, cases: list[str]) -> list[int]:
    """Instructions of each case, as this processor executes them, and a few more around it."""
    return [int(line) for line in _run([str(program), "--step", *cases]).split()]


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command[:2])} ... ended with {done.returncode}: {done.stderr[-400:]}")
    return done.stdout


def per_element(program: Path, steps: Iterable[Step], counter: Counter) -> list[float]:
    short, long = LENGTHS
    found = counter(program, [step.case(n) for step in steps for n in LENGTHS])
    return [(b - a) / (long - short) for a, b in zip(found[::2], found[1::2], strict=True)]


def usual(isa: str) -> Counter:
    """callgrind where it is installed and knows the instructions, else the processor."""
    if isa not in cpu_backend.isas():
        raise Missing(f"this CPU has no {isa}")
    return by_steps if isa == "avx512" or shutil.which("valgrind") is None else by_callgrind


def cpu_counts(isa: str, cache: Path | None = None, names: Iterable[str] = STEPS) -> dict[str, float]:
    """Instructions per element of the named steps. cache: a folder for the compiled program."""
    counter = usual(isa)
    names = list(names)
    with tempfile.TemporaryDirectory() as folder:
        program = build(isa, cache or Path(folder))
        return dict(zip(names, per_element(program, [STEPS[n] for n in names], counter), strict=True))
