"""Samples to make batches of: rows of a Hugging Face dataset, of tensors, or of any map-style dataset."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset, default_collate

from ..errors import ArgumentError, ArgumentTypeError, DataError

_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_TOKENIZE = "tokenize it first, as llc_fast.tokenize_and_concatenate does"


@dataclass(frozen=True)
class Samples:
    """count: how many there are. take: a batch of those at these places, on the CPU. length: of token sequences."""

    count: int
    take: Callable[[list[int]], Any]
    length: int | None = None


def samples(name: str, dataset: Any, *, vocabulary: int | None, loss_fn: Any) -> Samples | None:
    """What a dataset holds, or None if it is a DataLoader, a list or another iterable of batches.

    name: of the argument, for errors. vocabulary: the model's. Raises ArgumentError, ArgumentTypeError or DataError.
    """
    if isinstance(dataset, np.ndarray):
        dataset = torch.from_numpy(np.ascontiguousarray(dataset))
    if isinstance(dataset, Tensor):
        return _tensor(name, dataset, vocabulary, loss_fn)
    if isinstance(dataset, TensorDataset):
        dataset = dataset.tensors
    if isinstance(dataset, tuple) and dataset and all(isinstance(t, Tensor) for t in dataset):
        return _columns(name, dataset, loss_fn)
    if isinstance(dataset, str | bytes) or dataset is None or isinstance(dataset, int | float):
        raise ArgumentTypeError(
            f"{name} is a {type(dataset).__name__}: give a dataset of token sequences, tensors or a DataLoader"
        )
    if isinstance(dataset, Mapping):
        inside = next((key for key in ("input_ids", *dataset) if key in dataset), "train")
        raise ArgumentTypeError(
            f"{name} is a {type(dataset).__name__}, not one dataset: give a part of it, as {name}[{inside!r}]"
        )
    if isinstance(dataset, DataLoader):
        return None
    if _streams(dataset):
        raise ArgumentTypeError(
            f"{name} is a stream, of which no sample can be chosen: keep a part, as "
            "datasets.Dataset.from_list(list(stream.take(10_000)))"
        )
    if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        if hasattr(dataset, "__iter__"):
            return None
        raise ArgumentTypeError(
            f"{name} is a {type(dataset).__name__}: give a dataset of token sequences, tensors or a DataLoader"
        )
    if not len(dataset):
        raise DataError(f"{name} is empty: give at least one batch of samples")
    return _indexed(name, dataset, vocabulary, loss_fn)


def _streams(dataset: Any) -> bool:
    return isinstance(dataset, IterableDataset) or any(
        c.__name__ == "IterableDataset" for c in type(dataset).__mro__
    )


def _tensor(name: str, data: Tensor, vocabulary: int | None, loss_fn: Any) -> Samples:
    data = data.detach().cpu()
    if data.dtype in _INTEGERS:
        if data.dim() != 2:
            raise ArgumentError(
                f"{name} has shape {tuple(data.shape)}: token ids are (sequences, length); integers of another kind "
                "go in a tuple, as (inputs, targets)"
            )
        _check_count(name, len(data))
        return Samples(
            len(data),
            lambda places: token_ids(name, data[places], places, vocabulary),
            _length(name, data[0]),
        )
    if loss_fn is None:
        raise ArgumentTypeError(
            f"{name} is {data.dtype}: token ids are integers; for other data give loss_fn"
        )
    return _columns(name, data, loss_fn)


def _columns(name: str, data: Tensor | tuple[Tensor, ...], loss_fn: Any) -> Samples:
    """Samples whose parts are rows of tensors."""
    columns = (data,) if isinstance(data, Tensor) else data
    counts = {t.shape[0] if t.dim() else 0 for t in columns}
    if len(counts) > 1 or not all(t.dim() for t in columns):
        raise ArgumentError(
            f"{name} has tensors of shapes {', '.join(str(tuple(t.shape)) for t in columns)}: samples come first, as "
            "many in each"
        )
    _need_loss(name, loss_fn, "no token sequences")
    _check_count(name, count := counts.pop())
    kept = tuple(t.detach().cpu() for t in columns)
    if isinstance(data, Tensor):
        return Samples(count, lambda places: kept[0][places])
    return Samples(count, lambda places: tuple(t[places] for t in kept))


def _indexed(name: str, dataset: Any, vocabulary: int | None, loss_fn: Any) -> Samples | None:
    names = getattr(dataset, "column_names", None)
    if isinstance(names, list) and hasattr(dataset, "select_columns"):  # of Hugging Face
        if "input_ids" in names:
            dataset = dataset.select_columns(["input_ids"])  # others need not be read
            return _rows(name, dataset, lambda places: dataset[places]["input_ids"], vocabulary)
        if loss_fn is None:
            raise DataError(f"{name} has no column 'input_ids' (it has: {', '.join(names)}): {_TOKENIZE}")
    first = dataset[0]
    if isinstance(first, Mapping) and "input_ids" in first:
        if _dimensions(first["input_ids"]) > 1:
            return None
        return _rows(name, dataset, lambda places: [dataset[i]["input_ids"] for i in places], vocabulary)
    if _is_sequence(first):
        return _rows(name, dataset, lambda places: [dataset[i] for i in places], vocabulary)
    values = list(first.values()) if isinstance(first, Mapping) else [first]
    text = any(isinstance(value, str) for value in values) and not any(isinstance(v, Tensor) for v in values)
    if text or (isinstance(first, Mapping) and loss_fn is None):
        what = f"has {', '.join(map(repr, first))}" if isinstance(first, Mapping) else "holds text"
        raise DataError(f"{name} {what} and no 'input_ids': {_TOKENIZE}")
    if isinstance(dataset, list | tuple):
        return None
    _need_loss(name, loss_fn, "no token sequences")
    return Samples(len(dataset), lambda places: default_collate([dataset[i] for i in places]))


def _rows(name: str, dataset: Any, fetch: Callable[[list[int]], Any], vocabulary: int | None) -> Samples:
    """Token sequences that are fetched row by row, the first of which tells the length of all."""
    length = _length(name, fetch([0])[0])

    def take(places: list[int]) -> Tensor:
        return token_ids(name, fetch(places), places, vocabulary, length)

    return Samples(len(dataset), take, length)


def _need_loss(name: str, loss_fn: Any, what: str) -> None:
    if loss_fn is None:
        raise ArgumentTypeError(f"{name} holds {what}: give loss_fn(model, batch), or 'input_ids'")


def _check_count(name: str, count: int) -> None:
    if not count:
        raise DataError(f"{name} is empty: give at least one batch of samples")


def _dimensions(value: Any) -> int:
    if isinstance(value, Tensor | np.ndarray):
        return int(value.ndim)
    return (
        1 + _dimensions(value[0])
        if isinstance(value, list | tuple) and value
        else int(isinstance(value, list))
    )


def _is_sequence(row: Any) -> bool:
    """Whether a sample is one sequence of integers."""
    if isinstance(row, Tensor):
        return row.dim() == 1 and row.dtype in _INTEGERS
    if isinstance(row, np.ndarray):
        return row.ndim == 1 and row.dtype.kind in "iu"
    return isinstance(row, list) and bool(row) and all(type(i) is int for i in row)


def _length(name: str, row: Any) -> int:
    """The length of a token sequence, which must have something to predict."""
    if isinstance(row, str):
        raise DataError(f"{name} has strings for 'input_ids': {_TOKENIZE}")
    if _dimensions(row) != 1:
        raise DataError(f"{name}[0] is no sequence of token ids, of one dimension: {_TOKENIZE}")
    if len(row) < 2:
        raise DataError(
            f"{name} has sequences of length {len(row)}, where nothing is predicted: give sequences of 2 or more tokens"
        )
    return len(row)


def token_ids(
    name: str, rows: Any, places: Sequence[int], vocabulary: int | None, expected: int | None = None
) -> Tensor:
    """Sequences as int64 of shape (batch, length), checked. places: of the rows, for errors; expected: the length."""
    if not isinstance(rows, Tensor):
        rows = [row.tolist() if isinstance(row, Tensor | np.ndarray) else row for row in rows]
        for place, row in zip(places, rows, strict=True):
            if len(row) != (expected or len(rows[0])):
                raise DataError(
                    f"{name}[{place}] has {len(row)} tokens, others {expected or len(rows[0])}: cut all to one length, "
                    "as llc_fast.tokenize_and_concatenate does"
                )
        array = np.asarray(rows)
        if array.dtype.kind not in "iu":
            raise DataError(f"{name} has token ids of type {array.dtype}: give integers")
        rows = torch.from_numpy(array.astype(np.int64))
    elif expected is not None and rows.shape[1] != expected:
        raise DataError(
            f"{name}[{places[0]}] has {rows.shape[1]} tokens, others {expected}: cut all to one length"
        )
    if rows.dtype not in _INTEGERS:
        raise DataError(f"{name} has token ids of type {rows.dtype}: give integers")
    ids: Tensor = rows.detach().cpu().to(torch.int64)
    wrong = (ids < 0) | (ids >= vocabulary) if vocabulary is not None else ids < 0
    if bool(wrong.any()):
        i, j = wrong.nonzero()[0].tolist()
        bounds = "not negative" if vocabulary is None else f"from 0 to {vocabulary - 1} for this model"
        raise DataError(
            f"{name}[{places[i]}] has token {int(ids[i, j])} at position {j}, ids are {bounds}: use the model's own "
            "tokenizer"
        )
    return ids
