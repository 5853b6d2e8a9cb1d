"""Wheels and source distributions: what is in them, with and without nvcc, on this Python and on 3.12."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
KAT = json.loads((ROOT / "tests/data/noise_v1_kat.json").read_text())
pytestmark = pytest.mark.slow

# Loads a compiled module by path, without torch.
LOAD = """
import array, importlib.machinery, importlib.util, pathlib, sys
def load(name):
    path = next(pathlib.Path(sys.argv[1]).glob(f"llc_fast/{name}.*so"))
    loader = importlib.machinery.ExtensionFileLoader(name, str(path))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(name, loader))
    loader.exec_module(module)
    return module
"""
# Prints the bits of a known answer, once for each instruction set.
PROBE = """
cpu = load("_cpu")
out = array.array("f", [0.0] * 12)
for isa in cpu.isas():
    cpu.normal(out.buffer_info()[0], 0, 12, 0, cpu.chain_key(0, 0), 0, 0, 0, 1, isa)
    print(*("%08x" % x for x in array.array("I", out.tobytes())))
"""


def run(*command: object, cwd: Path, **env: str) -> str:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("LLC_FAST_")} | env
    clean["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{clean['PATH']}"
    done = subprocess.run([str(c) for c in command], cwd=cwd, env=clean, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sdist")
    code = f"import scikit_build_core.build as b; print(b.build_sdist({str(out)!r}))"
    run(sys.executable, "-c", code, cwd=ROOT)
    return next(out.glob("*.tar.gz"))


@pytest.fixture(scope="module")
def source(sdist: Path) -> Path:
    """The unpacked source distribution: the only thing wheels are built from here."""
    with tarfile.open(sdist) as tar:
        tar.extractall(sdist.parent, filter="data")
    return next(p for p in sdist.parent.iterdir() if p.is_dir())


def wheel(source: Path, out: Path, python: Path | str = sys.executable, **env: str) -> Path:
    flags = ["--no-deps", "--no-cache-dir", "-w", out]
    if str(python) == sys.executable:
        flags.append("--no-build-isolation")
    run(python, "-m", "pip", "wheel", "-q", *flags, source, cwd=out, **env)
    return next(out.glob("llc_fast-*.whl"))


def test_sdist_holds_the_sources_and_nothing_built(sdist: Path) -> None:
    with tarfile.open(sdist) as tar:
        names = [n.partition("/")[2] for n in tar.getnames()]
    assert {"csrc/include/llcf_noise.h", "csrc/cpu/isa.cpp", "kernels/sgld_step.py", "LICENSE"} <= set(names)
    assert not [n for n in names if n.startswith((".venv", "build/", "demo_out")) or n.endswith(".so")]


def test_wheel_without_cuda_imports_and_runs(source: Path, tmp_path: Path) -> None:
    built = wheel(source, tmp_path, LLC_FAST_CUDA="OFF")
    names = zipfile.ZipFile(built).namelist()
    assert "llc_fast/py.typed" in names
    assert "llc_fast/_cpu.pyi" in names
    assert {"llc_fast/kernels/sgld_step.py", "llc_fast/benchmarks/run.py"} <= set(names)
    kinds = {Path(n).suffix for n in names if n.startswith("llc_fast/benchmarks/")}
    assert kinds == {".py", ".json"}  # no scripts of a checkout
    assert not [n for n in names if n.startswith("llc_fast/benchmarks/results")]
    assert not [
        n
        for n in names
        if n.startswith(("kernels/", "csrc/", "tests/")) or ("_cuda." in n and n.endswith("so"))
    ]
    # A fresh environment that borrows this one's torch, but not its editable install's import hook.
    run(sys.executable, "-m", "venv", tmp_path / "env", cwd=tmp_path)
    python = tmp_path / "env/bin/python"
    site = Path(
        run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip()
    )
    run(python, "-m", "pip", "install", "-q", "--no-deps", built, cwd=tmp_path)
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    code = "import llc_fast; print(llc_fast.__file__); print(llc_fast.normal(1, seed=0, step=0, tensor_id=0).item())"
    where, value = run(python, "-c", code, cwd=tmp_path).split()
    assert where.startswith(str(site))
    assert float(value) == pytest.approx(-1.6013, abs=1e-4)
    missing = run(python, "-c", "import llc_fast.backends as b; print(b.missing('cuda'))", cwd=tmp_path)
    assert "nvcc" in missing or "extension" in missing


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
def test_wheel_with_cuda_imports_without_a_driver(source: Path, tmp_path: Path) -> None:
    built = wheel(source, tmp_path, LLC_FAST_CUDA="ON", LLC_FAST_CUDA_ARCHS="90")
    zipfile.ZipFile(built).extractall(tmp_path)
    code = LOAD + "print(load('_cuda').device_count())"
    assert int(run(sys.executable, "-c", code, tmp_path, cwd=tmp_path)) >= 0


def python312() -> Path | None:
    """A Python 3.12 that runs: a version manager's stand-in may be on the path and refuse."""
    found = [shutil.which("python3.12"), *Path.home().glob(".pyenv/versions/3.12.*/bin/python3.12")]
    for path in filter(None, found):
        if subprocess.run([path, "--version"], capture_output=True).returncode == 0:
            return Path(path)
    return None


@pytest.mark.skipif(python312() is None, reason="needs a Python 3.12")
def test_wheel_on_python_3_12(source: Path, tmp_path: Path) -> None:
    run(python312(), "-m", "venv", tmp_path / "env", cwd=tmp_path)
    python = tmp_path / "env/bin/python"
    built = wheel(source, tmp_path, python, LLC_FAST_CUDA="OFF")
    assert "cp312" in built.name
    zipfile.ZipFile(built).extractall(tmp_path / "unpacked")
    bits = run(python, "-c", LOAD + PROBE, tmp_path / "unpacked", cwd=tmp_path).splitlines()
    assert bits
    assert set(bits) == {" ".join(KAT["noise"][0]["gaussian"])}
