"""What the compiled GPU kernels may hold, and that `llc_fast.benchmarks.sass` finds what they may not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from compiled import kernels

from llc_fast.benchmarks import _kernels, sass

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("language", ["cuda", pytest.param("triton", marks=pytest.mark.slow)])
def test_compiled_kernels_keep_the_rules(
    language: str,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = kernels(tmp_path_factory, language)
    monkeypatch.setattr(sass, "compiled", lambda *_: found)
    status = sass.main(["--language", language])
    out = capsys.readouterr().out
    assert status == 0, out
    assert out.count("sgld_step float32") == out.count("sgld_step split") == 16
    if language == "cuda":  # each sampler and storage, with sums and without
        samplers = re.findall(r"X\((\w+)\)", (ROOT / "csrc" / "include" / "llcf_samplers.h").read_text())
        names = [
            f"any {s} {t}{sums}" for s in samplers for t in _kernels.STORAGES for sums in (" sums ", "  ")
        ]
        assert len(names) >= 24
        assert all(out.count(f"\n{name}") == 1 for name in names)


def test_a_broken_rule_is_an_exit_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sass, "compiled", lambda *_: [kernel("LDL R3, [R1]", *LOOP)])
    assert sass.main(["--language", "cuda"]) == 1
    assert capsys.readouterr().out.endswith("k: local memory\n")


def test_an_installed_package_asks_for_a_checkout(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(_kernels, "CUDA", tmp_path)
    assert sass.main([]) == 2
    (line,) = capsys.readouterr().out.splitlines()
    assert "needs a checkout" in line


def kernel(
    *lines: str,
    ptx: str = "mul.rn.f32 %f1, %f2, %f3;",
    registers: int = 40,
    step: bool = True,
    told: bool = False,
):
    code = [line.split(maxsplit=1) for line in lines]
    instructions = [
        _kernels.Instruction(16 * i, "", op, "".join(operands)) for i, (op, *operands) in enumerate(code)
    ]
    return _kernels.Kernel("k", ptx, instructions, registers, 0, 256, step, told=told)


LOOP = ("LDG.E.128 R4, [R2.64]", "FMUL R4, R4, R5", "STG.E.128 [R2.64], R4", "BRA 0x0")


def test_rules_find_what_breaks_them():
    assert sass.broken(kernel(*LOOP), "90") == []
    assert sass.broken(kernel(*LOOP, ptx="fma.rn.f32 %f1, %f2, %f3, %f4;"), "90") == ["fma in PTX"]
    assert sass.broken(kernel(*LOOP, ptx="add.f32 %f1, %f2, %f3;"), "90") == ["unrounded fp32 in PTX"]
    assert sass.broken(kernel(*LOOP, ptx="add.rn.ftz.f32 %f1, %f2, %f3;"), "90") == [".ftz in PTX"]
    assert sass.broken(kernel(*LOOP, ptx="sqrt.approx.f32 %f1, %f2;"), "90") == [
        "approximate sqrt or div in PTX"
    ]
    assert (
        sass.broken(kernel("FFMA R4, R4, R5, R6", *LOOP), "90")[0] == "FFMA or .FTZ outside of sqrt and div"
    )
    root = ("MUFU.RSQ R7, R8", "FMUL.FTZ R9, R8, R7", "FFMA R10, -R9, R9, R8")
    assert sass.broken(kernel("NOP", *root, "NOP", LOOP[0], *LOOP[2:3], "BRA 0x50"), "90") == []
    assert sass.broken(kernel("LDL R3, [R1]", *LOOP), "90")[0] == "local memory"
    assert sass.broken(kernel("LDG.E R3, [R2.64]", *LOOP), "90") == ["narrow access in the main loop"]
    assert sass.broken(kernel(*LOOP, registers=80), "90") == ["occupancy"]
    assert sass.broken(kernel("FADD R1, R1, R1"), "90") == ["no main loop"]


def test_bits_of_a_mask_may_be_read_where_there_is_one():
    masked = ("LDG.E.U8 R3, [R2.64]", *LOOP[:3], "BRA 0x60")
    both = (*LOOP, "EXIT", "NOP", *masked)
    assert sass.broken(kernel(*both, told=True), "90") == []
    assert sass.broken(kernel(*both), "90") == ["narrow access in the main loop"]
    assert (
        len(sass.main_loop(kernel(*masked[:4], "BRA 0x0", "EXIT", "FADD R1, R1, R1", *LOOP[:3], "BRA 0x60")))
        == 5
    )
    narrow = (*LOOP[:3], "LDG.E R3, [R2.64]", "BRA 0x0")
    assert sass.broken(kernel(*narrow, told=True), "90") == ["narrow access in the main loop"]


def test_subroutines_are_left_to_their_maker():
    special = ("FADD.FTZ R1, R2, R3", "RET.REL.NODEC R4 0x0")
    assert sass.broken(kernel(*LOOP, "EXIT", *special), "90") == ["FFMA or .FTZ outside of sqrt and div"]
    assert sass.broken(kernel(*LOOP, "CALL.REL.NOINC 0x60", "EXIT", *special), "90") == []


def test_main_loop_leaves_out_the_special_values_of_a_root():
    body = (*LOOP[:2], "BRA 0x60", "MOV R3, 0x50", "CALL.REL.NOINC 0x900", "BRA 0x60", *LOOP[2:])
    assert len(sass.main_loop(kernel(*body))) == 5
