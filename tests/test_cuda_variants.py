"""Every sampler, storage, noise, mask and sum of the CUDA kernels, run thread by thread on the CPU."""

from __future__ import annotations

import ctypes

import cuda_host
import numpy as np
import pytest
import torch
from cases import Case, differing, draw, vary
from cuda_host import LARGE, Emulated, placed
from test_samplers import SAMPLERS, STORAGES, agree, magnitude, quiet

from llc_fast import Tile, group
from llc_fast.backends import cuda_backend, reference_backend
from llc_fast.plan import Plan
from llc_fast.scalars import Scalars
from llc_fast.sums import INDEX
from llc_fast.tiles import pack

host, emulated = cuda_host.host, cuda_host.emulated  # fixtures


def drawn(seed: int, storage: str, terms: int, **how: object) -> Case:
    dtype, state = STORAGES[storage]
    return vary(draw(seed, dtype, terms), seed, state=state, **how)


def agrees(case: Case) -> None:
    agree(case, quiet(case, "reference"), "cuda", "cpu")


def close(sums: torch.Tensor, want: torch.Tensor) -> bool:
    """To 1e-5 of the product of the norms that a sum consists of; the number of elements exactly."""
    if not torch.equal(sums[:, INDEX["n"]], want[:, INDEX["n"]]):
        return False
    bounds = {column: 1e-5 * magnitude(name, want) + 1e-30 for name, column in INDEX.items()}
    return all(bool(((sums - want)[:, i].abs() <= bound).all()) for i, bound in bounds.items())


# --- equal bits ---


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samplers_have_the_reference_s_bits(emulated: Emulated, sampler, storage):
    for seed in range(16):
        emulated.resident = (1, 3, LARGE)[seed % 3]
        how = {"noise": ("gaussian", "ih4")[seed % 5 == 2], "masked": seed % 4 == 3}
        agrees(drawn(3000 + seed, storage, seed, sampler=sampler, **how))


@pytest.mark.parametrize("noise", ["gaussian", "ih4"])
@pytest.mark.parametrize("storage", STORAGES)
def test_usual_terms_have_the_reference_s_bits(emulated: Emulated, storage, noise):
    """Those that have kernels of their own."""
    for seed in range(4):
        for sampler in SAMPLERS:
            agrees(drawn(3100 + seed, storage, 6, sampler=sampler, noise=noise))


# What a tile looks like, and whether its units are whole: fp32, split, sr, fp16.
LAYOUTS = [
    (Tile(0, 1, 40000, 0, 40000, 0, 40000), 0, (1, 1, 1, 1)),
    (Tile(0, 1, 40000, 0, 40000, 8, 40000), 0, (1, 1, 1, 1)),
    (Tile(0, 1, 40000, 0, 40000, 4, 40000), 0, (1, 1, 0, 1)),  # eight elements are two blocks that round
    (Tile(0, 1, 40000, 0, 40000, 2**35, 40000), 0, (1, 1, 1, 1)),
    (Tile(0, 1, 40000, 0, 40000, 2**34 + 8, 40000), 0, (1, 1, 1, 1)),  # half of a rounding block's high word
    (Tile(0, 1, 40000, 5, 40000, 0, 40000), 3, (1, 1, 1, 1)),  # bits of a mask begin within a byte
    (Tile(0, 1, 40000, 0, 40000, 0, 40000), 1, (0, 0, 0, 0)),
    (Tile(0, 200, 64, 64, 512, 64, 512), 0, (1, 1, 1, 1)),
    (Tile(0, 200, 64, 64, 512, 64, 516), 0, (1, 1, 0, 1)),
    (Tile(0, 37, 36, 4, 60, 4, 60), 0, (1, 0, 0, 0)),
]


