"""Data that cannot be sampled on is refused, with the argument, what came, and what to do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_feed import LENGTH, ROWS, VOCABULARY, any_loss, feed, look
from torch.utils.data import DataLoader, Dataset, TensorDataset

from llc_fast.errors import ArgumentError, ArgumentTypeError, DataError
from llc_fast.feed import check_loss

IDS = torch.randint(VOCABULARY, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))
RAGGED = [*IDS[:6].tolist(), [1, 2, 3], *IDS[:3].tolist()]
LATER = [*IDS[:4].tolist(), *IDS[:4, :5].tolist()]
BEYOND = IDS.clone()
BEYOND[:, 2] = VOCABULARY
NEGATIVE = IDS.clone()
NEGATIVE[:, 2] = -1


class Named(Dataset[Any]):
    def __len__(self) -> int:
        return 9

    def __getitem__(self, i: int) -> dict[str, int]:
        return {"x": i}


BAD: dict[str, tuple[Any, type[Exception], str]] = {
    "none": (None, ArgumentTypeError, "dataset is a NoneType"),
    "text": ("train.txt", ArgumentTypeError, "dataset is a str"),
    "number": (3, ArgumentTypeError, "dataset is a int"),
    "object": (object(), ArgumentTypeError, "dataset is a object"),
    "splits": ({"train": IDS}, ArgumentTypeError, r"give a part of it, as dataset\['train'\]"),
    "encoding": ({"mask": 1, "input_ids": IDS}, ArgumentTypeError, r"as dataset\['input_ids'\]"),
    "empty": ([], DataError, "dataset is empty"),
    "empty tensor": (torch.zeros(0, 8, dtype=torch.int64), DataError, "dataset is empty"),
    "not tokenized": ([{"text": "a b"}] * 9, DataError, "has 'text' and no 'input_ids': tokenize it"),
    "strings": (["a b", "c d"], DataError, "holds text and no 'input_ids': tokenize it"),
    "strings as ids": ([{"input_ids": "a b"}] * 9, DataError, "strings for 'input_ids': tokenize it"),
    "words as ids": ([{"input_ids": ["a", "b"]}] * 9, DataError, "ids of type <U1: give integers"),
    "float ids": ([{"input_ids": [1.0, 2.0]}] * 9, DataError, "ids of type float64: give integers"),
    "missing ids": ([{"input_ids": [1, None]}] * 9, DataError, "ids of type object: give integers"),
    "float tensor": (IDS.float(), ArgumentTypeError, "dataset is torch.float32: token ids are integers"),
    "one sequence": (IDS[0], ArgumentError, r"shape \(8,\): token ids are \(sequences, length\)"),
    "length 1": (IDS[:, :1], DataError, "sequences of length 1, where nothing is predicted"),
    "length 0": (IDS[:, :0], DataError, "sequences of length 0"),
    "length 1 in rows": ([{"input_ids": [1]}] * 9, DataError, "sequences of length 1"),
    "ragged": (RAGGED, DataError, r"dataset\[6\] has 3 tokens, others 8: cut all to one length"),
    "ragged from batch to batch": (LATER, DataError, r"dataset\[4\] has 5 tokens, others 8"),
    "beyond": (BEYOND, DataError, r"dataset\[0\] has token 50 at position 2, ids are from 0 to 49"),
    "negative": (NEGATIVE, DataError, "has token -1 at position 2"),
    "shorter than a batch": (IDS[:3], DataError, "dataset has 3 samples, a batch takes 4: give more data"),
    "columns without loss": ((IDS, IDS), ArgumentTypeError, "no token sequences: give loss_fn"),
    "tensors without loss": (TensorDataset(IDS), ArgumentTypeError, "no token sequences: give loss_fn"),
    "batches without loss": ([(IDS, IDS)], ArgumentTypeError, "batch 0 is a tuple, no token ids"),
    "float batches": (DataLoader(IDS.float(), 4), DataError, "batch 0, has token ids of type torch.float32"),
    "batches without ids": ([{"x": IDS}], DataError, "has 'x' and no 'input_ids'"),
    "a loader without ids": (
        DataLoader(Named(), 4),
        DataError,
        r"has no 'input_ids' \(it has: x\): give loss_fn",
    ),
    "empty loader": (DataLoader(IDS[:3], 4, drop_last=True), DataError, "gives no batch"),
    "unequal batches": ([IDS, IDS[:, :5]], DataError, "batch 1 has sequences of length 5, batch 0 of 8"),
    "beyond in batches": ([IDS, BEYOND], DataError, "batch 1, *\\[0\\] has token 50"),
    "short batches": ([IDS[:, :1]], DataError, "batch 0 has sequences of length 1"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_datasets(case: str):
    data, error, text = BAD[case]
    with pytest.raises(error, match=text):
        feed(data, shuffle=False)


OTHERS: dict[str, tuple[Any, type[Exception], str]] = {
    "counts": (
        (torch.zeros(3, 2), torch.zeros(4)),
        ArgumentError,
        r"shapes \(3, 2\), \(4,\): samples come first",
    ),
    "scalar": ((torch.zeros(()),), ArgumentError, "samples come first"),
    "strings": ([{"text": "a b"}] * 9, DataError, "has 'text' and no 'input_ids'"),
    "beyond": (BEYOND, DataError, "has token 50"),
    "no samples": ((torch.zeros(0, 2),), DataError, "dataset is empty"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_bad_datasets_for_a_loss_of_ones_own(case: str):
    data, error, text = OTHERS[case]
    with pytest.raises(error, match=text):
        feed(data, loss_fn=any_loss, shuffle=False)


def test_hugging_face_datasets_that_are_not_tokenized_or_streams():
    datasets = pytest.importorskip("datasets", reason="needs datasets")
    text = datasets.Dataset.from_dict({"text": ["a b"] * 9})
    with pytest.raises(DataError, match=r"no column 'input_ids' \(it has: text\): tokenize it"):
        feed(text)
    with pytest.raises(DataError, match="no 'input_ids'"):
        feed(text, loss_fn=any_loss)
    tokens = datasets.Dataset.from_dict({"input_ids": IDS.tolist()})
    with pytest.raises(ArgumentTypeError, match=r"is a stream.*Dataset.from_list"):
        feed(tokens.to_iterable_dataset())
    with pytest.raises(ArgumentTypeError, match=r"give a part of it, as dataset\['train'\]"):
        feed(datasets.DatasetDict(train=tokens))
    for kind in (None, "torch", "numpy"):
        rows = datasets.Dataset.from_dict({"input_ids": RAGGED}).with_format(kind)
        with pytest.raises(DataError, match=r"dataset\[6\] has 3 tokens"):
            feed(rows, shuffle=False)
        rows = datasets.Dataset.from_dict({"input_ids": LATER}).with_format(kind)
        with pytest.raises(DataError, match=r"dataset\[4\] has 5 tokens"):
            feed(rows, shuffle=False)


def test_too_few_batches_for_chains_that_share_none():
    with pytest.raises(DataError, match=r"makes 2 batches for 3 chains.*match_sampling_input_ids"):
        feed(IDS[:9], matched=False)


OBSERVED: dict[str, tuple[Any, type[Exception], str]] = {
    "a list": ([IDS], ArgumentTypeError, "observables is a list: give a dictionary"),
    "a number for a name": ({1: IDS}, ArgumentTypeError, "key 1: give strings"),
    "too short": ({"a": IDS[:11]}, DataError, r"observables\['a'\] has 11 samples, a draw takes 12"),
    "too few batches": ({"a": [IDS]}, DataError, r"observables\['a'\] has 1 batches, a draw takes 3"),
    "no draws": ({"a": (IDS, 0)}, ArgumentError, r"batches_per_draw of observables\['a'\] is 0"),
    "half a batch": ({"a": (IDS, 1.5)}, ArgumentTypeError, "batches_per_draw"),
    "clash": ({"a b": IDS, "a_b": IDS}, ArgumentError, "'a b' and 'a_b', which are both stored as 'a_b'"),
    "clash of cases": ({"C": IDS, "c": IDS}, ArgumentError, "both stored as 'c': rename one"),
    "a name of the store": ({"sampling": IDS}, ArgumentError, "'sampling', which the store uses"),
    "other length": ({"a": IDS[:, :6]}, DataError, "has sequences of 6 tokens, dataset has sequences of 8"),
    "no tokens": ({"a": [{"text": "b"}]}, DataError, r"observables\['a'\] has 'text'"),
    "beyond": ({"a": BEYOND}, DataError, r"observables\['a'\]\[\d+\] has token 50"),
}


@pytest.mark.parametrize("case", OBSERVED)
def test_bad_observables(case: str):
    given, error, text = OBSERVED[case]
    with pytest.raises(error, match=text):
        look(given)


def test_observables_of_another_kind_than_the_dataset():
    with pytest.raises(DataError, match="has sequences of 8 tokens, dataset has no token sequences"):
        look({"a": IDS}, length=None, loss_fn=any_loss)
    with pytest.raises(DataError, match="batches whose tensors are not of one number"):
        look({"a": ([(IDS[:3], IDS[:2])], 1)}, length=None, loss_fn=any_loss)


LOSSES: dict[str, tuple[object, type[Exception], str]] = {
    "number": (1.0, ArgumentTypeError, "returned a float for batch 2"),
    "integers": (torch.zeros(4, 7, dtype=torch.int64), ArgumentTypeError, "returned torch.int64"),
    "nothing": (torch.zeros(0), ArgumentError, r"no losses \(shape \(0,\)\)"),
    "mean": (torch.zeros(()), ArgumentError, r"here of shape \(4, 7\), got \(\) for batch 2"),
    "sequences": (torch.zeros(4), ArgumentError, r"got \(4,\)"),
    "all tokens": (torch.zeros(4, 8), ArgumentError, r"got \(4, 8\)"),
}


@pytest.mark.parametrize("case", LOSSES)
def test_bad_losses(case: str):
    loss, error, text = LOSSES[case]
    with pytest.raises(error, match=text):
        check_loss(loss, 2, (4, 7))


def test_good_losses():
    check_loss(torch.zeros(4, 7), 0, (4, 7))
    for shape in ((), (4,), (4, 3, 2)):
        check_loss(torch.zeros(shape), 0, None)
