"""Every sampler, storage, noise and mask: known answers, and equal bits and sums on every backend."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from cases import Case, differing, draw, vary
from test_step import bf16, fp32, settings

import llc_fast
from conftest import Target
from llc_fast import Tile
from llc_fast.sums import INDEX

KNOWN = json.loads((Path(__file__).parent / "data" / "noise_v1_kat.json").read_text())
SAMPLERS = ["sgld", "rmsprop_sgld", "sghmc", "sgnht"]
STORAGES = {
    "float32": (torch.float32, "split"),
    "split": (torch.bfloat16, "split"),
    "sr": (torch.bfloat16, "sr"),
    "float16": (torch.float16, "split"),
}

# --- known answers ---


def test_rmsprop_known_answers(target: Target):
    e = KNOWN["step"]
    w, g, w0, V = (fp32(e[k]).to(target.device) for k in ("w", "g", "w0", "V"))
    more = {"alpha": 0.99, "eps": 0.1, "backend": target.backend}
    llc_fast.rmsprop_sgld_step_([w], [g], [w0], [V], **settings(e, **more))
    assert differing(w.cpu(), fp32(e["rmsprop_alpha_0.99_delta_0.1"])) == 0
    assert differing(V.cpu(), fp32(e["V_after"])) == 0


def test_sghmc_known_answers(target: Target):
    e = KNOWN["sghmc"]
    w, g, w0, v = (fp32(e[k]).to(target.device) for k in ("w", "g", "w0", "v"))
    llc_fast.sghmc_step_([w], [g], [w0], [v], friction=e["friction"], backend=target.backend, **settings(e))
    assert differing(w.cpu(), fp32(e["w_out"])) == 0
    assert differing(v.cpu(), fp32(e["v_out"])) == 0


@pytest.mark.parametrize("entry", KNOWN["noise"], ids=lambda e: f"{e['seed']}-{e['step']}-{e['start']}")
def test_ih4_known_answers(target: Target, entry):
    where = {name: entry[name] for name in ("seed", "chain", "step", "tensor_id", "start")}
    assert differing(target.normal(12, noise="ih4", **where), fp32(entry["ih4"])) == 0


@pytest.mark.parametrize("entry", KNOWN["noise"], ids=lambda e: f"{e['seed']}-{e['step']}-{e['start']}")
def test_stochastic_rounding_known_answers(target: Target, entry):
    """Without drift and noise a step only rounds: w0 + box holds the fp32 whose rounding is known."""
    index = entry["start"] + torch.arange(12)
    key = tuple(int(k, 16) for k in entry["key"])
    bits = llc_fast.noise.rounding_bits(index, key, step=entry["step"], tensor_id=entry["tensor_id"])
    rounded = llc_fast.reference.round_by(fp32(entry["sr_in"]), bits)
    assert differing(rounded, bf16(entry["sr_out"])) == 0
    # The same bits in a step of this backend: sums of a bf16 and a drift that no bf16 holds.
    x = fp32(entry["sr_in"])
    w = x.bfloat16().to(target.device)
    g = ((w.cpu().float() - x) * 2).bfloat16()
    exact = w.cpu().float() + -0.5 * g.float()
    tile = Tile(0, 1, 12, 0, 12, entry["start"], 12)
    more = {"lr": 1.0, "nbeta": 1.0, "noise_level": 0.0, "state": "sr", "tiles": [tile]}
    where = {name: entry[name] for name in ("seed", "chain", "step")} | {"tensor_ids": [entry["tensor_id"]]}
    llc_fast.sgld_step_([w], [g.to(target.device)], None, backend=target.backend, **more, **where)
    assert differing(w.cpu(), llc_fast.reference.round_by(exact, bits)) == 0


# --- equal bits ---


@cache
def drawn(
    seed: int, storage: str, terms: int, sampler: str, noise: str, masked: bool
) -> tuple[Case, list[torch.Tensor]]:
    dtype, state = STORAGES[storage]
    case = vary(draw(seed, dtype, terms), seed, sampler=sampler, state=state, noise=noise, masked=masked)
    return case, quiet(case, "reference")


def quiet(case: Case, backend: str, device: str = "cpu") -> list[torch.Tensor]:
    """`run`, where fp16 may overflow: it is reported after the step, whose results then count as any others."""
    slots = [slot for slot in [*case.params, *case.remainders, *case.buffers] if slot is not None]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(llc_fast.overflow.Overflow, "watch", lambda self: None)
        results = case.run(backend, device)
    assert len(results) == len(slots)
    return results


def agree(case: Case, expected: list[torch.Tensor], backend: str, device: str) -> None:
    results = zip(quiet(case, backend, device), expected, strict=True)
    for (result, want), old, inside in zip(results, case.before(), case.touched(), strict=True):
        assert differing(result, want) == 0, case.label
        assert differing(result[~inside], old[~inside]) == 0, case.label


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samplers_have_the_reference_s_bits(target: Target, sampler, storage):
    for seed in range(24):
        noise, masked = ("gaussian", "ih4")[seed % 3 == 2], seed % 4 == 3
        case, expected = drawn(3000 + seed, storage, seed % 16, sampler, noise, masked)
        agree(case, expected, target.backend, target.device)


@pytest.mark.parametrize("storage", STORAGES)
def test_masks_have_the_reference_s_bits(target: Target, storage):
    for seed in range(12):
        case, expected = drawn(4000 + seed, storage, (6, 15)[seed % 2], "sgld", "gaussian", True)
        agree(case, expected, target.backend, target.device)


def test_a_mask_of_bits_and_one_of_boxes_are_one_step(isa: str):
    w = [torch.randn(64, 96, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    mask = torch.rand(64, 96, generator=torch.Generator().manual_seed(9)) < 0.4
    results = []
    for cap in (0, 10**6):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(llc_fast.masks.tiles, "__defaults__", (cap,))
            p = w[0].clone()
            llc_fast.sgld_step_(
                [p], [w[1]], [w[2]], masks=[mask], lr=1e-3, nbeta=9.0, seed=1, step=0, backend=isa
            )
            results.append(p)
    assert differing(*results) == 0
    assert torch.equal(results[0][~mask], w[0][~mask])
    assert bool((results[0][mask] != w[0][mask]).all())


# --- sums ---


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_sums_are_those_of_the_reference(target: Target, sampler, storage):
    """To 1e-5 of the product of the norms that a sum consists of."""
    dtype, state = STORAGES[storage]
    for seed in range(8):
        case = vary(
            draw(5000 + seed, dtype, (6, 7, 15, 3)[seed % 4]),
            seed,
            sampler=sampler,
            state=state,
            masked=seed % 3 == 2,
            sums=True,
            calm=True,
        )
        case.settings |= {"lr": 1e-3, "nbeta": 10.0, "noise_level": 1.0, "box": None}
        case.settings |= {k: 0.5 for k in ("weight_decay", "localization") if case.settings[k]}
        expected = quiet(case, "reference")
        want, xi = case.sums.clone(), case.thermostat
        for result, wanted in zip(quiet(case, target.backend, target.device), expected, strict=True):
            assert differing(result, wanted) == 0, case.label
        sums = case.sums.cpu()
        assert torch.equal(sums[:, INDEX["n"]], want[:, INDEX["n"]])
        scale = torch.ones_like(want)
        for name, column in INDEX.items():
            scale[:, column] = magnitude(name, want)
        assert ((sums - want).abs() <= 1e-5 * scale + 1e-30).all(), case.label
        if sampler == "sgnht":
            assert torch.allclose(case.thermostat.cpu(), xi.cpu(), rtol=1e-5, atol=1e-8)


def magnitude(name: str, sums: torch.Tensor) -> torch.Tensor:
    """The bound of a sum of products: the product of its factors' norms."""
    squares = {"g": "g2", "d": "d2", "z": "z2", "w": "w2", "v": "v2"}
    if name in ("n", "G"):
        return sums[:, INDEX[name]].abs()
    if name == "half_dz":
        return (sums[:, INDEX["d2"]] * sums[:, INDEX["G_z2"]]).sqrt()
    prefix = "G_" if name.startswith("G_") else ""
    a, b = (name.removeprefix("G_") * 2)[:2]
    if b == "2":
        return sums[:, INDEX[name]].abs()
    return (sums[:, INDEX[prefix + squares[a]]] * sums[:, INDEX[prefix + squares[b]]]).sqrt()


def test_a_half_that_overflows_raises():
    w = torch.full((100,), 60000.0).half()
    master = w.float()
    with pytest.raises(llc_fast.errors.WeightOverflowError, match="65504"):
        llc_fast.sgld_step_([w], [-w], None, remainders=[master], lr=1.0, nbeta=1.0, seed=0, step=0)
    assert torch.isfinite(master).all()
