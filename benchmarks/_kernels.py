"""The compiled GPU kernels: what nvcc makes of csrc/cuda and Triton of kernels/, as PTX and as instructions."""

from __future__ import annotations

import hashlib
import importlib.metadata
import pickle
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CUDA = ROOT / "csrc" / "cuda"
STORAGES = ("float32", "split", "sr", "float16")
TERMS = {1: "decay", 2: "localization", 4: "noise", 8: "box"}


class Missing(RuntimeError):
    """A tool or a source that is not here."""


@dataclass(frozen=True)
class Instruction:
    address: int
    predicate: str
    op: str
    operands: str

    @property
    def target(self) -> int | None:
        """Where a branch or a call goes."""
        match = re.search(r"0x([0-9a-f]+)", self.operands)
        return int(match[1], 16) if self.op.startswith(("BRA", "CALL")) and match else None


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
    elements: int = 0  # of an iteration; 0: four for each store of sixteen bytes
    told: bool = False  # its terms, and whether there is a mask

    def count(self, pattern: str, instructions: list[Instruction] | None = None) -> int:
        """How many instructions, of these or of all, begin so."""
        chosen = self.sass if instructions is None else instructions
        return sum(bool(re.match(pattern, i.op)) for i in chosen)


# --- sources: each yields the kernels of one language; another one is another entry of SOURCES ---


def cuda_kernels(arch: str, only: str = "") -> Iterator[Kernel]:
    """The kernels of csrc/cuda, compiled with the flags of their CMakeLists.txt."""
    nvcc = tool("nvcc", ["/usr/local/cuda/bin"])
    lists = (CUDA / "CMakeLists.txt").read_text()
    flags = re.findall(r"--(?:fmad|ftz|prec-div|prec-sqrt)=\w+", lists)
    includes = [f"-I{ROOT / 'csrc' / name}" for name in ("", "include", "cuda")]
    command = [nvcc, f"-arch=sm_{arch}", "-std=c++17", "-O3", *flags]
    threads = int(re.search(r"kThreads = (\d+)", (CUDA / "plan.h").read_text())[1])  # type: ignore[index]
    with tempfile.TemporaryDirectory() as folder:
        for source in ("step.cu", "normal.cu"):
            ptx, cubin = Path(folder) / "kernels.ptx", Path(folder) / "kernels.cubin"
            subprocess.run([*command, *includes, "-ptx", str(CUDA / source), "-o", str(ptx)], check=True)
            subprocess.run([*command, "-cubin", str(ptx), "-o", str(cubin)], check=True)
            entries = split_ptx(ptx.read_text())
            for symbol, (sass, registers, stack) in disassemble(cubin).items():
                name = variant(symbol)
                step, told = not name.endswith("_kernel"), name.startswith("any")
                elements = (4 if "float32" in name else 8) if step else 0
                if re.search(only, name):
                    yield Kernel(
                        name,
                        entries[symbol],
                        sass,
                        registers,
                        stack,
                        threads,
                        step,
                        elements=elements,
                        told=told,
                    )


def triton_kernels(arch: str, only: str = "") -> Iterator[Kernel]:
    """The kernels of kernels/, compiled ahead of time with the options of a launch."""
    try:
        from llc_fast.kernels import aot
        from llc_fast.kernels.launch import OPTIONS
    except ImportError as e:
        raise Missing(f"{e.name} is not installed") from e

    with tempfile.TemporaryDirectory() as folder:
        for variant, (*_, elements) in aot.variants().items():
            name, match = variant, re.fullmatch(r"sgld_step_(\w+)_(\d+)", variant)
            if match:
                name = f"sgld_step {match[1]} {terms_of(int(match[2]))}"
            if not re.search(only, name):
                continue
            compiled = aot.compile_variant(variant, int(arch))
            cubin = Path(folder) / "kernel.cubin"
            cubin.write_bytes(compiled.asm["cubin"])
            ((sass, registers, stack),) = disassemble(cubin).values()
            threads = 32 * OPTIONS["num_warps"]
            yield Kernel(
                name,
                compiled.asm["ptx"],
                sass,
                registers,
                stack,
                threads,
                step=match is not None,
                straight=True,
                elements=elements,
            )


SOURCES: dict[str, Callable[[str, str], Iterator[Kernel]]] = {"cuda": cuda_kernels, "triton": triton_kernels}


def compiled(language: str, arch: str, only: str = "", cache: Path | None = None) -> list[Kernel]:
    """The kernels whose names match `only`, by name. cache: a folder; what lies there of the same sources is taken."""
    checkout()
    if cache is None:
        return sorted(SOURCES[language](arch, only), key=lambda k: k.name)
    path = cache / f"{language}_{digest(version(language), arch, only)}.pickle"
    if not path.exists():
        part = path.with_suffix(".part")
        part.write_bytes(pickle.dumps(compiled(language, arch, only)))
        part.replace(path)
    kernels: list[Kernel] = pickle.loads(path.read_bytes())
    return kernels


def digest(*words: str, of: Iterable[Path] = (ROOT / "csrc", ROOT / "kernels")) -> str:
    """Of what the kernels are made from."""
    found = hashlib.sha256("\0".join(words).encode())
    for path in sorted(p for folder in of for p in folder.rglob("*.*") if p.suffix != ".pyc"):
        found.update(path.name.encode() + path.read_bytes())
    return found.hexdigest()[:16]


def checkout() -> None:
    """Raises where there is no source to compile: an installed package has none of the C++."""
    if not (CUDA / "CMakeLists.txt").exists():
        raise Missing("needs a checkout of llc_fast: the C++ sources are not in the installed package")


def version(language: str) -> str:
    """Who compiles a language here, such as "nvcc 13.0.88"."""
    if language == "triton":
        try:
            return f"triton {importlib.metadata.version('triton')}"
        except importlib.metadata.PackageNotFoundError as e:
            raise Missing("triton is not installed") from e
    nvcc = tool("nvcc", ["/usr/local/cuda/bin"])
    text = subprocess.run([nvcc, "--version"], check=True, capture_output=True, text=True).stdout
    found = re.search(r"V(\d[\d.]*)", text)
    return f"nvcc {found[1] if found else 'unknown'}"


def variant(symbol: str) -> str:
    """The name of a kernel of csrc/cuda; "any" if it is told its terms."""
    match = re.search(r"VariantINS_\d+(\w+?)ELi(\d)ELb(\d)ELi(n?\d+)ELi(n?\d+)E", symbol)
    if match is None:
        return re.sub(r".*\d((?:normal|advance|totals)_kernel).*", r"\1", symbol)
    sampler, storage, sums, terms, noise = match.groups()
    storage = STORAGES[int(storage)]
    if terms == "n1":
        return f"any {sampler} {storage}" + (" sums" if sums == "1" else "")
    return f"{sampler.lower()}_step {storage} {terms_of(int(terms))}" + (" ih4" if noise == "1" else "")


def terms_of(bits: int) -> str:
    return "+".join(text for bit, text in TERMS.items() if bits & bit) or "drift only"


# --- reading what the tools print ---


def tool(name: str, places: list[str]) -> str:
    found = shutil.which(name) or next((p for place in places if (p := shutil.which(name, path=place))), None)
    if found is None:
        raise Missing(f"{name} is not on PATH")
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
