"""Who may import whom: downwards only, no circles, nothing heavy until it is used."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "llc_fast"

# From the bottom up. A part (a module or a package of the top level) imports parts of lower rows only.
LAYERS = [
    {"_cpu", "_cuda", "kernels"},  # compiled, or compiled by Triton
    {"errors", "types", "noise"},
    {"scalars", "exact", "statistics"},
    {"samplers", "diagnostics"},
    {"sums", "overflow"},
    {"tiles", "reference"},
    {"masks"},
    {"group"},
    {"backends", "checks"},
    {"steady"},
    {"plan"},
    {"shard"},
    {"once"},
    {"library"},
    {"ops"},
    {"lm", "digests"},
    {"kept", "metrics", "selection", "data", "models", "feed", "nbeta", "preview", "tokenization"},
    {"functional", "masked"},
    {"optim", "sampling", "placement"},
    {"verdict", "code_digest", "biases", "controls"},
    {"results", "choice"},
    {"judgement"},
    {"evidence"},
    {"session"},
    {"gathered"},
    {"estimate"},
    {"store"},
    {"recording"},
    {"running"},
    {"foreign"},
    {"tree_llc"},
    {"dropin"},
    {"draws", "covariance"},
    {"influence", "susceptibility"},
    {"audit"},
    {"compat"},
    {"report"},
    {"benchmarks"},  # a folder of its own beside the package
    {"cli"},
    {"__init__"},
]
HEIGHT = {part: i for i, row in enumerate(LAYERS) for part in row}
HEAVY = [
    "devinterp",
    "matplotlib",
    "pandas",
    "pyarrow",
    "rich",
    "safetensors",
    "scipy",
    "tokenizers",
    "transformers",
    "triton",
    "typer",
    "xarray",
    "zarr",
    "llc_fast._cpu",
    "llc_fast._cuda",
    "llc_fast.kernels",
    "llc_fast.benchmarks",
    "llc_fast.cli",
    "llc_fast.report",
]


def module_name(path: Path) -> str:
    """`tiles`, `selection`, `selection.boxes`; the package itself is `__init__`."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(p for p in parts if p != "__init__") or "__init__"


SOURCES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
KERNELS = sorted((ROOT / "kernels").glob("*.py"))


def imports(path: Path, package: list[str]) -> set[str]:
    """What a source imports from llc_fast, in functions too: `tiles`, `selection.boxes`, or a name of `__init__`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {a.name.removeprefix("llc_fast.") for a in node.names if a.name.startswith("llc_fast.")}
            assert not any(a.name == "llc_fast" for a in node.names), f"{path}: the package imports itself"
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                assert node.level <= len(package) + 1, f"{path}: leaves the package"
                base = package[: len(package) + 1 - node.level] + (node.module or "").split(".")
            elif (node.module or "").partition(".")[0] == "llc_fast":
                base = (node.module or "").split(".")[1:]
            else:
                continue
            prefix = ".".join(filter(None, base))
            for alias in node.names:
                inner = f"{prefix}.{alias.name}" if prefix else alias.name
                found.add(inner if not prefix or inner in SOURCES else prefix)
    return found


def arrows() -> dict[str, set[str]]:
    """Module -> the modules that it imports."""
    graph = {}
    for name, path in SOURCES.items():
        is_package = path.name == "__init__.py"
        package = name.split(".") if is_package else name.split(".")[:-1]
        graph[name] = imports(path, [] if name == "__init__" else package) - {"__version__"}
    return graph


def test_every_module_has_its_layer():
    assert {name.partition(".")[0] for name in SOURCES} <= HEIGHT.keys()


def test_imports_go_downwards():
    upward = [
        f"{name} imports {other}"
        for name, others in arrows().items()
        for other in others
        if (a := name.partition(".")[0]) != (b := other.partition(".")[0]) and HEIGHT[b] >= HEIGHT[a]
    ]
    assert upward == []


def test_imports_have_no_circles():
    graph = arrows()
    TopologicalSorter({k: v & graph.keys() for k, v in graph.items()}).prepare()  # raises CycleError
    reached, todo = set(), ["cli.app", "__init__"]
    while todo:
        name = todo.pop()
        if name in graph and name not in reached:
            reached.add(name)
            todo += graph[name]
    assert {"errors", "types", "ops", "noise", "tiles"} <= reached  # the graph has arrows at all


def test_kernels_know_nothing_of_the_package():
    siblings = {path.stem for path in KERNELS}
    for path in KERNELS:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = {a.name.partition(".")[0] for a in node.names}
                assert "llc_fast" not in names
            elif isinstance(node, ast.ImportFrom):
                assert node.level <= 1, path
                assert (node.module or "").partition(".")[0] != "llc_fast", path
                if node.level == 1 and node.module:
                    assert node.module in siblings, path


def test_element_math_knows_neither_torch_nor_python():
    for path in (ROOT / "csrc").rglob("*.*"):
        included = re.findall(r'#include [<"]([^>"]+)[>"]', path.read_text())
        assert not [name for name in included if name.startswith(("torch/", "ATen/", "c10/"))], path
        if path.parent.name in ("include", "cpu", "cuda"):
            assert not [name for name in included if name.startswith(("pybind11/", "Python.h"))], path
        if path.parent.name == "include":
            own = [name for name in included if name.endswith(".h") and "llcf" in name]
            assert set(included) - set(own) <= {"stdint.h", "string.h", "math.h"}, path
            assert all((path.parent / name).exists() for name in own), path


def python(program: str, cwd: Path) -> list[str]:
    """The words that a program prints, run by an interpreter of its own."""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.split()


def test_importing_the_package_imports_nothing_heavy(tmp_path):
    program = (
        "import sys, torch; before = set(sys.modules); import llc_fast; "
        f"print(*(name for name in {HEAVY} if name in sys.modules and name not in before))"
    )
    assert python(program, tmp_path) == []


def test_kernels_is_no_module_of_its_own(tmp_path):
    # An unrelated package on PyPI has this name, and transformers looks for it.
    program = (
        "import importlib.util as u, sys; spec = u.find_spec('kernels'); print(spec and spec.origin); "
        f"print(u.find_spec('llc_fast.kernels').name, {str(ROOT)!r} in sys.path)"
    )
    origin, name, on_path = python(program, tmp_path)
    assert name == "llc_fast.kernels"
    if on_path == "True":
        pytest.skip("an editable install that `make` did not do puts the checkout's root on the path")
    assert not Path(origin).is_relative_to(ROOT)


def test_transformers_works_in_the_checkout_s_root():
    pytest.importorskip("transformers")
    program = (
        "import torch, transformers as t, llc_fast; "
        "config = t.GPTNeoXConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, "
        "intermediate_size=8); "
        "print(tuple(t.GPTNeoXForCausalLM(config)(torch.arange(6).view(1, 6)).logits.shape)); "
        "print(llc_fast.normal(1, seed=0, step=0, tensor_id=0).item())"
    )
    *shape, z = python(program, ROOT)  # where `import kernels` finds ours
    assert shape == ["(1,", "6,", "9)"]
    assert float(z) == pytest.approx(-1.6013, abs=1e-4)
