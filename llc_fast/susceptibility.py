"""Susceptibilities: how the loss of a component answers when a token weighs more in the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from .diagnostics import Array
from .draws import Streamed, Traces, read
from .errors import ArgumentError, ArgumentTypeError
from .feed import to_obs_id

if TYPE_CHECKING:
    import xarray as xr


def susceptibilities(
    model: nn.Module,
    dataset: Any,
    observables: Mapping[str, Any],
    weight_restrictions: Mapping[str, Any],
    *,
    sampling_task: str,
    lr: float,
    n_beta: float,
    loss_fn: Any = None,
    include_sampling_task: bool = False,
    standardise: bool = False,
    **kwargs: Any,
) -> xr.DataTree:
    """Sample under each weight restriction, then `compute_susceptibilities`.

    weight_restrictions: {name: restriction}, one of them "full". A restriction is a component as
    `llc_fast.select` takes it, a `Selection`, masks {parameter: mask or None} as devinterp has them, or None for
    the whole model. sampling_task: the observable whose loss is that of the data that is sampled on. output_path:
    each restriction gets a store of its own, its name appended: `samples_full.zarr`. Other arguments go to
    `llc_fast.sample`; with traces=False the scalar of its moments is the sampling task.
    """
    from .dropin import sample

    if not isinstance(weight_restrictions, Mapping) or "full" not in weight_restrictions:
        raise ArgumentError(
            "weight_restrictions has no 'full': give a dictionary with it, None for the whole model"
        )
    if sampling_task not in observables:
        raise ArgumentError(
            f"sampling_task is {sampling_task!r}: use one of the observables {list(observables)}"
        )
    if len(weight_restrictions) < 2:
        raise ArgumentError("weight_restrictions has 'full' alone: add the components to compare")
    if not include_sampling_task and len(observables) < 2:
        raise ArgumentError(
            "there is no observable besides sampling_task: add one, or set include_sampling_task=True"
        )
    base = kwargs.pop("output_path", None)
    if kwargs.get("traces") is False:
        kwargs.setdefault("scalar", sampling_task)
    trees = {}
    for name, restriction in weight_restrictions.items():
        own: dict[str, Any] = dict(kwargs)
        if isinstance(restriction, Mapping):
            own["param_masks"] = restriction
        elif restriction is not None:
            own["component"] = restriction
        if base is not None:
            path = Path(str(base))
            own["output_path"] = path.parent / f"{path.stem}_{name}{path.suffix}"
        trees[name] = sample(model, dataset, observables, lr=lr, n_beta=n_beta, loss_fn=loss_fn, **own)
    return compute_susceptibilities(
        trees, sampling_task, include_sampling_task=include_sampling_task, standardise=standardise
    )


def compute_susceptibilities(
    wr_map: Mapping[str, xr.DataTree],
    sampling_task: str,
    observable_names: Sequence[str] | None = None,
    include_sampling_task: bool = False,
    *,
    standardise: bool = False,
) -> xr.DataTree:
    """Susceptibility of each weight restriction to each token, from draws or from streamed moments.

    wr_map: {name of the restriction: tree of `sample`}, with "full" for the whole model; moments need the sampling
    task as their scalar. sampling_task: the observable L of the data that was sampled on. observable_names: whose
    tokens; None for all, the sampling task only with include_sampling_task.

    With phi = L - L(w0), E over the restriction's draws and E_full over those of the whole model, the token of
    loss l has E[phi (L - l)] - E[phi] E_full[L - l]: positive where l falls, relative to L, when the component
    makes L rise. Products are summed about their means, in float64.

    standardise: subtract from each restriction's column its mean over all tokens of all observables in the result,
    and divide by its standard deviation over them (ddof 0), so that components of different size can be compared;
    `sus_mean` and `sus_std` (wr) keep both. A column that does not vary becomes NaN.

    Returns devinterp's tree: `/susceptibilities` with `sus` (sus_flat, wr), float32, and `/context` with the tokens
    `input_ids` (ctx_flat), both with coordinates dataset_id, batch and position.
    Source: Baker et al. 2025, arXiv 2504.18274, appendix C.4.
    """
    if not isinstance(wr_map, Mapping):
        raise ArgumentTypeError(f"wr_map is a {type(wr_map).__name__}: give a dictionary name -> tree")
    if "full" not in wr_map or len(wr_map) < 2:
        raise ArgumentError(f"wr_map has {list(wr_map)}: give 'full' and at least one weight restriction")
    full, task = read(wr_map["full"]), to_obs_id(sampling_task)
    names = _observables(full, task, observable_names, include_sampling_task)
    at_start = float(full.root["init_loss"].values.mean(dtype=np.float64))
    task_full = float(full.mean(task).mean())
    away = {name: task_full - full.mean(name) for name in names}
    columns = {}
    for restriction, tree in wr_map.items():
        if restriction != "full":
            observed = read(tree)
            _check_same(full, observed, names, restriction)
            columns[restriction] = np.concatenate(
                [_susceptibility(observed, name, task, at_start, away[name]).ravel() for name in names]
            )
    matrix = np.stack(list(columns.values()), axis=-1)
    return _tree(full, names, list(columns), matrix, {n: a.shape for n, a in away.items()}, standardise)


def _susceptibility(
    observed: Traces | Streamed, name: str, task: str, at_start: float, away_full: Array
) -> Array:
    """E[phi (L - l)] - E[phi] away_full of each token, (sequences, tokens), written with covariances."""
    scalar, cross = observed.scalar(task), observed.cross(name, task)
    draws = scalar.count.sum()
    variance, covariance = scalar.pooled()[0] / draws, cross.pooled()[0] / draws
    mean, losses = float(scalar.mean()), cross.mean()
    if losses.shape != away_full.shape:
        raise ArgumentError(
            f"losses of {name!r} have shapes {losses.shape} and, of 'full', {away_full.shape}: sample alike"
        )
    result: Array = variance - covariance + (mean - at_start) * (mean - losses - away_full)
    return result


def _observables(
    full: Traces | Streamed, task: str, wanted: Sequence[str] | None, include_sampling_task: bool
) -> list[str]:
    if wanted is None:
        names = [name for name in full.ids if include_sampling_task or name != task]
    else:
        names = sorted({to_obs_id(name) for name in wanted})
    if not names or not {task, *names} <= set(full.ids):
        raise ArgumentError(
            f"sampling_task is {task!r}, observables are {names}, and the trees have {full.ids}: name some of "
            "these, or set include_sampling_task=True to take the sampling task itself"
        )
    return names


def _check_same(
    full: Traces | Streamed, other: Traces | Streamed, names: Sequence[str], restriction: str
) -> None:
    """Both looked at the same tokens, as far as the trees tell."""
    for name in names:
        a, b = full.input_ids(name), other.input_ids(name)
        if name not in other.ids or not np.array_equal(0 if a is None else a, 0 if b is None else b):
            raise ArgumentError(
                f"observable {name!r} of {restriction!r} has other tokens than that of 'full': sample both with the "
                "same observables and obs_seed"
            )


def _tree(
    full: Traces | Streamed,
    names: list[str],
    restrictions: list[str],
    matrix: Array,
    shapes: Mapping[str, tuple[int, ...]],
    standardise: bool,
) -> xr.DataTree:
    import xarray as xr

    extra = {}
    if standardise:
        mean, std = matrix.mean(axis=0), matrix.std(axis=0)
        extra = {"sus_mean": ("wr", mean), "sus_std": ("wr", std)}
        with np.errstate(divide="ignore", invalid="ignore"):
            matrix = (matrix - mean) / np.where(std > 0, std, np.nan)
    attrs = {"dataset_id_to_name": names}
    groups = {
        "/susceptibilities": xr.Dataset(
            {"sus": (("sus_flat", "wr"), matrix.astype(np.float32)), **extra},
            coords=_flat([shapes[name] for name in names], "sus_flat", "target_position", 1),
            attrs=attrs,
        ).assign_coords(wr=restrictions)
    }
    ids = [found for name in names if (found := full.input_ids(name)) is not None]
    if len(ids) == len(names):
        groups["/context"] = xr.Dataset(
            {"input_ids": ("ctx_flat", np.concatenate([i.ravel() for i in ids]))},
            coords=_flat([i.shape for i in ids], "ctx_flat", "position", 0),
            attrs=attrs,
        )
    return xr.DataTree.from_dict(groups)


def _flat(shapes: Sequence[tuple[int, ...]], dim: str, along: str, start: int) -> xr.Coordinates:
    """Which observable, sequence and position each element of the flattened arrays is."""
    import xarray as xr

    grids = [np.indices(shape).reshape(2, -1) for shape in shapes]
    columns = {
        "dataset_id": [np.full(grid.shape[1], i) for i, grid in enumerate(grids)],
        "batch": [grid[0] for grid in grids],
        along: [grid[1] + start for grid in grids],
    }
    return xr.Coordinates({k: (dim, np.concatenate(v)) for k, v in columns.items()}, indexes={})
