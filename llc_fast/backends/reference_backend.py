"""Plain PyTorch behind the backend protocol: any device, fp32, split bf16 and fp64."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import noise, reference
from ..errors import BackendError
from ..group import Backend, Group, Storage
from ..scalars import Scalars
from ..tiles import view


class Reference:
    name = "reference"

    def refuses(self, device_type: str, storage: Storage) -> str | None:
        return None

    def sgld_step(self, group: Group, grads: Sequence[Tensor | None], scalars: Scalars, step: int) -> None:
        for whole, key in zip(group.tiles, group.keys, strict=True):
            i = whole.tensor
            anchor = group.anchors[i] if group.anchors is not None and scalars.needs_anchor else None
            g, lo = grads[i], group.remainders[i]
            for tile in reference.chunks(whole):
                reference.sgld_step(
                    view(group.params[i], tile),
                    None if g is None else view(g, tile),
                    None if anchor is None else view(anchor, tile),
                    None if lo is None else view(lo, tile),
                    tile,
                    key,
                    group.tensor_ids[i],
                    scalars,
                    step,
                )

    def normal(
        self, out: Tensor, *, start: int, key: tuple[int, int], step: int, tensor_id: int, domain: int
    ) -> None:
        for i in range(0, out.numel(), reference.CHUNK):
            part = out[i : i + reference.CHUNK]
            index = torch.arange(part.numel(), dtype=torch.int64, device=out.device) + (start + i)
            part.copy_(noise.normal_at(index, key, step=step, tensor_id=tensor_id, domain=domain))


def load(option: str) -> Backend:
    if option:
        raise BackendError(f"backend 'reference' has no variant {option!r}: use 'reference'")
    return Reference()
