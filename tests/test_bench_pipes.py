"""What a kernel's instructions say of its speed: benchmarks/pipes.py, on loops whose counts are known."""

from __future__ import annotations

import shutil

import pytest

from llc_fast.benchmarks import _kernels, pipes, sass

# Ten instructions for four elements, of which 48 bytes are read and 16 written.
LOOP = (
    "LDG.E.128 R4, desc[UR4][R2.64]",
    "LDG.E.EF.128 R8, desc[UR4][R2.64]",
    "LDG.E.EF.128 R12, desc[UR4][R2.64]",
    "IMAD.WIDE.U32 R16, R4, -0x2daee0ad, RZ",
    "LOP3.LUT R16, R17, UR6, R16, 0x96, !PT",
    "I2FP.F32.S32 R17, R16",
    "MUFU.RSQ R18, R17",
    "FMUL R4, R17, R18",
    "STG.E.128 desc[UR4][R2.64], R4",
    "BRA 0x0",
)


def kernel(*lines: str, registers: int = 40) -> _kernels.Kernel:
    code = [line.split(maxsplit=1) for line in lines]
    instructions = [_kernels.Instruction(16 * i, "", op, rest) for i, (op, rest) in enumerate(code)]
    return _kernels.Kernel("k", "", instructions, registers, 0, 256, True, elements=4)


def load(*lines: str, registers: int = 40, **device: float) -> pipes.Load:
    found = pipes.load_of(kernel(*lines, registers=registers), "90", pipes.Device(**device))
    assert found is not None
    return found


def test_pipes_of_a_known_loop():
    """One processor of 1 GHz at 16 bytes a clock: an element, of 16 bytes, takes the memory one."""
    found = load(*LOOP, processors=1, clock=1e9, bandwidth=16e9, latency=1e-6)
    assert found.instructions == 10 / 4
    assert found.traffic == 16
    assert found.memory == pytest.approx(1.0)
    quarter = {
        "issue": 10 / 128,
        "alu": 2 / 64,
        "fma": 3 / 128,
        "heavy": 2 / 64,
        "xu": 1 / 16,
        "lsu": 16 / 32,
    }
    assert found.clocks == pytest.approx({pipe: clocks / 4 for pipe, clocks in quarter.items()})
    assert (found.bound, found.share) == ("memory", 1.0)
    assert found.flying == 48 * 32 * 48  # 48 warps, three loads of sixteen bytes a thread
    assert found.needed == pytest.approx(16e9 * 1e-6 * 3 / 4)


def test_a_pipe_that_takes_longer_than_the_memory_bounds_a_kernel():
    roots = ("MUFU.RSQ R18, R17",) * 127
    found = load(*LOOP[:6], *roots, *LOOP[6:], processors=1, clock=1e9, bandwidth=16e9)
    assert found.bound == "xu"
    assert found.share == pytest.approx(1 / 2)


def test_fewer_warps_have_less_in_flight():
    assert load(*LOOP, registers=64).flying == load(*LOOP, registers=32).flying / 2


def test_an_unknown_instruction_is_told_of():
    with pytest.raises(ValueError, match="QMUL"):
        load(*LOOP[:6], "QMUL R4, R5, R6", *LOOP[6:])


def test_what_has_no_main_loop_has_no_row():
    assert pipes.load_of(kernel("FADD R4, R5, R6", "EXIT 0x0"), "90", pipes.Device()) is None


@pytest.mark.slow
@pytest.mark.parametrize("language", sass.SOURCES)
def test_every_compiled_kernel_has_a_row(language: str, capsys: pytest.CaptureFixture[str]):
    if language == "cuda" and shutil.which("nvcc") is None:
        pytest.skip("needs nvcc")
    if language == "triton":
        pytest.importorskip("triton")
    assert pipes.main(["--language", language, "--only", r"_step (split|sr) localization\+noise"]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if "%" in line]
    assert len(rows) >= 2
    assert all(float(line.split("%")[0].split()[-2]) > 10 for line in rows)  # instructions an element
