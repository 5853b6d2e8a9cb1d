"""Everything that `llc-fast estimate` was asked for, checked before any work."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from .. import backends
from ..errors import ArgumentError
from ..group import storage_of
from ..models import DTYPES
from ..samplers import find, own_settings
from ..scalars import Scalars, check_integer


@dataclass(frozen=True)
class Settings:
    """The options of `llc-fast estimate`, named as there."""

    model: Path
    data: tuple[str, ...]
    components: tuple[str, ...]
    out: Path
    lr: float
    nbeta: float
    localization: float
    weight_decay: float
    noise_level: float
    bounding_box_size: float | None
    sampler: str
    alpha: float | None
    eps: float | None
    friction: float | None
    state: str
    chains: int
    draws: int
    burnin: int
    steps_between_draws: int
    batch_size: int
    context: int | None
    max_sequences: int
    text_field: str
    seed: int
    device: str
    dtype: str
    backend: str
    threads: int | None
    force: bool

    def check(self) -> Settings:
        """Itself, if no number is out of range and the device and backend are there; raises LlcFastError."""
        Scalars.check(
            lr=self.lr,
            nbeta=self.nbeta,
            localization=self.localization,
            weight_decay=self.weight_decay,
            noise_level=self.noise_level,
            box=self.bounding_box_size,
            box_name="bounding_box_size",
            **own_settings(self.sampler, alpha=self.alpha, eps=self.eps, friction=self.friction),
        )
        for name, least in (
            ("chains", 1),
            ("draws", 1),
            ("burnin", 0),
            ("steps_between_draws", 1),
            ("batch_size", 1),
            ("max_sequences", 1),
        ):
            check_integer(name, getattr(self, name), minimum=least)
        check_integer("seed", self.seed, maximum=2**64 - 1)
        if self.context is not None:
            check_integer("context", self.context, minimum=2)
        if self.threads is not None:
            check_integer("threads", self.threads, minimum=1)
        if self.max_sequences < self.batch_size:
            raise ArgumentError(
                f"max_sequences is {self.max_sequences}: a batch has {self.batch_size}, give at least that many"
            )
        storage = storage_of(torch.empty(0, dtype=DTYPES[self.dtype]), torch.empty(0))
        device, sampler = self.torch_device().type, find(self.sampler)
        backends.resolve(backends.check_name(self.backend), device, storage, sampler)
        return self

    def torch_device(self) -> torch.device:
        """The device meant."""
        return torch_device(self.device)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {k: str(v) if isinstance(v, Path) else v for k, v in asdict(self).items()}


def torch_device(name: str) -> torch.device:
    """The device that `--device` means; "auto" is the first GPU if there is one. Raises ArgumentError."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as e:
        raise ArgumentError(f"device is {name!r}: give auto, cpu, cuda or cuda:N") from e
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ArgumentError(f"device is {name!r}: {torch.cuda.device_count()} CUDA devices are here")
    if device.type not in ("cpu", "cuda"):
        raise ArgumentError(f"device is {name!r}: give auto, cpu, cuda or cuda:N")
    return device
