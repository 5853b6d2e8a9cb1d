"""DTensor parameters (FSDP2, tensor parallelism, their products): local shards that get the full parameters' noise."""

from .fsdp import Guard, fsdp_modules, refuse_flat, refuse_unsharded, reshard, settle
from .layout import full, gradient, is_dtensor, local, local_mask, positions, tiles
from .plan import ShardedPlan, held, local_tiles, prepare, spoken
from .ranks import Ranks

__all__ = [
    "Guard",
    "Ranks",
    "ShardedPlan",
    "fsdp_modules",
    "full",
    "gradient",
    "held",
    "is_dtensor",
    "local",
    "local_mask",
    "local_tiles",
    "positions",
    "prepare",
    "refuse_flat",
    "refuse_unsharded",
    "reshard",
    "settle",
    "spoken",
    "tiles",
]
