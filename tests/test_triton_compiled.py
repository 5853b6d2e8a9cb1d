"""What the Triton kernels compile to, without a device: exact arithmetic, sixteen bytes at a time, nothing spilled."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="TRITON_INTERPRET=1: nothing is compiled"
)


def check_program(name: str, arch: int) -> None:
    """The rules of exact arithmetic, and 16 bytes at a time."""
    from llc_fast.kernels import aot

    program = aot.compile_variant(name, arch)
    text = program.asm["ptx"]
    ptx = re.sub(r"//[^\n]*", "", text)
    for pattern in (r"\bfma\.", r"\bmad\.\w*\.?f32", r"\.ftz", r"\.approx", r"\b(min|max)\.\w*f32", r"bf16"):
        assert not re.search(pattern, ptx), (name, pattern)
    arithmetic = re.findall(r"\b(add|sub|mul|div|sqrt)((?:\.\w+)*)\.f32", ptx)
    assert arithmetic
    assert {rounding for _, rounding in arithmetic} == {".rn"}, name
    assert ".local" not in ptx, name
    kernel, _, constants, elements = aot.variants()[name]
    if kernel.__name__ == "sgld_step":
        loads, stores = accesses(constants)
        assert len(re.findall(r"ld\.global\.v4\.b32", ptx)) >= loads * elements // 16, name
        assert len(re.findall(r"st\.global\.v4\.b32", ptx)) >= stores * elements // 16, name
        if constants["SAMPLER"] == "Sgld" and constants["STORAGE"] != "float16" and not constants["SUMS"]:
            assert program.metadata.shared == 0, name
    if arch == 90:
        kinds = [kind for kind, _ in arithmetic]
        check_machine_code(name, program.asm["cubin"], kinds, exact=not constants.get("SUMS"))


def accesses(constants: dict[str, Any]) -> tuple[int, int]:
    """Bytes of an element that are read, and written."""
    storage = constants["STORAGE"]
    size, rest = {"float32": (4, 0), "split": (2, 2), "sr": (2, 0), "float16": (2, 4)}[storage]
    state = 0 if constants["SAMPLER"] == "Sgld" else 4
    anchored = constants["SUMS"] or constants["TERMS"] & 10
    reads_w = storage != "float16" or constants["MASKED"]  # its master is what moves
    return size * (1 + bool(anchored) + bool(reads_w)) + rest + state, size + rest + state


def check_machine_code(name: str, cubin: bytes, arithmetic: list[str], exact: bool) -> None:
    """ptxas has fused nothing, approximated nothing and spilled nothing, but for the expansions of sqrt and div.

    exact: it has neither doubled nor dropped a sum or product, as it may where sums are reduced.
    """
    code = disassemble(cubin)

    def count(pattern: str) -> int:
        return sum(bool(re.search(pattern, line)) for line in code)

    expected, quotients = arithmetic.count("sqrt"), arithmetic.count("div")
    roots = count(
        r"MUFU\.RSQ"
    )  # one for each sqrt, and one in each copy of what they call for operands out of range
    assert expected <= roots <= expected + (2 if quotients else 1 if expected else 0), name
    if exact:
        assert count(r"\bFMUL ") == arithmetic.count("mul"), name
        assert count(r"\bFADD ") == arithmetic.count("add") + arithmetic.count("sub"), name
    assert count(r"\bFFMA") <= 2 * roots + 1 + (5 * quotients + 12 if quotients else 0), name
    assert count(r"\bF(MUL|ADD|SETP)\S*\.FTZ") <= 2 * roots + (14 if quotients else 6), name
    assert count(r"\b(LDL|STL)") == 0, name
    assert count(r"MUFU\.(?!RSQ|RCP)") == 0, name  # RCP: also integer division


def disassemble(cubin: bytes) -> list[str]:
    from triton import knobs

    path = Path(os.environ["PYTEST_TMP"]) / "program.cubin"
    path.write_bytes(cubin)
    tool = knobs.nvidia.cuobjdump.path
    out = subprocess.run([tool, "-sass", path], check=True, capture_output=True, text=True).stdout
    return re.findall(r"/\*[0-9a-f]{4,5}\*/\s+(.*?);", out)


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Compile afresh, whatever this user has compiled before."""
    triton = pytest.importorskip("triton")
    if tuple(int(n) for n in triton.__version__.split(".")[:2]) < (3, 6):
        pytest.skip("Triton before 3.6 gives sqrt its .ftz, which changes no bit where nothing is subnormal")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTEST_TMP", str(tmp_path))
    return tmp_path


CHECKED = [
    "normal",
    "sgld_step_float32_15",
    "sgld_step_split_7",
    "sgld_step_ih4_sr_6",
    "sgld_step_rmsprop_float16_6",
    "sgld_step_masked_sums_sgld_float32_15",
]


@pytest.mark.parametrize("name", CHECKED)
@pytest.mark.usefixtures("scratch")
def test_compiled_program(name: str):
    check_program(name, 90)


@pytest.mark.slow
@pytest.mark.usefixtures("scratch")
def test_every_compiled_program():
    from llc_fast.kernels import aot

    for name in aot.variants():
        check_program(name, 90)
    for arch in (80, 100, 120):
        for name in CHECKED:
            check_program(name, arch)


@pytest.mark.usefixtures("scratch")
def test_totals_are_added_in_one_order():
    from llc_fast.kernels import aot

    ptx = aot.compile_variant("totals").asm["ptx"]
    assert re.search(r"\badd\.(rn\.)?f64", ptx)
    assert not re.search(r"\b(fma|atom|red)\.", ptx)
