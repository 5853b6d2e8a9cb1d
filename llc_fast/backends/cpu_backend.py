"""The C++ step: one source compiled per instruction set, the best one that runs here unless forced."""

from __future__ import annotations

from array import array
from functools import cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..errors import BackendError
from ..group import STORAGE_CODES, Backend, Gradients, Group, Storage
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

    def sgld_step(self, group: Group, grads: Gradients, scalars: Scalars, step: int) -> None:
        call: _Call | None = group.cache.get("cpu")
        if call is None:
            call = group.cache["cpu"] = _Call(group)
        addresses, known = group.gradient_addresses(grads), call.addresses
        if known is None or known[0] is not addresses:
            known = call.addresses = addresses, addresses.ctypes.data
        packed = array("B", scalars.pack(step))  # this call's own: it is read while other threads may step
        _cpu.sgld_step(
            call.rows_at,
            known[1],
            call.tiles,
            packed.buffer_info()[0],
            *call.kind,
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


class _Call:
    """What a group's steps have in common: the table and where it is; addresses: the last gradients', and where."""

    def __init__(self, group: Group) -> None:
        self.rows = group.rows()
        self.rows_at, self.tiles = self.rows.ctypes.data, len(self.rows)
        self.kind = codes()[group.sampler.kernel], STORAGE_CODES[group.storage], KINDS.index(group.noise)
        self.addresses: tuple[npt.NDArray[np.int64], int] | None = None


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
