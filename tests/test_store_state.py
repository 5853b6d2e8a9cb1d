"""Checkpoints: what comes back, what is refused, and that no second copy is held."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
import torch

from llc_fast.errors import ArgumentTypeError
from llc_fast.store.state import Damaged, _view, dump, load


def test_everything_comes_back(tmp_path):
    weights = torch.arange(12, dtype=torch.float32).view(3, 4)
    state = {
        "bf16": torch.tensor([1.0, -0.0, math.inf]).bfloat16(),
        "int16": torch.tensor([[-3, 2**15 - 1]], dtype=torch.int16),
        "fp64": torch.tensor(math.pi, dtype=torch.float64),
        "view": weights[:, 1::2],
        "turned": weights.t(),
        "bool": torch.tensor([True, False]),
        "complex": torch.tensor([1 + 2j]),
        "generator": torch.Generator().manual_seed(3).get_state(),
        "empty": torch.empty(0, 3),
        "array": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "words": np.array(["a", "bcd"]),
        "scalar": np.float32(0.1),
        "nested": {
            7: [1, (2.5, None, {"x": "é\n"})],
            "flag": True,
            "big": 2**70,
            "nan": math.nan,
            "-0": -0.0,
        },
        "bytes": b"\x00\xff",
    }
    dump(tmp_path / "c", state)
    assert [p.name for p in tmp_path.iterdir()] == ["c"]
    got = load(tmp_path / "c")
    assert list(got) == list(state)
    for name, value in state.items():
        assert type(got[name]) is type(value)
        if isinstance(value, torch.Tensor):
            assert got[name].dtype == value.dtype
            assert torch.equal(got[name], value)
        elif isinstance(value, np.ndarray | np.generic):
            assert got[name].dtype == value.dtype
            assert np.array_equal(got[name], value)
    assert torch.signbit(got["bf16"][1])
    nested = got["nested"]
    assert math.isnan(nested.pop("nan"))
    assert math.copysign(1, nested.pop("-0")) == -1
    assert nested == {7: [1, (2.5, None, {"x": "é\n"})], "flag": True, "big": 2**70}
    assert nested["flag"] is True
    assert got["bytes"] == b"\x00\xff"


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"a": [0, {1, 2}]}, r"state\['a'\]\[1\] is a set"),
        ({"a": {1.5: 0}}, r"state\['a'\] has a key 1.5"),
        ({"a": {True: 0}}, r"state\['a'\] has a key True"),
        ({"a": np.array([None])}, r"state\['a'\] is a ndarray"),
        ({"a": torch.float32}, r"state\['a'\] is a dtype"),
    ],
)
def test_what_cannot_be_kept_is_named_and_nothing_is_written(state, message, tmp_path):
    dump(tmp_path / "c", 1)
    with pytest.raises(ArgumentTypeError, match=message):
        dump(tmp_path / "c", state)
    assert load(tmp_path / "c") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


def test_every_damage_is_seen(tmp_path):
    path = tmp_path / "c"
    dump(path, {"w": torch.arange(5), "n": 3})
    data = path.read_bytes()
    for i in range(len(data)):
        path.write_bytes(data[:i] + bytes([data[i] ^ 1]) + data[i + 1 :])
        with pytest.raises(Damaged):
            load(path)
    for length in (0, 10, 30, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(Damaged):
            load(path)
    path.write_bytes(data + b"x")
    with pytest.raises(Damaged):
        load(path)


def test_no_second_copy_is_held(tmp_path):
    size = 2**23
    state = {"array": np.ones(size, np.uint8), "tensor": torch.ones(size // 4)}
    assert np.asarray(_view(state["tensor"])).ctypes.data == state["tensor"].data_ptr()
    tracemalloc.start()  # numpy's memory and bytes
    try:
        dump(tmp_path / "c", state)
        assert tracemalloc.get_traced_memory()[1] < size / 8
        got = load(tmp_path / "c")
        assert tracemalloc.get_traced_memory()[1] < 1.1 * size
    finally:
        tracemalloc.stop()
    assert (tmp_path / "c").stat().st_size > 2 * size
    assert torch.equal(got["tensor"], state["tensor"])
