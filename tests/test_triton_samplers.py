"""Every sampler, storage, noise and mask of the Triton kernels: known answers, the reference's bits, and its sums.

On a CUDA device, or with TRITON_INTERPRET=1 (`test_triton.py` sees to that) in the interpreter, in small chunks.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import test_samplers
import torch
from cases import Case, Slot, differing, draw
from test_triton_steps import DEVICE, INTERPRETED, KNOWN, LAYOUTS, VECTORS, layout, slot
from test_triton_steps import small_chunks as small_chunks

import llc_fast
from conftest import Target
from llc_fast import Tile, once
from llc_fast.plan import Plan
from llc_fast.scalars import Scalars
from llc_fast.sums import INDEX
from llc_fast.tiles import pack

HERE = Target("triton", DEVICE)
SAMPLERS, STORAGES = test_samplers.SAMPLERS, test_samplers.STORAGES
ROUNDS = 1 if INTERPRETED else 16
pytestmark = [] if INTERPRETED else [pytest.mark.gpu]


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """fp16 may overflow: that is reported after the step, whose results count as any others."""
    monkeypatch.setattr(llc_fast.overflow.Overflow, "watch", lambda self: None)


# --- known answers ---


def test_samplers_known_answers():
    test_samplers.test_rmsprop_known_answers(HERE)
    test_samplers.test_sghmc_known_answers(HERE)


def test_noise_and_rounding_known_answers():
    for entry in KNOWN["noise"]:
        test_samplers.test_ih4_known_answers(HERE, entry)
        test_samplers.test_stochastic_rounding_known_answers(HERE, entry)


def test_ih4_normals_equal_the_reference():
    for start, numel in ((0, 4096), (2**34 - 6, 1001), (3, 2)):
        where = {"seed": 7, "chain": 1, "step": 3, "tensor_id": 5, "start": start, "noise": "ih4"}
        expected = llc_fast.normal(numel, backend="reference", **where)
        assert differing(HERE.normal(numel, **where), expected) == 0


# --- equal bits ---


def build(
    seed: int, storage: str, sampler: str, terms: int, names: list[str], *, calm: bool = False
) -> tuple[Case, list[torch.Tensor]]:
    """A case with one tensor a layout, in memory as an allocator places it, and a mask for each.

    calm: without special values. The layout "beside": tensors as parts of a larger one, so that full vectors begin
    in the middle of a byte of the mask.
    """
    dtype, state = STORAGES[storage]
    rng = np.random.default_rng([seed, terms, dtype.itemsize])
    case = draw(seed, dtype, terms, length=1)
    case.sampler, case.tiles = sampler, []
    case.settings |= {"state": state, "tensor_ids": [2**32 - 1 - 7 * i for i in range(len(names))]}
    kept = {"params": dtype, "grads": dtype, "anchors": dtype}
    kept |= {"remainders": {"split": torch.int16, "float16": torch.float32}.get(storage)}
    kept |= {"buffers": None if sampler == "sgld" else torch.float32}
    for kind in kept:
        setattr(case, kind, [])
    masks = []
    for i, name in enumerate(names):
        v, beside = VECTORS * 16 // dtype.itemsize, 3 if name == "beside" else 0
        size, tile = layout(rng, "whole" if beside else name, v)
        if beside:
            size, tile = size + 8, Tile(0, 1, size, 16 // dtype.itemsize - beside, size, 0, size)
        case.tiles.append(Tile(i, *(getattr(tile, k) for k in Tile.__slots__[1:])))
        for kind, own in kept.items():
            getattr(case, kind).append(None if own is None else values(rng, own, size, beside, calm))
        masks.append(torch.from_numpy(rng.random(size) < rng.choice([0.1, 0.5, 0.9])))
    if sampler == "rmsprop_sgld":
        case.settings |= {"alpha": 0.9, "eps": float(10.0 ** rng.uniform(-30, 0))}
        for buffer in case.buffers:
            assert buffer is not None
            buffer.buffer.abs_()
    elif sampler != "sgld":
        case.settings["friction"] = 0.25
        case.friction = 0.7 if sampler == "sgnht" else None
    case.label += f" {sampler} {storage} {names} {case.settings}"
    return case, masks


def values(rng: np.random.Generator, dtype: torch.dtype, size: int, offset: int, calm: bool) -> Slot:
    n = offset + size
    if dtype == torch.int16:
        buffer = torch.from_numpy(rng.integers(-(2**15), 2**15, size=n).astype(np.int16))
    elif calm:
        buffer = torch.from_numpy(rng.standard_normal(n) * 0.1).to(dtype)
    else:
        buffer = slot(rng, dtype, n).buffer
    return Slot(buffer, (size,), (1,), offset)


def both(case: Case, masks: list[torch.Tensor] | None, **more: Any) -> list[torch.Tensor]:
    """A step with the reference's bits, nothing touched beside the tiles; the sums of the kernels and of it."""
    sums = []
    results = []
    for backend, device in (("triton", DEVICE), ("reference", "cpu")):
        with pytest.MonkeyPatch.context() as patch:
            if masks is not None:  # given by hand: boxes and bits together
                bits = [pack(m.to(device)) for m in masks]
                patch.setattr(once, "masks_to_tiles", lambda *_, bits=bits: (case.tiles, bits))
                more |= {"tiles": None, "masks": masks}
            results.append(case.run(backend, device, **more))
        sums.append(torch.empty(0) if case.sums is None else case.sums.cpu())
    for a, b, before, inside in zip(*results, case.before(), case.touched(), strict=True):
        assert differing(a, b) == 0, case.label
        assert torch.equal(a[~inside].view(torch.int16), before[~inside].view(torch.int16)), case.label
    return sums


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_kind_has_the_reference_s_bits(sampler: str, storage: str, masked: bool):
    place = 2 * SAMPLERS.index(sampler) + list(STORAGES).index(storage) + 3 * masked
    for n in range(ROUNDS):
        seed = place + 16 * n
        terms = (15, 6, 7, 14, 2)[seed % 5]
        case, masks = build(seed, storage, sampler, terms, ["whole", LAYOUTS[1 + seed % (len(LAYOUTS) - 1)]])
        both(case, masks if masked else None, noise=("gaussian", "ih4")[seed % 3 == 2])


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("storage", ["sr", "float16"])
def test_layouts(storage: str):
    case, masks = build(100, storage, "sgld", 15, LAYOUTS)
    both(case, None)
    case.grads = [None if i % 2 else g for i, g in enumerate(case.grads)]
    both(case, masks)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("storage", STORAGES)
