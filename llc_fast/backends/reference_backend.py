"""Plain PyTorch behind the backend protocol: any device, every storage."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import noise, reference
from ..errors import BackendError
from ..group import Backend, Gradients, Group, Storage
from ..samplers import Sampler
from ..scalars import Scalars
from ..tiles import unpack, view
from ..types import Tile


class Reference:
    name = "reference"

    def refuses(self, device_type: str, storage: Storage, sampler: Sampler) -> str | None:
        return None

    def sgld_step(self, group: Group, grads: Gradients, scalars: Scalars, step: int) -> None:
        for n, (whole, key) in enumerate(zip(group.tiles, group.keys, strict=True)):
            i = whole.tensor
            xi = (scalars.friction or 0.0) if group.xi is None else float(group.xi[n])
            bits = group.masks[i]
            for tile in reference.chunks(whole):
                operands = reference.Operands(
                    view(group.params[i], tile),
                    _view(grads[i], tile),
                    _view(None if group.anchors is None else group.anchors[i], tile),
                    _view(group.remainders[i], tile),
                    _view(group.buffers[i], tile),
                    None if bits is None else unpack(bits, tile),
                )
                reference.sgld_step(
                    operands,
                    tile,
                    group.sampler,
                    scalars,
                    key=key,
                    tensor_id=group.tensor_ids[i],
                    step=step,
                    kind=group.noise,
                    xi=xi,
                    total=None if group.sums is None else group.sums[group.slots[n]],
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
        for i in range(0, out.numel(), reference.CHUNK):
            part = out[i : i + reference.CHUNK]
            index = torch.arange(part.numel(), dtype=torch.int64, device=out.device) + (start + i)
            part.copy_(noise.normal_at(index, key, step=step, tensor_id=tensor_id, domain=domain, kind=kind))


def _view(t: Tensor | None, tile: Tile) -> Tensor | None:
    return None if t is None else view(t, tile)


def load(option: str) -> Backend:
    if option:
        raise BackendError(f"backend 'reference' has no variant {option!r}: use 'reference'")
    return Reference()
