"""Chains of SGLD on a model, one after another."""

from .chain import Progress, Schedule, Trace, batch_order, run_chain, seed_losses
from .displacement import Displacement
from .problem import Baseline, LossFn, Problem, baseline, borrowed, kept_rng, read_pool
from .together import pooled, ranks_of

__all__ = [
    "Baseline",
    "Displacement",
    "LossFn",
    "Problem",
    "Progress",
    "Schedule",
    "Trace",
    "baseline",
    "batch_order",
    "borrowed",
    "kept_rng",
    "pooled",
    "ranks_of",
    "read_pool",
    "run_chain",
    "seed_losses",
]
