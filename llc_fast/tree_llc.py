"""The LLC of a tree that `sample` made: the evidence in it, and the result as a dataset."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import ArgumentError, ArgumentTypeError, ChainError, DataError
from .evidence import Evidence, assess
from .gathered import evidence
from .results import LLCResult
from .store.reading import DAMAGED, named, values

if TYPE_CHECKING:
    import xarray as xr

GROUP = "llc_fast"
_STORED = {name: name for name in ("loss", "virial", "batch", "distance", "dot", "boxed")} | {"gains": "gain"}
_WHOLE = ("loss", "gain", "batch")  # without a hole where a chain lived


def compute_llc(samples: xr.DataTree) -> xr.Dataset:
    """Estimate the LLC from what `sample`, or devinterp's function of this name, has recorded.

    Returns devinterp's variables: llc_mean, llc_std (over chains, ddof 0), llc_per_chain, loss_trace, init_loss, and
    llc_scalar, the plain average over every step, burn-in too, which the others leave out. Beside them all numbers of
    `LLCResult`: mcse, interval_low and interval_high (95 %), r_hat, ess, order_bias, ...; attrs: verdict (each check
    with value, threshold and advice), notes, target, dead chains, settings.
    Raises ArgumentTypeError where it is no such tree, DataError where its store is damaged, ChainError where no chain
    lived.
    """
    result = result_of(samples)
    return dataset(result, samples)


def result_of(samples: xr.DataTree) -> LLCResult:
    """The analysis of a tree."""
    return assess(evidence_of(samples))


def evidence_of(samples: xr.DataTree) -> Evidence:
    """What a tree of `sample`, ours or devinterp's, tells of its chains; rows by their original numbers.

    Raises DataError where the store is damaged.
    """
    if not hasattr(samples, "dataset") or not hasattr(samples, "children"):
        raise ArgumentTypeError(
            f"samples is a {type(samples).__name__}: give the DataTree that sample() returned"
        )
    ours = samples.attrs.get(GROUP, {})
    if GROUP not in samples.children:
        if "facts" in ours:
            raise DataError(f"{named(samples)} has no group /{GROUP}: {DAMAGED}")
        from . import foreign

        return foreign.evidence_of(samples)
    if "facts" not in ours:
        raise ArgumentError(
            "samples are of a run that has not ended: finish it with sample(..., resume=True)"
        )
    settings, facts = ours["settings"], {name: _number(value) for name, value in ours["facts"].items()}
    if facts["unequal"] is not None:
        facts["unequal"] = tuple(facts["unequal"])
    dead = {int(chain): reason for chain, reason in ours["dead"].items()}
    group = samples[GROUP].dataset
    lost = samples["dead"] if dead and "dead" in samples.children else None
    arrays: dict[str, Any] = {}
    for name, stored in (*_STORED.items(), *([("controls", "control")] if "control" in group else [])):
        data = _read(samples, stored)
        _check(samples, stored, data, ours["chains"])
        filler: float = -1 if data.dtype.kind == "i" else np.nan
        out = np.full((settings["num_chains"], *data.shape[1:]), filler, dtype=data.dtype)
        out[ours["chains"]] = data
        if lost is not None and GROUP in lost.children:
            out[_buried(lost)] = _read(samples, stored, f"dead/{GROUP}")
        arrays[name] = out.reshape(*out.shape[:2], -1) if name == "controls" else out
    arrays["baseline"] = _read(samples, "baseline")
    if not np.isfinite(arrays["baseline"]).all():
        raise DataError(f"{GROUP}/baseline of {named(samples)} lacks losses at w0: {DAMAGED}")
    first = _read(samples, "init_loss", "")  # of the batches that chains took
    facts["init_loss"] = float(first.mean()) if first.size else np.nan
    if "half_pool" in samples.children:
        arrays["half_gains"] = _read(samples, "gain", "half_pool")
    return evidence(facts, arrays, dead=dead, settings=settings)


def _read(samples: xr.DataTree, name: str, group: str = GROUP) -> np.ndarray:
    """An array of a group. Raises DataError where it is not there or cannot be read."""
    home = samples[group].dataset if group else samples.dataset
    path = f"{group}/{name}".lstrip("/")
    if name not in home:
        raise DataError(f"{named(samples)} has no {path}: {DAMAGED}")
    return values(home[name], path, samples)


def _check(samples: xr.DataTree, name: str, data: np.ndarray, chains: list[int]) -> None:
    """Raise DataError unless every chain that lived is there: a chunk that is missing reads as NaN or -1."""
    where = f"{GROUP}/{name} of {named(samples)}"
    if len(data) != len(chains):
        raise DataError(
            f"{where} has {len(data)} chains, its attributes {len(chains)}: give the tree as sample() returned it"
        )
    for chain, row in zip(chains, data, strict=True):
        if name in _WHOLE and not (row >= 0 if name == "batch" else np.isfinite(row)).all():
            raise DataError(f"{where} lacks rows of chain {chain}: {DAMAGED}")


def _number(value: Any) -> Any:
    """What a store's attributes call by name, which JSON has no numbers for."""
    return float(value) if value in ("NaN", "Infinity", "-Infinity") else value


def _buried(dead: Any) -> list[int]:
    """The original numbers of the chains under /dead, in the order of its rows."""
    return [int(chain) for chain in dead.attrs["chains"]]


def dataset(result: LLCResult, samples: xr.DataTree) -> xr.Dataset:
    """A result in devinterp's form and names; chains that died are left out."""
    import xarray as xr

    live = np.isfinite(result.llc_per_chain)
    if not live.any():
        raise ChainError("no chain lived")
    low, high = result.interval()
    values: dict[str, Any] = {
        "llc_mean": result.llc_mean,
        "llc_std": result.llc_std,
        "llc_per_chain": (("chain",), result.llc_per_chain[live]),
        "llc_scalar": result.llc_scalar,
        "loss_trace": (("chain", "step"), result.loss_trace[live]),
        "init_loss": result.init_loss,
        "interval_low": low,
        "interval_high": high,
    }
    attrs: dict[str, Any] = {}
    for name, value in result.to_dict(arrays=False).items():
        if name in values or name == "interval_95":
            continue
        if isinstance(value, int | float) and not isinstance(value, bool):
            values[name] = value
        elif name in _NUMBERS:
            values[name] = np.nan  # what is not known has its place all the same
        else:
            attrs[name] = value if isinstance(value, str) else json.dumps(value)
    attrs["verdict_table"] = str(result.verdict)
    return xr.Dataset(values, attrs=attrs)


_NUMBERS = (
    "mcse",
    "r_hat",
    "r_hat_distance",
    "ess",
    "order_bias",
    "pool_bias",
    "pool_bias_error",
    "gradient_term",
    "llc_without_gradient",
    "controlled",
    "controlled_mcse",
    "temperature",
    "burnin_suggested",
)
