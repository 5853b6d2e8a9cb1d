"""How losses move together over the posterior: Bayesian influence, the loss kernel, functional variance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import nn

from .covariance import between_draws, from_comoments
from .draws import Streamed, read, sequence_losses
from .errors import ArgumentError

if TYPE_CHECKING:
    import xarray as xr

Per = Literal["token", "sequence"]
ChainReduction = Literal["stack", "mean", "within"]
Indices = Literal["all"] | Sequence[int]


def bif(
    model: nn.Module,
    dataset: Any,
    observables: Mapping[str, Any],
    *,
    lr: float,
    n_beta: float,
    param_masks: Any = None,
    correlation_method: Per = "token",
    reduce_chain_dimension_method: ChainReduction = "stack",
    average_tokenwise_bif: bool = False,
    compute_covariance: bool = False,
    bif_batch_size: int = 32,
    bif_device: str | torch.device | None = None,
    loss_fn: Any = None,
    **kwargs: Any,
) -> xr.Dataset:
    """Sample, then `compute_bif`: correlations of the losses of observables over SGLD draws.

    bif_batch_size, bif_device: batch_size and device of `compute_bif`, which explains the other settings. kwargs
    and all else go to `llc_fast.sample`. With traces=False the covariances that `correlation_method` needs are
    streamed, unless `moments` says which.
    """
    from .dropin import sample

    _check_choices(correlation_method, reduce_chain_dimension_method)
    if kwargs.get("traces") is False:
        kwargs.setdefault("moments", (correlation_method,))
    samples = sample(
        model,
        dataset,
        observables,
        lr=lr,
        n_beta=n_beta,
        param_masks=param_masks,
        loss_fn=loss_fn,
        **kwargs,
    )
    return compute_bif(
        samples,
        correlation_method=correlation_method,
        reduce_chain_dimension_method=reduce_chain_dimension_method,
        average_tokenwise_bif=average_tokenwise_bif,
        compute_covariance=compute_covariance,
        batch_size=bif_batch_size,
        device=bif_device,
    )


def compute_bif(
    samples: xr.DataTree,
    *,
    correlation_method: Per = "token",
    reduce_chain_dimension_method: ChainReduction = "stack",
    loss_keys: Literal["all"] | Sequence[str] = "all",
    batch_index_range_1: Indices = "all",
    batch_index_range_2: Indices = "all",
    average_tokenwise_bif: bool = False,
    compute_covariance: bool = False,
    batch_size: int = 32,
    device: str | torch.device | None = None,
) -> xr.Dataset:
    """Correlations, or covariances, between the losses of observables over draws, as devinterp has them.

    The sign is devinterp's: `influences` are the correlation or covariance itself. The derivative of E[l_i] by
    the weight of l_j in the posterior is minus the covariance: see `bayesian_influence`.

    samples: the tree of `sample`, ours or devinterp's, with losses at draws or with streamed moments of this
    method.
    correlation_method: "token", losses of tokens; "sequence", means over the tokens of a sequence.
    reduce_chain_dimension_method: "stack" takes all draws as one sample, so that differences between the means of
    chains count as covariance; "within" takes deviations from each chain's own mean; "mean" averages the
    chains draw by draw first, which needs losses at draws and divides a covariance by the number of chains.
    loss_keys: observables, "all" for all in sorted order. Their sequences stand one after another.
    batch_index_range_1, batch_index_range_2: places of the sequences of either side.
    average_tokenwise_bif: mean over the tokens of both sequences instead of a block for each pair.
    batch_size: sequences of a block, at most. device: None for a GPU where there is one. Sums are float64.

    Returns `influences`, float32, (batch_1, batch_2) or (batch_1, batch_2, target_position, target_position_T),
    and `input_ids` where data are tokens. A loss that does not vary has a correlation of NaN.
    Source: Kreer et al. 2025, arXiv 2509.26544.
    """
    _check_choices(correlation_method, reduce_chain_dimension_method)
    return _compute(
        samples,
        per=correlation_method,
        chains=reduce_chain_dimension_method,
        loss_keys=loss_keys,
        places=(batch_index_range_1, batch_index_range_2),
        average=average_tokenwise_bif and correlation_method == "token",
        covariance=compute_covariance,
        batch_size=batch_size,
        device=device,
        name="influences",
        dtype=np.dtype(np.float32),
    )


def loss_kernel(
    samples: xr.DataTree,
    *,
    per: Per = "sequence",
    within_chains: bool = False,
    loss_keys: Literal["all"] | Sequence[str] = "all",
    batch_index_range_1: Indices = "all",
    batch_index_range_2: Indices = "all",
    batch_size: int = 32,
    device: str | torch.device | None = None,
) -> xr.Dataset:
    """Covariance of the losses of observables over draws, as `loss_kernel`, float64.

    per: "token" or "sequence", the mean over its tokens. within_chains: deviations from each chain's own mean
    instead of that of all draws. Other arguments, and dimensions of the result, as `compute_bif` has them.
    """
    chains: ChainReduction = "within" if within_chains else "stack"
    _check_choices(per, chains)
    return _compute(
        samples,
        per=per,
        chains=chains,
        loss_keys=loss_keys,
        places=(batch_index_range_1, batch_index_range_2),
        average=False,
        covariance=True,
        batch_size=batch_size,
        device=device,
        name="loss_kernel",
        dtype=np.dtype(np.float64),
    )


def bayesian_influence(samples: xr.DataTree, **kwargs: Any) -> xr.Dataset:
    """Minus the `loss_kernel`, whose arguments it takes, as `bayesian_influence`.

    It is the derivative of E[l_i] when the weight of l_j in the posterior grows: negative where more weight on j
    lowers the loss of i. devinterp's `influences` have the other sign.
    """
    kernel = loss_kernel(samples, **kwargs).rename(loss_kernel="bayesian_influence")
    kernel["bayesian_influence"] = -kernel["bayesian_influence"]
    return kernel


def functional_variance(
    samples: xr.DataTree,
    per: Per = "token",
    *,
    within_chains: bool = False,
    loss_keys: Literal["all"] | Sequence[str] = "all",
) -> xr.Dataset:
    """The diagonal of the loss kernel and its sum: how far the posterior moves the loss of each datum.

    per: "token" takes the tokens as data, "sequence" the sequences, with the mean over tokens as their loss.
    within_chains: deviations from each chain's own mean instead of that of all draws.

    Returns `variance_<observable>` (batch_<observable>, token_pos) or (batch_<observable>), their sums
    `functional_variance` (observable) and, over observables, the attribute `total`. Streamed moments of any kind
    suffice. Source: Watanabe 2010, JMLR 11:3571.
    """
    import xarray as xr

    _check_choices(per, "stack")
    observed = read(samples)
    names = observed.chosen(loss_keys)
    result, totals = xr.Dataset(), []
    for name in names:
        sums = observed.tokens(name) if per == "token" else observed.sequences([name])
        m2, dof = sums.pooled(within_chains)
        variance = m2 / dof if dof > 0 else np.full_like(m2, np.nan)
        dims = (f"batch_{name}", "token_pos") if per == "token" else (f"batch_{name}",)
        result[f"variance_{name}"] = (dims, variance)
        totals.append(float(variance.sum()))
    result["functional_variance"] = ("observable", totals)
    return result.assign_coords(observable=names).assign_attrs(total=sum(totals), per=per)


def _check_choices(per: str, chains: str) -> None:
    if per not in ("token", "sequence"):
        raise ArgumentError(f"the method is {per!r}: use 'token' or 'sequence'")
    if chains not in ("stack", "mean", "within"):
        raise ArgumentError(
            f"reduce_chain_dimension_method is {chains!r}: use 'stack' (all draws as one sample), 'within' (each "
            "chain about its own mean) or 'mean' (of chains, draw by draw)"
        )


def _compute(
    samples: Any,
    *,
    per: Per,
    chains: ChainReduction,
    loss_keys: Any,
    places: tuple[Indices, Indices],
    average: bool,
    covariance: bool,
    batch_size: int,
    device: str | torch.device | None,
    name: str,
    dtype: np.dtype[Any],
) -> xr.Dataset:
    import xarray as xr

    observed = read(samples)
    names = observed.chosen(loss_keys)
    if isinstance(observed, Streamed):
        if chains == "mean":
            raise ArgumentError(
                "reduce_chain_dimension_method='mean' needs losses at draws, which streamed moments do not have: use "
                "'stack' or 'within', or sample with traces=True"
            )
        comoments, dof = observed.comoments(names, per, within_chains=chains == "within")
        first, second = (_chosen(p, len(comoments)) for p in places)
        matrix = from_comoments(comoments, dof, first, second, covariance=covariance, average=average)
    else:
        x = np.concatenate([observed.losses(name) for name in names], axis=2)
        x = sequence_losses(x) if per == "sequence" else x
        first, second = (_chosen(p, x.shape[2]) for p in places)
        matrix = between_draws(
            x,
            first,
            second,
            chains=chains,
            covariance=covariance,
            average=average,
            batch_size=batch_size,
            device=device,
            dtype=dtype,
        )
    dims: tuple[str, ...] = ("batch_1", "batch_2")
    coords = {"batch_1": first, "batch_2": second}
    if per == "sequence" or average:
        matrix = matrix[:, :, 0, 0]
    else:
        dims += ("target_position", "target_position_T")
        coords |= dict.fromkeys(dims[2:], np.arange(1, matrix.shape[2] + 1))
    result = xr.DataArray(matrix.astype(dtype, copy=False), name=name, dims=dims, coords=coords).to_dataset()
    ids = [found for name in names if (found := observed.input_ids(name)) is not None]
    if len(ids) == len(names):
        result["input_ids"] = (("batch", "position"), np.concatenate(ids))
    return result


def _chosen(places: Indices, count: int) -> Any:
    """Places of sequences as an array, each of them there."""
    if isinstance(places, str):
        if places != "all":
            raise ArgumentError(f"the range of batches is {places!r}: use 'all' or a list of places")
        return np.arange(count)
    found = np.asarray(list(places), dtype=np.int64)
    if found.size == 0 or found.min() < 0 or found.max() >= count:
        raise ArgumentError(f"the range of batches is {list(places)}: give places from 0 to {count - 1}")
    return found
