"""llc_fast: a fast, exact sampler for local learning coefficients of neural networks."""

from . import compat, diagnostics, errors, exact, functional, ops, store
from .compat import estimate_learning_coeff, estimate_learning_coeff_with_summary
from .dropin import llc, sample
from .errors import LlcFastError
from .estimate import estimate_llc
from .influence import bayesian_influence, bif, compute_bif, functional_variance, loss_kernel
from .nbeta import default_nbeta
from .ops import normal, rmsprop_sgld_step_, sghmc_step_, sgld_step_
from .optim import SGHMC, SGLD, SGMCMC, SGNHT, RMSpropSGLD
from .preview import preview_weight_restriction
from .results import LLCResult
from .selection import create_param_masks, select
from .susceptibility import compute_susceptibilities, susceptibilities
from .tokenization import tokenize_and_concatenate
from .tree_llc import compute_llc
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
    "bayesian_influence",
    "bif",
    "compat",
    "compute_bif",
    "compute_llc",
    "compute_susceptibilities",
    "create_param_masks",
    "default_nbeta",
    "diagnostics",
    "errors",
    "estimate_learning_coeff",
    "estimate_learning_coeff_with_summary",
    "estimate_llc",
    "exact",
    "functional",
    "functional_variance",
    "llc",
    "loss_kernel",
    "normal",
    "ops",
    "preview_weight_restriction",
    "rmsprop_sgld_step_",
    "sample",
    "select",
    "sghmc_step_",
    "sgld_step_",
    "store",
    "susceptibilities",
    "tokenize_and_concatenate",
]
