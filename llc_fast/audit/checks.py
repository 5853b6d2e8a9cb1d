"""What an audit checks beside the analysis: the store, what draws were compared with, and what was reported."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from .. import diagnostics
from ..foreign import Foreign
from ..results import LLCResult
from ..verdict import Check
from .found import Audit

OTHER_BATCHES = 0.05  # of the estimate, that comparing with other batches at w0 may add to its error
ORDER_BIAS = 0.01  # of the estimate, as in the analysis
REPEATED = 0.01  # of the estimate, as in the analysis


def stored(found: Audit, other: Foreign | None) -> Check:
    """Whether the run ended."""
    advice = ""
    if not found.completed:
        waiting = other.unfinished if other is not None else 0
        advice = "the store is not marked as completed: its run was stopped, failed or goes on"
        advice += (
            f"; {waiting} of {found.chains} chains had not ended and are not counted." if waiting else "."
        )
    return Check("completed store", float(found.completed), 1.0, found.completed, advice, "==")


def reasoned(check: Check, result: LLCResult, other: Foreign | None) -> Check:
    """A check of the analysis with what this kind of store tells of it, or why it does not."""
    if other is None:
        return check
    size = abs(result.llc_mean)
    if check.name == "repeatable losses" and not math.isnan(other.irreproducible):
        share = other.irreproducible / size if size else math.inf if other.irreproducible else 0.0
        ok = share <= REPEATED
        advice = (
            f"chains have other losses on the same batch at w0, by up to {other.irreproducible:.2g} in the LLC: "
            "dropout, or other randomness of the model. The losses are of that model, not of the one without."
        )
        return replace(check, value=share, ok=ok, advice="" if ok else advice)
    if check.name == "repeatable losses":
        return replace(check, value=math.nan, ok=None, advice=other.unknown[check.name])
    if check.name == "order bias" and check.ok is None and math.isfinite(other.order_bound):
        share = other.order_bound / size if size else math.inf
        if share <= ORDER_BIAS:
            return replace(check, value=share, ok=True, advice="")
        told = (
            f"it is not known, but at most {other.order_bound:.2g} in the LLC, by the norms of the gradients."
        )
        return replace(check, advice=told)
    if check.ok is None and check.name in other.unknown:
        return replace(check, advice=other.unknown[check.name])
    return check


def compared(found: Audit, other: Foreign | None) -> Iterator[Check]:
    """What draws were compared with at w0, and the number that was reported."""
    if other is not None:
        yield _same_sequences(found, other)
        if other.noiseless is not None:
            yield _same_batch_r_hat(other.noiseless)
    yield _reported(found)


def _same_sequences(found: Audit, other: Foreign) -> Check:
    size = abs(found.llc)
    share = other.error / size if size else math.inf if other.error else 0.0
    ok = None if math.isnan(share) else share <= OTHER_BATCHES
    if ok is None:
        advice = "which sequences init_loss is of is not known, nor how their losses vary."
    else:
        advice = (
            f"init_loss is of other sequences than the draws, which adds ± {other.error:.2g} ({share:.1%} of the "
            "estimate), alike in all chains: give num_init_loss_batches as many batches as the pool has, and draws "
            "whole passes over it."
        )
    return Check("same batches at w0", share, OTHER_BATCHES, ok, "" if ok else advice)


def _same_batch_r_hat(values: Any) -> Check:
    """R-hat of losses less the chains' mean at each step, all on one batch, so that its noise hides nothing."""
    name, values = "R-hat on the same batches", np.asarray(values)
    blocks, _ = diagnostics.block_means(values, pool=values.shape[1] + 1, burnin=0, thinning=1)
    value = diagnostics.r_hat(blocks) if blocks.size else math.nan
    if math.isnan(value):
        return Check(name, value, 1.05, None, "there are too few draws, or the loss does not vary.")
    bound = max(1.05, diagnostics.r_hat_chance(*blocks.shape))
    advice = (
        f"chains differ on the same batches, R-hat {value:.3f}, which the noise of batches may hide in the other: "
        "give more burn-in and draws."
    )
    return Check(name, value, bound, value <= bound, "" if value <= bound else advice)


def _reported(found: Audit) -> Check:
    name, told = "reported value", found.reported
    if told is None:
        why = "without traces there is nothing that devinterp computes it from."
        return Check(name, math.nan, math.nan, None, why)
    if not found.error > 0:
        return Check(name, math.nan, math.nan, None, "there is no interval to hold it against.")
    bound = (found.high - found.llc) / found.error
    apart = abs(told.llc_mean - found.llc) / found.error
    if math.isnan(apart):
        apart = math.inf
    advice = (
        f"devinterp's llc_mean, {told.llc_mean:.5g}, lies outside the interval {found.low:.5g} to {found.high:.5g}: it "
        "averages every step, burn-in and what dead chains left included."
    )
    return Check(name, apart, bound, apart <= bound, "" if apart <= bound else advice)
