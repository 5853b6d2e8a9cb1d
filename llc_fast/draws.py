"""Losses of observables in a tree of `sample`, of draws or as streamed moments: one way to read both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .diagnostics import Array
from .errors import ArgumentError, ArgumentTypeError
from .feed import to_obs_id

if TYPE_CHECKING:
    import xarray as xr


@dataclass(frozen=True)
class Sums:
    """Second moments about each chain's own means: of x with itself, or of x with y.

    count: (chain,). x, y: means, (chain, ...). comoment: sums of products of deviations, (chain, ...).
    """

    count: Array
    x: Array
    y: Array
    comoment: Array

    def mean(self) -> Array:
        """Mean of x over the draws of all chains."""
        return _mean(self.count, self.x)

    def pooled(self, within_chains: bool = False) -> tuple[Array, float]:
        """Sum of products over all chains, and its degrees of freedom.

        Deviations are those from the mean of all draws, so that differences between chains count; with
        `within_chains` from the chain's own.
        """
        total: Array = self.comoment.sum(axis=0)
        if within_chains:
            return total, float((self.count - 1).sum())
        n = self.count.reshape(-1, *[1] * total.ndim)
        dx, dy = (means - _mean(self.count, means) for means in (self.x, self.y))
        return total + (n * dx * dy).sum(axis=0), float(self.count.sum() - 1)


def _mean(count: Array, means: Array) -> Array:
    mean: Array = np.tensordot(count, means, axes=1) / count.sum()
    return mean


class Observed:
    """What both kinds of tree tell. ids: observables, sorted."""

    ids: list[str]

    def __init__(self, root: xr.Dataset) -> None:
        self.root = root

    def chosen(self, keys: Any) -> list[str]:
        """The observables that are asked for: "all", or a list of names."""
        if isinstance(keys, str):
            if keys == "all":
                return self.ids
            raise ArgumentError(f"loss_keys is {keys!r}: use 'all' or a list of {self.ids}")
        chosen = [to_obs_id(key) for key in keys]
        for key in chosen:
            self._check(key)
        if not chosen or len(set(chosen)) < len(chosen):
            raise ArgumentError(f"loss_keys is {list(keys)}: give each observable once, of {self.ids}")
        return chosen

    def input_ids(self, name: str) -> Any | None:
        """Tokens of an observable, (sequences, tokens + 1); None where its data are none."""
        if f"input_ids_{name}" not in self.root:
            return None
        ids = np.asarray(self.root[f"input_ids_{name}"].values)
        return ids.reshape(-1, *ids.shape[-2:])[0]  # the same at every draw

    def mean(self, name: str) -> Array:
        """Mean loss of each token over all draws, (sequences, tokens)."""
        raise NotImplementedError

    def tokens(self, name: str) -> Sums:
        """Variance of the loss of each token."""
        raise NotImplementedError

    def sequences(self, names: Sequence[str]) -> Sums:
        """Variance of the mean loss of each sequence, observables one after another."""
        raise NotImplementedError

    def scalar(self, task: str) -> Sums:
        """Variance of the mean loss of the observable `task`."""
        raise NotImplementedError

    def cross(self, name: str, task: str) -> Sums:
        """Covariance of the loss of each token, x, with the mean loss of the observable `task`, y."""
        raise NotImplementedError

    def _check(self, name: str) -> None:
        if name not in self.ids:
            raise ArgumentError(f"there is no observable {name!r} among {self.ids}")


class Traces(Observed):
    """Losses at draws, in the root."""

    def __init__(self, root: xr.Dataset) -> None:
        super().__init__(root)
        self.ids = sorted(str(v).removeprefix("loss_") for v in root.data_vars if str(v).startswith("loss_"))

    def losses(self, name: str) -> Any:
        """(chain, draw, sequences, tokens), in the tree's own dtype."""
        self._check(name)
        found = self.root[f"loss_{name}"]
        if found.dims != (expected := ("chain", "draw", f"batch_{name}", "token_pos")):
            raise ArgumentError(f"loss_{name} has dimensions {found.dims}, expected {expected}")
        if 0 in found.shape:
            raise ArgumentError(f"loss_{name} has shape {found.shape}: the tree has no draws")
        return found.values

    def mean(self, name: str) -> Array:
        mean: Array = self.losses(name).mean(axis=(0, 1), dtype=np.float64)
        return mean

    def tokens(self, name: str) -> Sums:
        x = self.losses(name)
        return _sums(x, x)

    def sequences(self, names: Sequence[str]) -> Sums:
        x = np.concatenate([sequence_losses(self.losses(name)) for name in names], axis=2)[..., 0]
        return _sums(x, x)

    def scalar(self, task: str) -> Sums:
        s = self.losses(task).mean(axis=(2, 3), dtype=np.float64)
        return _sums(s, s)

    def cross(self, name: str, task: str) -> Sums:
        s = self.losses(task).mean(axis=(2, 3), dtype=np.float64)
        return _sums(self.losses(name), s[:, :, None, None])


