"""Reading a store of a run again, without sampling."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import foreign
from ..errors import ArgumentTypeError, ChainError
from ..evidence import Evidence, assess
from ..foreign import Foreign
from ..store import open_tree
from ..tree_llc import GROUP, evidence_of
from ..verdict import Verdict
from .checks import compared, reasoned, stored
from .found import Audit

if TYPE_CHECKING:
    import xarray as xr

TRACES = "sampling_loss_micro"
OF_CHAINS = ("dead chains", "half-dead chains", "R-hat", "R-hat of |w - w0|^2", "ESS", "drift")


def audit(source: str | Path | xr.DataTree) -> Audit:
    """Read a store of devinterp 2.x or of `sample` again, without sampling and without writing to it.

    source: the path of a Zarr store, or its DataTree; of a run that has not ended too, with what is there.
    Raises DataError where it is none or holds nothing to read, ArgumentTypeError for another type.
    """
    named = isinstance(source, str | Path)
    tree: Any = open_tree(source) if named else source
    if not hasattr(tree, "dataset") or not hasattr(tree, "children"):
        raise ArgumentTypeError(
            f"source is a {type(source).__name__}: give the path of a store, or the DataTree that sample() returned"
        )
    found = Audit(
        source=str(source) if named else "",
        writer=GROUP if GROUP in tree.children else "devinterp",
        completed=tree.attrs.get("completed") == 1,
        chains=0,
        reported=None,
    )
    if "facts" in tree.attrs.get(GROUP, {}):
        told = foreign.reported(tree) if TRACES in tree.dataset else None
        evidence = evidence_of(tree)
        return _judged(replace(found, reported=told, chains=len(evidence.gains)), evidence, None)
    records = foreign.read_records(tree)
    found = replace(found, reported=records.reported, chains=len(records.loss))
    try:
        other = foreign.read(tree, records)
    except ChainError as e:
        return replace(found, refusal=str(e), verdict=Verdict((stored(found, None),)))
    evidence = other.evidence
    if evidence.init_noise and found.writer == "devinterp":
        refusal = (
            f"init_noise is {evidence.init_noise:g}, and init_loss was taken at weights that it had moved: L(w0) is "
            "not in this store"
        )
        return _refused(replace(found, refusal=refusal), evidence, other)
    return _judged(found, evidence, other)


def after(e: Evidence, steps: int) -> Evidence:
    """The same evidence with at least so many steps of burn-in."""
    cut = -(-(steps - e.num_burnin_steps) // e.num_steps_bw_draws)
    if cut <= 0:
        return e
    drawn = {name: getattr(e, name) for name in ("gains", "distance", "dot", "boxed", "half_gains")}
    kept: dict[str, Any] = {n: None if values is None else values[:, cut:] for n, values in drawn.items()}
    burnin = e.num_burnin_steps + cut * e.num_steps_bw_draws
    return replace(e, num_burnin_steps=burnin, cut_draws=e.cut_draws + cut, **kept)


def _judged(found: Audit, evidence: Evidence, other: Foreign | None) -> Audit:
    """With the estimate, its interval and all checks."""
    first = assess(evidence)
    used, result = evidence, first
    if first.burnin_suggested is not None and first.burnin_suggested > evidence.num_burnin_steps:
        used = after(evidence, first.burnin_suggested)
        result = assess(used)
    low, high = result.interval()
    found = replace(
        found,
        result=result,
        llc=result.llc_mean,
        error=result.mcse,
        dof=result.dof,
        low=low,
        high=high,
        burnin=used.num_burnin_steps,
        as_set=None if used is evidence else first.llc_mean,
        without_half_dead=_without(used, result.half_dead),
    )
    checks = [stored(found, other)]
    for check in result.verdict:  # burn-in is held against what the run was set to
        checks.append(first.verdict["burn-in"] if check.name == "burn-in" else reasoned(check, result, other))
    checks += compared(found, other)
    known = {check.advice for check in (*result.verdict, *checks)}  # which the verdict says already
    notes = tuple(note for note in result.remarks if note not in known)
    return replace(found, verdict=Verdict(tuple(checks)), notes=notes)


def _refused(found: Audit, evidence: Evidence, other: Foreign) -> Audit:
    """Without an estimate; chains can be judged all the same."""
    result = assess(evidence)
    of_chains = (reasoned(check, result, other) for check in result.verdict if check.name in OF_CHAINS)
    return replace(found, verdict=Verdict((stored(found, other), *of_chains)), notes=result.remarks)


def _without(e: Evidence, odd: Mapping[int, str]) -> float | None:
    left = [row for row in e.live if row not in odd]
    return e.nbeta * float(e.gains[left].mean()) if odd and left else None
