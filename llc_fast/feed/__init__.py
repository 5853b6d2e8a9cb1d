"""What chains walk on and look at: batches, from a dataset, tensors or a DataLoader."""

from .batches import moved, size_of
from .observed import Observable, observables, to_obs_id
from .pool import Feed, check_loss, read

__all__ = ["Feed", "Observable", "check_loss", "moved", "observables", "read", "size_of", "to_obs_id"]
