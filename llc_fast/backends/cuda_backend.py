"""The CUDA step: one launch a device and dtype, on the caller's stream, without waiting for the device."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..errors import BackendError
from ..group import STORAGE_CODES, Backend, Group, Storage
from ..scalars import Scalars

try:
    from .. import _cuda
except ImportError as e:
    _cuda = None  # type: ignore[assignment]
    _why = str(e)

SLOTS = 8  # steps that the host may be ahead of the device before it waits
SCALARS = 64  # bytes of the scalars' struct


class Cuda:
    name = "cuda"

    def __init__(self) -> None:
        self._locks: dict[int, threading.Lock] = {}

    def refuses(self, device_type: str, storage: Storage) -> str | None:
        if device_type != "cuda":
            return f"updates tensors on a CUDA device, not on {device_type}"
        if storage not in STORAGE_CODES:
            return f"has no {storage} step: use backend='reference'"
        return None

    def sgld_step(self, group: Group, grads: Sequence[Tensor | None], scalars: Scalars, step: int) -> None:
        device = _index(group.device)
        with self._locks.setdefault(device, threading.Lock()), torch.cuda.device(device):
            if torch.cuda.is_current_stream_capturing():
                raise BackendError(
                    "backend 'cuda' uploads its scalars from the host, which a CUDA graph would replay unchanged: "
                    "call the step outside of the capture"
                )
            launch: _Launch | None = group.cache.get("cuda")
            if launch is None:
                launch = group.cache["cuda"] = _Launch(group, device, scalars.terms)
            launch.run(group.gradient_addresses(grads), scalars, step)

    def normal(
        self, out: Tensor, *, start: int, key: tuple[int, int], step: int, tensor_id: int, domain: int
    ) -> None:
        device = _index(out.device)
        stream = torch.cuda.current_stream(device).cuda_stream
        packed = key[0] | key[1] << 32
        _cuda.normal(device, stream, out.data_ptr(), start, out.numel(), packed, step, tensor_id, domain)


class _Launch:
    """What one group keeps on its device: the table, built once, and the scalars and gradient addresses."""

    def __init__(self, group: Group, device: int, terms: int) -> None:
        self.device, self.storage = device, STORAGE_CODES[group.storage]
        rows = group.rows()
        self.tiles = len(rows)
        resident = _cuda.resident_blocks(device, self.storage, terms)
        table, self.chunks = _cuda.plan(rows.ctypes.data, self.tiles, self.storage, resident)
        size = SCALARS + 8 * self.tiles
        self.stream = torch.cuda.current_stream(device)
        with torch.inference_mode(False):  # later steps may be outside of it
            self.table = torch.from_numpy(np.frombuffer(table, dtype=np.uint8)).to(group.device)
            self.inputs = torch.empty(size, dtype=torch.uint8, device=group.device)
        self.slots: list[tuple[Tensor, torch.cuda.Event]] = []  # the oldest one first
        self.addresses: npt.NDArray[np.int64] | None = None

    def run(self, addresses: npt.NDArray[np.int64], scalars: Scalars, step: int) -> None:
        stream = torch.cuda.current_stream(self.device)
        if stream != self.stream:  # the last launch may still read what is about to be overwritten
            stream.wait_stream(self.stream)
            self.table.record_stream(stream)
            self.inputs.record_stream(stream)
            self.stream = stream
        self._upload(addresses, scalars.pack(step))
        _cuda.sgld_step(
            self.device,
            stream.cuda_stream,
            self.table.data_ptr(),
            self.tiles,
            self.chunks,
            self.inputs.data_ptr() + SCALARS,
            self.inputs.data_ptr(),
            scalars.terms,
            self.storage,
        )

    def _upload(self, addresses: npt.NDArray[np.int64], packed: bytes) -> None:
        """Scalars, and addresses if they changed, through a pinned slot whose last copy has run."""
        if self.slots and (len(self.slots) == SLOTS or self.slots[0][1].query()):
            host, copied = self.slots.pop(0)
            copied.synchronize()  # returns at once, unless the host is SLOTS steps ahead of the device
        else:
            host, copied = _pinned(self.inputs.numel()), torch.cuda.Event()
        view, size = host.numpy(), SCALARS
        view[:SCALARS] = np.frombuffer(packed, dtype=np.uint8)
        if self.addresses is None or not np.array_equal(addresses, self.addresses):
            view[SCALARS:] = addresses.view(np.uint8)
            self.addresses, size = addresses, len(view)
        self.inputs[:size].copy_(host[:size], non_blocking=True)
        copied.record(self.stream)
        self.slots.append((host, copied))


def _pinned(size: int) -> Tensor:
    return torch.empty(size, dtype=torch.uint8, device="cpu", pin_memory=True)


def _index(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index


def runs_on(archs: str, capability: tuple[int, int]) -> bool:
    """Whether code compiled for `archs`, as CMake writes them, runs on a card of this compute capability."""
    for arch in archs.split(","):
        name, _, kind = arch.partition("-")
        digits = name.rstrip("af")
        if not digits.isdigit():  # native, all, all-major
            return True
        built = divmod(int(digits), 10)
        if kind != "virtual" and built[0] == capability[0] and built[1] <= capability[1]:
            return True
        if kind != "real" and digits == name and built <= capability:
            return True
    return False


def load(option: str) -> Backend:
    if option:
        raise BackendError(f"backend 'cuda' has no variant {option!r}: use 'cuda'")
    if _cuda is None:
        raise BackendError(
            f"backend 'cuda' needs the compiled extension llc_fast._cuda ({_why}): reinstall with nvcc on PATH"
        )
    if torch.version.cuda is None:
        raise BackendError(
            f"backend 'cuda' needs a torch built for CUDA, this one is {torch.__version__}: install another"
        )
    if not torch.cuda.is_available():
        raise BackendError(
            "backend 'cuda' needs a CUDA device, torch sees none: check the driver (nvidia-smi)"
        )
    if _cuda.device_count() == 0:
        major, minor = divmod(_cuda.runtime_version // 10, 100)
        raise BackendError(
            f"backend 'cuda' was built for CUDA {major}.{minor} and finds no device ({_cuda.problem()}): update "
            "the driver, or reinstall with the nvcc of torch's CUDA version"
        )
    found = [torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())]
    if not any(runs_on(_cuda.archs, c) for c in found):
        names = ", ".join(f"{a}.{b}" for a, b in found)
        raise BackendError(
            f"backend 'cuda' was built for {_cuda.archs}, the devices have compute capability {names}: reinstall "
            "with LLC_FAST_CUDA_ARCHS=native"
        )
    return Cuda()
