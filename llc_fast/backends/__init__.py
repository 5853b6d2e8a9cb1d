"""The registry of backends: loaded on use; an explicit choice that cannot run raises, "auto" says what it took."""

from __future__ import annotations

import difflib
import importlib
import logging
from functools import cache

import torch

from ..errors import ArgumentTypeError, BackendError
from ..group import Backend, Storage
from ..samplers import SAMPLERS, Sampler

log = logging.getLogger("llc_fast")

NAMES = ("cuda", "triton", "cpu", "reference")  # in order of preference
_MODULES = {
    "cuda": "cuda_backend",
    "triton": "triton_backend",
    "cpu": "cpu_backend",
    "reference": "reference_backend",
}
# What "auto" tries; Triton's interpreter on the CPU is for tests, by explicit choice.
_AUTO = {"cuda": ("cuda", "triton", "reference"), "cpu": ("cpu", "reference")}


@cache
def load(name: str) -> Backend:
    """The backend of a full name such as "cpu" or "cpu:avx2"; raises BackendError if it cannot run here."""
    base, _, option = name.partition(":")
    module = importlib.import_module(f".{_MODULES[base]}", __package__)
    backend: Backend = module.load(option)
    return backend


def missing(name: str) -> str | None:
    """Why a backend cannot run here, or None if it can."""
    try:
        load(name)
    except BackendError as e:
        return str(e)
    return None


def check_name(name: object) -> str:
    """A known backend name, or an error with the nearest ones."""
    if not isinstance(name, str):
        raise ArgumentTypeError(f"backend is {name!r}: give a name such as 'auto' or 'cpu'")
    if name != "auto" and name.partition(":")[0] not in NAMES:
        near = difflib.get_close_matches(name, NAMES, 1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise BackendError(f"unknown backend {name!r}{hint}: use 'auto' or one of {', '.join(NAMES)}")
    return name


@cache
def resolve(name: str, device_type: str, storage: Storage, sampler: Sampler = SAMPLERS["sgld"]) -> Backend:
    """The backend to use for tensors of a device and storage, and a sampler."""
    if name != "auto":
        backend = load(name)
        reason = backend.refuses(device_type, storage, sampler)
        if reason is not None:
            raise BackendError(f"backend {name!r} {reason}")
        return backend
    reasons: list[str] = []
    for candidate in _AUTO.get(device_type, ("reference",)):
        try:
            backend = load(candidate)
            reason = backend.refuses(device_type, storage, sampler)
        except BackendError as e:
            reason = str(e)
        if reason is None:
            level = logging.WARNING if candidate == "reference" and storage != "float64" else logging.INFO
            because = f" ({'; '.join(reasons)})" if reasons and level == logging.WARNING else ""
            log.log(level, "llc_fast takes %s for %s on %s%s", backend.name, storage, device_type, because)
            return backend
        reasons.append(reason)
    raise BackendError(f"no backend runs {storage} on {torch.device(device_type)}: {'; '.join(reasons)}")
