"""Steps and normals of the Triton kernels: known answers, and the reference's bits on each of their three paths.

On a CUDA device, or with TRITON_INTERPRET=1 (`test_triton.py` sees to that) in the interpreter, in small chunks.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cases import Case, Slot, differing, draw

import llc_fast
from llc_fast import Tile, once
from llc_fast.plan import Plan
from llc_fast.scalars import Scalars

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
DTYPES = [torch.float32, torch.bfloat16]
KNOWN = json.loads((Path(__file__).parent / "data" / "noise_v1_kat.json").read_text())
VECTORS = 32 if INTERPRETED else 512  # in a chunk
WRAP = 2**34  # the first element whose block index needs more than 32 bits

pytest.importorskip("triton")
pytestmark = [] if INTERPRETED else [pytest.mark.gpu]
if not INTERPRETED and not torch.cuda.is_available():
    pytest.skip("needs a CUDA device, or TRITON_INTERPRET=1 from the start", allow_module_level=True)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several chunks a tile, also where the interpreter would take few."""
    if INTERPRETED:
        from llc_fast.kernels import launch

        for kind in ("float32", "split", "sr", "float16"):
            partial = VECTORS if kind == "float32" else 2 * VECTORS
            monkeypatch.setitem(launch._INTERPRETED_SIZES, kind, {"VECTORS": VECTORS, "PARTIAL": partial})
        monkeypatch.setitem(launch._INTERPRETED_SIZES, "totals", {"WIDTH": 8, "CHUNKS": 4})


def words(text: list[str], dtype: torch.dtype = torch.int32) -> torch.Tensor:
    floats = {torch.int32: torch.float32, torch.int16: torch.bfloat16}
    return torch.tensor([int(w, 16) for w in text]).to(dtype).view(floats[dtype]).to(DEVICE)


def step(entry: dict[str, Any], w: Any, g: Any, w0: Any, **more: Any) -> None:
    names = ("lr", "nbeta", "localization", "weight_decay", "noise_level", "seed", "chain", "step")
    known = {k: v for k, v in entry.items() if k in names} | {"tensor_ids": [entry["tensor_id"]]}
    llc_fast.sgld_step_([w], [g], [w0], backend="triton", **(known | more))


# --- known answers ---


def test_normal_known_answers():
    for e in KNOWN["noise"]:
        where = {k: e[k] for k in ("seed", "chain", "step", "tensor_id", "start")}
        z = llc_fast.normal(12, backend="triton", device=DEVICE, **where)
        assert differing(z, words(e["gaussian"])) == 0


def test_initial_noise_known_answers():
    e = KNOWN["initial"]
    place = (e["seed"], e["chain"], e["step"], e["tensor_id"], e["start"], "gaussian", DEVICE, "triton")
    assert differing(once.normal(12, *place, e["domain"]), words(e["gaussian"])) == 0


def test_step_known_answers():
    e = KNOWN["step"]
    for name, box in (("sgld", None), ("sgld_box_0.02", 0.02)):
        w = words(e["w"])
        step(e, w, words(e["g"]), words(e["w0"]), box=box)
        assert differing(w, words(e[name])) == 0


def test_step_of_special_values_known_answers():
    e = KNOWN["step_special"]
    for name, more in (("sgld", {}), ("sgld_box_0.5", {"box": 0.5}), ("no_noise", {"noise_level": 0.0})):
        w = words(e["w"])
        step(e, w, words(e["g"]), words(e["w0"]), **more)
        assert differing(w, words(e[name])) == 0
    w = words(e["w"])
    step(e, w, None, words(e["w0"]))
    assert differing(w, words(e["no_gradient"])) == 0


def test_split_step_known_answers():
    e = KNOWN["step_bf16_split"]
    n = len(e["hi"])
    hi, lo = words(e["hi"], torch.int16), torch.tensor(e["lo"], dtype=torch.int16, device=DEVICE)
    g, w0 = words(e["g_bf16"], torch.int16), words(e["w0_bf16"], torch.int16)
    step(e, hi, g, w0, remainders=[lo], tiles=[Tile(0, 1, n, 0, n, e["start"], n)])
    assert differing(hi, words(e["hi_out"], torch.int16)) == 0
    assert lo.tolist() == e["lo_out"]


# --- normals ---


@pytest.mark.parametrize(
    ("start", "numel"),
    [(0, 1), (3, 2), (0, 4096), (1, 4095), (2, 9), (WRAP - 6, 5001), (2**58 - 5001, 5001), (4, 2**16 + 4)],
)
def test_normals_equal_the_reference(start: int, numel: int):
    where = {"seed": 2**64 - 1, "chain": 2**63, "step": 2**32 - 1, "tensor_id": 2**32 - 2, "start": start}
    z = llc_fast.normal(numel, backend="triton", device=DEVICE, **where)
    assert differing(z.cpu(), llc_fast.normal(numel, backend="reference", **where)) == 0


# --- steps ---