SCALARS = {"lr": 1e-4, "nbeta": 30.0, "localization": 5.0, "weight_decay": 0.1}
CHAINS = {  # settings of its own, and whether it sums
    "sgld": ({}, False),
    "sghmc": ({"friction": 0.1}, False),
    "sgnht": ({"friction": 0.1}, True),
    "rmsprop_sgld": ({"alpha": 0.9, "eps": 0.1, "localization": 0.0}, True),
}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("column", range(4), ids=STORAGES)
@pytest.mark.parametrize(("tile", "offset", "plain"), LAYOUTS)
def test_layouts_take_the_fast_path_where_they_can(emulated: Emulated, tile, offset, plain, column, masked):
    n = tile.offset + tile.rows * tile.stride
    name = list(STORAGES)[column]
    dtype, state = STORAGES[name]
    kept = {"split": torch.int16, "float16": torch.float32}.get(name)
    g, w0 = placed(n, dtype, offset), placed(n, dtype, offset)
    bits = torch.rand(n, generator=torch.Generator().manual_seed(5)) < 0.5
    still = torch.ones(n, dtype=torch.bool)
    still.as_strided((tile.rows, tile.cols), (tile.stride, 1), tile.offset).fill_(False)
    still |= ~bits & masked
    for sampler, (own, sums) in CHAINS.items():
        results, totals = [], []
        for backend in ("cuda", "reference"):
            w, lo = placed(n, dtype, offset), None if kept is None else placed(n, kept, offset)
            v = None if sampler == "sgld" else placed(n, torch.float32, offset).abs_()
            how = {"remainders": [lo], "buffers": [v], "masks": [pack(bits)] if masked else None}
            if sampler == "sgnht":
                how["thermostat"] = torch.full((1,), 0.3, dtype=torch.float64)
            how |= {"tiles": [tile], "sampler": sampler, "state": state, "sums": sums, "backend": backend}
            plan = Plan([w], [w0], seed=3, **how)
            plan.step([g], Scalars(**SCALARS | own), 7)
            results.append([t for t in (w, v, lo) if t is not None])
            totals.append(plan.totals() if sums else torch.zeros(1, 24, dtype=torch.float64))
        assert [differing(*pair) for pair in zip(*results, strict=True)] == [0] * len(results[0])
        assert differing(results[0][0][still], placed(n, dtype, offset)[still]) == 0
        assert close(*totals)
    assert (emulated.plain == emulated.chunks) == bool(plain[column])


@pytest.mark.parametrize("storage", ["split", "sr"])
def test_every_nan_is_the_one_that_bf16_has(emulated: Emulated, storage):
    """Given, or made of infinities; in whole units, whose kernels know it by its bits."""
    n, (dtype, state) = 4096, STORAGES[storage]
    special = torch.tensor([float("inf"), -float("inf"), float("nan"), 1.0], dtype=dtype)
    results = []
    for backend in ("cuda", "reference"):
        w, g, w0 = (placed(n, dtype, 0) for _ in range(3))
        w[:1024] = special.repeat(256)
        g[512:1536] = special.repeat_interleave(4).repeat(64)
        w0[1024:2048] = special.repeat_interleave(2).repeat(128)
        lo = torch.zeros(n, dtype=torch.int16) if storage == "split" else None
        plan = Plan([w], [w0], remainders=[lo], seed=3, state=state, backend=backend)
        plan.step([g], Scalars(lr=1e-4, nbeta=30.0, localization=5.0), 7)
        results.append([t.view(torch.int16) for t in (w, lo) if t is not None])
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))
    assert results[0][0].eq(0x7FC0).sum() > 500
    assert emulated.plain == emulated.chunks


@pytest.mark.parametrize("offset", [0, 3])
def test_normal_of_another_kind_has_the_reference_s_bits(emulated: Emulated, offset):
    where = {"key": (123456789, 987654321), "step": 9, "tensor_id": 7, "domain": 0, "kind": "ih4"}
    for start, n in ((0, 1), (3, 4), (2**34 - 7, 2999)):
        out = [placed(n, torch.float32, offset) for _ in range(2)]
        cuda_backend.Cuda().normal(out[0], start=start, **where)
        reference_backend.Reference().normal(out[1], start=start, **where)
        assert differing(*out) == 0


# --- sums ---


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_sums_are_those_of_the_reference(emulated: Emulated, sampler, storage):
    """And twice the same bits."""
    for seed in range(6):
        emulated.resident = (1, 3, LARGE)[seed % 3]
        how = {"sampler": sampler, "masked": seed % 3 == 2, "sums": True, "calm": True}
        case = drawn(5000 + seed, storage, (6, 7, 15, 3)[seed % 4], **how)
        case.settings |= {"lr": 1e-3, "nbeta": 10.0, "noise_level": 1.0, "box": None}
        case.settings |= {k: 0.5 for k in ("weight_decay", "localization") if case.settings[k]}
        agrees(case)
        sums, xi = case.sums, case.thermostat
        quiet(case, "cuda")
        assert torch.equal(case.sums, sums), case.label
        quiet(case, "reference")
        want = case.sums
        assert close(sums, want), case.label
        if sampler == "sgnht":
            assert torch.allclose(xi, case.thermostat, rtol=1e-5, atol=1e-8)


