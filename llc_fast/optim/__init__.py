"""The samplers as torch.optim.Optimizers."""

from .base import Langevin
from .samplers import SGHMC, SGLD, SGNHT, RMSpropSGLD
from .sgmcmc import SGMCMC

__all__ = ["SGHMC", "SGLD", "SGMCMC", "SGNHT", "Langevin", "RMSpropSGLD"]
