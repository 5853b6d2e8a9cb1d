"""What do the GPU kernels compile to? PTX and SASS, a table, and the rules that they keep; no GPU is needed.

    python -m llc_fast.benchmarks.sass [--arch 90] [--only REGEX] [--keep FOLDER]

Exit status 1: a rule is broken. 2: there is no nvcc or cuobjdump, or no checkout with the sources.

Instructions per element are counted in the main loop: the innermost loop that stores sixteen bytes at a time. Every
instruction between its first and its backward branch counts once, predicated ones too, except basic blocks that
call a subroutine: those are the special values of a square root, which one radius in 2^25 takes. The sum is divided
by the elements of an iteration, those of sixteen bytes of w. Kernels named "any" are told their terms and kind of noise
at run time, and hold code for all of them: what they execute is less than what is counted. Triton's kernels have
no such loop, a program makes one pass: there everything counts from the entry to the exit behind the first sixteen-byte
stores, so the search for the program's tile is in it.

Rules. PTX: no fma, no .ftz, every fp32 sum and product .rn. SASS: no local memory; FFMA and .FTZ only where a square
root or division is expanded (what feeds them comes from MUFU); in the loops of a CUDA step every access is of sixteen
bytes, but for the bits of a mask; the registers of a kernel that knows its terms leave room for half of the warps,
those of another for a quarter.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from ._kernels import SOURCES, Instruction, Kernel, Missing, checkout, compiled

MASK = r"LDG\.E\.U8"  # how the bits of a mask are read
REGISTERS, GRANULE = 65536, 256  # of a multiprocessor; what a warp's are rounded up to
WARPS = {"80": 64, "86": 48, "89": 48, "90": 64, "100": 64, "103": 64, "120": 48}  # a multiprocessor holds


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
    """The innermost loop that stores sixteen bytes at a time and has no mask, without blocks that call a subroutine.

    Of a straight kernel, everything up to the exit behind its first such stores.
    """
    if kernel.straight:
        wide = next(
            n for n, i in enumerate(kernel.sass) if re.match(r"STG\.E.*128", i.op) and not i.predicate
        )
        end = next(n for n, i in enumerate(kernel.sass) if n > wide and i.op == "EXIT")
        return without_calls(kernel, kernel.sass[: end + 1])
    bodies = wide_loops(kernel)
    bodies = [body for body in bodies if not kernel.count(MASK, body)] or bodies
    return without_calls(kernel, min(bodies, key=len)) if bodies else []


def wide_loops(kernel: Kernel) -> list[list[Instruction]]:
    """The loops that store sixteen bytes at a time, and hold no other such loop."""
    branches = [i for i in kernel.sass if i.op.startswith("BRA") and i.target is not None]
    ends = [(i.target, i.address) for i in branches if i.target < i.address]
    bodies = [[i for i in kernel.sass if first <= i.address <= last] for first, last in ends]
    bodies = [body for body in bodies if kernel.count(r"STG\.E.*128", body)]
    spans = [(body[0].address, body[-1].address) for body in bodies]
    inner = [all(not (a <= c and d <= b) or (a, b) == (c, d) for c, d in spans) for a, b in spans]
    return [body for body, kept in zip(bodies, inner, strict=True) if kept]


def stray(kernel: Kernel) -> int:
    """FFMA and .FTZ instructions that no MUFU feeds: sums or products that were fused or flushed.

    Subroutines stand behind the kernel's own code; they are NVIDIA's.
    """
    fed: set[str] = set()
    strays = 0
    called = [i.target for i in kernel.sass if i.op.startswith("CALL") and i.target is not None]
    own = [i for i in kernel.sass if i.address < min(called, default=i.address + 1)]
    for i in without_calls(kernel, own):
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
    loops = [loop] if kernel.straight else wide_loops(kernel)
    if kernel.told:
        loops = [[i for i in body if not re.match(MASK, i.op)] for body in loops]
    rules = {
        "fma in PTX": re.search(r"\bfma\.", ptx),
        ".ftz in PTX": ".ftz" in ptx,
        "unrounded fp32 in PTX": re.search(r"\b(add|sub|mul)\.f32", ptx),
        "approximate sqrt or div in PTX": re.search(r"\b(sqrt|div|rcp)\.(approx|full)|\brsqrt\.", ptx),
        "local memory": kernel.count(r"LDL|STL") or kernel.stack,
        "FFMA or .FTZ outside of sqrt and div": stray(kernel),
        "occupancy": not kernel.straight and occupancy(kernel, arch) < (0.25 if kernel.told else 0.5),
        "no main loop": kernel.step and not loop,
        "narrow access in the main loop": kernel.step
        and not kernel.straight
        and any(kernel.count(r"LDG|STG|LD$|ST$|LD\.|ST\.", n) != kernel.count(wide, n) for n in loops),
    }
    return [name for name, found in rules.items() if found]


def per_element(kernel: Kernel) -> float:
    """Instructions per element of the main loop; NaN if there is none."""
    loop = main_loop(kernel)
    stores = kernel.count(r"STG\.E.*128", loop)
    return len(loop) / (kernel.elements or 4 * stores) if stores else float("nan")


def row(kernel: Kernel, arch: str) -> str:
    loop = main_loop(kernel)
    fields = [
        f"{kernel.name:<64}",
        f"{kernel.registers:>4}",
        f"{occupancy(kernel, arch):>6.0%}",
        f"{kernel.count(r'LDG.E.*128', loop):>6}",
        f"{kernel.count(r'STG.E.*128', loop):>6}",
        f"{kernel.count(r'LDL|STL'):>6}",
        f"{len(re.findall(r'fma[.]', kernel.ptx)):>5}",
        f"{kernel.ptx.count('.ftz'):>5}",
        f"{kernel.count('FFMA'):>6}",
        f"{len(loop):>6}",
        f"{per_element(kernel):>8.2f}",
    ]
    return "".join(fields)


HEAD = f"{'kernel':<64} reg  occup  ld128  st128  local  fma  ftz  FFMA   loop  per elem"


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m llc_fast.benchmarks.sass",
        description="What the GPU kernels compile to, and the rules they keep.",
    )
    parser.add_argument("--arch", default="90", help="compute capability times ten (default: 90)")
    parser.add_argument("--only", default="", help="regular expression for names of kernels")
    parser.add_argument("--keep", type=Path, help="folder for the PTX and SASS of each kernel")
    parser.add_argument("--language", choices=SOURCES, help="only these kernels")
    arguments = parser.parse_args(words)
    failures = []
    try:
        checkout()
        for language in [arguments.language] if arguments.language else SOURCES:
            print(f"{language}, sm_{arguments.arch}\n{HEAD}", flush=True)
            for kernel in compiled(language, arguments.arch, arguments.only):
                print(row(kernel, arguments.arch), flush=True)
                failures += [f"{kernel.name}: {rule}" for rule in broken(kernel, arguments.arch)]
                if arguments.keep:
                    keep(kernel, arguments.keep / f"{language}_{kernel.name.replace(' ', '_')}")
    except Missing as e:
        print(f"sass: {e}")
        return 2
    print("\n".join(failures) if failures else "every rule is kept")
    return 1 if failures else 0


def keep(kernel: Kernel, stem: Path) -> None:
    """Write its PTX and SASS."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    stem.with_suffix(".ptx").write_text(kernel.ptx)
    lines = (f"{i.address:#06x} {i.predicate:>5} {i.op} {i.operands}\n" for i in kernel.sass)
    stem.with_suffix(".sass").write_text("".join(lines))


if __name__ == "__main__":
    sys.exit(main())
