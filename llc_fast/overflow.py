"""Whether fp16 weights have left fp16's range: seen at once on a CPU, on a device a step or more later."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .errors import WeightOverflowError


class Overflow:
    """Watches tensors for infinities, without waiting for a device."""

    def __init__(self, halves: Sequence[Tensor]) -> None:
        self.halves: dict[torch.device, list[Tensor]] = {}
        for p in halves:
            if p.numel() == 0:
                continue
            self.halves.setdefault(p.device, []).append(p)
        self._pending: list[tuple[Tensor, torch.cuda.Event]] = []

    def watch(self) -> None:
        """Look at the tensors as they are now; raises WeightOverflowError for what is known to have overflowed."""
        if not self.halves:
            return
        if any(device.type == "cuda" for device in self.halves) and torch.cuda.is_current_stream_capturing():
            return
        waiting = []
        for host, copied in self._pending:
            if copied.query():
                self._judge(host)
            else:
                waiting.append((host, copied))
        self._pending = waiting
        for device, tensors in self.halves.items():
            if device.type != "cuda":
                # Bits of infinities and NaNs are the largest; only where there are any, which is asked.
                odd = [p for p in tensors if int((p.view(torch.int16) & 0x7FFF).max()) >= 0x7C00]
                for p in odd:
                    self._judge(p.isinf().any())
                continue
            overflowed = torch.stack(torch._foreach_norm(tensors, float("inf"))).max().isinf()
            if len(self._pending) < 8:
                host = torch.empty((), dtype=overflowed.dtype, pin_memory=True)
                host.copy_(overflowed, non_blocking=True)
                copied = torch.cuda.Event()
                copied.record(torch.cuda.current_stream(device))
                self._pending.append((host, copied))

    def _judge(self, overflowed: Tensor) -> None:
        if overflowed:
            self._pending = []
            raise WeightOverflowError(
                "a float16 weight exceeds 65504: use a smaller lr, a bounding box, or a bfloat16 or float32 model"
            )
