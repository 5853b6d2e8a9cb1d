"""llc_fast: a fast, exact sampler for local learning coefficients of neural networks."""

from . import errors, ops
from .errors import LlcFastError
from .ops import normal, sgld_step_
from .types import Box, Selection, Tile

__version__ = "0.1.0"

__all__ = ["Box", "LlcFastError", "Selection", "Tile", "errors", "normal", "ops", "sgld_step_"]
