"""What a tree of devinterp's holds of each chain, read chain by chain: losses of samples, and which samples."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..diagnostics import Array
from ..errors import DataError

if TYPE_CHECKING:
    import xarray as xr

LOSS, IDS, INIT = "sampling_loss_micro", "sampling_input_ids_micro", "init_loss"
DIMS = {
    LOSS: ("chain", "step", "batch_sampling", "token_pos"),
    IDS: ("chain", "step", "batch_sampling", "token"),
    INIT: ("chain", "token_pos"),
}
STUCK = 10  # steps of one loss at the end of a chain that no living one has

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Reported:
    """devinterp's numbers, by its own formula: every step, burn-in and what dead chains left included."""

    llc_mean: float
    llc_std: float
    llc_scalar: float
    llc_per_chain: Array
    init_loss: float


@dataclass(frozen=True)
class Records:
    """loss: mean over tokens, (chains, steps, samples), NaN where nothing was recorded. ids: a number for each
    different sequence, -1 where none is known; None where data have no tokens. init: mean loss at w0 of each chain.
    lengths: steps of each chain with a finite loss. deaths: chain -> why it is not counted.
    """

    loss: Array
    ids: Ints | None
    init: Array
    lengths: list[int]
    reported: Reported
    deaths: dict[int, str] = field(default_factory=dict)

    @property
    def steps(self) -> Array:
        """Loss of each step, (chains, steps)."""
        return mean(self.loss, axis=2)


def sampler_of(tree: xr.DataTree) -> dict[str, Any]:
    """The sampler's settings, as devinterp writes them. Raises DataError where there are none."""
    try:
        sampler = dict(tree.attrs["metadata"]["config"]["sampler"])
    except (KeyError, TypeError) as e:
        raise DataError(
            "the tree has no attrs['metadata']['config']['sampler']: devinterp 2.x and sample() write it, and "
            "nothing can be said without its n_beta"
        ) from e
    for name in ("n_beta", "lr", "num_burnin_steps"):
        value = sampler.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise DataError(f"the sampler's {name} is {value!r} in the tree: a number is needed")
    return sampler


def reported(tree: xr.DataTree) -> Reported:
    """What devinterp's compute_llc says of a tree. Raises DataError where it says nothing."""
    sampler = sampler_of(tree)
    loss, init = _array(tree, LOSS), _values(_array(tree, INIT))
    traces, total, count = [], 0.0, 0
    for chain in range(loss.sizes["chain"]):
        trace, part, number = _plain(_values(loss.isel(chain=chain)))
        traces.append(trace)
        total, count = total + part, count + number
    return _reported(sampler["n_beta"], init, traces, total, count)


def read_records(tree: xr.DataTree) -> Records:
    """All of it; one chain is in memory at a time. Raises DataError where something is missing or damaged."""
    sampler, completed = sampler_of(tree), tree.attrs.get("completed") == 1
    ours = "llc_fast" in tree.children  # whose smaller batches are filled up with NaN
    loss, init = _array(tree, LOSS), _values(_array(tree, INIT)).astype(np.float64)
    ids = _array(tree, IDS) if IDS in tree.dataset else None
    if 0 in loss.shape:
        raise DataError(f"{LOSS} has shape {loss.shape}: the tree is empty")
    numbers: dict[bytes, int] = {}
    rows, named, traces, lengths, broken = [], [], [], [], {}
    total, count = 0.0, 0
    for chain in range(loss.sizes["chain"]):
        values = _values(loss.isel(chain=chain))
        trace, part, number = _plain(values)
        traces.append(trace)
        total, count = total + part, count + number
        there = np.isfinite(values)
        good = there.any(axis=(1, 2)) & ~np.isinf(values).any(axis=(1, 2)) if ours else there.all(axis=(1, 2))
        tokens = None if ids is None else _values(ids.isel(chain=chain))
        length = len(good) if good.all() else int(np.argmin(good))
        if length < len(good):
            seen = not np.isnan(values[length]).all() or (tokens is not None and bool(tokens[length].any()))
            broken[chain] = seen
        row = mean(values, axis=2)
        row[length:] = math.nan
        rows.append(row)
        lengths.append(length)
        if tokens is not None:
            named.append(_numbered(tokens, length, numbers))
    records = np.stack(rows)
    deaths = _ends(lengths, broken, completed, ours)
    if sampler["lr"]:
        deaths |= _stuck(mean(records, axis=2), lengths, deaths)
    return Records(
        records,
        np.stack(named) if named else None,
        mean(init, axis=1),
        lengths,
        _reported(sampler["n_beta"], init, traces, total, count),
        deaths,
    )


