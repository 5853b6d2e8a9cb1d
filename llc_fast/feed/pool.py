"""The pool: which batches chains walk on, and which of them each chain takes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ..errors import ArgumentError, ArgumentTypeError, DataError
from .batches import mapped, size_of
from .sources import samples, token_ids


@dataclass(frozen=True)
class Feed:
    """Batches on the CPU, as loss_fn takes them once `moved` has put them on the model's device.

    pools: for each chain places in `batches`, the same for all where they share them. sizes: samples of each batch,
    None where its tensors do not agree on it. length: of token sequences, None for other data. tokens: int64 of
    shape (batches, batch, length) where all batches are token sequences and as many.
    """

    batches: Sequence[Any]
    pools: Sequence[Sequence[int]]
    sizes: Sequence[int | None]
    length: int | None = None
    tokens: Tensor | None = None

    @classmethod
    def of(cls, batches: Sequence[Any], pools: Sequence[Sequence[int]], length: int | None) -> Feed:
        """A feed of these batches; those of token sequences of one size become parts of one tensor."""
        tokens = None
        if length is not None and len({len(b) for b in batches}) == 1:
            tokens = torch.stack(list(batches))
            batches = list(tokens.unbind())
        return cls(batches, pools, [size_of(b) for b in batches], length, tokens)

    def expected(self, batch: int) -> tuple[int, int] | None:
        """The shape of a batch's losses where it is known: one a token that is predicted."""
        return None if self.length is None else (len(self.batches[batch]), self.length - 1)


def read(
    dataset: Any,
    *,
    batch_size: int,
    shuffle: bool,
    init_seed: int,
    num_chains: int,
    matched: bool,
    needed: int,
    vocabulary: int | None,
    loss_fn: Any,
) -> Feed:
    """The batches that chains walk on, of whatever `dataset` holds.

    dataset: token sequences of one length: a Hugging Face dataset, or anything indexable, with 'input_ids', or an
    integer tensor (sequences, length). Or, with loss_fn, samples: a tensor, a tuple of tensors or a TensorDataset
    (samples first), or any map-style dataset. Or batches, used as they are: a DataLoader, a list or another iterable;
    without loss_fn they are token ids (batch, length), by themselves or under 'input_ids'.
    matched: chains share one pool, the first batches of the pass that `DataLoader(dataset, batch_size, shuffle,
    drop_last=True)` makes with a generator of init_seed, at most the `needed` that a chain has use for. Else every
    chain has its own part of as long a pass, all parts as large. A DataLoader is read no further than that, so that
    it may be endless; it shuffles by its own generator or PyTorch's.
    vocabulary: how many tokens the model knows; None where it does not say. Raises ArgumentError, ArgumentTypeError
    or DataError.
    """
    source = samples("dataset", dataset, vocabulary=vocabulary, loss_fn=loss_fn)
    limit = needed if matched else needed * num_chains
    if source is None:
        batches, length = given_batches("dataset", dataset, limit, vocabulary=vocabulary, loss_fn=loss_fn)
    else:
        if source.count < batch_size:
            raise DataError(
                f"dataset has {source.count} samples, a batch takes {batch_size}: give more data, or lower batch_size"
            )
        batches = [source.take(b) for b in _passed(source.count, batch_size, shuffle, init_seed, limit)]
        length = source.length
    if matched:
        return Feed.of(batches, [range(len(batches))] * num_chains, length)
    each = len(batches) // num_chains
    if not each:
        raise DataError(
            f"dataset makes {len(batches)} batches for {num_chains} chains that share none: give more data, lower "
            "batch_size or num_chains, or let chains share them (match_sampling_input_ids_across_chains=True)"
        )
    batches = batches[: each * num_chains]
    return Feed.of(batches, [range(c, len(batches), num_chains) for c in range(num_chains)], length)


def _passed(count: int, size: int, shuffle: bool, seed: int, limit: int) -> list[list[int]]:
    """The first batches of a DataLoader's pass, as places of their samples."""
    generator = torch.Generator().manual_seed(seed)
    places: Sequence[int] = range(count)
    loader: DataLoader[Any] = DataLoader(places, size, shuffle=shuffle, generator=generator, drop_last=True)  # type: ignore[arg-type]
    return [batch.tolist() for batch in islice(loader, limit)]


def given_batches(
    name: str, dataset: Iterable[Any], limit: int, *, vocabulary: int | None, loss_fn: Any
) -> tuple[list[Any], int | None]:
    """At most `limit` batches that came as such, and the length of their token sequences if they are that."""
    batches = list(islice(dataset, limit))
    if not batches:
        raise DataError(
            f"{name} gives no batch: a generator can be read once, and drop_last drops what does not fill a batch"
        )
    if loss_fn is None:
        batches = [_ids(f"{name}, batch {i}", b) for i, b in enumerate(batches)]
    elif not all(isinstance(b, Tensor) and b.dim() == 2 and not b.dtype.is_floating_point for b in batches):
        return [mapped(b, lambda t: t.detach().cpu()) for b in batches], None
    checked: list[Any] = [
        token_ids(f"{name}, batch {i},", b, range(len(b)), vocabulary) for i, b in enumerate(batches)
    ]
    lengths = [b.shape[1] for b in checked]
    for i, length in enumerate(lengths):
        if length < 2:
            raise DataError(f"{name}, batch {i} has sequences of length {length}: give 2 or more tokens")
        if length != lengths[0]:
            raise DataError(
                f"{name}, batch {i} has sequences of length {length}, batch 0 of {lengths[0]}: cut all to one length"
            )
    return checked, lengths[0]


def _ids(name: str, batch: Any) -> Any:
    """The token ids of a batch that comes without a loss_fn."""
    if hasattr(batch, "keys"):
        if "input_ids" not in batch:
            raise DataError(f"{name} has no 'input_ids' (it has: {', '.join(map(str, batch))}): give loss_fn")
        batch = batch["input_ids"]
    if not isinstance(batch, Tensor) or batch.dim() != 2:
        what = f"shape {tuple(batch.shape)}" if isinstance(batch, Tensor) else f"a {type(batch).__name__}"
        raise ArgumentTypeError(f"{name} is {what}, no token ids (batch, length): give loss_fn(model, batch)")
    return batch


def check_loss(loss: object, batch: int, expected: tuple[int, ...] | None) -> None:
    """Raise if what loss_fn returned for a batch is no floating-point tensor of the expected shape."""
    if not isinstance(loss, Tensor):
        raise ArgumentTypeError(
            f"loss_fn returned a {type(loss).__name__} for batch {batch}: return a tensor"
        )
    if not loss.dtype.is_floating_point:
        raise ArgumentTypeError(
            f"loss_fn returned {loss.dtype} for batch {batch}: return floating-point losses"
        )
    if not loss.numel():
        raise ArgumentError(f"loss_fn returned no losses (shape {tuple(loss.shape)}) for batch {batch}")
    if expected is not None and tuple(loss.shape) != expected:
        raise ArgumentError(
            f"loss_fn must return one loss for each token that is predicted, here of shape {expected}, got "
            f"{tuple(loss.shape)} for batch {batch}: where integers are no token sequences, or for another loss, give "
            "them as a tuple of tensors or a DataLoader of tuples"
        )