def test_masks_begin_anywhere_in_a_byte(storage: str):
    case, masks = build(300, storage, "sghmc", 6, ["beside"])
    for n in range(2):  # the gradient as aligned as the rest, or not
        both(case, masks)
        grad = case.grads[0]
        assert grad is not None
        case.grads[0] = Slot(grad.buffer[n:].clone(), grad.shape, grad.stride, grad.offset - n)


def test_a_velocity_of_zero_turns_round_at_the_box():
    w, zero = torch.full((8,), 1.0), torch.zeros(8)
    w[4:] = -1.0
    p, v = w.to(DEVICE, copy=True), zero.to(DEVICE, copy=True)
    more = {
        "lr": 0.1,
        "nbeta": 1.0,
        "noise_level": 0.0,
        "box": 0.5,
        "seed": 0,
        "step": 0,
        "backend": "triton",
    }
    llc_fast.sghmc_step_([p], [None], [zero.to(DEVICE, copy=True)], [v], **more)
    assert differing(v.cpu(), -zero) == 0
    assert torch.equal(p.cpu(), w / 2)


def test_halves_round_as_the_reference_does():
    """To nearest, ties to even, from zero to beyond the largest, subnormals and what is not a number included."""
    bits = torch.arange(0, 2**32, 2**32 // 4001)
    near = torch.tensor([0x477FEFFF, 0x477FF000, 0x33000000, 0x33000001, 0x387FF000, 0x38800000, 0x7FC00000])
    bits = torch.cat([bits, near, near + 2**31, (bits & ~0x1FFF) | 0x1000])
    master = (bits - (bits >> 31 << 32)).to(torch.int32).view(torch.float32)
    expected = master.half()
    w, master = torch.zeros_like(expected).to(DEVICE), master.to(DEVICE)
    llc_fast.sgld_step_(
        [w], [None], None, remainders=[master], lr=0.0, nbeta=0.0, seed=0, step=0, backend="triton"
    )
    assert differing(w.cpu(), expected) == 0


# --- sums ---


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_sums_are_those_of_the_reference(sampler: str, storage: str):
    """To 1e-5 of the product of the norms that a sum consists of, also where bits select; the same in every run."""
    place = SAMPLERS.index(sampler) + list(STORAGES).index(storage)
    for n in range(ROUNDS):
        seed = place + n
        names = ["whole", LAYOUTS[1 + (place + n) % (len(LAYOUTS) - 1)]]
        case, masks = build(200 + seed, storage, sampler, (6, 7, 3)[seed % 3], names, calm=True)
        case.wants_sums = True
        settled = {
            "lr": 1e-3,
            "nbeta": 10.0,
            "noise_level": 1.0,
            "eps": 0.1,
            "weight_decay": 0.5,
            "localization": 0.5,
        }
        case.settings |= {k: v for k, v in settled.items() if case.settings.get(k)}
        sums, want = both(case, masks if seed % 2 else None)
        assert torch.equal(sums[:, INDEX["n"]], want[:, INDEX["n"]])
        for name, column in INDEX.items():
            bound = 1e-5 * test_samplers.magnitude(name, want) + 1e-30
            assert ((sums - want)[:, column].abs() <= bound).all(), (name, case.label)


@pytest.mark.usefixtures("small_chunks")
def test_sums_of_tiles_and_chains_have_one_order():
    """Chunks of a slot lie side by side, wherever its tiles stand: the same sums, to the bit, each time."""
    n = 9 * VECTORS * 4
    w, g = (torch.randn(n, generator=torch.Generator().manual_seed(i)) for i in range(2))
    tiles = [Tile(0, 1, n // 9, i * n // 9, n // 9, i * n // 9, n // 9, i % 2) for i in range(9)]
    results = []
    for backend, device in (("triton", DEVICE), ("triton", DEVICE), ("reference", "cpu")):
        p = [w.to(device, copy=True)]
        plan = Plan(p, [w.to(device)], tiles=tiles, seed=1, sums=True, backend=backend)
        plan.step([g.to(device)], Scalars.check(lr=1e-3, nbeta=10.0, localization=3.0), 5)
        results.append(torch.cat([group.sums.cpu() for _, group in plan.groups if group.sums is not None]))
    assert torch.equal(results[0], results[1])
    assert results[0].shape == (2, 24)
    assert torch.equal(results[0][:, 0], torch.tensor([5.0, 4.0], dtype=torch.float64) * (n // 9))
    assert torch.allclose(results[0], results[2], rtol=1e-5, atol=1e-3)


def test_drawn_steps():
    """Odd places in memory, gaps between rows, tiles of shards."""
    for seed in [3, 16] if INTERPRETED else range(60):
        sampler, storage = SAMPLERS[seed % 4], list(STORAGES)[seed // 4 % 4]
        noise, masked = ("gaussian", "ih4")[seed % 3 == 2], seed % 4 == 3
        case, expected = test_samplers.drawn(3000 + seed, storage, seed % 16, sampler, noise, masked)
        test_samplers.agree(case, expected, "triton", DEVICE)
