"""What chains walk on: the same batches as devinterp's DataLoader and observables give, from any kind of data."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from llc_fast.feed import Feed, moved, observables, read, size_of, to_obs_id

ROWS, LENGTH, BATCH, VOCABULARY = 103, 8, 4, 50


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(VOCABULARY, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))


def any_loss(model: Any, batch: Any) -> Tensor:
    return torch.zeros(())


def feed(dataset: Any, **changes: Any) -> Feed:
    settings: dict[str, Any] = {"batch_size": BATCH, "shuffle": True, "init_seed": 100, "num_chains": 3}
    settings |= {"matched": True, "needed": 20, "vocabulary": VOCABULARY, "loss_fn": None}
    return read(dataset, **(settings | changes))


def passed(dataset: Any, seed: int = 100, shuffle: bool = True) -> list[Any]:
    """devinterp's loader, as its sampler makes it."""
    generator = torch.Generator()
    generator.manual_seed(seed)
    return list(DataLoader(dataset, BATCH, shuffle=shuffle, generator=generator, drop_last=True))


class Rows(Dataset[Any]):
    """A map-style dataset of dictionaries that counts what is read."""

    def __init__(self, ids: Tensor) -> None:
        self.ids, self.read = ids, []

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        self.read.append(i)
        return {"input_ids": self.ids[i]}


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("needed", [7, 1000])
def test_the_pool_is_the_pass_of_devinterps_loader(ids: Tensor, shuffle: bool, needed: int):
    expected = [b["input_ids"] for b in passed(Rows(ids), shuffle=shuffle)][:needed]
    got = feed(ids, shuffle=shuffle, needed=needed)
    assert len(got.batches) == min(needed, ROWS // BATCH)
    assert all(torch.equal(a, b) for a, b in zip(got.batches, expected, strict=True))
    assert got.pools == [range(len(expected))] * 3
    assert got.sizes == [BATCH] * len(expected)
    assert got.length == LENGTH
    assert got.tokens is not None
    assert torch.equal(got.tokens, torch.stack(expected))
    assert got.expected(0) == (BATCH, LENGTH - 1)


def test_another_seed_is_another_pass(ids: Tensor):
    assert not torch.equal(feed(ids, init_seed=101).batches[0], feed(ids).batches[0])


KINDS: dict[str, Any] = {
    "int32": lambda ids: ids.int(),
    "numpy": lambda ids: ids.numpy(),
    "uint8": lambda ids: ids.to(torch.uint8),
    "rows of lists": lambda ids: [{"input_ids": row} for row in ids.tolist()],
    "rows of tensors": lambda ids: [{"input_ids": row} for row in ids],
    "lists": lambda ids: ids.tolist(),
    "tensors": list,
    "map-style": Rows,
}


@pytest.mark.parametrize("kind", KINDS)
def test_token_sequences_of_every_kind(ids: Tensor, kind: str):
    got, expected = feed(KINDS[kind](ids)), feed(ids)
    assert got.tokens is not None
    assert got.tokens.dtype == torch.int64
    assert torch.equal(got.tokens, expected.tokens)


@pytest.mark.parametrize("kind", [None, "torch", "numpy"])
def test_hugging_face_datasets(ids: Tensor, kind: str | None):
    datasets = pytest.importorskip("datasets", reason="needs datasets")
    data = datasets.Dataset.from_dict({"text": ["x"] * ROWS, "input_ids": ids.tolist()})
    got = feed(data.with_format(kind))
    assert torch.equal(got.tokens, feed(ids).tokens)
    assert torch.equal(feed(data["input_ids"]).tokens, got.tokens)


def test_rows_are_read_as_they_are_needed(ids: Tensor):
    rows = Rows(ids)
    feed(rows, needed=2)
    assert len(set(rows.read) - {0}) <= 2 * BATCH


def test_chains_that_share_nothing(ids: Tensor):
    got = feed(ids, matched=False, needed=5)
    expected = [b["input_ids"] for b in passed(Rows(ids))]
    assert [list(pool) for pool in got.pools] == [[0, 3, 6, 9, 12], [1, 4, 7, 10, 13], [2, 5, 8, 11, 14]]
    assert all(torch.equal(a, b) for a, b in zip(got.batches, expected, strict=False))
    few = feed(ids, matched=False, needed=1000)  # 25 batches for 3 chains: one is left out
    assert [len(pool) for pool in few.pools] == [8, 8, 8]
    assert len(few.batches) == 24


def test_samples_of_tensors(ids: Tensor):
    x, y = torch.randn(ROWS, 5, 2), torch.arange(ROWS)
    order = [b.tolist() for b in passed(range(ROWS))]
    got = feed((x, y), loss_fn=any_loss)
    assert got.length is None
    assert got.tokens is None
    assert got.expected(0) is None
    assert isinstance(got.batches[0], tuple)
    assert all(b[1].tolist() == o for b, o in zip(got.batches, order, strict=False))
    assert torch.equal(got.batches[3][0], x[order[3]])
    same = feed(TensorDataset(x, y), loss_fn=any_loss)
    assert torch.equal(same.batches[3][0], got.batches[3][0])
    assert torch.equal(feed(x, loss_fn=any_loss).batches[3], x[order[3]])
    integers = feed((ids,), loss_fn=any_loss)
    assert integers.length is None
    assert torch.equal(integers.batches[0][0], feed(ids).batches[0])


def test_samples_of_map_style_datasets_are_collated():
    class Pairs(Dataset[Any]):
        def __len__(self) -> int:
            return ROWS

        def __getitem__(self, i: int) -> tuple[Tensor, int]:
            return torch.full((2,), float(i)), i

    got = feed(Pairs(), loss_fn=any_loss)
    assert all(torch.equal(a[1], b[1]) for a, b in zip(got.batches, passed(Pairs()), strict=False))
    assert got.sizes[0] == BATCH


def test_batches_are_used_as_they_are(ids: Tensor):
    x, y = torch.randn(20, 3), torch.arange(20)
    loader = DataLoader(TensorDataset(x, y), 6)
    got = feed(loader, loss_fn=any_loss)
    assert got.sizes == [6, 6, 6, 2]
    assert torch.equal(got.batches[3][0], x[18:])
    assert [list(p) for p in feed(loader, loss_fn=any_loss, matched=False).pools] == [[0], [1], [2]]
    assert len(feed([(x, y)] * 50, loss_fn=any_loss, needed=7).batches) == 7
    words = [{"input_ids": ids[:2], "mask": torch.ones(2)}, {"input_ids": ids[2:4], "mask": torch.ones(2)}]
    assert feed(words, loss_fn=any_loss).batches[0].keys() == {"input_ids", "mask"}
    assert feed(words, loss_fn=any_loss).length is None
    tokens = feed(words)
    assert torch.equal(tokens.tokens, ids[:4].view(2, 2, LENGTH))
    ragged = feed(DataLoader(ids, 10))  # the last has 3
    assert ragged.tokens is None
    assert (ragged.length, ragged.sizes[-1], ragged.expected(10)) == (LENGTH, 3, (3, LENGTH - 1))


def test_an_endless_loader_is_read_as_far_as_needed():
    class Endless(IterableDataset[Tensor]):
        def __iter__(self) -> Iterator[Tensor]:
            i = 0
            while True:
                yield torch.full((2,), float(i))
                i += 1

    got = feed(DataLoader(Endless(), 4), loss_fn=any_loss, needed=5)
    assert [int(b[0, 0]) for b in got.batches] == [0, 4, 8, 12, 16]
    assert len(feed(iter(DataLoader(Endless(), 4)), loss_fn=any_loss, needed=2, matched=False).batches) == 6


def test_moved_and_size_of():
    from collections import OrderedDict, namedtuple

    Pair = namedtuple("Pair", "x y")
    batch = {"a": [torch.zeros(3, 2), "text"], "b": Pair(torch.ones(3), 1), "c": OrderedDict(d=torch.ones(3))}
    there = moved(batch, "meta")
    assert there["a"][0].is_meta
    assert there["a"][1] == "text"
    assert there["b"].x.is_meta
    assert type(there["b"]) is Pair
    assert type(there["c"]) is OrderedDict
    assert there["c"]["d"].is_meta
    assert not batch["a"][0].is_meta
    assert size_of(batch) == 3
    assert size_of((torch.zeros(3), torch.zeros(2))) is None
    assert size_of("text") is None


def look(given: Any, **changes: Any) -> Any:
    settings: dict[str, Any] = {"batch_size": BATCH, "batches_per_draw": 3, "seed": 1337, "length": LENGTH}
    settings |= {"vocabulary": VOCABULARY, "loss_fn": None}
    return observables(given, **(settings | changes))


def test_observables_are_devinterps(ids: Tensor):
    theirs = pytest.importorskip("devinterp.slt.observables", reason="needs devinterp 2.0.1")
    names = ["pile github", "1 a-b", "x", "", "日本 1"]
    for name, (dataset, count) in zip(
        names, [(ids, 3), (ids[:20], 2), (ids, 1), (ids, 25), (ids, 4)], strict=True
    ):
        expected = theirs.Observable(
            dataset=Rows(dataset),
            task_name=name,
            batches_per_draw=count,
            batch_size=BATCH,
            context_length=LENGTH - 1,
            device=torch.device("cpu"),
            seed=5,
        )
        (mine,) = look({name: (dataset, count)}, seed=5)
        assert mine.obs_id == expected.obs_id
        assert torch.equal(mine.ids, expected.input_ids)
        assert (mine.size, mine.batches_per_draw, len(mine.batches)) == (BATCH * count, count, count)
        assert torch.equal(torch.cat(list(mine.batches)), mine.ids)


def test_names_are_changed_as_devinterp_changes_them():
    theirs = pytest.importorskip("devinterp.slt.observables", reason="needs devinterp 2.0.1")
    letters = "aZ9_- .é日\n/"
    for seed in range(200):
        name = "".join(random.Random(seed).choices(letters, k=seed % 6))
        assert to_obs_id(name) == theirs.to_obs_id(name)


def test_observables_of_other_data(ids: Tensor):
    x, y = torch.randn(ROWS, 3), torch.arange(ROWS)
    (own,) = look({"a": (x, y)}, loss_fn=any_loss, length=None)  # a tuple of two tensors is a dataset
    chosen = random.Random(1337).sample(range(ROWS), 3 * BATCH)
    assert torch.cat([b[1] for b in own.batches]).tolist() == chosen
    assert own.ids is None
    assert own.size == 3 * BATCH
    (loaded,) = look({"a": (DataLoader(TensorDataset(x, y), 5), 2)}, loss_fn=any_loss, length=None)
    assert loaded.size == 10
    assert torch.equal(loaded.batches[1][0], x[5:10])
    assert look({}) == []
    assert look(None) == []
    two = look({"b": ids, "a": ids})
    assert [o.obs_id for o in two] == ["b", "a"]
