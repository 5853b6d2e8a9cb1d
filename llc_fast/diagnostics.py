"""What can be said of chains from their draws: numpy arrays in, numbers out; one file a subject in `statistics`."""

from .statistics.blocks import MIN_DRAWS, Array, block_means
from .statistics.drift import LEVEL, Drift, burnin, drift_test, mser
from .statistics.equilibrium import COLD, FAR, HOT, distance_ratio, temperature
from .statistics.error import autocorrelation_time, mcse
from .statistics.oddity import Spikes, odd_chains, spikes
from .statistics.rank import MIN_ESS_DRAWS, ess, r_hat, r_hat_chance
from .statistics.special import t_quantile

__all__ = [
    "COLD",
    "FAR",
    "HOT",
    "LEVEL",
    "MIN_DRAWS",
    "MIN_ESS_DRAWS",
    "Array",
    "Drift",
    "Spikes",
    "autocorrelation_time",
    "block_means",
    "burnin",
    "distance_ratio",
    "drift_test",
    "ess",
    "mcse",
    "mser",
    "odd_chains",
    "r_hat",
    "r_hat_chance",
    "spikes",
    "t_quantile",
    "temperature",
]
