"""The C++ step: one source compiled per instruction set, the best one that runs here unless forced."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor

from ..errors import BackendError
from ..group import STORAGE_CODES, Backend, Group, Storage
from ..noise import KINDS
from ..samplers import Sampler
from ..scalars import Scalars

try:
    from .. import _cpu
except ImportError as e:  # torch is imported first: it brings the OpenMP runtime that both share
    _cpu = None  # type: ignore[assignment]
    _why = str(e)


class Cpu:
    def __init__(self, isa: str) -> None:
        self.isa = isa
        self.name = f"cpu:{isa}"

    def refuses(self, device_type: str, storage: Storage, sampler: Sampler) -> str | None:
        if device_type != "cpu":
            return f"updates tensors on the CPU, not on {device_type}"
        if storage not in STORAGE_CODES:
            return f"has no {storage} step: use backend='reference'"
        if sampler.kernel not in codes():
            return f"has no {sampler.name} step: use backend='reference', or add it to llcf_samplers.h"
        return None

    def sgld_step(self, group: Group, grads: Sequence[Tensor | None], scalars: Scalars, step: int) -> None:
        if "cpu" not in group.cache:
            group.cache["cpu"] = group.rows()
        rows = group.cache["cpu"]
        addresses = group.gradient_addresses(grads)
        packed = np.frombuffer(scalars.pack(step), dtype=np.uint32)
        _cpu.sgld_step(
            rows.ctypes.data,
            addresses.ctypes.data,
            len(rows),
            packed.ctypes.data,
            codes()[group.sampler.kernel],
            STORAGE_CODES[group.storage],
            KINDS.index(group.noise),
            scalars.terms,
            0 if group.sums is None else group.sums.data_ptr(),
            torch.get_num_threads(),
            self.isa,
        )

    def normal(
        self,
        out: Tensor,
        *,
        start: int,
        key: tuple[int, int],
        step: int,
        tensor_id: int,
        domain: int,
        kind: str = "gaussian",
    ) -> None:
        code, packed = KINDS.index(kind), key[0] | key[1] << 32
        threads = torch.get_num_threads()
        _cpu.normal(
            out.data_ptr(), start, out.numel(), code, packed, step, tensor_id, domain, threads, self.isa
        )


@cache
def codes() -> dict[str, int]:
    """The code of each sampler's kernel."""
    return {name: i for i, name in enumerate(_cpu.samplers())}


def isas() -> list[str]:
    """Instruction sets that run here, best first; empty without the extension."""
    return [] if _cpu is None else list(_cpu.isas())


def load(option: str) -> Backend:
    if _cpu is None:
        raise BackendError(f"backend 'cpu' needs the compiled extension llc_fast._cpu ({_why}): reinstall")
    here = isas()
    if option and option not in here:
        raise BackendError(f"backend 'cpu:{option}' cannot run here: this machine has {', '.join(here)}")
    return Cpu(option or here[0])