def mean(values: npt.NDArray[Any], axis: int | tuple[int, ...] | None = None) -> Array:
    """Mean of what is not NaN, in float64; NaN where all is."""
    there = ~np.isnan(values)
    total, count = values.sum(axis=axis, where=there, dtype=np.float64), there.sum(axis=axis)
    found: Array = np.divide(total, count, out=np.full(np.shape(total), math.nan), where=count > 0)
    return found


def _array(tree: xr.DataTree, name: str) -> xr.DataArray:
    if name not in tree.dataset:
        have = ", ".join(sorted(map(str, tree.dataset.data_vars))) or "none"
        raise DataError(f"the tree's root has no {name}; variables there: {have}")
    found = tree.dataset[name]
    if found.dims != DIMS[name]:
        raise DataError(f"{name} has dimensions {found.dims}, expected {DIMS[name]}")
    return found


def _values(array: xr.DataArray) -> npt.NDArray[Any]:
    try:
        values: npt.NDArray[Any] = array.values
    except Exception as e:  # of zarr and its codecs, other ones in each version
        raise DataError(f"{array.name} cannot be read, the store is damaged ({type(e).__name__}: {e})") from e
    return values


def _plain(values: npt.NDArray[Any]) -> tuple[Array, float, int]:
    """Mean loss of each step, and the sum and number of all losses, as devinterp takes them: without NaN."""
    there = ~np.isnan(values)
    total = float(values.sum(where=there, dtype=np.float64))
    return mean(values, axis=(1, 2)), total, int(there.sum())


def _reported(nbeta: float, init: Array, traces: list[Array], total: float, count: int) -> Reported:
    start = float(init.astype(np.float64).mean())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of infinite losses, and of chains without any
        chains = nbeta * (mean(np.stack(traces), axis=1) - start)
        std = float(np.nanstd(chains))
    scalar = nbeta * (total / count - start) if count else math.nan
    return Reported(float(mean(chains)), std, scalar, chains, start)


def _numbered(tokens: npt.NDArray[Any], length: int, numbers: dict[bytes, int]) -> Ints:
    """A number for each different row of tokens; what was not recorded is filled with zeros and has -1."""
    found = np.full(tokens.shape[:2], -1, dtype=np.int64)
    for step in range(length):
        for i, row in enumerate(np.ascontiguousarray(tokens[step])):
            digest = hashlib.blake2b(row.tobytes(), digest_size=16).digest()
            found[step, i] = numbers.setdefault(digest, len(numbers))
    return found


def _ends(lengths: list[int], broken: Mapping[int, bool], completed: bool, together: bool) -> dict[int, str]:
    """Why chains ended early; of some an incomplete store cannot tell, and they may go on.

    broken: chain -> whether a row without a finite loss was recorded, after which nothing is. together: whether chains
    may walk at once; devinterp runs one after another, so that one that ended before another began has died.
    """
    deaths = {}
    for chain, seen in broken.items():
        step = lengths[chain]
        if seen:
            deaths[chain] = f"its loss was NaN or infinite at step {step}"
        elif completed or (any(lengths[chain + 1 :]) and not together):
            deaths[chain] = (
                f"nothing is recorded of it from step {step} on, as when logits are NaN or infinite"
            )
    return deaths


def _stuck(losses: Array, lengths: list[int], deaths: Mapping[int, str]) -> dict[int, str]:
    """Chains whose loss stays the same to the bit."""
    found = {}
    for chain, (row, length) in enumerate(zip(losses, lengths, strict=True)):
        if chain in deaths or not length:
            continue
        other = np.flatnonzero(row[:length] != row[length - 1])
        first = int(other[-1]) + 1 if other.size else 0
        if length - first >= max(STUCK, length // 4):
            found[chain] = f"its loss is {row[first]:.6g}, to the bit, at every step from {first} on"
    return found
