"""Validation of the numbers that the closed forms take."""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from llc_fast.errors import ArgumentError

Array = NDArray[np.float64]


def positive(name: str, value: float) -> float:
    """`value` as a float, if it is finite and above zero."""
    number = _number(name, value)
    if number <= 0:
        raise ArgumentError(f"{name}={value!r} must be above 0; pass a positive number")
    return number


def non_negative(name: str, value: float) -> float:
    """`value` as a float, if it is finite and not below zero."""
    number = _number(name, value)
    if number < 0:
        raise ArgumentError(f"{name}={value!r} must not be negative; pass 0 to leave it out")
    return number


def integer(name: str, value: int, least: int, most: int | None = None) -> int:
    """`value` as an int, if it is a whole number in [least, most]."""
    try:
        number = operator.index(value)
    except TypeError:
        raise ArgumentError(f"{name}={value!r} is not a whole number; pass an int") from None
    if number < least or (most is not None and number > most):
        limits = f"at least {least}" if most is None else f"between {least} and {most}"
        raise ArgumentError(f"{name}={number} is out of range; pass a whole number that is {limits}")
    return number


def array(name: str, value: ArrayLike, ndim: int | None = None, least: float | None = None) -> Array:
    """`value` as a finite float64 array, of `ndim` dimensions and not below `least` if given."""
    try:
        result = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise ArgumentError(f"{name}={value!r} is not numeric; pass numbers") from None
    if ndim is not None and result.ndim != ndim:
        raise ArgumentError(f"{name} has shape {result.shape}; pass an array of {ndim} dimension(s)")
    if result.size == 0:
        raise ArgumentError(f"{name} is empty; pass at least one number")
    if not np.isfinite(result).all():
        raise ArgumentError(f"{name} has NaN or Inf; pass finite numbers")
    if least is not None and (result < least).any():
        raise ArgumentError(f"{name} goes down to {result.min():g}; pass numbers of at least {least:g}")
    return result


def fitting(
    name: str, value: ArrayLike, like: str, shape: tuple[int, ...], least: float | None = None
) -> Array:
    """`value` as an array that has the shape of the argument `like`, repeated where it is a scalar."""
    result = array(name, value, least=least)
    if result.shape not in ((), shape):
        raise ArgumentError(
            f"{name} has shape {result.shape} where {like} has {shape}; pass one number or one for each"
        )
    return np.broadcast_to(result, shape)


def symmetric(name: str, value: ArrayLike, size: int | None = None) -> Array:
    """`value` as a symmetric (d, d) array."""
    result = array(name, value, ndim=2)
    if result.shape[0] != result.shape[1] or (size is not None and result.shape[0] != size):
        wanted = "a square matrix" if size is None else f"shape ({size}, {size})"
        raise ArgumentError(f"{name} has shape {result.shape}; pass {wanted}")
    if not np.allclose(result, result.T, rtol=1e-8, atol=1e-12 * float(np.abs(result).max())):
        raise ArgumentError(f"{name} is not symmetric; pass (x + x.T) / 2")
    return result


def _number(name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ArgumentError(f"{name}={value!r} is not a number; pass a float") from None
    if not math.isfinite(number):
        raise ArgumentError(f"{name}={value!r} is not finite; pass a finite number")
    return number