def layout(rng: np.random.Generator, name: str, v: int) -> tuple[int, Tile]:
    """Size and tile of a tensor that takes one of the kernel's ways; v: elements of a chunk."""
    n = 2 * v + 8 * int(rng.integers(1, 9))
    high = WRAP - v - 4 * int(rng.integers(1, 9))
    match name:
        case "whole":  # aligned, full vectors, and a last chunk that is not
            return n, Tile(0, 1, n, 0, n, 0, n)
        case "cut":  # aligned, with incomplete vectors at both ends
            return n + 8, Tile(0, 1, n, 3, n, 8 * v + 3, n)
        case "wrap":  # the upper word of the block changes within a chunk
            return n, Tile(0, 1, n, 0, n, high, n)
        case "far":
            return n, Tile(0, 1, n, 0, n, 2**58 - n, n)
        case "half":  # the second half of a block of eight
            return n + 8, Tile(0, 1, n, 4, n, 8 * v + 4, n)
        case "shifted":  # noise and memory are out of step
            return n, Tile(0, 1, n - 8, 1, n - 8, 4, n - 8)
        case "narrow":  # rows shorter than a chunk
            return 40 * 24, Tile(0, 37, 16, 8, 24, 2**35 + 8, 1000)
        case "wide":  # rows longer than a chunk
            return 3 * (v + 40), Tile(0, 3, v + 24, 8, v + 40, 16, 2**33)
        case "ragged":  # rows start at every place of a block
            return 30 * 19, Tile(0, 29, 18, 1, 19, high - 14 * 2**20, 2**20 + 1)
    raise AssertionError(name)


def slot(rng: np.random.Generator, dtype: torch.dtype, size: int) -> Slot:
    """A tensor that begins where an allocator places it, with special values in it."""
    drawn = draw(int(rng.integers(2**31)), dtype, length=size).params[0].buffer
    return Slot(drawn[:size].clone(), (size,), (1,), 0)


LAYOUTS = ["whole", "cut", "wrap", "far", "half", "shifted", "narrow", "wide", "ragged"]


def build(seed: int, dtype: torch.dtype, terms: int, names: list[str], missing: str = "") -> Case:
    """A case with one tensor a layout, in memory as an allocator places it; `missing` has no gradient."""
    rng = np.random.default_rng([seed, terms, dtype.itemsize])
    case = draw(seed, dtype, terms, length=1)
    split = dtype == torch.bfloat16
    case.params, case.grads, case.anchors, case.remainders, case.tiles = [], [], [], [], []
    for i, name in enumerate(names):
        size, tile = layout(rng, name, VECTORS * 16 // dtype.itemsize)
        case.params.append(slot(rng, dtype, size))
        case.grads.append(None if name == missing else slot(rng, dtype, size))
        case.anchors.append(slot(rng, dtype, size))
        case.anchors[i].buffer[::2] = case.params[i].buffer[::2]
        low = torch.from_numpy(rng.integers(-(2**15), 2**15, size=size).astype(np.int16))
        case.remainders.append(Slot(low, (size,), (1,), 0) if split else None)
        case.tiles.append(Tile(i, *(getattr(tile, k) for k in Tile.__slots__[1:])))
    case.settings["tensor_ids"] = [2**32 - 1 - 7 * i for i in range(len(names))]
    if not terms & 10 and seed % 2:
        case.anchors = None
    return case


def check(case: Case) -> None:
    """The same bits as the reference, and nothing touched beside the tiles."""
    got, expected = case.run("triton", DEVICE), case.run("reference")
    for a, b, before, inside in zip(got, expected, case.before(), case.touched(), strict=True):
        assert differing(a, b) == 0, case.label
        assert torch.equal(a[~inside].view(torch.int16), before[~inside].view(torch.int16))


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("terms", range(16))
@pytest.mark.parametrize("dtype", DTYPES)
def test_terms(dtype: torch.dtype, terms: int):
    names = ["whole", "cut", LAYOUTS[2 + terms % 7]] if terms % 2 else ["whole", LAYOUTS[2 + terms % 7]]
    check(build(terms, dtype, terms, names))


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("missing", ["", "whole", "narrow", "ragged"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_layouts(dtype: torch.dtype, missing: str):
    names = LAYOUTS if not missing else ["cut", missing]
    check(build(100, dtype, 15 if missing else 7, names, missing))


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("dtype", DTYPES)
def test_chains_of_tiles(dtype: torch.dtype):
    case = build(200, dtype, 6, ["whole", "whole", "narrow"])
    assert case.tiles is not None
    case.tiles = [Tile(*(getattr(t, k) for k in Tile.__slots__[:-1]), i) for i, t in enumerate(case.tiles)]
    check(case)


@pytest.mark.parametrize("seed", [6, 9, 12] if INTERPRETED else range(40))
@pytest.mark.parametrize("dtype", DTYPES)
def test_drawn_steps(dtype: torch.dtype, seed: int):
    check(draw(seed, dtype))


def test_gradients_may_move_between_steps():
    """A plan uploads addresses anew where they changed, and only there."""
    scalars = Scalars.check(lr=1e-3, nbeta=10.0, localization=3.0)
    w = torch.randn(700, generator=torch.Generator().manual_seed(0))
    gradients = [torch.full((700,), float(i)).to(DEVICE) for i in range(3)]
    results = []
    for backend, device in (("triton", DEVICE), ("reference", "cpu")):
        p = w.to(device, copy=True)
        plan = Plan([p], [w.to(device)], seed=1, backend=backend)
        for i, g in enumerate([gradients[0], gradients[1], gradients[1], None, gradients[2]]):
            plan.step([None if g is None else g.to(device)], scalars, i)
        results.append(p.cpu())
    assert differing(*results) == 0