def test_tiles_of_parameters_and_chains_in_any_order(emulated: Emulated):
    """Each parameter and chain has sums of its own, wherever its tiles stand in the list; so do gradients."""
    tiles = [Tile(i % 2, 3, 40, 200 * i, 60, 0, 64, i % 3) for i in (5, 0, 3, 8, 1, 11, 4, 2, 10, 6, 9, 7)]
    totals, weights = [], []
    for backend in ("cuda", "reference"):
        w, g, w0 = ([placed(n, torch.float32, i) for n in (2400, 2500)] for i in range(3))
        v = [torch.zeros_like(p) for p in w]
        xi = torch.zeros(3, dtype=torch.float64)
        how = {"sampler": "sgnht", "buffers": v, "thermostat": xi, "tiles": tiles, "backend": backend}
        plan = Plan(w, w0, seed=1, **how)
        for step in range(3):
            xi.copy_(torch.tensor([0.1, 0.2, 0.3]))
            given = [None if step == i else t for i, t in enumerate(g)]
            plan.step(given, Scalars(**SCALARS, friction=0.1), step)
        totals.append(torch.cat([group.sums for _, group in plan.groups]))
        weights.append(w + v)
    assert [differing(*pair) for pair in zip(*weights, strict=True)] == [0] * 4
    assert len(totals[0]) == 6
    assert torch.equal(totals[0][:, INDEX["n"]], torch.full((6,), 240.0, dtype=torch.float64))
    assert close(*totals)


def test_a_block_adds_up_in_one_order(host: ctypes.CDLL):
    """Each column alone: eight strands of a block's threads, then the strands."""
    parts = np.random.default_rng(0).standard_normal((256, 24)).astype(np.float32)
    found = np.zeros(24, dtype=np.float32)
    host.host_fold(ctypes.c_void_p(parts.ctypes.data), ctypes.c_void_p(found.ctypes.data))
    total = np.zeros(24, dtype=np.float32)
    for strand in range(8):
        part = np.zeros(24, dtype=np.float32)
        for thread in range(strand, 256, 8):
            part = part + parts[thread]
        total = total + part
    assert np.array_equal(total, found)


def test_slots_add_up_their_own_chunks(host: ctypes.CDLL):
    """Chunks of three slots, the second of which has none; totals are added to what is there."""
    rows = np.zeros((5, group.COLUMNS), dtype=np.int64)
    rows[:, group.ROWS], rows[:, group.W] = 1, 2**20
    rows[:, group.COLS] = 9000, 1, 0, 70000, 5
    rows[:, group.SLOT] = 0, 0, 0, 2, 2
    n, slots = ctypes.c_int64(5), ctypes.c_int64(3)
    table = (ctypes.c_char * host.host_table_bytes(n, slots))()
    chunks = host.host_plan(ctypes.c_void_p(rows.ctypes.data), n, 0, ctypes.c_int64(LARGE), slots, table)
    first = np.frombuffer(table, dtype=np.uint32)[5 * 64 :]
    assert list(first[6:]) == [0, first[3], first[3], chunks]
    partials = np.random.default_rng(1).standard_normal((chunks, 24)).astype(np.float32)
    sums = np.full((3, 24), 0.5)
    at = (ctypes.c_void_p(a.ctypes.data) for a in (partials, sums))
    host.host_totals(next(at), table, n, slots, next(at))
    want = [
        0.5 + partials[a:b].astype(np.float64).sum(0) for a, b in ((0, first[3]), (0, 0), (first[3], chunks))
    ]
    assert np.allclose(sums, want, rtol=1e-14)
    rows[1, group.SLOT] = 2  # out of order
    assert host.host_plan(ctypes.c_void_p(rows.ctypes.data), n, 0, ctypes.c_int64(1), slots, table) == -1
