"""Observables: named datasets whose losses are taken at every draw."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import ArgumentError, ArgumentTypeError, DataError
from ..scalars import check_integer
from .batches import size_of
from .pool import given_batches
from .sources import samples

# Dimensions of the store's own arrays are called batch_<one of these>.
_TAKEN = frozenset({"sampling"})


@dataclass(frozen=True)
class Observable:
    """A fixed choice of a dataset's samples.

    obs_id: what its variables are called by. batches: on the CPU, as loss_fn takes them once moved. ids: int64 of
    shape (size, length), None where it holds no token sequences. size: samples of all batches.
    """

    name: str
    obs_id: str
    batches: Sequence[Any]
    ids: Tensor | None
    size: int

    @property
    def batches_per_draw(self) -> int:
        return len(self.batches)


def observables(
    given: Mapping[str, Any] | None,
    *,
    batch_size: int,
    batches_per_draw: int,
    seed: int,
    length: int | None,
    vocabulary: int | None,
    loss_fn: Any,
) -> list[Observable]:
    """Observables from name -> dataset, or name -> (dataset, batches_per_draw); datasets as `read` takes them.

    Their samples are those that devinterp chooses with this seed. Of batches that came as such the first are taken.
    length: of the token sequences that chains walk on, None for other data. Raises ArgumentError, ArgumentTypeError
    or DataError.
    """
    if given is not None and not isinstance(given, Mapping):
        raise ArgumentTypeError(f"observables is a {type(given).__name__}: give a dictionary name -> dataset")
    found: list[Observable] = []
    for name, spec in (given or {}).items():
        if not isinstance(name, str):
            raise ArgumentTypeError(f"observables has the key {name!r}: give strings")
        argument, dataset, count = f"observables[{name!r}]", spec, batches_per_draw
        if _is_pair(spec):
            dataset, count = spec
        count = check_integer(f"batches_per_draw of {argument}", count, minimum=1)
        obs_id = to_obs_id(name)
        _check_id(obs_id, name, found)
        source = samples(argument, dataset, vocabulary=vocabulary, loss_fn=loss_fn)
        if source is None:
            batches, own = given_batches(argument, dataset, count, vocabulary=vocabulary, loss_fn=loss_fn)
            available, wanted = len(batches), count
        else:
            own, available, wanted = source.length, source.count, count * batch_size
            batches = []
        if available < wanted:
            raise DataError(
                f"{argument} has {available} {'samples' if source else 'batches'}, a draw takes {wanted}: give more, "
                f"or fewer batches per draw, as ({name!r}: (dataset, 1))"
            )
        if source is not None:
            places = random.Random(seed).sample(range(available), wanted)
            batches = [source.take(places[i : i + batch_size]) for i in range(0, wanted, batch_size)]
        if own != length:
            raise DataError(
                f"{argument} has {_sequences(own)}, dataset has {_sequences(length)}: cut both to one length"
            )
        sizes = [size_of(batch) for batch in batches]
        if None in sizes:
            raise DataError(
                f"{argument} has batches whose tensors are not of one number of samples: make them so"
            )
        ids = None if own is None else torch.cat(list(batches))
        found.append(Observable(name, obs_id, batches, ids, sum(n for n in sizes if n is not None)))
    return found


def to_obs_id(name: str) -> str:
    """A name with everything but letters, digits and _ replaced by _, as devinterp calls its variables."""
    plain = "".join(c if c.isalnum() or c == "_" else "_" for c in name)
    return f"_{plain}" if not plain or plain[0].isdigit() else plain


def _is_pair(spec: Any) -> bool:
    """Whether it is (dataset, batches_per_draw), and no tuple of tensors."""
    return isinstance(spec, tuple) and len(spec) == 2 and not isinstance(spec[1], Tensor | Mapping | Sequence)


def _check_id(obs_id: str, name: str, found: Sequence[Observable]) -> None:
    if obs_id in _TAKEN:
        raise ArgumentError(f"observables has the name {name!r}, which the store uses itself: choose another")
    for other in found:
        if other.obs_id.casefold() == obs_id.casefold():  # they become names of folders
            raise ArgumentError(
                f"observables has {other.name!r} and {name!r}, which are both stored as {obs_id!r}: rename one"
            )


def _sequences(length: int | None) -> str:
    return "no token sequences" if length is None else f"sequences of {length} tokens"
