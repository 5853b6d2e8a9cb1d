"""Checks: every one fails when what it checks is wrong, alone where that can be, and says what to change."""

import json
import math

import numpy as np
import pytest
from test_diagnostics import ar1
from test_evidence import CHAINS, DRAWS, evidence

from llc_fast.evidence import assess
from llc_fast.verdict import Check, Verdict, beyond, hold, percent, share

BASE = evidence()


def at(chain, draws, shift):
    """Gains of which some draws of one chain are shifted."""
    gains = BASE.gains.copy()
    gains[chain, draws] += shift
    return gains


def unmixed():
    """Chains that each stay near a level of their own."""
    return BASE.gains + 0.02 * np.array([[-1.0], [0.5], [1.0], [-0.5]])


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("not a control", {"lr": 0.0}, "lr is 0: a control"),
        ("not a control", {"nbeta": 0.0}, "nbeta is 0: a control"),
        ("noise level", {"noise_level": 0.5}, "do not sample the posterior"),
        ("dead chains", {"dead": {1: "loss inf at step 9"}}, "lower lr, or raise localization"),
        ("half-dead chains", {"gains": at(2, slice(100, 103), 5.0)}, "counted"),
        ("half-dead chains", {"boxed": np.full((CHAINS, DRAWS), 0.03)}, "counted"),
        ("R-hat", {"gains": unmixed()}, "more burn-in and draws"),
        (
            "R-hat of |w - w0|^2",
            {"distance": BASE.distance + 20 * np.arange(4.0)[:, None]},
            "more burn-in and draws",
        ),
        (
            "ESS",
            {"gains": 0.1 + 0.02 * ar1(np.random.default_rng(0), 0.999, CHAINS, DRAWS)},
            "give more draws",
        ),
        ("drift", {"gains": BASE.gains + np.linspace(0, 0.02, DRAWS)}, "give more burn-in"),
        ("drift of |w - w0|^2", {"distance": BASE.distance + np.linspace(0, 50, DRAWS)}, "give more burn-in"),
        ("burn-in", {"distance": BASE.distance - 50 * np.exp(-np.arange(DRAWS) / 40)}, "left out as burn-in"),
        ("temperature", {"virial": BASE.virial - 0.2}, "give more burn-in"),
        ("temperature", {"virial": BASE.virial + 0.2}, "lower lr"),
        ("distance", {"distance": BASE.distance + 400}, "raise localization"),
        ("order bias", {"gradient_noise": 0.15}, "fresh_batches=True"),
        ("pool size", {"pool_samples": 599}, "fewer than 20 nbeta = 600"),
        ("pool bias", {"half_gains": BASE.half_gains - 0.01}, "a larger pool"),
        ("sign", {"gains": BASE.gains - 0.2}, "no minimum"),
        ("gradient at w0", {"dot": BASE.dot + 0.021}, "not a local minimum of this dataset"),
        ("half the weights", {"weights": 5}, "exceeds 2.5"),
        ("rounding of losses", {"loss_eps": 1e-3}, "float32 or float64"),
        ("repeatable losses", {"baseline": BASE.baseline + 0.002}, "other values at the same weights"),
    ],
)
def test_a_check_fails_when_it_should(name, changes, says):
    assert assess(BASE).verdict[name].ok
    result = assess(evidence(**changes))
    check = result.verdict[name]
    assert check.ok is False
    assert says in check.advice
    assert check.advice in result.notes
    assert not result.verdict.ok


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("order bias", {"gradient_noise": 0.12}),  # 0.9 % of the estimate
        ("pool size", {"pool_samples": 600}),
        ("gradient at w0", {"dot": BASE.dot + 0.0195}),
        ("half the weights", {"weights": 6}),
        ("temperature", {"virial": BASE.virial + 0.09}),
        ("distance", {"distance": BASE.distance + 250}),
    ],
)
def test_a_check_passes_just_below_its_threshold(name, changes):
    assert assess(evidence(**changes)).verdict[name].ok is True


def test_only_some_checks_unsettle_a_value_or_forbid_ranking():
    assert not assess(evidence(dot=BASE.dot + 0.05)).at_minimum
    assert assess(evidence(dot=BASE.dot + 0.05)).settled
    assert not assess(evidence(gains=unmixed())).settled
    assert assess(evidence(gains=unmixed())).at_minimum
    assert assess(evidence(pool_samples=10)).settled


def test_a_negative_estimate_is_kept():
    result = assess(evidence(gains=BASE.gains - 0.2))
    assert result.llc_mean == pytest.approx(-3.0, rel=0.02)
    assert result.interval()[1] < 0


def test_half_dead_chains_are_named_by_their_own_number():
    result = assess(evidence(gains=at(2, slice(100, 103), 5.0), dead={0: "box"}))
    assert result.half_dead == {2: "3 spikes of the loss, the first at draw 100"}
    assert "chain 2 is not like the others: 3 spikes of the loss, the first at draw 100." in result.notes


def test_a_verdict_is_read_as_a_table_and_as_json():
    checks = (
        Check("first", 0.5, 1.0, True, ""),
        Check("second one", 30.0, 20.0, False, "do less."),
        Check("third", math.nan, 3.0, None, "nobody counted.", ">="),
    )
    verdict = Verdict(checks)
    assert (len(verdict), verdict[1], verdict["third"], list(verdict)) == (
        3,
        checks[1],
        checks[2],
        list(checks),
    )
    assert (verdict.ok, verdict.failed, verdict.unknown) == (False, checks[1:2], checks[2:])
    assert Verdict(checks[::2]).ok
    assert str(verdict) == (
        "ok         first       0.5  <= 1\n"
        "FAILED     second one   30  <= 20\n"
        "           do less.\n"
        "not known  third         -  >= 3\n"
        "           nobody counted."
    )
    plain = json.loads(json.dumps(verdict.to_dict(), allow_nan=False))
    assert plain["ok"] is False
    assert plain["checks"][2]["value"] is None
    assert plain["checks"][1] == {
        "name": "second one",
        "value": 30.0,
        "bound": "<=",
        "threshold": 20.0,
        "ok": False,
        "advice": "do less.",
    }
    with pytest.raises(KeyError, match="no check is called 'fourth': first, second one, third"):
        verdict["fourth"]


def test_values_are_held_against_bounds():
    assert hold("x", 1.0, 1.0, "no").ok
    assert not hold("x", 1.1, 1.0, "no").ok
    assert hold("x", 1.1, 1.0, "no", bound=">=").ok
    assert hold("x", 1.1, 1.0, "no", ok=False).advice == "no"
    assert hold("x", 0.0, 1.0, "no").advice == ""
    unknown = hold("x", math.nan, 1.0, "no", unknown="why", ok=True)
    assert (unknown.ok, unknown.advice) == (None, "why")
    assert (share(1.0, 4.0), share(1.0, 0.0), share(0.0, 0.0)) == (0.25, math.inf, 0.0)
    assert math.isnan(share(math.nan, 0.0))
    assert (beyond(-5.0, 1.0), beyond(1.0, 1.0)) == (3.0, 0.0)
    assert math.isnan(beyond(1.0, math.nan))
    assert math.isnan(beyond(math.nan, 1.0))
    assert percent(-1.0, 4.0) == "25.0% of the estimate"
