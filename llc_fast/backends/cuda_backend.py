"""The CUDA step: one launch a device and dtype, on the caller's stream, without waiting for the device.

In a CUDA graph. A step that is captured uploads nothing: its nodes first add one to the step number in device memory
and then step with the settings and gradient addresses of the step before it, so that each replay is the chain's next
step. So make one step before the capture, with the same settings, and keep gradients where they are. The graph keeps
addresses: keep what was stepped, and the plan or optimizer, for as long as the graph. After a capture the number of
the last step is known to the device alone (`Cuda.device_step` asks it): a step outside of the graph then waits for
the device and takes the number that it was given or, if the device has passed that, the device's next one, so that
no noise comes twice.
"""

from __future__ import annotations

import threading
from functools import cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..errors import BackendError
from ..group import MASK, SLOT, STORAGE_CODES, Backend, Gradients, Group, Storage
from ..noise import KINDS
from ..samplers import Sampler
from ..scalars import MAX_STEP, SCALARS, Scalars
from ..sums import COLUMNS

try:
    from .. import _cuda
except ImportError as e:
    _cuda = None  # type: ignore[assignment]
    _why = str(e)

SLOTS = 8  # steps that the host may be ahead of the device before it waits


class Cuda:
    name = "cuda"

    def __init__(self) -> None:
        self._locks: dict[int, threading.Lock] = {}

    def refuses(self, device_type: str, storage: Storage, sampler: Sampler) -> str | None:
        if device_type != "cuda":
            return f"updates tensors on a CUDA device, not on {device_type}"
        if storage not in STORAGE_CODES:
            return f"has no {storage} step: use backend='reference'"
        if sampler.kernel not in codes():
            return f"has no {sampler.name} step: use backend='reference', or add it to llcf_samplers.h"
        return None

    def sgld_step(self, group: Group, grads: Gradients, scalars: Scalars, step: int) -> None:
        device = _index(group.device)
        addresses = group.gradient_addresses(grads)
        with self._locks.setdefault(device, threading.Lock()), torch.cuda.device(device):
            launch: _Launch | None = group.cache.get("cuda")
            if torch.cuda.is_current_stream_capturing():
                if launch is None:
                    raise BackendError(_CAPTURE.format(why="no step was made before it"))
                launch.capture(addresses, scalars, step)
                return
            if launch is None:
                launch = group.cache["cuda"] = _Launch(group, device, scalars.terms)
            launch.run(addresses, scalars, step)

    def device_step(self, group: Group) -> int | None:
        """The number of the group's last step, also where a graph made it; waits for the device. None: no step yet."""
        launch: _Launch | None = group.cache.get("cuda")
        return None if launch is None else launch.device_step()

    def next_step(self, group: Group) -> int:
        """The number after the group's last step where graphs may have made steps, else 0; waits for the device."""
        launch: _Launch | None = group.cache.get("cuda")
        return launch.device_step() + 1 if launch is not None and launch.captured else 0

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
        device, code = _index(out.device), KINDS.index(kind)
        stream = torch.cuda.current_stream(device).cuda_stream
        packed = key[0] | key[1] << 32
        _cuda.normal(
            device, stream, out.data_ptr(), start, out.numel(), code, packed, step, tensor_id, domain
        )


_CAPTURE = (
    "backend 'cuda' cannot capture this step in a CUDA graph, because {why}: a captured step continues the one made "
    "before it, so make one step just before the capture, with the same settings, and keep gradients at fixed "
    "addresses (zero_grad(set_to_none=False))"
)


