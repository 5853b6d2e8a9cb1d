"""The section of docs/devinterp.md on the published setting, from its figures: run alone, it writes it anew."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from textwrap import fill
from typing import Any

DRAFT = Path(__file__).with_name("published.md")
PAGE = Path(__file__).parents[2] / "docs" / "devinterp.md"
BEGIN = "<!-- published-setting: begin, filled in by a command -->\n"
END = "<!-- published-setting: end -->"

Figures = dict[str, Any]

SETTING = """
Wang et al. 2024 ([arXiv 2410.02984](https://arxiv.org/abs/2410.02984)) take lr 1e-3, n_beta 30, localization 200,
{chains} chains of {draws} draws from the first step on and batches of 32, on transformers of about 3M parameters.
`make truth-published` puts this through devinterp 2.0.1 and through `llc_fast`, on a model of that size: two layers of
attention alone, width 256, 8 heads a layer, {vocabulary} tokens, {weights} weights. All else is much smaller, so that
two cores are enough: {training_steps} steps of training on the text of Python's standard library, to {training_loss}
nats a token, and sequences of {context} tokens. A batch of {tokens} tokens is noisy, so that what comes from batches
(rows 2 and 4 of the second table) is larger than with long sequences. Both libraries take the same {draws} batches,
{samples} of the sequences trained on. The model has no dropout, so that training and eval mode are the same.
"""

STEPS = "Rows 1 to 3 read one set of chains in three ways; 4 and 5 each change row 3, on 2 chains."

REASONS = """
1. **The chains are the same chains.** With devinterp's formula (every step counted, `init_loss` of the first 32
batches, its default) ours give its numbers, within {sigmas} standard errors of the difference. Losses at w0 of these 32
batches agree to rounding. The other rows are about what is made of the chains.

2. **Baseline.** devinterp compares {draws} batches with the mean of the first 32 of them. Here that mean is off by
{offset_nats} nats, {offset} in every LLC, of the full model and of each head alike; over seeds its standard deviation
is {baseline_error}. That is {offset_full} of the full model's value and {offset_head} of the smallest head's, {signs}.
`llc_std` cannot show it, because all chains share it. The order of components under one seed is not touched; their
ratios are, and so is every comparison across seeds or data. Ours compares each batch with itself.
`num_init_loss_batches={draws}` cures it in devinterp.

3. **Burn-in.** Chains begin at w0, where the LLC is 0, and forget it with a time of 2/(lr localization) = 10 steps, or
less where the loss is curved up. Averaged over {draws} steps that takes {burnin_share} off the full model. The verdict
on the schedule as published says so: the full model's drift is {drift}, where chance gives up to {drift_bound}, and
chains look settled after about {suggested} steps. R-hat does not see it: it is {r_hat_theirs} of devinterp's losses of
single steps and {r_hat_whole} of our paired differences in blocks, and {r_hat_settled} once burn-in is left out. By
chance alone 4 chains of {basis} give up to {r_hat_chance}: the schedule is too short for R-hat to certify more. There
are no means of whole epochs, because no chain passes over its {draws} batches twice.

4. **Error.** `llc_std` is the spread of single chains; that of the mean of four is half of it. devinterp's {theirs} ±
{theirs_std} is {theirs_off} from {settled}, whose interval is {interval}, because rows 2 and 3 are in no spread over
chains. Our interval counts chance alone, too: rows 4 and 5 are not in it.

5. **Order.** Losses on the batches that also give the gradients read too high, by at most {order_bias} if chains forgot
nothing (`order_bias`); they forget within a part of an epoch. Row 4 takes losses of the same chains on other batches,
and {order_seen}. Neither library takes a batch twice within {draws} steps.

6. **Step.** At w0 the chains are stable: lr (n_beta h + localization) is {lr_a_max} for the largest curvature h of 64
sequences there, and the limit is 4. They are biased all the same: a weight that localization alone holds has 1/(1 - lr
localization/4) = {inflated} times its variance, and |w - w0|^2 is {distance_ratio} times weights/localization. At half
the lr the full model reads {half}; the straight line through both gives {extrapolated} at lr 0. No interval has this in
it: ours is for the lr used, and says so.

7. **Pool.** {samples} samples are more than 20 n_beta = 600, and w0 was trained on them: no bias to speak of.
"""

MEANING = """
{order}. What the setting measures on the full model is the same in both, and not the curvature at w0: chains are where
localization alone would put them, {away} from w0 in each weight, and the weights themselves are {typical} (root mean
square). The loss goes from {loss_start} to {loss_draws} nats a token: it is the rise of the loss at that distance.

CPU seconds are of all threads, on {machine}, with llc_fast {llc_fast} and torch {torch}. Nearly all of them are the
model's own passes; ours include the gradient at w0 of every batch of the pool.
"""


def put(figures: Figures) -> None:
    """Write the draft, and the section between its marks in the page."""
    text = section(figures)
    DRAFT.write_text(text, encoding="utf-8")
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise SystemExit(f"{PAGE} has no marks for the section")
    PAGE.write_text(f"{before}{BEGIN}\n{text}\n{end}{after}", encoding="utf-8")


def section(f: Figures) -> str:
    """All of it, in Markdown."""
    words = _words(f)
    prose = {name: _prose(text, words) for name, text in _TEXTS.items()}
    parts = (prose["setting"], _estimates(f), prose["steps"], _walk(f), prose["reasons"], prose["meaning"])
    return "\n\n".join(parts) + "\n"


_TEXTS = {"setting": SETTING, "steps": STEPS, "reasons": REASONS, "meaning": MEANING}


def _prose(text: str, words: dict[str, str]) -> str:
    paragraphs = [" ".join(p.split()) for p in text.format(**words).split("\n\n")]
    indent = ["   " if re.match(r"\d\. ", p) else "" for p in paragraphs]
    filled = [
        fill(p, 120, subsequent_indent=i, break_long_words=False, break_on_hyphens=False)
        for p, i in zip(paragraphs, indent, strict=True)
    ]
    return ("\n" if all(indent) else "\n\n").join(filled)


def _words(f: Figures) -> dict[str, str]:
    """Every number of the prose."""
    parts, half = f["components"], f["half"]["llc_mean"]
    full = parts["full"]
    whole, settled, theirs = full["whole"], full["settled"], full["theirs"]
    offset = full["formula"] - whole["llc_mean"]
    least = min(abs(c["settled"]["llc_mean"]) for c in parts.values())
    sigmas = max(abs(c["formula"] - c["theirs"]["llc_mean"]) / c["formula_error"] for c in parts.values())
    a_max = 30 * full["curvature"] + 200
    plain = ("chains", "draws", "training_steps", "context", "machine")
    return {
        **{name: str(f[name]) for name in plain},
        **{name: f"{f[name]:,}" for name in ("vocabulary", "weights", "samples")},
        **f["versions"],
        "training_loss": f"{f['training_loss']:.2f}",
        "tokens": str(32 * f["context"]),
        "sigmas": f"{sigmas:.1f}",
        "offset_nats": f"{abs(offset) / 30:.3f}",
        "offset": f"{offset:+.2f}",
        "baseline_error": f"{full['baseline_error']:.2f}",
        "offset_full": _percent(offset, settled["llc_mean"]),
        "offset_head": _percent(offset, least),
        "signs": _signs(parts),
        "burnin_share": _percent(settled["llc_mean"] - whole["llc_mean"], settled["llc_mean"]),
        "drift": f"{whole['drift'][0]:.1f}",
        "drift_bound": f"{whole['drift'][1]:.1f}",
        "suggested": str(whole["burnin_suggested"]),
        "r_hat_theirs": f"{theirs['r_hat']:.3f}",
        "r_hat_whole": f"{whole['r_hat']:.3f}",
        "r_hat_settled": f"{settled['r_hat']:.3f}",
        "r_hat_chance": f"{settled['r_hat_by_chance']:.2f}",
        "basis": settled["basis"],
        "theirs": _of(theirs["llc_mean"]),
        "theirs_std": f"{theirs['llc_std']:.2g}",
        "theirs_off": f"{abs(theirs['llc_mean'] - settled['llc_mean']):.1f}",
        "settled": _of(settled["llc_mean"]),
        "interval": _interval(settled),
        "order_seen": _seen(f["fresh"]),
        "order_bias": f"{settled['order_bias']:.2g}",
        "lr_a_max": f"{a_max * 1e-3:.2f}",
        "inflated": f"{1 / 0.95:.3f}",
        "distance_ratio": f"{full['distance_ratio']:.3f}",
        "half": _of(half),
        "extrapolated": _of(2 * half - settled["llc_mean"]),
        "order": _order(parts),
        "away": f"1/sqrt(200) = {200**-0.5:.2f}",
        "typical": f"{f['typical_weight']:.2f}",
        "loss_start": f"{full['whole_init_loss']:.2f}",
        "loss_draws": f"{full['loss_of_draws']:.2f}",
    }


def _estimates(f: Figures) -> str:
    """Both libraries' results."""
    parts = f["components"]
    return _table(
        parts,
        "",
        {
            "weights": lambda c: f"{c['weights']:,}",
            "devinterp: `llc_mean` ± `llc_std`": lambda c: (
                f"{_of(c['theirs']['llc_mean'])} ± {c['theirs']['llc_std']:.2g}"
            ),
            "here, the same call: `llc_mean`, 95 % interval": lambda c: _estimate(c["whole"]),
            "verdict: fails": lambda c: _failed(c["whole"]),
            f"here, {f['burnin']} steps of burn-in left out": lambda c: _estimate(c["settled"]),
            "verdict: then fails": lambda c: _failed(c["settled"]),
            "CPU seconds: devinterp, here": lambda c: f"{c['theirs']['seconds']:.0f}, {c['seconds']:.0f}",
        },
    )


def _walk(f: Figures) -> str:
    """From devinterp's number to ours, one change at a time."""
    parts, fresh, half = f["components"], f["fresh"], f["half"]
    table = _table(
        parts,
        "from devinterp's number to ours",
        {
            "devinterp": lambda c: _of(c["theirs"]["llc_mean"]),
            "1 its formula, our chains": lambda c: (
                _moved(c["theirs"]["llc_mean"], c["formula"]) + f" ± {c['formula_error']:.2g}"
            ),
            "2 each loss less its own batch's at w0": lambda c: _moved(c["formula"], c["whole"]["llc_mean"]),
            f"3 the first {f['burnin']} steps left out": lambda c: _moved(
                c["whole"]["llc_mean"], c["settled"]["llc_mean"]
            ),
        },
    )
    settled, gap = parts["full"]["settled"], " |" * len(parts)
    order = f"{-fresh['difference']:+.2g} ± {fresh['difference_error']:.2g}"
    step = half["llc_mean"] - settled["llc_mean"]
    error = (half["mcse"] ** 2 + settled["mcse"] ** 2) ** 0.5
    return (
        f"{table}\n| 4 losses of other batches (`fresh_batches=True`) | {order}{gap}\n"
        f"| 5 half the lr | {_of(half['llc_mean'])}, {step:+.2g} ± {error:.2g}{gap}"
    )


def _of(value: float) -> str:
    return f"{value:.4g}" if abs(value) >= 1 else f"{value:.3f}"


def _moved(before: float, after: float) -> str:
    return f"{_of(after)}, {after - before:+.2g}"


def _interval(told: Figures) -> str:
    low, high = told["interval"]
    return f"{_of(low)} to {_of(high)}"


def _estimate(told: Figures) -> str:
    return f"{_of(told['llc_mean'])}, {_interval(told)}"


def _failed(told: Figures) -> str:
    return ", ".join(told["failed"]).replace("|", "\\|") or "nothing"


def _percent(part: float, whole: float) -> str:
    share = 100 * abs(part / whole)
    return f"{share:.0f} %" if share >= 10 else f"{share:.2g} %"


def _seen(fresh: Figures) -> str:
    value, error = fresh["difference"], fresh["difference_error"]
    if abs(value) > 2 * error:
        return f"finds {value:.2g} ± {error:.2g}"
    return f"finds nothing beyond its error of {error:.2g}"


def _signs(parts: Figures) -> str:
    turned = [name for name, c in parts.items() if c["theirs"]["llc_mean"] < 0 < c["settled"]["interval"][0]]
    return f"and turns a sign ({', '.join(turned)})" if turned else "and turns no sign"


def _order(parts: Figures) -> str:
    """How both rank the components, and which of them our intervals do not tell apart."""
    theirs = sorted(parts, key=lambda name: -parts[name]["theirs"]["llc_mean"])
    ours = sorted(parts, key=lambda name: -parts[name]["settled"]["llc_mean"])
    low = {name: parts[name]["settled"]["interval"][0] for name in parts}
    high = {name: parts[name]["settled"]["interval"][1] for name in parts}
    close = [f"{a} and {b}" for a, b in pairwise(ours) if low[a] < high[b]]
    told = f"; the intervals do not tell {', '.join(close)} apart" if close else ""
    if theirs == ours:
        return f"Both libraries rank the components alike, {' > '.join(ours)}{told}"
    return f"devinterp ranks the components {' > '.join(theirs)}, ours {' > '.join(ours)}{told}"


def _table(parts: Figures, corner: str, rows: dict[str, Callable[[Figures], str]]) -> str:
    lines: Iterable[list[str]] = (
        [corner, *parts],
        ["---"] * (len(parts) + 1),
        *([name, *map(cell, parts.values())] for name, cell in rows.items()),
    )
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


if __name__ == "__main__":
    put(json.loads(Path(__file__).with_name("published.json").read_text(encoding="utf-8")))
