"""Chains of samplers on a model: one after another, or many small ones at once."""

from .chain import Progress, Schedule, Trace, Walkers, Watch, empty_records, seed_losses, walk
from .displacement import Displacement
from .order import RECORD, Order, batch_order, half_pool
from .problem import Baseline, LossFn, Problem, baseline, borrowed, kept_rng, read_pool
from .stacked import MAX_STACKED, MAX_WEIGHTS, Stacked, stacked_tiles
from .together import pooled, ranks_of
from .walkers import Single

__all__ = [
    "MAX_STACKED",
    "MAX_WEIGHTS",
    "RECORD",
    "Baseline",
    "Displacement",
    "LossFn",
    "Order",
    "Problem",
    "Progress",
    "Schedule",
    "Single",
    "Stacked",
    "Trace",
    "Walkers",
    "Watch",
    "baseline",
    "batch_order",
    "borrowed",
    "empty_records",
    "half_pool",
    "kept_rng",
    "pooled",
    "ranks_of",
    "read_pool",
    "seed_losses",
    "stacked_tiles",
    "walk",
]
