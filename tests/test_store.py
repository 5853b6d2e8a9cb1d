"""What a store holds: rows, slots, dead chains, attributes; on a disk and in memory; for readers and for devinterp."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llc_fast.errors import ArgumentError, DataError
from llc_fast.store import Spec, Writer, open_tree
from llc_fast.store.reading import values

pytest.importorskip("zarr")
xr = pytest.importorskip("xarray")

SLOTS, STEPS, DRAWS = 3, 8, 5
SPECS = (
    Spec("init_loss", ("chain", "token_pos"), (SLOTS, 3), "float32"),
    Spec(
        "sampling_loss",
        ("chain", "draw", "batch", "token_pos"),
        (SLOTS, DRAWS, 2, 3),
        "float32",
        (1, 2, 2, 3),
    ),
    Spec("input_ids_probe", ("batch_probe", "token"), (2, 4), "int64"),
    Spec("llc_fast/loss", ("chain", "step"), (SLOTS, STEPS), "float64", (1, 3)),
    Spec("llc_fast/batch", ("chain", "step", "micro"), (SLOTS, STEPS, 1), "int32", (1, 3, 1), -1),
    Spec("half_pool/gain", ("half_chain", "draw"), (2, DRAWS), "float64"),
)
ATTRS = {"metadata": {"config": {"sampler": {"n_beta": 3.0}}}, "llc_fast": {"version": "1"}}
IDENTITY = {"seed": 1, "weights": "abc"}


def writer(path: Path | None, **changed: Any) -> Writer:
    return Writer.create(path, SPECS, **{"attrs": ATTRS, "identity": IDENTITY, **changed})


def loss(chain: int, step: int) -> float:
    return math.sin(100 * chain + step)


def begin(out: Writer, chain: int, slot: int) -> None:
    """What is written of a chain once."""
    out.write("init_loss", np.arange(3) + chain, chain=slot)


def step(out: Writer, chain: int, slot: int, at: int) -> None:
    """What is put at each step of a chain."""
    out.put("llc_fast/loss", slot, at, loss(chain, at))
    out.put("llc_fast/batch", slot, at, [chain + at])
    if at >= STEPS - DRAWS:
        out.put("sampling_loss", slot, at - (STEPS - DRAWS), torch.full((2, 3), loss(chain, at)))


def walk(out: Writer, *, dying: int | None = None) -> None:
    """Chains one after the other into all slots; one may die at its sixth step."""
    out.write("input_ids_probe", np.arange(8).reshape(2, 4))
    chain = slot = 0
    while slot < SLOTS:
        begin(out, chain, slot)
        for at in range(STEPS):
            step(out, chain, slot, at)
            if chain == dying and at == 5:
                out.bury(slot, chain, "its loss is not finite")
                break
        else:
            slot += 1
        chain += 1


def expected(chains: list[int]) -> np.ndarray:
    return np.array([[loss(chain, at) for at in range(STEPS)] for chain in chains])


@pytest.fixture(params=["disk", "memory"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    return tmp_path / "deep" / "x.zarr" if request.param == "disk" else None


def test_a_tree_holds_what_was_put(path):
    with writer(path) as out:
        walk(out)
        out.put("half_pool/gain", 1, 0, 2.5)
        out.finish({"llc_fast": {"chains": [0, 1, 2]}, "metrics_numel": 7})
        tree = open_tree(out.store)
    assert np.array_equal(tree["llc_fast/loss"].values, expected([0, 1, 2]))
    assert np.array_equal(tree["llc_fast/batch"].values[..., 0], np.add.outer(range(3), range(STEPS)))
    draws = expected([0, 1, 2])[:, STEPS - DRAWS :].astype("float32")
    assert np.array_equal(
        tree["sampling_loss"].values, np.broadcast_to(draws[..., None, None], (3, DRAWS, 2, 3))
    )
    assert np.array_equal(tree["init_loss"].values, np.add.outer(range(3), range(3)))
    assert np.array_equal(tree["input_ids_probe"].values, np.arange(8).reshape(2, 4))
    assert np.array_equal(tree["half_pool/gain"].values[1], [2.5, *[math.nan] * 4], equal_nan=True)
    for spec in SPECS:
        assert tree[spec.name].dims == spec.dims
        assert tree[spec.name].dtype == spec.dtype
    own = {"chains": [0, 1, 2], "identity": IDENTITY, "version": "1"}
    assert tree.attrs == {"metadata": ATTRS["metadata"], "metrics_numel": 7, "llc_fast": own, "completed": 1}
    if path is not None:
        assert [p.name for p in path.parent.iterdir()] == ["x.zarr"]


def test_dead_chains_are_moved_and_their_slots_used_again(path):
    with writer(path) as out:
        walk(out, dying=1)
        assert out.dead == {1: "its loss is not finite"}
        out.checkpoint({})
        assert np.array_equal(open_tree(out.store)["llc_fast/loss"].values[1], expected([2])[0])
        out.finish({})
        tree = open_tree(out.store)
    assert np.array_equal(tree["llc_fast/loss"].values, expected([0, 2, 3]))
    assert tree["dead"].attrs == {"chains": [1], "reasons": ["its loss is not finite"]}
    dead = tree["dead/llc_fast/loss"]
    assert dead.dims == ("dead_chain", "step")
    assert np.array_equal(dead.values[0, :6], expected([1])[0, :6])
    assert np.isnan(dead.values[0, 6:]).all()
    assert tree["dead/llc_fast/batch"].values[0, :, 0].tolist() == [1, 2, 3, 4, 5, 6, -1, -1]
    assert tree["dead/init_loss"].values.tolist() == [[1, 2, 3]]
    assert "dead/input_ids_probe" not in tree


def test_a_slot_whose_chain_died_closes_up(path):
    with writer(path) as out:
        for slot in range(SLOTS):
            begin(out, slot, slot)
        for at in range(STEPS):
            for slot in range(SLOTS):
                if slot != 0 or at < 4:
                    step(out, slot, slot, at)
            if at == 3:
                out.bury(0, 0, "it left the box")
        assert out.slots == (1, 2)
        out.finish({})
        tree = open_tree(out.store)
    assert np.array_equal(tree["llc_fast/loss"].values, expected([1, 2]))
    assert np.array_equal(tree["init_loss"].values, [[1, 2, 3], [2, 3, 4]])
    assert np.array_equal(tree["dead/llc_fast/loss"].values[0, :4], expected([0])[0, :4])


def test_two_chains_of_one_slot_die_between_checkpoints(path):
    with writer(path) as out:
        for chain in range(3):
            begin(out, chain, 0)
            for at in range(STEPS if chain == 2 else 5 + chain):
                step(out, chain, 0, at)
            if chain < 2:
                out.bury(0, chain, f"death {chain}")
        out.finish({})
        tree = open_tree(out.store)
    assert np.array_equal(tree["llc_fast/loss"].values, expected([2]))
    assert tree["dead"].attrs == {"chains": [0, 1], "reasons": ["death 0", "death 1"]}
    dead = tree["dead/llc_fast/loss"].values
    for chain in range(2):
        assert np.array_equal(dead[chain, : 5 + chain], expected([chain])[0, : 5 + chain])
        assert np.isnan(dead[chain, 5 + chain :]).all()
    assert tree["dead/init_loss"].values.tolist() == [[0, 1, 2], [1, 2, 3]]


def test_all_chains_may_die(path):
    with writer(path) as out:
        begin(out, 0, 0)
        out.bury(0, 0, "at once")
        out.finish({})
        tree = open_tree(out.store)
    assert tree["llc_fast/loss"].shape == (0, STEPS)
    assert np.isnan(tree["dead/llc_fast/loss"].values).all()
    assert tree["dead/init_loss"].values.tolist() == [[0, 1, 2]]


def test_several_slots_are_put_at_once(path):
    with writer(path) as out:
        for at in range(STEPS):
            out.put(
                "llc_fast/loss", [0, 2], at, torch.tensor([loss(0, at), loss(2, at)], dtype=torch.float64)
            )
        out.finish({}, slots=[0, 2])
        assert np.array_equal(open_tree(out.store)["llc_fast/loss"].values, expected([0, 2]))


def test_ragged_rows_are_padded(path):
    with writer(path) as out:
        out.put("sampling_loss", 0, 0, np.ones((1, 3)))
        out.put("sampling_loss", 0, 1, torch.ones(2, 2, dtype=torch.bfloat16))
        out.finish({})
        got = open_tree(out.store)["sampling_loss"].values[0]
    nan = math.nan
    assert np.array_equal(got[0], [[1, 1, 1], [nan] * 3], equal_nan=True)
    assert np.array_equal(got[1], [[1, 1, nan], [1, 1, nan]], equal_nan=True)
    assert np.isnan(got[2:]).all()


def test_readers_see_a_run_at_its_last_checkpoint(tmp_path):
    with writer(tmp_path / "x.zarr") as out:
        for at in range(5):
            step(out, 0, 0, at)
        before = open_tree(tmp_path / "x.zarr")["llc_fast/loss"].values[0]
        out.checkpoint({})
        tree = open_tree(tmp_path / "x.zarr")
        assert "completed" not in tree.attrs
        step(out, 0, 0, 5)
        assert np.array_equal(tree["llc_fast/loss"].values[0, :5], expected([0])[0, :5])
    assert np.isfinite(before).tolist() == [True] * 3 + [False] * 5  # whole chunks only
    assert np.isnan(tree["llc_fast/loss"].values[1:]).all()


def test_nothing_warns(path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with writer(path) as out:
            walk(out, dying=0)
            out.checkpoint({"w": torch.ones(3)})
            out.finish({})
            open_tree(out.store).load()


def test_metadata_is_plain_json_in_a_fixed_order(tmp_path):
    metadata = []
    for i, attrs in enumerate(({"a": {"x": math.inf, "w": np.float32(2)}, "b": (1,)}, {"b": [1], "a": None})):
        attrs["a"] = {"w": 2.0, "x": math.inf}
        with writer(tmp_path / f"{i}.zarr", attrs=attrs) as out:
            out.finish({"facts": {"nan": math.nan}})
        metadata.append((tmp_path / f"{i}.zarr" / "zarr.json").read_text())

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    assert metadata[0] == metadata[1]
    got = json.loads(metadata[0], parse_constant=refuse)["attributes"]
    assert got["a"] == {"w": 2.0, "x": "Infinity"}
    assert math.isnan(float(got["facts"]["nan"]))


def test_chunks_are_chosen_for_few_files_and_little_memory():
    def chunks(
        *shape: int, dims: tuple[str, ...] = ("chain", "step", "batch", "token_pos")
    ) -> tuple[int, ...]:
        return Spec("x", dims[: len(shape)], shape, "float32").chunked().chunks

    assert chunks(8, 2000) == (1, 2000)
    assert chunks(8, 2000, 32, 1023) == (1, 32, 32, 1023)  # 4 MiB
    assert chunks(1000, 2000, 32, 1023) == (1, 2, 32, 1023)  # 256 MiB for all
    assert chunks(8, 0) == (1, 1)
    assert chunks(100, 128, dims=("batch_probe", "token")) == (100, 128)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda out: out.put("llc_fast/loss", 0, 1, 1.0), "row 1 was put, row 0 of 8 is due"),
        (lambda out: [out.put("half_pool/gain", 0, i, 1.0) for i in range(6)], "row 5 of 5 is due"),
        (lambda out: out.put("llc_fast/loss", 3, 0, 1.0), "slot 3 is not one of 3"),
        (lambda out: out.put("llc_fast/lost", 0, 0, 1.0), "no array 'llc_fast/lost', it has init_loss"),
        (lambda out: out.put("llc_fast/loss", 0, 0, [1.0]), r"a row has shape \(\), got \(1,\)"),
        (lambda out: out.put("sampling_loss", 0, 0, np.ones((3, 3))), r"shape \(2, 3\), got \(3, 3\)"),
        (lambda out: out.put("llc_fast/batch", 0, 0, [1.5]), "is int32, got float64"),
        (lambda out: out.put("input_ids_probe", 0, 0, [1] * 4), "no rows of a slot"),
        (lambda out: out.write("llc_fast/loss", [1.0] * 2, chain=0, step=slice(1, 3)), "cuts a chunk of 3"),
        (lambda out: out.write("init_loss", np.ones(4), chain=0), r"shape \(3,\), got \(4,\)"),
        (lambda out: out.write("init_loss", np.ones(3), chian=0), "no dimension 'chian'"),
        (lambda out: out.write("init_loss", np.ones(3), chain=3), "chain=3 is not inside its 3 places"),
        (lambda out: out.bury(3, 0, "?"), "slot 3 is not one of 3"),
        (lambda out: out.finish({}, slots=[1, 0]), "slots must ascend"),
    ],
)
def test_what_does_not_fit_is_refused(act, message):
    with pytest.raises(ArgumentError, match=message):
        act(writer(None))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (Spec("a//b", ("x",), (1,), "int32"), "no name"),
        (Spec("dead/x", ("x",), (1,), "int32"), "no name"),
        (Spec("init_loss", ("x",), (1,), "int32"), "two arrays are named 'init_loss'"),
        (Spec("y", ("x", "x"), (1, 1), "int32"), "do not fit"),
        (Spec("y", ("x",), (1, 1), "int32"), "do not fit"),
        (Spec("y", ("chain",), (4,), "int32"), r"number of slots: \[3, 4\]"),
        (Spec("y", ("chain", "x"), (3, 4), "int32", (3, 4)), "one to a chunk"),
        (Spec("y", ("x", "chain"), (4, 3), "int32"), "the first dimension"),
    ],
)
def test_arrays_that_make_no_store_are_refused(spec, message):
    with pytest.raises(ArgumentError, match=message):
        Writer.create(None, (*SPECS, spec), attrs={}, identity={})


def test_what_is_no_store_cannot_be_opened(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "zarr.json").write_text('{"zarr_format": 3, ')
    for name, message in {
        "nothing": "does not exist",
        "file": "is a file",
        "folder": "has no zarr.json",
        "broken": "cannot be read as a Zarr store",
    }.items():
        with pytest.raises(DataError, match=message):
            open_tree(tmp_path / name)


def test_a_damaged_chunk_is_seen(tmp_path):
    with writer(tmp_path / "x.zarr") as out:
        walk(out)
        out.finish({})
    chunk = tmp_path / "x.zarr" / "llc_fast" / "loss" / "c" / "1" / "1"
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 1
    chunk.write_bytes(data)
    tree = open_tree(tmp_path / "x.zarr")
    with pytest.raises(RuntimeError, match=r"(?i)checksum|corrupt|decompress"):
        tree.load()
    with pytest.raises(
        DataError, match=r"the loss of .*x.zarr cannot be read .*: the store is damaged: take"
    ):
        values(tree["llc_fast/loss"], "the loss", tree)
    assert values(tree["llc_fast/batch"], "batch", tree).shape == (3, 8, 1)


def devinterp_arrays(seed: int) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
    """Arrays as devinterp names them, of two chains."""
    rng = np.random.default_rng(seed)
    ids = np.random.default_rng(0)

    def f32(*shape: int) -> np.ndarray:
        return rng.normal(2, 1, shape).astype("float32")

    return {
        "init_loss": (("chain", "token_pos"), f32(2, 4)),
        "sampling_loss": (("chain", "draw", "batch", "token_pos"), f32(2, 6, 3, 4)),
        "sampling_loss_micro": (("chain", "step", "batch_sampling", "token_pos"), f32(2, 9, 3, 4)),
        "loss_pile": (("chain", "draw", "batch_pile", "token_pos"), f32(2, 6, 5, 4)),
        "loss_probe": (("chain", "draw", "batch_probe", "token_pos"), f32(2, 6, 2, 4)),
        "input_ids_pile": (("batch_pile", "token"), ids.integers(0, 9, (5, 5))),
        "input_ids_probe": (("batch_probe", "token"), ids.integers(0, 9, (2, 5))),
    }


def test_devinterp_s_functions_run_on_a_tree(tmp_path):
    pytest.importorskip("devinterp.slt.llc")
    from devinterp.slt.bif import compute_bif
    from devinterp.slt.llc import compute_llc
    from devinterp.slt.susceptibilities import compute_susceptibilities

    ours, plain = {}, {}
    for seed, name in enumerate(("full", "head")):
        arrays = devinterp_arrays(seed)
        specs = [Spec(n, dims, a.shape, str(a.dtype)) for n, (dims, a) in arrays.items()]
        with Writer.create(tmp_path / f"{name}.zarr", specs, attrs=ATTRS, identity={"name": name}) as out:
            for n, (dims, a) in arrays.items():
                if "draw" in dims or "step" in dims:
                    for slot in range(2):
                        for row in range(a.shape[1]):
                            out.put(n, slot, row, a[slot, row])
                else:
                    out.write(n, a)
            out.finish({}, slots=[0, 1])
        ours[name] = xr.open_datatree(tmp_path / f"{name}.zarr", engine="zarr", consolidated=False)
        plain[name] = xr.DataTree(xr.Dataset(arrays, attrs=ATTRS))
    xr.testing.assert_identical(compute_llc(ours["full"]), compute_llc(plain["full"]))
    micro, init = (devinterp_arrays(0)[n][1] for n in ("sampling_loss_micro", "init_loss"))
    assert compute_llc(ours["full"]).llc_mean == pytest.approx(3 * (micro.mean() - init.mean()), rel=1e-5)
    for method in ("token", "sequence"):
        xr.testing.assert_identical(
            compute_bif(ours["full"], correlation_method=method, device="cpu"),
            compute_bif(plain["full"], correlation_method=method, device="cpu"),
        )
    xr.testing.assert_identical(
        compute_susceptibilities(ours, "pile"), compute_susceptibilities(plain, "pile")
    )
