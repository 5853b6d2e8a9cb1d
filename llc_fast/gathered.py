"""What chains leave behind, as the arrays and facts that an analysis reads and a store keeps."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from .evidence import Evidence
from .sampling import Schedule, Trace
from .session import Session

Arrays = dict[str, npt.NDArray[Any]]

TRACED = ("loss", "batch", "virial", "distance", "dot", "boxed")


def arrays(traces: Sequence[Trace], baseline: npt.NDArray[np.float64]) -> Arrays:
    """By name, chains first: of steps and draws, as `Evidence` has them."""
    found = {name: np.stack([getattr(trace, name) for trace in traces]) for name in TRACED}
    found["gains"] = np.stack([trace.gains(baseline) for trace in traces])
    if all(trace.controls is not None for trace in traces):
        controls = np.stack([trace.controls for trace in traces])  # type: ignore[misc]
        found["controls"] = controls.reshape(*controls.shape[:2], -1)
    return found


def settings(session: Session, schedule: Schedule, num_chains: int) -> dict[str, Any]:
    """All that decides what chains do, and on what."""
    from . import __version__

    r = session.request
    s = session.settings | asdict(r.scalars)
    s["bounding_box_size"] = s.pop("box")
    s |= {"sampler": r.sampler, "state": r.state, "noise": r.noise, "seed": r.seed, "eval_mode": r.eval_mode}
    s |= asdict(schedule) | {"num_chains": num_chains, "init_noise": r.init_noise}
    s["versions"] = {
        "llc_fast": __version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }
    return s


def facts(session: Session, s: Mapping[str, Any], *, pool: int) -> dict[str, Any]:
    """What `Evidence` has beside arrays, in JSON's types; pool: batches that a chain cycles through."""
    start, displacement, count = session.baseline, session.displacement, s["gradient_accumulation_steps"]
    known = [n for n in start.samples if n is not None]
    size = len(start.losses)
    unhashed = [f"no digest of the data: it holds a {session.unhashed}."] if session.unhashed else []
    return {
        **{name: s[name] for name in _SHARED},
        "friction": session.friction,
        "paired": True,
        "init_loss": float(start.losses.mean()),
        "epoch": 1 if count % pool == 0 else None if pool % count else pool // count,
        "batches_per_step": count,
        "pool_batches": pool,
        "pool_samples": sum(known) * pool // size if len(known) == size else None,
        "gradient_noise": displacement.gradient_noise(pool),
        "gradient_batches": displacement.count,
        "loss_eps": start.eps,
        "unequal": [min(known), max(known)] if known and min(known) < max(known) else None,
        "without_gradient": list(start.without_gradient),
        "remarks": [*unhashed, *session.refused],
    }


def evidence(
    facts: Mapping[str, Any],
    arrays: Mapping[str, Any],
    *,
    dead: Mapping[int, str],
    settings: Mapping[str, Any],
) -> Evidence:
    """The evidence of chains of which these are the rows."""
    if facts.get("disjoint_pools"):  # g0 is of all pools together, and each chain is drawn by its own
        arrays = {name: values for name, values in arrays.items() if name != "dot"}
    return Evidence(**facts, **arrays, dead=dead, settings=settings)


def deaths(traces: Sequence[Trace]) -> dict[int, str]:
    """Row -> why its chain is not counted."""
    return {row: reason for row, trace in enumerate(traces) if (reason := trace.verdict)}


# Settings that the analysis needs.
_SHARED = (
    "lr",
    "nbeta",
    "localization",
    "weight_decay",
    "noise_level",
    "init_noise",
    "sampler",
    "num_burnin_steps",
    "num_steps_bw_draws",
    "weights",
)
