"""Bad arguments: an error of ours that names the argument, before anything is written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import llc_fast
from llc_fast import LlcFastError, Tile
from llc_fast.errors import BackendError

Change = Callable[[dict[str, Any]], dict[str, Any]]
SCALARS = ("lr", "nbeta", "localization", "weight_decay", "noise_level", "box")
NOT_A_SCALAR = [
    float("nan"),
    float("inf"),
    float("-inf"),
    -1.0,
    -1e-300,
    1e60,
    10**400,
    True,
    "1.0",
    b"1.0",
    1j,
    [1.0],
    np.ones(2),
    torch.ones(2),
]
OUT_OF_RANGE = [-1, 2**64, True, 1.0, "1", None, [1]]


def valid() -> dict[str, Any]:
    """A call that works: fp32 in two dimensions, bf16, fp32 that is a part of something larger."""
    params = [torch.ones(4, 6), torch.ones(5, dtype=torch.bfloat16), torch.ones(3, 9)[:, 2:7]]
    return {
        "params": params,
        "grads": [torch.ones_like(p) for p in params],
        "anchors": [p.clone() for p in params],
        "remainders": [None, torch.zeros(5, dtype=torch.int16), None],
        "lr": 1e-3,
        "nbeta": 2.0,
        "localization": 1.0,
        "seed": 0,
        "step": 0,
    }


def step(arguments: dict[str, Any]) -> None:
    a = dict(arguments)
    llc_fast.sgld_step_(a.pop("params"), a.pop("grads"), a.pop("anchors"), **a)


def refused(change: Change, match: str) -> LlcFastError:
    """The error of a changed call, which left every tensor in it as it was."""
    changed = change(valid())
    tensors = [t for name in ("params", "remainders") for t in as_list(changed.get(name))]
    tensors = [t for t in tensors if isinstance(t, torch.Tensor) and not t.is_meta and not t.is_sparse]
    before = [t.clone() for t in tensors]
    with pytest.raises(LlcFastError, match=match) as caught:
        step(changed)
    assert isinstance(caught.value, ValueError | TypeError | RuntimeError)
    assert all(torch.equal(t, old) for t, old in zip(tensors, before, strict=True))
    return caught.value


def as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def put(name: str, value: Any) -> Change:
    return lambda a: a | {name: value}


def put_at(name: str, i: int, make: Callable[[Any], Any]) -> Change:
    return lambda a: a | {name: [*a[name][:i], make(a[name][i]), *a[name][i + 1 :]]}


def test_the_call_that_the_others_are_changes_of_works():
    a = valid()
    step(a)
    assert not any(torch.any(p == 1) for p in (a["params"][0], a["params"][2]))
    assert torch.any(a["remainders"][1] != 0)


@pytest.mark.parametrize("name", SCALARS)
@pytest.mark.parametrize("value", NOT_A_SCALAR, ids=lambda v: repr(v)[:12])
def test_scalars(name, value):
    refused(put(name, value), rf"\b{name}\b")


@pytest.mark.parametrize("name", SCALARS[:-1])
def test_scalars_are_not_none(name):
    refused(put(name, None), rf"^{name} is None")


@pytest.mark.parametrize("name", ["seed", "chain", "step"])
@pytest.mark.parametrize("value", OUT_OF_RANGE, ids=repr)
def test_streams(name, value):
    refused(put(name, value), rf"^{name} is ")


def test_a_chain_ends_at_its_last_step():
    refused(put("step", 2**32), "^step is 4294967296")
    step(valid() | {"step": 2**32 - 1, "seed": 2**64 - 1, "chain": 2**64 - 1})


def test_scalars_of_other_kinds_are_numbers_too():
    a, b = valid(), valid()
    kinds = {"lr": np.float64(1e-3), "nbeta": torch.tensor(2.0), "localization": 1, "seed": np.uint64(0)}
    step(a)
    step(b | kinds)
    assert all(torch.equal(p, q) for p, q in zip(a["params"], b["params"], strict=True))


def test_a_step_of_length_zero_is_legal():
    a = valid()
    step(a | {"lr": 0.0})
    assert all(torch.equal(p, w0) for p, w0 in zip(a["params"], a["anchors"], strict=True))


LISTS = ["params", "grads", "anchors", "remainders", "tensor_ids", "tiles"]


@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize("value", [torch.ones(3), torch.ones(()), 5, {"a": torch.ones(3)}, "abc"], ids=repr)
def test_lists(name, value):
    refused(put(name, value), f"^{name} is a ")


@pytest.mark.parametrize("name", LISTS[:5])
def test_counts(name):
    few = {"tensor_ids": [0, 1]}
    counted = {"params": "anchors"}.get(name, name)
    refused(lambda a: a | {name: few.get(name, a.get(name, [])[:2])}, f"^{counted} has [23] entries")


def test_no_params():
    refused(put("params", []), "^params is empty")


def test_grads_are_not_none():
    refused(put("grads", None), "^grads is a NoneType")


@pytest.mark.parametrize("name", ["localization", "box"])
def test_anchors_are_not_none_where_they_are_needed(name):
    refused(lambda a: a | {"anchors": None, "localization": 0.0} | {name: 1.0}, "^anchors is None")


TENSORS = {
    "not a tensor": lambda t: [1.0],
    "shape": lambda t: t.new_ones(7),
    "transposed shape": lambda t: t.new_ones(t.shape[::-1]),
    "dtype": lambda t: t.double(),
    "fp16": lambda t: t.half(),
    "integers": lambda t: t.int(),
    "meta": lambda t: t.to("meta"),
    "sparse": lambda t: t.to_sparse(),
}


@pytest.mark.parametrize("name", ["grads", "anchors"])
@pytest.mark.parametrize("kind", TENSORS)
def test_tensors_fit_their_params(name, kind):
    refused(put_at(name, 0, TENSORS[kind]), rf"^{name}\[0\] ")


BAD_PARAMS = {
    "not a tensor": lambda t: [1.0],
    "none": lambda t: None,
    "fp16": lambda t: t.half(),
    "integers": lambda t: t.int(),
    "complex": lambda t: t + 0j,
    "meta": lambda t: t.to("meta"),
    "sparse": lambda t: t.to_sparse(),
    "expanded": lambda t: torch.ones(6).expand(4, 6),
    "a scalar expanded": lambda t: torch.ones(()).expand(4, 6),
    "overlaps itself": lambda t: torch.ones(40).as_strided((4, 6), (3, 1)),
    "transposed": lambda t: torch.ones(6, 4).T,
    "every other element": lambda t: torch.ones(4, 12)[:, ::2],
}


@pytest.mark.parametrize("kind", BAD_PARAMS)
def test_params(kind):
    refused(put_at("params", 0, BAD_PARAMS[kind]), r"params\[0\]")


def test_bf16_needs_remainders():
    refused(put("remainders", None), r"params\[1\] is bfloat16 without a remainder")
    refused(put_at("remainders", 1, lambda r: None), r"params\[1\] is bfloat16 without a remainder")


BAD_REMAINDERS = {
    "not a tensor": lambda r: 0,
    "dtype": lambda r: r.int(),
    "shape": lambda r: torch.zeros(6, dtype=torch.int16),
    "meta": lambda r: r.to("meta"),
    "expanded": lambda r: torch.zeros((), dtype=torch.int16).expand(5),
    "every other element": lambda r: torch.zeros(10, dtype=torch.int16)[::2],
    "sparse": lambda r: r.to_sparse(),
}


@pytest.mark.parametrize("kind", BAD_REMAINDERS)
def test_remainders(kind):
    refused(put_at("remainders", 1, BAD_REMAINDERS[kind]), r"remainders\[1\]")


def test_fp32_takes_no_remainder():
    refused(
        put_at("remainders", 0, lambda r: torch.zeros(4, 6, dtype=torch.int16)), r"remainders\[0\] is given"
    )


@pytest.mark.parametrize("value", [-1, 2**32, True, 0.5, "0", None], ids=repr)
def test_tensor_ids(value):
    refused(put("tensor_ids", [0, value, 2]), r"^tensor_ids\[1\] is ")


def test_tensor_ids_differ():
    refused(put("tensor_ids", [4, 5, 4]), "^tensor_ids repeats a number")


# --- memory ---


def pair(w: torch.Tensor, v: torch.Tensor) -> dict[str, Any]:
    """A call that updates two tensors."""
    return {
        "params": [w, v],
        "grads": [None, None],
        "anchors": [w.clone(), v.clone()],
        "lr": 1e-3,
        "nbeta": 1.0,
        "seed": 0,
        "step": 0,
    }


def test_a_tensor_is_given_once():
    w = torch.ones(8)
    refused(lambda a: pair(w, w), r"params\[0\] and params\[1\] share memory")


def test_views_that_overlap():
    base = torch.ones(20)
    refused(lambda a: pair(base[:11], base[10:]), r"params\[0\] and params\[1\] share memory")
    matrix = torch.ones(6, 10)
    refused(lambda a: pair(matrix[:, :6], matrix[:, 5:]), r"params\[0\] and params\[1\] share memory")
    refused(lambda a: pair(matrix, matrix[2:3, 4:]), r"params\[0\] and params\[1\] share memory")


def test_views_side_by_side_are_fine():
    matrix, apart = torch.ones(6, 10), [torch.ones(6, 5), torch.ones(6, 5)]
    step(pair(matrix[:, :5], matrix[:, 5:]))
    step(pair(*apart))
    assert torch.equal(matrix, torch.cat(apart, 1))
    line = torch.ones(20)
    step(pair(line[:10], line[10:]))
    assert not torch.any(line == 1)


@pytest.mark.parametrize("name", ["anchors", "grads"])
def test_what_is_read_is_not_written(name):
    w, v = torch.ones(8), torch.ones(3)
    refused(lambda a: pair(w, v) | {name: [w, v.clone()]}, rf"params\[0\] and {name}\[0\] share memory")
    base = torch.ones(10)
    refused(lambda a: pair(base[:8], v) | {name: [base[2:], v.clone()]}, rf"{name}\[0\] share memory")


def test_an_anchor_with_gaps_is_not_the_parameter():
    w = torch.ones(4, 10)[:, :6]
    refused(lambda a: pair(w, torch.ones(3)) | {"anchors": [w, torch.ones(3)]}, r"anchors\[0\]")


def test_remainders_have_memory_of_their_own():
    w, lo = torch.ones(5, dtype=torch.bfloat16), torch.zeros(5, dtype=torch.int16)
    two = pair(w, w.clone())
    refused(lambda a: two | {"remainders": [lo, lo]}, r"remainders\[0\] and remainders\[1\] share memory")
    refused(lambda a: two | {"remainders": [w.view(torch.int16), lo]}, r"remainders\[0\]")


# --- tiles ---


BAD_TILES = {
    "not a tile": ((0, 1, 2), r"tiles\[0\] is a tuple"),
    "no such tensor": (Tile(3, 1, 1, 0, 1, 0, 1), r"tiles\[0\]\.tensor is 3"),
    "negative tensor": (Tile(-1, 1, 1, 0, 1, 0, 1), r"tiles\[0\]\.tensor is -1"),
    "negative rows": (Tile(0, -1, 1, 0, 1, 0, 1), r"tiles\[0\]\.rows"),
    "fractional cols": (Tile(0, 1, 1.5, 0, 1, 0, 1), r"tiles\[0\]\.cols"),
    "negative offset": (Tile(0, 1, 1, -1, 1, 0, 1), r"tiles\[0\]\.offset"),
    "negative start": (Tile(0, 1, 1, 0, 1, -1, 1), r"tiles\[0\]\.start"),
    "chain out of range": (Tile(0, 1, 1, 0, 1, 0, 1, 2**64), r"tiles\[0\]\.chain"),
    "beyond the end": (
        Tile(0, 1, 25, 0, 25, 0, 25),
        r"tiles\[0\] ends at element 25 of params\[0\], which has 24",
    ),
    "last row beyond the end": (Tile(0, 4, 6, 1, 6, 0, 6), r"tiles\[0\] ends at element 25"),
    "rows overlap": (Tile(0, 3, 6, 0, 5, 0, 6), r"tiles\[0\] has rows of 6 elements at strides 5"),
    "rows share noise": (
        Tile(0, 3, 6, 0, 6, 0, 5),
        r"tiles\[0\] has rows of 6 elements at strides 6 \(local\) and 5",
    ),
    "beyond 2^58": (Tile(0, 1, 2, 0, 2, 2**58 - 1, 2), r"tiles\[0\] reaches beyond"),
    "across a gap": (Tile(2, 1, 6, 0, 6, 0, 6), r"params\[2\] has strides"),
}


@pytest.mark.parametrize("kind", BAD_TILES)
def test_tiles(kind):
    tile, match = BAD_TILES[kind]
    refused(put("tiles", [tile]), match)


OVERLAPS = {
    "twice the same": [Tile(0, 1, 4, 0, 4, 0, 4)] * 2,
    "lines": [Tile(0, 1, 4, 0, 4, 0, 4), Tile(0, 1, 4, 3, 4, 3, 4)],
    "boxes": [Tile(0, 3, 3, 0, 6, 0, 6), Tile(0, 3, 3, 8, 6, 8, 6)],
    "a box and a line": [Tile(0, 3, 2, 0, 6, 0, 6), Tile(0, 1, 8, 5, 8, 5, 8)],
    "of two chains": [Tile(0, 1, 4, 0, 4, 0, 4, 1), Tile(0, 1, 4, 2, 4, 2, 4, 2)],
}


@pytest.mark.parametrize("kind", OVERLAPS)
def test_tiles_do_not_overlap(kind):
    refused(put("tiles", OVERLAPS[kind]), r"^tiles of params\[0\] overlap")


# --- backends, and the noise alone ---


BACKENDS = [
    ("cpuu", "unknown backend 'cpuu' .did you mean 'cpu'"),
    ("trition", "did you mean 'triton'"),
    ("", "unknown backend ''"),
    ("auto:avx2", "unknown backend 'auto:avx2'"),
    ("cpu:avx3", "backend 'cpu:avx3' cannot run here"),
    ("reference:fast", "no variant 'fast'"),
    (None, "backend is None"),
    (3, "backend is 3"),
]


@pytest.mark.parametrize(("name", "match"), BACKENDS)
def test_backends(name, match):
    error = refused(put("backend", name), match)
    assert isinstance(error, BackendError if isinstance(name, str) else TypeError)
    with pytest.raises(LlcFastError, match=match):
        llc_fast.normal(3, seed=0, step=0, tensor_id=0, backend=name)


def test_a_backend_that_cannot_take_the_tensors_says_so(isa):
    error = refused(
        lambda a: pair(torch.ones(3).double(), torch.ones(3)) | {"backend": isa}, "has no float64 step"
    )
    assert isinstance(error, BackendError)


@pytest.mark.parametrize(
    "change",
    [
        {"numel": -1},
        {"numel": 2.0},
        {"numel": True},
        {"numel": 2**58 + 1},
        {"start": -1},
        {"start": 2**58},
        {"start": 1.0},
        {"tensor_id": -1},
        {"tensor_id": 2**32},
        {"tensor_id": None},
        {"noise": "uniform"},
        {"noise": None},
        {"device": "meta"},
        {"device": "nowhere"},
        {"device": 1.5},
        {"device": None},
        *({name: value} for name in ("seed", "chain", "step") for value in OUT_OF_RANGE),
        {"step": 2**32},
    ],
    ids=repr,
)
def test_normal(change):
    (name,) = change
    arguments = {"numel": 3, "seed": 0, "step": 0, "tensor_id": 0} | change
    with pytest.raises(LlcFastError, match=rf"^{name} is "):
        llc_fast.normal(arguments.pop("numel"), **arguments)


def test_normal_that_does_not_fit_into_memory():
    with pytest.raises(LlcFastError, match=f"cannot hold {2**57} elements"):
        llc_fast.normal(2**57, seed=0, step=0, tensor_id=0, backend="reference")
