"""The step from its contract alone: fp32 and split bf16 once more in NumPy, fp64 by the formula."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from cases import Case, Slot, differing, draw

import llc_fast
from llc_fast import Tile, backends, reference
from llc_fast.scalars import BOX, LOCALIZATION, NOISE, WEIGHT_DECAY

U, F = np.uint64, np.float32


def philox(x: list[Any], k0: Any, k1: Any) -> list[Any]:
    low = U(0xFFFFFFFF)
    for i in range(10):
        p, q = x[0] * U(0xD2511F53), x[2] * U(0xCD9E8D57)
        r0, r1 = (int(k0) + i * 0x9E3779B9) & 0xFFFFFFFF, (int(k1) + i * 0xBB67AE85) & 0xFFFFFFFF
        x = [(q >> U(32)) ^ x[1] ^ U(r0), q & low, (p >> U(32)) ^ x[3] ^ U(r1), p & low]
    return x


def normals(e: Any, seed: int, chain: int, step: int, tensor_id: int) -> Any:
    low = 0xFFFFFFFF
    key = philox([U(chain & low), U(chain >> 32), U(0), U(0x4C4C4346)], seed & low, seed >> 32)
    block = e.astype(U) >> U(2)
    words = [block & U(low), block >> U(32), np.full_like(block, step), np.full_like(block, tensor_id)]
    x = [v.astype(np.uint32) for v in philox(words, key[0], key[1])]
    n = np.stack([*box_muller(x[0], x[1]), *box_muller(x[2], x[3])])
    return n[e % 4, np.arange(e.size)]


def box_muller(a: Any, c: Any) -> tuple[Any, Any]:
    log = [1.0000064373016357, -0.6666942834854126, 0.4994245767593384, -0.3981376588344574]
    log += [0.34486448764801025, -0.3236100375652313, 0.2016475796699524]
    sin = [0.7853981256484985, -0.08074536919593811, 0.002489872043952346, -3.587725950637832e-05]
    cos = [1.0, -0.3084242641925812, 0.015849916264414787, -0.00031888068770058453]

    def polynomial(x: Any, powers: list[float]) -> Any:
        y = np.full_like(x, powers[-1])
        for p in powers[-2::-1]:
            y = y * x + F(p)
        return y

    m = (a >> 2).astype(F) + F(0.5)
    ix = (m.view(np.uint32) - np.uint32(0x3F3504F3 + (30 << 23))).view(np.int32)
    f = ((ix & 0x7FFFFF) + 0x3F3504F3).view(F) - F(1)
    q = polynomial(f, log) * f + F(-2)
    r = np.sqrt((ix >> 23).astype(F) * F(-1.3862943611198906) + q * f)
    y = c.view(np.int32).astype(F) * F(2.0**-31)
    s, k = y * polynomial(y * y, sin), polynomial(y * y, cos)
    k = np.where(a & 1, -k, k)
    return r * np.where(a & 2, s, k), r * np.where(a & 2, k, s)


def join(hi: Any, lo: Any) -> Any:
    borrowed = hi.astype(np.int64) - (lo < 0)
    return ((borrowed % 65536) * 65536 + lo.astype(np.int64) % 65536).astype(np.uint32)


def split(u: Any) -> tuple[Any, Any]:
    nan = (u & np.uint32(0x7FFFFFFF)) > 0x7F800000
    hi = np.where(nan, 0x7FC0, (u.astype(np.int64) + 0x8000) // 65536 % 65536).astype(np.uint16)
    return hi, np.where(nan, 0, u % 65536).astype(np.uint16).view(np.int16)


def positions(slot: Slot) -> Any:
    """Where each element, in row-major order, stands in the buffer."""
    index = np.unravel_index(np.arange(int(np.prod(slot.shape))), slot.shape)
    return slot.offset + sum(i * stride for i, stride in zip(index, slot.stride, strict=True))


def array(t: torch.Tensor) -> Any:
    return t.view(torch.int16).numpy().view(np.uint16) if t.dtype == torch.bfloat16 else t.numpy()


def oracle(case: Case) -> list[torch.Tensor]:
    """What `case.run` must return."""
    s = case.settings
    c1, c2 = F(-s["lr"] / 2), F(np.sqrt(s["lr"]) * s["noise_level"])
    buffers = [slot.buffer.clone() for slot in case.params]
    rests = [None if slot is None else slot.buffer.clone() for slot in case.remainders]
    ids = s["tensor_ids"] or range(len(buffers))
    tiles = case.tiles
    if tiles is None:
        sizes = [int(np.prod(slot.shape)) for slot in case.params]
        tiles = [Tile(i, 1, n, 0, n, 0, n) for i, n in enumerate(sizes)]
    for tile in tiles:
        i = tile.tensor
        row, col = np.divmod(np.arange(tile.rows * tile.cols), tile.cols)
        local = tile.offset + row * tile.stride + col
        chain = s["chain"] if tile.chain is None else tile.chain
        e = tile.start + row * tile.global_stride + col
        z = normals(e, s["seed"], chain, s["step"], ids[i])
        at, rest = positions(case.params[i])[local], rests[i]

        def values(slot: Slot, local: Any = local) -> Any:
            x = array(slot.buffer)[positions(slot)[local]]
            return (x.astype(np.uint32) << 16).view(F) if x.dtype == np.uint16 else x

        g = np.zeros(at.size, F) if case.grads[i] is None else values(case.grads[i])
        w0 = None if case.anchors is None else values(case.anchors[i])
        w = array(buffers[i])[at]
        if rest is not None:
            lo_at = positions(case.remainders[i])[local]
            w = join(w, rest.numpy()[lo_at]).view(F)
        a = F(s["nbeta"]) * g
        if F(s["weight_decay"]) != 0:
            a = a + F(s["weight_decay"]) * w
        if F(s["localization"]) != 0:
            a = a + F(s["localization"]) * (w - w0)
        u = c1 * a
        if c2 != 0:
            u = u + c2 * z
        out = w + u
        if s["box"] is not None:
            lo, hi = w0 - F(s["box"]), w0 + F(s["box"])
            out = np.where(out < lo, lo, out)
            out = np.where(out > hi, hi, out)
        if rest is None:
            buffers[i].numpy()[at] = out
        else:
            array(buffers[i])[at], rest.numpy()[lo_at] = split(out.view(np.uint32))
    return buffers + [rest for rest in rests if rest is not None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_reference_does_what_the_contract_says(dtype):
    for seed in range(60):
        case = draw(seed, dtype)
        with np.errstate(all="ignore"):
            expected = oracle(case)
        assert [differing(a, b) for a, b in zip(case.run("reference"), expected, strict=True)] == [0] * len(
            expected
        ), case.label


# --- double precision, and split bf16 ---


@pytest.mark.parametrize("terms", range(16))
def test_fp64_is_the_formula(terms):
    rng = np.random.default_rng(terms)
    w, g, w0 = rng.standard_normal((3, 500))
    wd, loc, sigma, box = 0.7 * bool(terms & WEIGHT_DECAY), 9.0 * bool(terms & LOCALIZATION), 1.5, 0.05
    sigma *= bool(terms & NOISE)
    where = {"seed": 3, "chain": 1, "step": 2}
    out = torch.from_numpy(w.copy())
    llc_fast.sgld_step_(
        [out],
        [torch.from_numpy(g)],
        [torch.from_numpy(w0)],
        lr=1e-3,
        nbeta=12.0,
        weight_decay=wd,
        localization=loc,
        noise_level=sigma,
        box=box if terms & BOX else None,
        tensor_ids=[6],
        **where,
    )
    z = llc_fast.normal(500, tensor_id=6, **where).double().numpy()
    expected = w - 1e-3 / 2 * (12.0 * g + wd * w + loc * (w - w0)) + np.sqrt(1e-3) * sigma * z
    if terms & BOX:
        expected = np.clip(expected, w0 - box, w0 + box)
    assert np.abs(out.numpy() - expected).max() < 1e-14


def edges() -> torch.Tensor:
    """All upper halves with the lower halves at which something changes, and random bits."""
    low = torch.tensor([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF])
    all_high = torch.arange(65536)[:, None] << 16 | low
    random = torch.from_numpy(np.random.default_rng(0).integers(2**32, size=10**7))
    return torch.cat([all_high.reshape(-1), random])


def check_split(u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Split and join of fp32 bits (int64): exact, rounding as bf16 does but for ties; returns the two halves."""
    x = u.to(torch.int32).view(torch.float32)
    hi, lo = reference.split(x)
    assert differing(reference.join(hi, lo), x) == 0
    nan = x.isnan()
    assert torch.all(hi.view(torch.int16)[nan] == 0x7FC0)
    assert not torch.any(lo[nan])
    tie = (u & 0x1FFFF) == 0x8000  # to even would be down, away from zero is up
    step = hi.view(torch.int16).int() - x.bfloat16().view(torch.int16).int()
    assert torch.equal(step[~nan], tie[~nan].int())
    return hi, lo


