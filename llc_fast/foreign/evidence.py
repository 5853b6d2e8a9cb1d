"""The evidence in a tree of devinterp's, and what it cannot tell."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..diagnostics import Array
from ..errors import ChainError, DataError
from ..evidence import Evidence
from .metrics import metric, order_bound, virial_of
from .pairing import Pairing, pair, period, pool_shares, start_shares, unnamed
from .records import Ints, Records, read_records, sampler_of

if TYPE_CHECKING:
    import xarray as xr

SAMPLERS = {"sgmcmc_sgld": "sgld"}
NAMES = ("init_seed", "batch_size", "num_chains", "num_draws", "num_init_loss_batches", "shuffle")


@dataclass(frozen=True)
class Foreign:
    """evidence: what the analysis reads; every step after burn-in is a draw there.

    error: see `Pairing`. irreproducible: most that chains' losses at w0 on one batch differ from their mean, NaN where
    no batch was evaluated twice there. order_bound: most that order bias can be, NaN where gradients were not
    recorded. All three in the LLC.
    noiseless: losses of draws less their mean over chains at each step, (chains, draws), where all took the same
    batches in one order and losses at w0 are not known, else None. unknown: check -> why a tree of this kind does not
    tell. unfinished: how many chains had not ended when the store was last written, and are not in the evidence.
    """

    evidence: Evidence
    error: float
    irreproducible: float
    order_bound: float
    noiseless: Array | None
    unknown: Mapping[str, str]
    unfinished: int


@dataclass(frozen=True)
class _Part:
    """What of the records counts: these chains, up to this step. ids are None where any is missing."""

    chains: list[int]
    steps: int
    loss: Array
    ids: Ints | None

    @property
    def shared(self) -> bool:
        """Whether all chains took the same sequences at every step."""
        return self.ids is not None and len(self.chains) > 1 and bool((self.ids == self.ids[0]).all())


def evidence_of(tree: xr.DataTree) -> Evidence:
    """What a tree that devinterp wrote tells of its chains."""
    return read(tree, read_records(tree)).evidence


def read(tree: xr.DataTree, records: Records) -> Foreign:
    """Everything. Raises DataError where it is no such tree, ChainError where no chain has a draw to count."""
    sampler = sampler_of(tree)
    per_step = int(sampler.get("gradient_accumulation_steps") or 1)
    if records.loss.shape[2] % per_step:
        raise DataError(
            f"a step has {records.loss.shape[2]} losses, which {per_step} batches cannot have given: the tree's "
            "settings are not those of its arrays"
        )
    part = _counted(records, int(sampler["num_burnin_steps"]))
    ours = tree["llc_fast"].dataset if "llc_fast" in tree.children else None  # of a run that has not ended
    pool = _pool(sampler, records, ours, per_step)
    pairing = _pairing(sampler, records, part, ours, per_step, pool)
    last = 1 + max(
        *part.chains, *records.deaths, 0
    )  # chains beyond have not ended, and none of them has died
    e = _evidence(tree, sampler, records, part, pairing, pool, per_step, last)
    repeated, noiseless = math.nan, None
    losses = records.steps[part.chains, : part.steps]
    if part.shared:
        if not e.init_noise:  # all chains are at w0, on one batch
            repeated = e.nbeta * float(np.abs(losses[:, 0] - losses[:, 0].mean()).max())
        if not pairing.paired:
            noiseless = (losses - losses.mean(axis=0))[:, e.num_burnin_steps :]
    return Foreign(
        evidence=e,
        error=e.nbeta * pairing.error,
        irreproducible=repeated,
        order_bound=order_bound(tree, e),
        noiseless=noiseless,
        unknown=_unknown(e, part.ids is not None),
        unfinished=len(records.loss) - last,
    )


def _counted(records: Records, burnin: int) -> _Part:
    """As many draws as there are, in living chains of one length."""
    lengths = {c: n for c, n in enumerate(records.lengths) if c not in records.deaths}
    if not lengths:
        reasons = "; ".join(f"chain {chain}: {reason}" for chain, reason in list(records.deaths.items())[:8])
        raise ChainError(f"every chain died ({reasons})")
    steps = max(lengths.values(), key=lambda n: (n - burnin) * sum(m >= n for m in lengths.values()))
    if steps <= burnin:
        raise ChainError(f"no chain has a step after the {burnin} of burn-in")
    chains = [c for c, n in lengths.items() if n >= steps]
    if not np.isfinite(records.init[chains]).all():
        raise DataError("init_loss is missing or not finite: there is nothing to compare losses with")
    ids = None if records.ids is None else records.ids[chains, :steps]
    return _Part(chains, steps, records.loss[chains, :steps], None if ids is None or ids.min() < 0 else ids)


def _pool(sampler: Mapping[str, Any], records: Records, ours: xr.Dataset | None, per_step: int) -> int | None:
    """Batches that a chain passes over; None where it is not known."""
    if ours is not None and "baseline" in ours:
        matched = sampler.get("match_sampling_input_ids_across_chains", True)
        return int(ours["baseline"].size) // (1 if matched else len(records.loss))
    return None if records.ids is None else period(records.ids, records.lengths, per_step)


def _pairing(
    sampler: Mapping[str, Any],
    records: Records,
    part: _Part,
    ours: xr.Dataset | None,
    per_step: int,
    pool: int | None,
) -> Pairing:
    """Losses at w0; devinterp's init_loss is of a chain's first batches, ours of all until the run has ended."""
    burnin, wanted = int(sampler["num_burnin_steps"]), int(sampler.get("num_init_loss_batches") or 1)
    start = float(records.init[part.chains].mean())
    if part.ids is None:
        losses = records.steps[part.chains, : part.steps]
        return unnamed(losses, start, burnin=burnin, start=wanted if ours is None else None)
    if ours is not None and "baseline" in ours:
        shares = pool_shares(part.ids, per_step, int(ours["baseline"].size))
    else:
        shares = start_shares(part.ids, per_step, wanted * per_step, pool)
    return pair(
        part.loss,
        part.ids,
        start,
        shares,
        burnin=burnin,
        passes=(part.steps - burnin) * per_step / pool if pool else 0.0,
        moved=bool(sampler.get("init_noise")),
    )


def _evidence(
    tree: xr.DataTree,
    sampler: Mapping[str, Any],
    records: Records,
    part: _Part,
    pairing: Pairing,
    pool: int | None,
    per_step: int,
    last: int,
) -> Evidence:
    """Rows are the first `last` chains."""
    burnin, steps = int(sampler["num_burnin_steps"]), part.steps
    loss = records.steps[:last, :steps]
    gains = loss - pairing.init_loss
    batch = None
    if pairing.places is not None and pairing.at_w0 is not None:
        batch = np.full((last, *pairing.places.shape[1:]), -1, dtype=np.int64)
        batch[part.chains] = pairing.places
        gains[part.chains] -= pairing.at_w0 - pairing.init_loss
    dead = {c: reason for c, reason in records.deaths.items() if c < last}
    waiting = "it had not ended when the store was last written"
    dead |= {c: waiting for c in range(last) if c not in dead and c not in part.chains}
    weights = tree.attrs.get("metrics_numel")
    distance = metric(tree, "distance", last, steps)
    squared = None if distance is None else distance**2
    method, size = str(sampler.get("sampling_method")), int(sampler.get("batch_size") or 0)
    return Evidence(
        nbeta=float(sampler["n_beta"]),
        lr=float(sampler["lr"]),
        localization=float(sampler.get("localization") or 0.0),
        weight_decay=float(sampler.get("llc_weight_decay") or 0.0),
        noise_level=float(sampler.get("noise_level", 1.0)),
        init_noise=float(sampler.get("init_noise") or 0.0),
        sampler=SAMPLERS.get(method, method),
        num_burnin_steps=burnin,
        num_steps_bw_draws=1,
        loss=loss,
        gains=gains[:, burnin:],
        paired=pairing.paired,
        init_loss=pairing.init_loss,
        batch=batch,
        baseline=pairing.baseline,
        distance=None if squared is None else squared[:, burnin:],
        virial=virial_of(tree, sampler, squared, weights, last, steps),
        epoch=pool // per_step if pool and pool % per_step == 0 else None,
        batches_per_step=per_step,
        shared_order=part.shared,
        dead=dead,
        weights=int(weights) if weights else None,
        pool_batches=pool,
        pool_samples=pool * size if pool and size else None,
        common_error=pairing.error,
        settings={name: sampler.get(name) for name in NAMES},
        remarks=_remarks(tree, sampler, pairing),
    )


def _remarks(tree: xr.DataTree, sampler: Mapping[str, Any], pairing: Pairing) -> tuple[str, ...]:
    said = []
    if "llc_fast" not in tree.children:
        first, chains = sampler.get("init_seed"), int(sampler.get("num_chains") or 1)
        if isinstance(first, int):
            said.append(
                f"chain c drew the noise of seed init_seed + c, {first} to {first + chains - 1}: runs whose seeds "
                "overlap with these share noise, and are no independent repeats."
            )
        said.append("the model was in train mode: if it has dropout, these are losses with dropout.")
    if math.isfinite(pairing.error) and pairing.error:
        said.append(
            f"the losses at w0 are of other sequences than the draws: ± {sampler['n_beta'] * pairing.error:.2g} of "
            "the standard error are due to that."
        )
    if sampler.get("bounding_box_size"):
        said.append("how many weights were at the box is not recorded.")
    return tuple(said)


def _unknown(e: Evidence, named: bool) -> dict[str, str]:
    """Check -> why this tree does not tell."""
    seen = (
        f"no batch came back in {e.loss.shape[1]} steps"
        if named
        else "which sequences were taken is not recorded"
    )
    without = "are not recorded without save_metrics=True."
    return {
        "order bias": "the spread of the batches' gradients at w0 is not recorded: sample() records it.",
        "pool size": f"how large the pool is is not recorded, and {seen}.",
        "pool bias": "no chains walked on halves of the pool: sample(..., pool_check=True) has such.",
        "gradient at w0": "the gradient at w0 is not recorded: sample() records it.",
        "rounding of losses": "in which dtype losses were computed is not recorded.",
        "repeatable losses": "no batch was evaluated twice at w0: dropout and other randomness cannot be seen.",
        "half the weights": f"it needs an interval and the number of weights; these {without}",
        "distance": f"it needs localization and distances from w0; these {without}",
        "R-hat of |w - w0|^2": f"distances from w0 {without}",
        "drift of |w - w0|^2": f"distances from w0 {without}",
        "temperature": f"it needs SGLD with localization, and norms of its steps; these {without}",
    }
