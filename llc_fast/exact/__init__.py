"""What is known exactly: targets that an estimate of the local learning coefficient can be held to.

`quadratic_*` and `chain_*` say what Langevin dynamics does on a quadratic loss at a finite step, for
finitely many steps, `sghmc_*` and `sgnht_*` the same with a velocity. A model's name alone
(`reduced_rank`) is its learning coefficient, reached as nbeta grows; with `_llc` (`reduced_rank_llc`) it
is the LLC at a given nbeta and localization, as lr goes to 0. Settings have the names that samplers use:
lr, nbeta, localization, weight_decay, noise_level.
"""

from llc_fast.exact._chain import chain_llc, chain_loss, chain_variance, estimate_std
from llc_fast.exact._coefficients import (
    LearningCoefficient,
    deep_linear,
    linear_regression,
    power_product,
    power_sum,
    reduced_rank,
    reduced_rank_local,
    regular,
)
from llc_fast.exact._gibbs import GibbsEstimate, deep_linear_llc
from llc_fast.exact._momentum import sghmc_variance, sghmc_velocity_variance, sgnht_friction, sgnht_variance
from llc_fast.exact._quadratic import (
    gaussian_llc,
    quadratic_centre,
    quadratic_llc,
    quadratic_shift,
    restricted_llc,
)
from llc_fast.exact._regression import bayesian_influence, functional_variance, loss_kernel
from llc_fast.exact._singular import power_product_llc, power_sum_llc, reduced_rank_llc
from llc_fast.exact._stationary import (
    innovation_covariance,
    precision,
    quadratic_covariance,
    quadratic_variance,
    stability_limit,
    virial,
)
from llc_fast.exact._toy import ToyModel, toy_model, toy_model_loss

__all__ = [
    "GibbsEstimate",
    "LearningCoefficient",
    "ToyModel",
    "bayesian_influence",
    "chain_llc",
    "chain_loss",
    "chain_variance",
    "deep_linear",
    "deep_linear_llc",
    "estimate_std",
    "functional_variance",
    "gaussian_llc",
    "innovation_covariance",
    "linear_regression",
    "loss_kernel",
    "power_product",
    "power_product_llc",
    "power_sum",
    "power_sum_llc",
    "precision",
    "quadratic_centre",
    "quadratic_covariance",
    "quadratic_llc",
    "quadratic_shift",
    "quadratic_variance",
    "reduced_rank",
    "reduced_rank_llc",
    "reduced_rank_local",
    "regular",
    "restricted_llc",
    "sghmc_variance",
    "sghmc_velocity_variance",
    "sgnht_friction",
    "sgnht_variance",
    "stability_limit",
    "toy_model",
    "toy_model_loss",
    "virial",
]
