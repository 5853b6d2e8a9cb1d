"""llc_fast: a fast, exact sampler for local learning coefficients of neural networks."""

from . import errors, exact, functional, ops
from .errors import LlcFastError
from .estimate import estimate_llc
from .ops import normal, sgld_step_
from .optim import SGLD
from .results import LLCResult
from .selection import create_param_masks, select
from .types import Box, Selection, Tile

__version__ = "0.1.0"

__all__ = [
    "SGLD",
    "Box",
    "LLCResult",
    "LlcFastError",
    "Selection",
    "Tile",
    "create_param_masks",
    "errors",
    "estimate_llc",
    "exact",
    "functional",
    "normal",
    "ops",
    "select",
    "sgld_step_",
]
