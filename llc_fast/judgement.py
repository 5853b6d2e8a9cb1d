"""What is held against what: the thresholds of a result's checks, and what to do beyond them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .diagnostics import COLD, FAR, HOT, Drift
from .results import MINIMUM, LLCResult
from .verdict import Check, Verdict, beyond, hold, percent, share


@dataclass(frozen=True)
class Facts:
    """What checks need beside the result's numbers; those marked * in the LLC, NaN where not known.

    r_hat_chance, drift, drift_distance: see diagnostics. temperature_error: standard error of temperature.
    distance_ratio: of |w - w0| to that of chains without a loss, and its error. gradient_term_error: of
    gradient_term*. unequal: least and greatest number of samples of a batch, where they differ. resolution: rounding
    of a loss*. irreproducible: most that a second evaluation of a batch's loss at w0 differs from the first*.
    without_gradient: parameters. paired: whether draws are compared with the same batch at w0. shared_order: whether
    all chains took the batches in one order. half_pairs: of chains on both halves of the pool, None where none walked.
    """

    r_hat_chance: float
    drift: Drift
    drift_distance: Drift | None
    temperature_error: float
    distance_ratio: float
    distance_ratio_error: float
    gradient_term_error: float
    unequal: tuple[int, int] | None
    resolution: float
    irreproducible: float
    without_gradient: Sequence[str]
    paired: bool
    shared_order: bool
    half_pairs: int | None


def judge(r: LLCResult, facts: Facts) -> Verdict:
    """Every check of a result."""
    return Verdict(
        (*_settings(r), *_chains(r, facts), *_equilibrium(r, facts), *_biases(r, facts), *_losses(r, facts))
    )


def remarks(r: LLCResult, verdict: Verdict, facts: Facts) -> Iterator[str]:
    """What a reader must know beside the checks that failed, in sentences."""
    s = r.settings
    for chain, reason in r.dead_chains.items():
        yield f"chain {chain} died and is not counted: {reason}."
    for chain, reason in r.half_dead.items():
        yield f"chain {chain} is not like the others: {reason}."
    yield from dict.fromkeys(c.advice for c in verdict.unknown if c.name in _TOLD)
    if not facts.paired:
        yield "draws are compared with the mean loss at w0, not with that of their own batch: a larger error."
    if facts.shared_order:
        yield "all chains took the batches in one order: their common noise is not in the standard error."
    if (s.get("gradient_batches") or 0) < (s.get("pool_batches") or 0) and s.get("gradient_batches"):
        count = f"{s['gradient_batches']} of the pool's {s['pool_batches']} batches"
        yield f"order_bias and gradient_term are estimated from the gradients of {count}."
    if facts.unequal:
        least, most = facts.unequal
        yield f"batches hold {least} to {most} samples and count equally: samples of small batches weigh more."
    for names, what in (
        (s.get("frozen") or (), "frozen and left out"),
        (facts.without_gradient, "without a gradient and moved by noise and prior alone"),
    ):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            yield f"{what}: {', '.join(names[:3])}{more}."


_TOLD = ("R-hat", "ESS", "standard error", "order bias")  # a note says where these are not known


def _settings(r: LLCResult) -> Iterator[Check]:
    s = r.settings
    zero = "lr" if s["lr"] == 0 else "nbeta"
    yield hold(
        "not a control",
        float(min(s["lr"], s["nbeta"])),
        0.0,
        f"{zero} is 0: a control, not an estimate.",
        ok=s[zero] != 0,
        bound=">",
    )
    yield hold(
        "noise level",
        float(s["noise_level"]),
        1.0,
        "noise_level is not 1: the chains do not sample the posterior that the LLC is defined by.",
        ok=s["noise_level"] == 1 or s[zero] == 0,
        bound="==",
    )


def _chains(r: LLCResult, facts: Facts) -> Iterator[Check]:
    yield hold(
        "dead chains",
        float(len(r.dead_chains)),
        0.0,
        "where chains die the others may be close to it: lower lr, or raise localization.",
    )
    yield hold(
        "half-dead chains",
        float(len(r.half_dead)),
        0.0,
        "chains that are not like the others are counted: look at their losses, lower lr, or give more draws.",
    )
    if r.basis.startswith("none"):
        why = f"no R-hat and no ESS: {r.basis.removeprefix('none: ')}."
    elif math.isnan(r.r_hat):
        why = "no R-hat and no ESS: the loss does not vary."
    else:
        why = f"no ESS: {r.basis} are too few to see an autocorrelation."
    for name, what, value in (
        ("R-hat", "the loss", r.r_hat),
        ("R-hat of |w - w0|^2", "|w - w0|^2", r.r_hat_distance),
    ):
        yield hold(
            name,
            value,
            max(1.05, facts.r_hat_chance),
            f"R-hat of {what} is {value:.3f} (1.05 is good; by chance alone up to {facts.r_hat_chance:.3f}): the "
            "chains have not settled, give more burn-in and draws.",
            unknown=why if name == "R-hat" else "the distances are not known, or do not vary.",
        )
    yield hold(
        "ESS",
        r.ess,
        20.0,
        f"ESS is {r.ess:.0f}, on {r.basis} a chain: below 20 the standard error is uncertain, give more draws.",
        unknown=why,
        bound=">=",
    )
    if math.isnan(r.mcse):
        yield Check(
            "standard error", r.mcse, math.inf, None, "no standard error: one chain of fewer than 8 draws."
        )


def _equilibrium(r: LLCResult, facts: Facts) -> Iterator[Check]:
    for name, what, drift in (
        ("drift", "the loss", facts.drift),
        ("drift of |w - w0|^2", "|w - w0|^2", facts.drift_distance),
    ):
        ratio, bound = (drift.ratio, drift.bound()) if drift is not None else (math.nan, math.nan)
        yield hold(
            name,
            ratio,
            bound,
            f"{what} still drifts over the draws, by {ratio:.1f} standard errors (by chance beyond {bound:.1f} in one "
            "case of a hundred): give more burn-in.",
            unknown=f"{what} is not known, does not vary, or there are too few draws.",
        )
    taken, suggested = r.settings["num_burnin_steps"], r.burnin_suggested
    after = "more than half of the steps" if suggested is None else f"about {suggested} steps"
    yield hold(
        "burn-in",
        math.inf if suggested is None else float(suggested),
        float(taken),
        f"chains look settled after {after}, and {taken} were left out as burn-in.",
    )
    low, high = (r.temperature + sign * 2 * facts.temperature_error for sign in (-1, 1))
    cold = high < COLD
    yield hold(
        "temperature",
        math.nan if _is_control(r) else r.temperature,
        COLD if cold else HOT,
        f"the virial temperature is {r.temperature:.3g}: "
        + (
            "below 1 chains are not at equilibrium yet, give more burn-in."
            if cold
            else "above 1 steps are too large for the curvature, or the noise of batches heats: lower lr, or make "
            "batches larger."
        ),
        unknown="a control has none." if _is_control(r) else "the virial of steps was not recorded.",
        ok=None if math.isnan(low) else not (cold or low > HOT),
        bound=">=" if cold else "<=",
    )
    yield hold(
        "distance",
        facts.distance_ratio,
        FAR,
        f"|w - w0| is {facts.distance_ratio:.3g} times sqrt(weights / localization), which chains reach without any "
        "loss: they diverge, or slide from w0 to lower losses. Lower lr, or raise localization.",
        unknown="without localization, distances or the number of weights there is nothing to hold it against.",
        ok=None
        if math.isnan(facts.distance_ratio_error)
        else facts.distance_ratio - 2 * facts.distance_ratio_error <= FAR,
    )


def _is_control(r: LLCResult) -> bool:
    return bool(r.settings["lr"] == 0 or r.settings["nbeta"] == 0)


def _biases(r: LLCResult, facts: Facts) -> Iterator[Check]:
    s, size = r.settings, abs(r.llc_mean)
    yield hold(
        "order bias",
        share(r.order_bias, size),
        0.01,
        f"taking losses on the batches that give the gradients adds up to about {r.order_bias:.2g} "
        f"({percent(r.order_bias, size)}): take them on other batches (fresh_batches=True), lower lr, or make "
        "batches larger.",
        unknown="what taking losses on the batches that give the gradients adds is not known "
        + (
            "for this sampler: halve lr and compare."
            if s["sampler"] == "rmsprop_sgld"
            else "without the spread of the batches' gradients at w0: halve lr and compare."
        ),
    )
    samples, needed = s.get("pool_samples"), 20 * s["nbeta"]
    yield hold(
        "pool size",
        math.nan if samples is None else float(samples),
        float(needed),
        f"the pool has {samples} samples, fewer than 20 nbeta = {needed:.0f}: unless w0 was "
        "trained on them, the value reads low for the data they come from, by a fraction of about nbeta / samples"
        + (f" = {s['nbeta'] / samples:.2g}." if samples else "."),
        unknown="the number of samples is not known: return one loss for each.",
        bound=">=",
    )
    yield hold(
        "pool bias",
        share(beyond(r.pool_bias, r.pool_bias_error), size),
        0.05,
        f"chains on halves of the pool say that it reads {r.pool_bias:.2g} ± {r.pool_bias_error:.2g} low "
        f"({percent(r.pool_bias, size)}): a larger pool is needed for the data it comes from.",
        unknown="no chains walked on halves of the pool (pool_check=True)."
        if facts.half_pairs is None
        else f"{facts.half_pairs} of the pairs of chains on both halves of the pool lived, and its error needs two: "
        "give num_chains >= 4.",
    )
    yield hold(
        "sign",
        r.llc_mean,
        0.0,
        f"the LLC is {r.llc_mean:.4g}, below 0 by more than two standard errors: the chains found lower losses than "
        "w0 has, so w0 is no minimum of this loss.",
        ok=not r.llc_mean + 2 * (0.0 if math.isnan(r.mcse) else r.mcse) < 0,
        bound=">=",
    )
    pull = beyond(r.gradient_term, facts.gradient_term_error)
    yield hold(
        MINIMUM,
        share(pull, size),
        0.2,
        f"w0 is not a local minimum of this dataset's loss: its gradient there gives {r.gradient_term:.4g} of "
        f"{r.llc_mean:.4g} (without it {r.llc_without_gradient:.4g}). Do not rank this value against minima.",
        unknown="the gradient at w0 is not known, or not its term's error.",
    )
    weights = s.get("weights")
    most = weights / 2 if weights else math.nan
    yield hold(
        "half the weights",
        math.nan if not weights else r.llc_mean - 2 * r.mcse,
        most,
        f"LLC exceeds {most:g}, half the number of weights, the most that a smooth loss has at a "
        "minimum: the step is too large for its curvature, lower lr or nbeta.",
        unknown="the number of weights is not known." if not weights else "no standard error.",
    )


def _losses(r: LLCResult, facts: Facts) -> Iterator[Check]:
    size = math.nan if _is_control(r) else abs(r.llc_mean)
    yield hold(
        "rounding of losses",
        share(facts.resolution, size),
        0.01,
        f"losses are rounded by up to {facts.resolution:.2g} in the LLC: return them in float32 or float64.",
        unknown="the dtype of the losses is not known, or there is no estimate to hold it against.",
    )
    yield hold(
        "repeatable losses",
        share(facts.irreproducible, size),
        0.01,
        f"loss_fn gives other values at the same weights, by up to {facts.irreproducible:.2g} in the LLC: dropout, "
        "randomness, or a batch that it changes.",
        unknown="the losses of batches at w0 are not known, or there is no estimate to hold them against.",
    )