def check_step_keeps(hi: torch.Tensor, lo: torch.Tensor, backend: str) -> None:
    """A step of length 0 joins and splits, and so must change nothing."""
    w, r = hi.clone(), lo.clone()
    llc_fast.sgld_step_([w], [None], None, lr=0.0, nbeta=1.0, seed=0, step=0, remainders=[r], backend=backend)
    assert torch.equal(w.view(torch.int16), hi.view(torch.int16))
    assert torch.equal(r, lo)


def test_split_is_exact(isa: str):
    check_step_keeps(*check_split(edges()), isa)


@pytest.mark.slow
def test_split_is_exact_on_all_patterns():
    here = [name for name in ("cpu:generic", "cpu:avx2", "cpu:avx512") if not backends.missing(name)]
    chunk = 1 << 20
    for start in range(0, 2**32, chunk):
        halves = check_split(torch.arange(start, start + chunk))
        for backend in here:
            check_step_keeps(*halves, backend)


def test_split_as_the_contract_says():
    u = edges().numpy().astype(np.uint32)
    hi, lo = reference.split(torch.from_numpy(u.view(F)))
    want_hi, want_lo = split(u)
    assert np.array_equal(hi.view(torch.int16).numpy().view(np.uint16), want_hi)
    assert np.array_equal(lo.numpy(), want_lo)
    again = join(want_hi, want_lo).view(F)
    same = np.isnan(again) & np.isnan(u.view(F)) | (again.view(np.uint32) == u)
    assert same.all()
