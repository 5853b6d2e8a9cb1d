"""Builds the C++ step with ASan and UBSan and runs fuzzed tiles through every instruction set that runs here.

Run by `make sanitize`; needs g++ (or $CXX) with libasan and libubsan. Exits with 1 where anything is found.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
FLAGS = [
    "-std=gnu++17",
    "-O2",
    "-g",
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=all",
    "-fno-omit-frame-pointer",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fopenmp",
    "-w",  # sanitizers make GCC warn of its own headers; the extension is built with warnings on
    f"-I{ROOT / 'csrc' / 'include'}",
    f"-I{ROOT / 'csrc' / 'cpu'}",
]
AVX512 = ["-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mprefer-vector-width=512", "-DLLCF_AVX512"]
ISAS = {"generic": [], "avx2": ["-mavx2", "-mf16c"], "avx512": AVX512}
RUNS = [(1, 120, 1), (2, 120, 1), (3, 3, 3)]  # seed, cases, threads


def build(compiler: str, out: Path) -> Path:
    """The driver, with each instruction set that the processor's family has."""
    x86 = platform.machine() in ("x86_64", "AMD64")
    isas = ISAS if x86 else {"generic": ISAS["generic"]}
    cpu = ROOT / "csrc" / "cpu"
    units = [
        (f"isa_{n}", cpu / "isa.cpp", [f"-DLLCF_ISA={n}", f'-DLLCF_ISA_NAME="{n}"', *f])
        for n, f in isas.items()
    ]
    units.append(("dispatch", cpu / "dispatch.cpp", ["-DLLCF_HAVE_X86"] if x86 else []))
    units.append(("driver", Path(__file__).with_name("driver.cpp"), []))
    objects = []
    for name, source, flags in units:
        objects.append(str(out / f"{name}.o"))
        subprocess.run([compiler, *FLAGS, *flags, "-c", str(source), "-o", objects[-1]], check=True)
    driver = out / "driver"
    subprocess.run([compiler, *FLAGS, *objects, "-o", str(driver)], check=True)
    return driver


def run(driver: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"}
    command = [str(driver), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def main() -> int:
    compiler = os.environ.get("CXX") or shutil.which("g++")
    if compiler is None:
        print("sanitize: needs g++, or another compiler in CXX", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as folder:
        driver = build(compiler, Path(folder))
        for fault in ("read", "write"):  # what cannot fail proves nothing
            done = run(driver, 1, 20, 1, fault)
            if done.returncode == 0 or "AddressSanitizer" not in done.stderr:
                print(f"sanitize: a {fault} out of bounds was not seen", file=sys.stderr)
                return 1
        for seed, cases, threads in RUNS:
            done = run(driver, seed, cases, threads)
            if done.returncode != 0:
                print(done.stdout + done.stderr[-6000:], file=sys.stderr)
                print(f"sanitize: found with seed {seed}, {cases} cases, {threads} threads", file=sys.stderr)
                return 1
            print(f"sanitize: {cases} cases on {threads} thread(s), nothing found in: {done.stdout.strip()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
