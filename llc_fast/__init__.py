"""llc_fast: a fast, exact sampler for local learning coefficients of neural networks."""

from . import errors, exact, functional, ops
from .errors import LlcFastError
from .estimate import estimate_llc
from .ops import normal, rmsprop_sgld_step_, sghmc_step_, sgld_step_
from .optim import SGHMC, SGLD, SGMCMC, SGNHT, RMSpropSGLD
from .results import LLCResult
from .selection import create_param_masks, select
from .types import Box, Selection, Tile

__version__ = "0.1.0"

__all__ = [
    "SGHMC",
    "SGLD",
    "SGMCMC",
    "SGNHT",
    "Box",
    "LLCResult",
    "LlcFastError",
    "RMSpropSGLD",
    "Selection",
    "Tile",
    "create_param_masks",
    "errors",
    "estimate_llc",
    "exact",
    "functional",
    "normal",
    "ops",
    "rmsprop_sgld_step_",
    "select",
    "sghmc_step_",
    "sgld_step_",
]
