"""The step: known answers, and equal bits on every backend over fuzzed tiles, shards, chains and threads."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cases import Case, differing, draw

import llc_fast
from conftest import Target
from llc_fast import Tile
from llc_fast.scalars import Scalars

KNOWN = json.loads((Path(__file__).parent / "data" / "noise_v1_kat.json").read_text())
DTYPES = [torch.float32, torch.bfloat16]
SCALARS = ("lr", "nbeta", "localization", "weight_decay", "noise_level", "box")


def fp32(words: list[str]) -> torch.Tensor:
    return torch.tensor([int(w, 16) for w in words]).to(torch.int32).view(torch.float32)


def bf16(words: list[str]) -> torch.Tensor:
    return torch.tensor([int(w, 16) for w in words]).to(torch.int16).view(torch.bfloat16)


def settings(entry: dict[str, Any], **more: Any) -> dict[str, Any]:
    names = (*SCALARS, "seed", "chain", "step")
    return {k: v for k, v in entry.items() if k in names} | {"tensor_ids": [entry["tensor_id"]]} | more


# --- known answers ---


@pytest.mark.parametrize(("name", "more"), [("sgld", {}), ("sgld_box_0.02", {"box": 0.02})])
def test_step_known_answers(target: Target, name, more):
    e = KNOWN["step"]
    w, g, w0 = (fp32(e[k]).to(target.device) for k in ("w", "g", "w0"))
    llc_fast.sgld_step_([w], [g], [w0], backend=target.backend, **settings(e, **more))
    assert differing(w.cpu(), fp32(e[name])) == 0


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("sgld", {}),
        ("sgld_box_0.5", {"box": 0.5}),
        ("no_noise", {"noise_level": 0.0}),
        ("no_gradient", {}),
    ],
)
def test_step_known_answers_on_special_values(target: Target, name, more):
    e = KNOWN["step_special"]
    w, g, w0 = (fp32(e[k]).to(target.device) for k in ("w", "g", "w0"))
    grads = [None if name == "no_gradient" else g]
    llc_fast.sgld_step_([w], grads, [w0], backend=target.backend, **settings(e, **more))
    assert differing(w.cpu(), fp32(e[name])) == 0


def test_split_step_known_answers(target: Target):
    e = KNOWN["step_bf16_split"]
    w, g, w0 = (bf16(e[k]).to(target.device) for k in ("hi", "g_bf16", "w0_bf16"))
    lo = torch.tensor(e["lo"], dtype=torch.int16, device=target.device)
    tile = Tile(0, 1, len(w), 0, len(w), e["start"], len(w))
    llc_fast.sgld_step_([w], [g], [w0], remainders=[lo], tiles=[tile], backend=target.backend, **settings(e))
    assert differing(w.cpu(), bf16(e["hi_out"])) == 0
    assert lo.tolist() == e["lo_out"]


# --- equal bits ---


@cache
def drawn(seed: int, dtype: torch.dtype, terms: int) -> tuple[Case, list[torch.Tensor]]:
    """A case, and what the reference makes of it."""
    case = draw(seed, dtype, terms)
    return case, case.run("reference")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("terms", range(16))
def test_step_has_the_reference_s_bits(target: Target, terms, dtype):
    for seed in range(1 if target.backend == "reference" else 8):
        case, expected = drawn(1000 + 16 * seed + terms, dtype, terms)
        results = zip(case.run(target.backend, target.device), expected, strict=True)
        for (result, want), old, inside in zip(results, case.before(), case.touched(), strict=True):
            assert differing(result, want) == 0, case.label
            bits = torch.int32 if dtype == torch.float32 else torch.int16
            assert torch.equal(result.view(bits)[~inside], old.view(bits)[~inside]), case.label


def test_the_cases_have_all_that_they_should_have():
    cases = [
        drawn(1000 + 16 * seed + terms, dtype, terms)[0]
        for seed in range(8)
        for terms in range(16)
        for dtype in DTYPES
    ]
    tiles = [tile for case in cases for tile in case.tiles or []]
    slots = [slot for case in cases for slot in case.params]
    for terms in range(16):
        present = {terms_of(case) for case in cases}
        assert terms in present
    assert {case.threads for case in cases} == {1, 2, 3}
    assert any(g is None for case in cases for g in case.grads)
    assert any(
        case.tiles is None and len(s.shape) > 1 and s.stride[0] > s.shape[-1]
        for case in cases
        for s in case.params
    )
    assert any(s.offset % 4 for s in slots)
    assert max(int(np.prod(s.shape)) for s in slots) > 100_000  # more than one thread
    assert any(t.start % 4 for t in tiles)
    assert any(t.start > 2**34 for t in tiles)
    assert any(t.start < 2**34 < t.start + t.cols for t in tiles)
    assert any(t.rows > 1 and t.global_stride != t.stride and t.global_stride % 4 for t in tiles)
    assert {t.cols for t in tiles} >= set(range(1, 20))
    assert any(t.chain is not None for t in tiles)
    everything = torch.cat([s.buffer.float() for s in slots])
    size = everything.abs()
    assert everything.isnan().any()
    assert everything.isinf().any()
    assert ((size > 0) & (size < 1.1e-38)).any()
    assert ((everything == 0) & everything.signbit()).any()


def terms_of(case: Case) -> int:
    return Scalars(**{name: case.settings[name] for name in SCALARS}).terms


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 63, 64, 65, 1023, 1024, 1025, 1089, 2049, 5001])
def test_every_length_has_the_reference_s_bits(target: Target, length, dtype):
    for seed in range(3):
        case = draw(seed, dtype, terms=15 - seed, length=length)
        pairs = zip(case.run(target.backend, target.device), case.run("reference"), strict=True)
        assert [differing(*pair) for pair in pairs] == [0] * len(case.before()), case.label


@cache
def ten_million(dtype: torch.dtype) -> tuple[Case, list[torch.Tensor]]:
    case = draw(77, dtype, terms=15, length=10_000_019)
    return case, case.run("reference")


@pytest.mark.parametrize("dtype", DTYPES)
def test_ten_million_elements_have_the_reference_s_bits(isa: str, dtype):
    case, expected = ten_million(dtype)
    for case.threads in (1, 2, 3):
        assert [differing(a, b) for a, b in zip(case.run(isa), expected, strict=True)] == [0] * len(expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("backend", ["cuda", "triton"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_ten_million_elements_on_the_gpu(backend, dtype):
    case, expected = ten_million(dtype)
    results = zip(case.run(backend, "cuda"), expected, strict=True)
    assert [differing(a, b) for a, b in results] == [0] * len(expected)


ARGUMENTS = {"lr": 1e-3, "nbeta": 30.0, "localization": 100.0, "weight_decay": 0.1, "seed": 3, "step": 4}


@pytest.mark.parametrize("axis", [0, 1])
def test_shards_move_as_the_whole_tensor_does(target: Target, axis):
    full = [torch.randn(37, 54, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    w, g, w0 = (t.to(target.device, copy=True) for t in full)
    llc_fast.sgld_step_([w], [g], [w0], tensor_ids=[9], backend=target.backend, **ARGUMENTS)
    at = 0
    for n in (11, 1, 20, 37 - 32 if axis == 0 else 54 - 32):
        parts = [t.narrow(axis, at, n).contiguous().to(target.device) for t in full]
        rows, cols = parts[0].shape
        tile = Tile(0, rows, cols, 0, cols, at * (54 if axis == 0 else 1), 54)
        llc_fast.sgld_step_(
            parts[:1],
            parts[1:2],
            parts[2:],
            tensor_ids=[9],
            tiles=[tile],
            backend=target.backend,
            **ARGUMENTS,
        )
        assert differing(parts[0], w.narrow(axis, at, n)) == 0
        at += n


def test_folded_chains_move_as_single_ones_do(target: Target):
    start = torch.randn(30, generator=torch.Generator().manual_seed(1)).to(target.device)
    folded = start.repeat(3, 1)
    tiles = [Tile(0, 1, 30, 30 * i, 30, 0, 30, chain) for i, chain in enumerate((0, 5, 2**64 - 1))]
    llc_fast.sgld_step_(
        [folded], [None], [folded.clone()], tiles=tiles, backend=target.backend, chain=77, **ARGUMENTS
    )
    for row, tile in zip(folded, tiles, strict=True):
        w = start.clone()
        llc_fast.sgld_step_([w], [None], [start], chain=tile.chain, backend=target.backend, **ARGUMENTS)
        assert differing(w, row) == 0


def test_the_caller_s_flushing_of_subnormals_changes_nothing_and_is_kept(isa: str):
    cases = [drawn(1000 + 16 * seed + 15, dtype, 15) for seed in range(8) for dtype in DTYPES]
    tiny = draw(5, torch.float32, 7, length=100_000)
    tiny.params[0].buffer *= 1e-37
    tiny.settings |= {"lr": 1e-2, "nbeta": 1e-40, "weight_decay": 1e-41, "noise_level": 1e-37}
    cases.append((tiny, tiny.run("reference")))
    assert torch.set_flush_denormal(True)
    try:
        results = [case.run(isa) for case, _ in cases]
        flushed = float(torch.tensor([1e-40]) * 1.0)
    finally:
        torch.set_flush_denormal(False)
    assert flushed == 0.0
    assert float(torch.tensor([1e-40]) * 1.0) > 0.0
    for (case, expected), result in zip(cases, results, strict=True):
        pairs = zip(result, expected, strict=True)
        assert [differing(a, b) for a, b in pairs] == [0] * len(expected), case.label
