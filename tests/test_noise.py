"""The noise: known answers, equal bits everywhere, and the statistics of independent standard normals."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from cases import WRAP, differing, threads
from scipy import special, stats

import llc_fast
from conftest import Target
from llc_fast import backends, group, noise, ops, scalars, sums

ROOT = Path(__file__).parent.parent
KNOWN = json.loads((Path(__file__).parent / "data" / "noise_v1_kat.json").read_text())
ALPHA = (
    1e-6  # the probability with which a right generator fails one of the statistical tests; seeds are fixed
)
FASTEST = "reference" if backends.missing("cpu") else "cpu"
LARGEST = 6.555541515350342  # sqrt(-2 ln 2^-31), the radius of the smallest u, times cos 0


def hexes(z: torch.Tensor) -> list[str]:
    return [f"{x & 0xFFFFFFFF:08x}" for x in z.view(torch.int32).tolist()]


def ints(words: list[str]) -> list[int]:
    return [int(word, 16) for word in words]


# --- known answers ---


@pytest.mark.parametrize("entry", KNOWN["philox4x32_10"], ids=lambda e: e["counter"][0])
def test_philox_known_answers(entry):
    counter, key = ints(entry["counter"]), ints(entry["key"])
    assert list(noise.philox4x32(tuple(counter), tuple(key))) == ints(entry["out"])
    if not backends.missing("cpu"):
        from llc_fast import _cpu

        assert list(_cpu.philox4x32(*counter, *key)) == ints(entry["out"])


@pytest.mark.parametrize("entry", KNOWN["noise"], ids=lambda e: f"{e['seed']}-{e['chain']}-{e['step']}")
def test_chain_key_known_answers(entry):
    key = noise.chain_key(entry["seed"], entry["chain"])
    assert list(key) == ints(entry["key"])
    if not backends.missing("cpu"):
        from llc_fast import _cpu

        assert _cpu.chain_key(entry["seed"], entry["chain"]) == key[0] | key[1] << 32


@pytest.mark.parametrize("entry", KNOWN["noise"], ids=lambda e: f"{e['seed']}-{e['chain']}-{e['step']}")
def test_normal_known_answers(target: Target, entry):
    where = {name: entry[name] for name in ("seed", "chain", "step", "tensor_id", "start")}
    assert hexes(target.normal(12, **where)) == entry["gaussian"]


def test_initial_noise_known_answers(target: Target):
    e = KNOWN["initial"]
    z = ops._normal(
        len(e["gaussian"]),
        e["seed"],
        e["chain"],
        e["step"],
        e["tensor_id"],
        e["start"],
        "gaussian",
        target.device,
        target.backend,
        e["domain"],
    )
    assert e["domain"] == noise.INITIAL_NOISE
    assert hexes(z.cpu()) == e["gaussian"]


def test_gaussian_known_answers():
    e = KNOWN["gaussian_words"]
    n0, n1 = noise.gaussian(torch.tensor(ints(e["a"])), torch.tensor(ints(e["c"])))
    assert hexes(n0) == e["n0"]
    assert hexes(n1) == e["n1"]


# --- equal bits ---


def drawn(seed: int) -> tuple[int, dict[str, int]]:
    """A length and a place in the stream."""
    rng = np.random.default_rng(seed)
    numel = int(rng.integers(1, 5002))
    starts = [
        0,
        rng.integers(1, 9),
        2**32 + rng.integers(64),
        WRAP - rng.integers(1, numel + 1),
        2**58 - numel,
    ]
    wide = rng.integers(2**64, size=2, dtype=np.uint64)
    where = {
        "seed": int(wide[0]),
        "chain": int(rng.integers(4)) if seed % 2 else int(wide[1]),
        "step": int(rng.choice([0, 2**32 - 1, rng.integers(2**32)])),
        "tensor_id": int(rng.choice([0, 2**32 - 1, rng.integers(2**32)])),
        "start": int(rng.choice(starts)),
    }
    return numel, where


def test_normal_has_the_reference_s_bits(target: Target):
    for seed in range(150):
        numel, where = drawn(seed)
        expected = llc_fast.normal(numel, backend="reference", **where)
        assert differing(target.normal(numel, **where), expected) == 0, (numel, where)


@cache
def ten_million() -> torch.Tensor:
    return llc_fast.normal(
        10**7, seed=3, chain=2**63, step=9, tensor_id=8, start=WRAP - 5, backend="reference"
    )


def test_ten_million_normals_have_the_reference_s_bits(isa: str):
    for count in (1, 2, 3):
        with threads(count):
            z = llc_fast.normal(10**7, seed=3, chain=2**63, step=9, tensor_id=8, start=WRAP - 5, backend=isa)
        assert differing(z, ten_million()) == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_ten_million_normals_on_the_gpu(backend: str):
    z = Target(backend, "cuda").normal(10**7, seed=3, chain=2**63, step=9, tensor_id=8, start=WRAP - 5)
    assert differing(z, ten_million()) == 0


def test_an_element_s_noise_does_not_depend_on_where_the_call_starts(target: Target):
    where = {"seed": 5, "chain": 6, "step": 7, "tensor_id": 8}
    whole = target.normal(3000, start=WRAP - 1500, **where)
    for i, n in [(0, 1), (1, 7), (2, 1024), (3, 1025), (1497, 6), (1499, 1), (1500, 1500), (2999, 1)]:
        assert differing(target.normal(n, start=WRAP - 1500 + i, **where), whole[i : i + n]) == 0


def test_no_elements(target: Target):
    assert target.normal(0, seed=0, step=0, tensor_id=0).shape == (0,)


def test_seed_and_chain_are_not_added():
    z = llc_fast.normal(1000, seed=100, chain=1, step=0, tensor_id=0)
    other = llc_fast.normal(1000, seed=101, chain=0, step=0, tensor_id=0)
    assert not torch.any(z == other)


def test_every_number_that_counts_the_noise_changes_it():
    base = {"seed": 1, "chain": 2, "step": 3, "tensor_id": 4, "start": 0}
    z = llc_fast.normal(1000, **base)
    changes = [
        {"seed": 1 + 2**32},
        {"chain": 2 + 2**32},
        {"step": 2**31 + 3},
        {"tensor_id": 5},
        {"start": 2**34},
    ]
    for change in changes:
        assert int((llc_fast.normal(1000, **base | change) == z).sum()) <= 1, change
    assert not torch.any(
        noise.normal_at(torch.arange(1000), noise.chain_key(1, 2), step=3, tensor_id=4, domain=2) == z
    )


# --- statistics ---


@pytest.fixture(scope="module")
def sample() -> dict[str, np.ndarray]:
    """Power sums, tail counts, largest value and histogram (cells of 2^-8) of 10^8 normals."""
    n, chunk = 10**8, 1 << 18
    powers, tails, cells = np.zeros(4), np.zeros(5, dtype=np.int64), np.zeros(4096, dtype=np.int64)
    largest = 0.0
    for start in range(0, n, chunk):
        where = {"seed": 2026, "step": start >> 24, "tensor_id": 1, "start": start}
        z = llc_fast.normal(min(chunk, n - start), backend=FASTEST, **where)
        x = z.double()
        square = x * x
        powers += [float(s) for s in (x.sum(), square.sum(), square @ x, square @ square)]
        size = z.abs().numpy()
        tails += [np.count_nonzero(size > t) for t in range(1, 6)]
        largest = max(largest, float(size.max()))
        cells += torch.bincount(((z + 8.0) * 256.0).int(), minlength=4096).numpy()
    return {
        "n": np.array(n),
        "moments": powers / n,
        "tails": tails,
        "largest": np.array(largest),
        "cells": cells,
    }


def test_moments(sample):
    # Of z, z^2, z^3, z^4: the means are 0, 1, 0, 3, and the variances 1, 2, 15, 96.
    deviation = sample["moments"] - np.array([0.0, 1.0, 0.0, 3.0])
    bound = stats.norm.isf(ALPHA / 2) * np.sqrt(np.array([1.0, 2.0, 15.0, 96.0]) / sample["n"])
    assert np.all(np.abs(deviation) < bound), (deviation, bound)


def test_tail_counts(sample):
    for t, count in zip(range(1, 6), sample["tails"], strict=True):
        p = special.erfc(t / np.sqrt(2.0))
        low, high = stats.binom.ppf(ALPHA / 2, sample["n"], p), stats.binom.isf(ALPHA / 2, sample["n"], p)
        assert low <= count <= high, (t, count, low, high)


def test_nothing_lies_beyond_the_largest_value(sample):
    assert 5.0 < sample["largest"] <= LARGEST
    assert float(noise.gaussian(torch.tensor([0]), torch.tensor([0]))[0]) == LARGEST


def test_distribution_of_a_hundred_million(sample):
    # Dvoretzky-Kiefer-Wolfowitz with Massart's constant: P(sup |F_n - F| > x) <= 2 exp(-2 n x^2).
    assert sample["cells"].sum() == sample["n"]
    empirical = np.cumsum(sample["cells"]) / sample["n"]
    exact = special.ndtr(np.arange(-2047, 2049) / 256.0)
    assert np.abs(empirical - exact).max() < np.sqrt(np.log(2 / ALPHA) / (2 * sample["n"]))


def test_distribution_radius_and_angle():
    z = llc_fast.normal(2**21, seed=9, step=2, tensor_id=0).double().view(-1, 2)
    assert stats.kstest(z[:, 0].numpy(), "norm").pvalue > ALPHA
    assert stats.kstest(z[:, 1].numpy(), "norm").pvalue > ALPHA
    assert stats.kstest((z.square().sum(1) / 2).numpy(), "expon").pvalue > ALPHA
    angle = (torch.atan2(z[:, 1], z[:, 0]) / (2 * torch.pi) + 0.5).numpy()
    assert stats.kstest(angle, "uniform").pvalue > ALPHA


def uncorrelated(x: torch.Tensor) -> None:
    """Rows of x, their squares and their sizes have no correlation with each other; an error has probability ALPHA."""
    k, n = x.shape
    rows = torch.cat([x, (x.square() - 1) / 2**0.5, x.abs() - (2 / torch.pi) ** 0.5]).double()
    rows = rows / rows.square().mean(1, keepdim=True).sqrt()
    r = rows @ rows.T / n
    same = torch.eye(k, dtype=torch.bool).repeat(
        3, 3
    )  # z, z^2 and |z| of one row, which do depend on each other
    pairs = int((~same).sum()) // 2
    worst = r[~same].abs().max()
    assert worst < stats.norm.isf(ALPHA / 2 / pairs) / n**0.5, worst


def test_streams_are_uncorrelated():
    base = {"seed": 100, "chain": 1, "step": 7, "tensor_id": 3, "start": 0}
    streams = [
        base,
        {"seed": 101},
        {"seed": 100 + 2**32},
        {"seed": 101, "chain": 0},
        {"chain": 0},
        {"chain": 2},
        {"chain": 1 + 2**32},
        {"seed": 1, "chain": 100},
        {"step": 8},
        {"step": 3, "tensor_id": 7},
        {"tensor_id": 4},
        {"start": 2**20},
        {"start": WRAP},
    ]
    z = [llc_fast.normal(2**19, **base | stream) for stream in streams]
    z.append(noise.normal_at(torch.arange(2**19), noise.chain_key(100, 1), step=7, tensor_id=3, domain=2))
    uncorrelated(torch.stack(z))


def test_lanes_and_neighbouring_blocks_are_uncorrelated():
    z = llc_fast.normal(12 * 2**19, seed=1, step=0, tensor_id=0)
    uncorrelated(z.view(-1, 12).T)


def test_steps_and_chains_are_uncorrelated_at_other_positions():
    where = [{"chain": c, "step": s} for c in (0, 1) for s in (0, 1)]
    z = torch.stack([llc_fast.normal(2**17 + 8, seed=4, tensor_id=0, **w) for w in where])
    uncorrelated(torch.cat([z[:, i : i + 2**17] for i in range(8)]))


# --- numbers that stand in more than one language ---


def literals(path: Path) -> tuple[set[np.float32], set[int]]:
    """The decimal and the long hexadecimal numbers of a source, comments and docstrings apart."""
    text = re.sub(r'""".*?"""|//[^\n]*|#[^\n]*', "", path.read_text(), flags=re.DOTALL)
    text = text.replace("2.0**-31", "4.656612873077393e-10")
    decimals = re.findall(r"(?<![\w.])-?\d+\.\d+(?:e[+-]?\d+)?", text)
    hexadecimals = {int(word, 16) for word in re.findall(r"0x([0-9a-fA-F]{6,8})", text)}
    return {np.float32(x) for x in decimals}, hexadecimals - {0xFFFFFFFF}


def enum(header: str, name: str) -> dict[str, int]:
    """The members of a C++ enum."""
    text = (ROOT / "csrc" / "include" / header).read_text()
    body = re.search(rf"enum {name}\b[^{{]*{{([^}}]*)}}", text)
    assert body is not None
    return {k: int(v) for k, v in re.findall(r"(\w+) = (\d+)", body[1])}


def test_the_normals_have_one_set_of_numbers():
    include = ROOT / "csrc" / "include"
    decimals, words = literals(ROOT / "llc_fast" / "noise.py")
    assert (
        len(decimals) == 2 + 7 + 2 + 1 + 4 + 3 + 5
    )  # 0.5, 1; log; -2, -2 ln 2; 2^-31; sin; cos, whose first is 1 again; ih4
    assert decimals == literals(include / "llcf_noise.h")[0]
    headers = ("llcf_noise.h", "llcf_philox.h", "llcf_lane.h")
    assert words == set().union(*(literals(include / name)[1] for name in headers))
    for kernel in (ROOT / "kernels").glob("*.py"):
        text = kernel.read_text()
        if "0.2016475796699524" in text:
            assert literals(kernel)[0] == decimals
            assert literals(kernel)[1] == words - {0x4C4C4346}  # the chain's key comes from the host


def test_domains_terms_and_storages_have_one_set_of_numbers():
    domains = {
        "kStepNoise": noise.STEP_NOISE,
        "kRounding": noise.ROUNDING,
        "kInitialNoise": noise.INITIAL_NOISE,
    }
    assert enum("llcf_philox.h", "Domain") == domains
    terms = {
        "kWeightDecay": scalars.WEIGHT_DECAY,
        "kLocalization": scalars.LOCALIZATION,
        "kNoise": scalars.NOISE,
        "kBox": scalars.BOX,
    }
    assert enum("llcf_update.h", "Terms") == terms | {"kAllTerms": sum(terms.values())}
    names = ("kFloat32", "kSplitBfloat16", "kRoundedBfloat16", "kFloat16")
    codes = enum("llcf_tile.h", "Storage")
    assert [codes[name] for name in names] == list(group.STORAGE_CODES.values()) == [0, 1, 2, 3]
    assert list(group.STORAGE_CODES) == ["float32", "split", "sr", "float16"]
    kinds = enum("llcf_tile.h", "Noise")
    assert [kinds["kGaussian"], kinds["kIh4"]] == [noise.KINDS.index("gaussian"), noise.KINDS.index("ih4")]
    sums_text = (ROOT / "csrc" / "include" / "llcf_update.h").read_text()
    members = re.search(r"enum Sum\b[^{]*{([^}]*)}", sums_text)
    assert members is not None
    order = [name.strip() for name in members[1].split(",") if "kSums" not in name and name.strip()]
    assert len(order) == len(sums.NAMES)
    assert "kSums = 24" in members[1]
    assert sums.COLUMNS == 24


def test_the_tile_table_has_one_layout():
    headers = [h.read_text() for h in (ROOT / "csrc").glob("*/*.h")]
    body = re.search(r"struct TileRow {(.*?)};", next(t for t in headers if "struct TileRow" in t), re.DOTALL)
    assert body is not None
    text = re.sub(r"//[^\n]*", "", body[1])
    fields = re.findall(
        r"(?:^|,)\s*(?:u?int64_t\s+)?(\w+)(?:\[\d+\])?(?=[,;])", text.replace(";", ";,"), re.MULTILINE
    )
    numbers = {k: v for k, v in vars(group).items() if k.isupper() and isinstance(v, int) and k != "COLUMNS"}
    triton = fields.index("triton")  # three columns of its own
    fields[triton : triton + 1] = ["", "", ""]
    assert {name: fields.index(name.lower()) for name in numbers} == numbers
    assert len(fields) == group.COLUMNS