class _Launch:
    """What one group keeps on its device: the table, built once, and the scalars and gradient addresses.

    order: of the tiles in the table, so that those of a slot of the sums are side by side; None as they come. last,
    step: the scalars and number of the last step, as the host knows them. captured: whether graphs make steps that it
    does not know of.
    """

    def __init__(self, group: Group, device: int, terms: int) -> None:
        self.device, self.sums = device, group.sums
        rows, self.order = group.rows(), None
        if self.sums is not None and np.any(rows[1:, SLOT] < rows[:-1, SLOT]):
            self.order = np.argsort(rows[:, SLOT], kind="stable")
            rows = np.ascontiguousarray(rows[self.order])
        self.tiles, self.slots = len(rows), 0 if self.sums is None else len(self.sums)
        self.kind = codes()[group.sampler.kernel], STORAGE_CODES[group.storage], KINDS.index(group.noise)
        self.masked = bool(rows[:, MASK].any())
        summed = self.sums is not None
        resident = _cuda.resident_blocks(device, *self.kind, terms, self.masked, summed)
        at = rows.ctypes.data
        table, self.chunks = _cuda.plan(at, self.tiles, self.kind[1], resident, self.slots)
        size = SCALARS + 8 * self.tiles
        self.stream = torch.cuda.current_stream(device)
        with torch.inference_mode(False):  # later steps may be outside of it
            self.table = torch.from_numpy(np.frombuffer(table, dtype=np.uint8)).to(group.device)
            self.inputs = torch.empty(size, dtype=torch.uint8, device=group.device)
            self.scalars = self.inputs[:SCALARS]
            partials = (self.chunks if summed else 0, COLUMNS)
            self.partials = torch.empty(partials, dtype=torch.float32, device=group.device)
        self.ring: list[tuple[Tensor, torch.cuda.Event]] = []  # the oldest one first
        self.addresses: npt.NDArray[np.int64] | None = None
        self.last, self.step, self.captured = b"", -1, False

    def run(self, addresses: npt.NDArray[np.int64], scalars: Scalars, step: int) -> None:
        if self.captured:
            step = max(step, self.device_step() + 1)
            if step > MAX_STEP:
                raise BackendError(
                    f"the device has made {step} steps of this chain, all there are: use another"
                )
        stream = torch.cuda.current_stream(self.device)
        if stream != self.stream:  # the last launch may still read what is about to be overwritten
            stream.wait_stream(self.stream)
            for kept in (self.table, self.inputs, self.partials):
                kept.record_stream(stream)
            self.stream = stream
        packed = scalars.pack(step)
        self._upload(addresses, packed)
        self._start(scalars.terms, stream)
        self.last, self.step = packed, step

    def capture(self, addresses: npt.NDArray[np.int64], scalars: Scalars, step: int) -> None:
        """Add a step to the graph that the current stream is capturing."""
        why = None
        if scalars.pack(step)[4:] != self.last[4:]:
            why = "its settings differ from those of the step before it"
        elif not self._placed(addresses):
            why = "its gradients are elsewhere in memory than those of the step before it"
        elif step > self.step + 1 or (step <= self.step and not self.captured):
            why = f"step {step} does not follow step {self.step}"
        if why is not None:
            raise BackendError(_CAPTURE.format(why=why))
        stream = torch.cuda.current_stream(self.device)
        _cuda.advance_step(self.device, stream.cuda_stream, self.inputs.data_ptr())
        self._start(scalars.terms, stream)
        self.step, self.captured = self.step + 1, True

    def device_step(self) -> int:
        if torch.cuda.is_current_stream_capturing():
            raise BackendError(
                "the device's step number cannot be read while a CUDA graph is captured: read it after"
            )
        torch.cuda.synchronize(self.device)  # a graph may run on any stream
        return int.from_bytes(self.inputs[:4].cpu().numpy().tobytes(), "little")

    def _placed(self, addresses: npt.NDArray[np.int64]) -> bool:
        """Whether the device has these addresses."""
        known = self.addresses
        return known is addresses or (known is not None and np.array_equal(addresses, known))

    def _start(self, terms: int, stream: torch.cuda.Stream) -> None:
        inputs = self.inputs.data_ptr()
        _cuda.sgld_step(
            self.device,
            stream.cuda_stream,
            self.table.data_ptr(),
            self.tiles,
            self.chunks,
            inputs + SCALARS,
            inputs,
            *self.kind,
            terms,
            self.masked,
            self.partials.data_ptr(),
            0 if self.sums is None else self.sums.data_ptr(),
            self.slots,
        )

    def _upload(self, addresses: npt.NDArray[np.int64], packed: bytes) -> None:
        """Scalars, and addresses if they changed, through a pinned slot whose last copy has run."""
        if self.ring and (len(self.ring) == SLOTS or self.ring[0][1].query()):
            host, copied = self.ring.pop(0)
            copied.synchronize()  # returns at once, unless the host is SLOTS steps ahead of the device
        else:
            host, copied = _pinned(self.inputs.numel()), torch.cuda.Event()
        view = host.numpy()
        view[:SCALARS] = np.frombuffer(packed, dtype=np.uint8)
        if self._placed(addresses):
            self.scalars.copy_(host[:SCALARS], non_blocking=True)
        else:
            ordered = addresses if self.order is None else addresses[self.order]
            view[SCALARS:] = ordered.view(np.uint8)
            self.addresses = None  # until the device has all of them
            self.inputs.copy_(host, non_blocking=True)
            self.addresses = addresses
        copied.record(self.stream)
        self.ring.append((host, copied))


@cache
def codes() -> dict[str, int]:
    """The code of each sampler's kernel."""
    return {name: i for i, name in enumerate(_cuda.samplers())}


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
