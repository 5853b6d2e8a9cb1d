"""devinterp 1.3.2's sampling methods and their arguments, as those of `estimate_llc`."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import partial
from typing import Any

from ..errors import ArgumentError, ArgumentTypeError

# Classes and factories, by name.
_METHODS = {
    "SGLD": "sgld",
    "sgld": "sgld",
    "SGNHT": "sgnht",
    "sgnht": "sgnht",
    "RMSpropSGLD": "rmsprop_sgld",
    "rmsprop_sgld": "rmsprop_sgld",
    "SGHMC": "sghmc",
}
_RENAMED = {"diffusion_factor": "friction", "elasticity": "localization", "temperature": "nbeta"}
_DEPRECATED = ("elasticity", "temperature")
_TAKEN = (
    "lr",
    "nbeta",
    "localization",
    "noise_level",
    "weight_decay",
    "bounding_box_size",
    "alpha",
    "eps",
    "friction",
)
# Diagnostics of its optimizers, and corrections: off, they change nothing.
_OFF = (
    "metrics",
    "save_noise",
    "save_mala_vars",
    "noise_norm",
    "grad_norm",
    "weight_norm",
    "distance",
    "save_metrics",
    "add_grad_correction",
)


def translate(method: Any, given: Mapping[str, Any] | None) -> dict[str, Any]:
    """`sampler` and its settings; lr and localization are always there, nbeta if it is given."""
    kwargs: dict[str, Any] = {}
    while isinstance(method, partial):
        if method.args:
            raise ArgumentError("sampling_method is a partial with positional arguments: name them")
        kwargs, method = {**method.keywords, **kwargs}, method.func
    name = getattr(method, "__name__", None)
    if name not in _METHODS:
        raise ArgumentError(
            f"sampling_method is {name or method!r}: use SGLD, SGNHT, RMSpropSGLD or SGHMC, or a factory of SGMCMC"
        )
    if given is not None and not isinstance(given, Mapping):
        raise ArgumentTypeError(f"optimizer_kwargs is a {type(given).__name__}: give a dictionary")
    kwargs |= given or {}
    settings: dict[str, Any] = {}
    for key, value in kwargs.items():
        target = _RENAMED.get(key, key)
        if key in _DEPRECATED:
            warnings.warn(f"optimizer_kwargs has {key!r}, the old name of {target!r}", stacklevel=4)
        if key == "optimize_over" and value is not None:
            raise ArgumentError("optimizer_kwargs has 'optimize_over': give optimize_over_per_model_param")
        if key in _OFF and value:
            raise ArgumentError(
                f"optimizer_kwargs has {key!r}, which fused steps do not keep: leave it out; norms of steps are in "
                "llc_fast.sample(..., save_metrics=True)"
            )
        if key in _OFF or key == "optimize_over":
            continue
        if target not in _TAKEN:
            known = ", ".join((*_TAKEN, *_RENAMED))
            raise ArgumentError(f"optimizer_kwargs has {key!r}, which is not known: use some of {known}")
        if target in settings:
            raise ArgumentError(f"optimizer_kwargs has {target!r} under two names: give it once")
        settings[target] = value
    if not settings.get("bounding_box_size"):
        settings.pop("bounding_box_size", None)  # 0 is no box there
    return {"sampler": _METHODS[name], "lr": 0.01, "localization": 0.0, **settings}
