"""The published setting of a 3M-parameter model through devinterp 2.0.1 and through llc_fast, side by side.

Wang et al. 2024, arXiv 2410.02984: a 2-layer attention-only transformer, lr 1e-3, nbeta 30, localization 200, 4 chains
of 200 draws without burn-in, batches of 32. The model has the published size, and is trained here for a minute on the
text of Python's standard library; sequences have 16 tokens, so that two cores do all in about 6 minutes.

Both libraries walk on the same 200 batches, on the full model and on three heads. What is checked: that both compare
with the same loss at w0; that devinterp's formula gives its value on our chains; and that draws on other batches leave
the chains where they were. The other differences are figures, in published.json and in the section of
docs/devinterp.md that is written from them.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from frame import Near, Row, main
from published_runs import CHAINS, FULL, QUICK, Laboratory, compare, fresh, half_step
from published_text import put
from rows import Is

import llc_fast

FIGURES = Path(__file__).with_suffix(".json")
ROUNDING = 2e-6  # of sums of losses in fp32


def rows(quick: bool) -> Iterator[Row | str]:
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    plan = QUICK if quick else FULL
    lab = Laboratory.of(plan)
    model = lab.trained.model
    weights = sum(p.numel() for p in model.parameters())
    count, length = lab.ids.shape
    yield f"{weights:,} parameters, training loss {lab.trained.loss:.3f}; {count} sequences of {length}"
    components = {}
    for component in ("full", *plan.heads):
        components[component] = c = compare(lab, component)
        yield from compared(component, c)
    f = fresh(lab, "full")
    yield Is("full, fresh_batches: the same chains", True, f["same"])
    yield f"  draws on other batches: {f['apart']:.4g}, on their own {f['own']:.4g}"
    half = half_step(lab, "full")
    yield f"  full, half lr: {half['llc_mean']:.5g} +- {half['mcse']:.2g}"
    figures = {
        "versions": {"llc_fast": llc_fast.__version__, "torch": torch.__version__.partition("+")[0]},
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "weights": weights,
        "typical_weight": sum(float(p.detach().square().sum()) for p in model.parameters()) ** 0.5
        / weights**0.5,
        "training_loss": lab.trained.loss,
        "training_steps": plan.size.steps,
        "context": length,
        "vocabulary": plan.size.vocabulary,
        "samples": count,
        "chains": CHAINS,
        "draws": plan.draws,
        "burnin": plan.burnin,
        "components": components,
        "fresh": f,
        "half": half,
    }
    if not quick:
        FIGURES.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
        put(figures)
    shutil.rmtree(lab.folder)


def compared(component: str, c: dict[str, Any]) -> Iterator[Row | str]:
    t, s = c["theirs"], c["settled"]
    yield Near(f"{component}: loss at w0 of the first batches", t["init_loss"], c["init_loss"], 0.0, ROUNDING)
    yield Near(
        f"{component}: devinterp's formula on our chains", t["llc_mean"], c["formula"], c["formula_error"]
    )
    low, high = s["interval"]
    yield (
        f"  devinterp {t['llc_mean']:.4g} +- {t['llc_std']:.2g}, {t['seconds']:.0f} CPU s; llc_fast "
        f"{s['llc_mean']:.4g}, {low:.4g} to {high:.4g}, {c['seconds']:.0f} CPU s; failed: {', '.join(s['failed'])}"
    )


if __name__ == "__main__":
    main(__doc__ or "", rows)
