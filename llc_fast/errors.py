"""Exceptions: each names the argument, what came, what was expected, and the remedy."""

from __future__ import annotations


class LlcFastError(Exception):
    """Base of every error that llc_fast raises on purpose."""


class ArgumentError(LlcFastError, ValueError):
    """An argument has a value that cannot be used."""


class ArgumentTypeError(LlcFastError, TypeError):
    """An argument has a type or dtype that cannot be used."""


class BackendError(LlcFastError, RuntimeError):
    """A backend was asked for by name and cannot run here."""


class ComponentError(LlcFastError, ValueError):
    """A component name is unknown, out of range, or selects nothing."""


class ModelError(LlcFastError, ValueError):
    """A model, or the directory that should hold one, cannot be used."""


class DataError(LlcFastError, ValueError):
    """A dataset is missing, empty, too short, or not readable."""


class ChainError(LlcFastError, RuntimeError):
    """Sampling failed: every chain diverged, or the loss at the anchor is not finite."""


class OutputError(LlcFastError, OSError):
    """A result cannot be written where it was asked for."""


class WeightOverflowError(LlcFastError, OverflowError):
    """A weight has left the range of the model's dtype."""
