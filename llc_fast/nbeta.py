"""The inverse temperature that devinterp proposes."""

from __future__ import annotations

import math
import warnings
from numbers import Integral
from typing import Any

from torch.utils.data import DataLoader

from .errors import ArgumentError, ArgumentTypeError
from .scalars import check_integer


def default_nbeta(dataloader: DataLoader[Any] | int, gradient_accumulation_steps: int = 1) -> float:
    """n / log n with n the samples that a step takes: devinterp's default.

    dataloader: a DataLoader, of which the batch size counts, or the number itself. A warning and 1 where n is 1.
    Lau et al. 2023 (arXiv 2308.12108) have the size of the dataset for n: give that, as an integer, for theirs.

    >>> round(default_nbeta(32), 3)
    9.233
    """
    if isinstance(dataloader, DataLoader):
        size: object = dataloader.batch_size
        if size is None:
            raise ArgumentError(
                "dataloader has a batch_sampler and no batch_size: give the batch size itself"
            )
    else:
        size = dataloader
    if isinstance(size, bool) or not isinstance(size, Integral):
        raise ArgumentTypeError(
            f"dataloader is a {type(dataloader).__name__}: give a DataLoader or an integer"
        )
    n = int(size) * check_integer("gradient_accumulation_steps", gradient_accumulation_steps, minimum=1)
    if n <= 1:
        warnings.warn(f"n / log n has no value for n = {n}: nbeta is 1", stacklevel=2)
        return 1.0
    return n / math.log(n)
