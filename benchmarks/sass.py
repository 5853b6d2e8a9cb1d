"""What do the GPU kernels compile to? PTX and SASS, a table, and the rules that they keep; no GPU is needed.

    python benchmarks/sass.py [--arch 90] [--only REGEX] [--keep FOLDER]

Exit status 1: a rule is broken. 2: there is no nvcc or cuobjdump.

Instructions per element are counted in the main loop: the innermost loop that stores sixteen bytes at a time. Every
instruction between its first and its backward branch counts once, predicated ones too, except basic blocks that
call a subroutine: those are the special values of a square root, which one radius in 2^25 takes. The sum is divided
by the elements of an iteration, known from the bytes that it stores (four an element, in either storage). Triton's
kernels have no such loop, a program makes one pass: there everything counts from the entry to the exit behind the
first sixteen-byte stores, so the search for the program's tile is in it.

Rules. PTX: no fma, no .ftz, every fp32 sum and product .rn. SASS: no local memory; FFMA and .FTZ only where a square
root or division is expanded (what feeds them comes from MUFU); in the main loop of a CUDA step every access is of
sixteen bytes, and its registers leave room for half of the warps.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CUDA = ROOT / "csrc" / "cuda"
TERMS = {1: "decay", 2: "localization", 4: "noise", 8: "box"}
REGISTERS, GRANULE = 65536, 256  # of a multiprocessor; what a warp's are rounded up to
WARPS = {"80": 64, "86": 48, "89": 48, "90": 64, "100": 64, "103": 64, "120": 48}  # a multiprocessor holds


@dataclass(frozen=True)
class Instruction:
    address: int
    predicate: str
    op: str
    operands: str

    @property
    def target(self) -> int | None:
        """Where a branch goes."""
        match = re.search(r"0x([0-9a-f]+)", self.operands)
        return int(match[1], 16) if self.op.startswith("BRA") and match else None


@dataclass(frozen=True)
class Kernel:
    """One compiled kernel. threads: of a block. step: it is one of those that every element of a model passes."""

    name: str
    ptx: str
    sass: list[Instruction]
    registers: int
    stack: int
    threads: int
    step: bool
    straight: bool = False  # one pass without a loop, as Triton's are

    def count(self, pattern: str, instructions: list[Instruction] | None = None) -> int:
        """How many instructions, of these or of all, begin so."""
        chosen = self.sass if instructions is None else instructions
        return sum(bool(re.match(pattern, i.op)) for i in chosen)


# --- sources: each yields the kernels of one language; another one is another entry of SOURCES ---


def cuda_kernels(arch: str) -> Iterator[Kernel]:
    """The kernels of csrc/cuda, compiled with the flags of their CMakeLists.txt."""
    nvcc = tool("nvcc", ["/usr/local/cuda/bin"])
    lists = (CUDA / "CMakeLists.txt").read_text()
    flags = re.findall(r"--(?:fmad|ftz|prec-div|prec-sqrt)=\w+", lists)
    includes = [f"-I{ROOT / 'csrc' / name}" for name in ("", "include", "cuda")]
    command = [nvcc, f"-arch=sm_{arch}", "-std=c++17", "-O3", *flags, *includes]
    threads = int(re.search(r"kThreads = (\d+)", (CUDA / "plan.h").read_text())[1])  # type: ignore[index]
    with tempfile.TemporaryDirectory() as folder:
        for source in ("sgld_step.cu", "normal.cu"):
            ptx, cubin = Path(folder) / "kernels.ptx", Path(folder) / "kernels.cubin"
            subprocess.run([*command, "-ptx", str(CUDA / source), "-o", str(ptx)], check=True)
            subprocess.run([*command, "-cubin", str(CUDA / source), "-o", str(cubin)], check=True)
            entries = split_ptx(ptx.read_text())
            for symbol, (sass, registers, stack) in disassemble(cubin).items():
                match = re.search(r"sgld_kernelILi(\d)ELi(\d+)E", symbol)
                name = re.sub(r".*\d((?:normal|advance)_kernel).*", r"\1", symbol)
                if match:
                    name = f"sgld_step {('float32', 'split')[int(match[1])]} {terms_of(int(match[2]))}"
                yield Kernel(name, entries[symbol], sass, registers, stack, threads, match is not None)


def triton_kernels(arch: str) -> Iterator[Kernel]:
    """The kernels of kernels/, compiled ahead of time with the options of a launch."""
    from llc_fast.kernels import aot
    from llc_fast.kernels.launch import OPTIONS

    with tempfile.TemporaryDirectory() as folder:
        for variant in aot.variants():
            compiled = aot.compile_variant(variant, int(arch))
            cubin = Path(folder) / "kernel.cubin"
            cubin.write_bytes(compiled.asm["cubin"])
            ((sass, registers, stack),) = disassemble(cubin).values()
            name, match = variant, re.fullmatch(r"sgld_step_(\w+)_(\d+)", variant)
            if match:
                name = f"sgld_step {match[1]} {terms_of(int(match[2]))}"
            threads = 32 * OPTIONS["num_warps"]
            yield Kernel(name, compiled.asm["ptx"], sass, registers, stack, threads, match is not None, True)


SOURCES: dict[str, Callable[[str], Iterator[Kernel]]] = {"cuda": cuda_kernels, "triton": triton_kernels}


def terms_of(bits: int) -> str:
    return "+".join(text for bit, text in TERMS.items() if bits & bit) or "drift only"


# --- reading what the tools print ---


def tool(name: str, places: list[str]) -> str:
    found = shutil.which(name) or next((p for place in places if (p := shutil.which(name, path=place))), None)
    if found is None:
        print(f"{name} is not on PATH")
        sys.exit(2)
    return found


def cuobjdump() -> str:
    """From the CUDA toolkit, or from Triton's wheel, which has its own."""
    try:
        import triton
    except ImportError:
        return tool("cuobjdump", ["/usr/local/cuda/bin"])
    return tool("cuobjdump", [str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin")])


def split_ptx(text: str) -> dict[str, str]:
    """The text of each entry function by its symbol."""
    parts = re.split(r"\.entry\s+(\w+)", text)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def disassemble(cubin: Path) -> dict[str, tuple[list[Instruction], int, int]]:
    """Instructions, registers and stack bytes of each function by its symbol."""
    usage = subprocess.run(
        [cuobjdump(), "-res-usage", str(cubin)], check=True, capture_output=True, text=True
    )
    sizes = re.findall(r"Function (\w+):\s*REG:(\d+) STACK:(\d+)", usage.stdout)
    text = subprocess.run([cuobjdump(), "-sass", str(cubin)], check=True, capture_output=True, text=True)
    bodies = dict(re.findall(r"Function : (\w+)(.*?)(?=Function : |\Z)", text.stdout, re.S))
    line = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(@!?U?P\w+\s+)?([A-Z][\w.]*)\s*([^;]*);")
    functions = {}
    for symbol, registers, stack in sizes:
        found = line.findall(bodies[symbol])
        sass = [Instruction(int(a, 16), p.strip(), op, operands.strip()) for a, p, op, operands in found]
        functions[symbol] = (sass, int(registers), int(stack))
    return functions


# --- what is counted ---


def without_calls(kernel: Kernel, instructions: list[Instruction]) -> list[Instruction]:
    """The instructions of all basic blocks but those that always call a subroutine."""
    targets = {i.target for i in kernel.sass}
    blocks: list[list[Instruction]] = [[]]
    for i in instructions:
        if i.address in targets:
            blocks.append([])
        blocks[-1].append(i)
        if re.match(r"BRA|EXIT|BREAK|RET", i.op):
            blocks.append([])
    aside = [any(i.op.startswith("CALL") and not i.predicate for i in block) for block in blocks]
    return [i for block, out in zip(blocks, aside, strict=True) if not out for i in block]


def main_loop(kernel: Kernel) -> list[Instruction]:
    """The innermost loop that stores sixteen bytes at a time, without blocks that call a subroutine.

    Of a straight kernel, everything up to the exit behind its first such stores.
    """
    if kernel.straight:
        wide = next(
            n for n, i in enumerate(kernel.sass) if re.match(r"STG\.E.*128", i.op) and not i.predicate
        )
        end = next(n for n, i in enumerate(kernel.sass) if n > wide and i.op == "EXIT")
        return without_calls(kernel, kernel.sass[: end + 1])
    loops = [(i.target, i.address) for i in kernel.sass if i.target is not None and i.target < i.address]
    bodies = [[i for i in kernel.sass if first <= i.address <= last] for first, last in loops]
    bodies = [body for body in bodies if kernel.count(r"STG\.E.*128", body)]
    return without_calls(kernel, min(bodies, key=len)) if bodies else []


def stray(kernel: Kernel) -> int:
    """FFMA and .FTZ instructions that no MUFU feeds: sums or products that were fused or flushed."""
    fed: set[str] = set()
    strays = 0
    for i in without_calls(kernel, kernel.sass):
        registers = re.findall(r"\bR\d+\b", i.operands)
        written, read = registers[:1], registers[1:]
        scaled = "1.84467440737095516160e+19" in i.operands  # 2^64, before the root of a subnormal
        special = i.op.startswith("FFMA") or (".FTZ" in i.op and not re.match(r"U?F2I|FSETP", i.op))
        expanded = i.op.startswith("MUFU") or (special and (scaled or bool(fed.intersection(read))))
        final = i.op == "FADD.FTZ" and i.predicate != ""  # the NaN that a negative or NaN operand gives
        strays += special and not expanded and not final
        if expanded:
            fed.update(written)
        elif not i.op.startswith(("ST", "BRA")):
            fed.difference_update(written)
    return strays


def occupancy(kernel: Kernel, arch: str) -> float:
    """Share of a multiprocessor's warps that the registers allow."""
    warp = -(-kernel.registers * 32 // GRANULE) * GRANULE
    warps = kernel.threads // 32
    most = WARPS.get(arch, 64)
    return min(REGISTERS // (warp * warps), most // warps) * warps / most


def broken(kernel: Kernel, arch: str) -> list[str]:
    """The rules that a kernel breaks."""
    ptx, loop = kernel.ptx, main_loop(kernel)
    wide = r"(LDG|STG)\.E.*128"
    rules = {
        "fma in PTX": re.search(r"\bfma\.", ptx),
        ".ftz in PTX": ".ftz" in ptx,
        "unrounded fp32 in PTX": re.search(r"\b(add|sub|mul)\.f32", ptx),
        "approximate sqrt or div in PTX": re.search(r"\b(sqrt|div|rcp)\.(approx|full)|\brsqrt\.", ptx),
        "local memory": kernel.count(r"LDL|STL") or kernel.stack,
        "FFMA or .FTZ outside of sqrt and div": stray(kernel),
        "occupancy": not kernel.straight and occupancy(kernel, arch) < 0.5,
        "no main loop": kernel.step and not loop,
        "narrow access in the main loop": kernel.step
        and not kernel.straight
        and kernel.count(r"LDG|STG|LD$|ST$|LD\.|ST\.", loop) != kernel.count(wide, loop),
    }
    return [name for name, found in rules.items() if found]


def row(kernel: Kernel, arch: str) -> str:
    loop = main_loop(kernel)
    stores = kernel.count(r"STG\.E.*128", loop)
    each = len(loop) / (4 * stores) if stores else float("nan")
    fields = [
        f"{kernel.name:<44}",
        f"{kernel.registers:>4}",
        f"{occupancy(kernel, arch):>6.0%}",
        f"{kernel.count(r'LDG.E.*128', loop):>6}",
        f"{stores:>6}",
        f"{kernel.count(r'LDL|STL'):>6}",
        f"{len(re.findall(r'fma[.]', kernel.ptx)):>5}",
        f"{kernel.ptx.count('.ftz'):>5}",
        f"{kernel.count('FFMA'):>6}",
        f"{len(loop):>6}",
        f"{each:>8.2f}",
    ]
    return "".join(fields)


HEAD = f"{'kernel':<44} reg  occup  ld128  st128  local  fma  ftz  FFMA   loop  per elem"


def main() -> int:
    parser = argparse.ArgumentParser(description="What the GPU kernels compile to, and the rules they keep.")
    parser.add_argument("--arch", default="90", help="compute capability times ten (default: 90)")
    parser.add_argument("--only", default="", help="regular expression for names of kernels")
    parser.add_argument("--keep", type=Path, help="folder for the PTX and SASS of each kernel")
    parser.add_argument("--language", choices=SOURCES, help="only these kernels")
    arguments = parser.parse_args()
    failures = []
    for language, source in SOURCES.items():
        if arguments.language not in (None, language):
            continue
        print(f"{language}, sm_{arguments.arch}\n{HEAD}")
        for kernel in sorted(source(arguments.arch), key=lambda k: k.name):
            if not re.search(arguments.only, kernel.name):
                continue
            print(row(kernel, arguments.arch), flush=True)
            failures += [f"{kernel.name}: {rule}" for rule in broken(kernel, arguments.arch)]
            if arguments.keep:
                stem = arguments.keep / f"{language}_{kernel.name.replace(' ', '_')}"
                arguments.keep.mkdir(parents=True, exist_ok=True)
                stem.with_suffix(".ptx").write_text(kernel.ptx)
                lines = (f"{i.address:#06x} {i.predicate:>5} {i.op} {i.operands}\n" for i in kernel.sass)
                stem.with_suffix(".sass").write_text("".join(lines))
    print("\n".join(failures) if failures else "every rule is kept")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