class Streamed(Observed):
    """Moments of each chain, in the group `/moments`. Chains that have no draw yet are left out."""

    def __init__(self, root: xr.Dataset, moments: xr.Dataset) -> None:
        super().__init__(root)
        count = np.nan_to_num(moments["count"].values.astype(np.float64))
        if not (count > 0).any():
            raise ArgumentError("the tree has no draws")
        self.moments = moments.isel(chain=np.flatnonzero(count > 0))
        self.count = count[count > 0]
        self.ids = sorted(
            str(v).removeprefix("mean_") for v in moments.data_vars if str(v).startswith("mean_")
        )

    def mean(self, name: str) -> Array:
        return _mean(self.count, self._read("mean", name))

    def tokens(self, name: str) -> Sums:
        mean = self._read("mean", name)
        return Sums(self.count, mean, mean, self._read("m2", name))

    def sequences(self, names: Sequence[str]) -> Sums:
        mean = np.concatenate([sequence_losses(self._read("mean", name)) for name in names], axis=1)[..., 0]
        m2 = self.moments["sequence_m2"].values[:, self.places(names)]
        return Sums(self.count, mean, mean, m2)

    def scalar(self, task: str) -> Sums:
        self._check_scalar(task)
        mean = self.moments["scalar_mean"].values
        return Sums(self.count, mean, mean, self.moments["scalar_m2"].values)

    def cross(self, name: str, task: str) -> Sums:
        self._check_scalar(task)
        s = self.moments["scalar_mean"].values[:, None, None]
        return Sums(self.count, self._read("mean", name), s, self._read("cross", name))

    def places(self, names: Sequence[str]) -> Any:
        """Where the sequences of these observables stand among those of all."""
        sizes = [self.moments.sizes[f"batch_{name}"] for name in self.ids]
        starts = dict(zip(self.ids, np.cumsum([0, *sizes]), strict=False))
        return np.concatenate(
            [starts[name] + np.arange(self.moments.sizes[f"batch_{name}"]) for name in names]
        )

    def comoments(self, names: Sequence[str], per: str, within_chains: bool) -> tuple[Array, float]:
        """Sums of products of sequences (S, 1, S, 1) or tokens (S, T, S, T), and the degrees of freedom."""
        if f"{per}_comoment" not in self.moments:
            raise ArgumentError(
                f"the tree has neither losses at draws nor covariances of {per}s: sample with traces=True, or with "
                f"moments=({per!r},)"
            )
        places = self.places(names)
        means = np.concatenate([self._read("mean", name) for name in names], axis=1)
        means = sequence_losses(means) if per == "sequence" else means
        total: Array = np.zeros((*means.shape[1:], *means.shape[1:]))
        overall = _mean(self.count, means)
        for i, (n, mean) in enumerate(zip(self.count, means, strict=True)):  # one chain's in memory at a time
            block = self.moments[f"{per}_comoment"].isel(chain=i, sequence=places, sequence_T=places)
            total += block.values.reshape(total.shape)
            if not within_chains:
                d = mean - overall
                total += n * d[..., None, None] * d
        return total, float((self.count - 1).sum() if within_chains else self.count.sum() - 1)

    def _read(self, part: str, name: str) -> Array:
        self._check(name)
        values: Array = self.moments[f"{part}_{name}"].values
        return values

    def _check_scalar(self, task: str) -> None:
        place = int(self.moments["scalar_place"].values[0])
        if (have := "loss" if place < 0 else self.ids[place]) != task:
            raise ArgumentError(
                f"the tree has moments with the scalar {have!r}, not with {task!r}: sample with traces=True, or with "
                f"scalar={task!r}"
            )


def read(samples: Any) -> Traces | Streamed:
    """The observables of a tree of `sample`, ours or devinterp's."""
    import xarray as xr

    if not isinstance(samples, xr.DataTree):
        raise ArgumentTypeError(
            f"samples is a {type(samples).__name__}: give the xarray.DataTree of sample()"
        )
    traces = Traces(samples.dataset)
    if traces.ids:
        return traces
    if "moments" in samples.children:
        return Streamed(samples.dataset, samples.children["moments"].to_dataset(inherit=False))
    raise ArgumentError("the tree has no observables: sample with at least one")


def sequence_losses(losses: Any) -> Any:
    """Mean over the tokens that there are, (..., 1): a shorter sequence is padded with NaN."""
    there = ~np.isnan(losses)
    count = there.sum(axis=-1, keepdims=True)
    total = np.sum(losses, axis=-1, keepdims=True, where=there, dtype=np.float64)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def _sums(x: Any, y: Any) -> Sums:
    """Moments of draws, (chain, draw, ...), in two passes."""
    mean_x, mean_y = (a.mean(axis=1, dtype=np.float64) for a in (x, y))
    comoment = np.stack(  # float64 of one chain at a time
        [((a - ma) * (b - mb)).sum(axis=0) for a, b, ma, mb in zip(x, y, mean_x, mean_y, strict=True)]
    )
    return Sums(np.full(len(x), float(x.shape[1])), mean_x, mean_y, comoment)
