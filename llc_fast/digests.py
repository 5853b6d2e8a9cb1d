"""SHA-256 of what an estimate was made of: weights and data."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from .types import Box


class _Hash(Protocol):
    def update(self, data: Any, /) -> None: ...


def weights_digest(weights: Iterable[tuple[str, Sequence[Box], Tensor]]) -> str:
    """SHA-256 of selected weights: of each parameter its name, dtype, shape, boxes and their elements' bytes."""
    h = hashlib.sha256()
    for name, boxes, parameter in weights:
        frame(h, "parameter", f"{name} {parameter.dtype} {tuple(parameter.shape)}".encode())
        flat = parameter.detach().cpu().contiguous().view(-1)
        for box in boxes:
            frame(h, "box", f"{box.start} {box.rows} {box.cols} {box.stride}".encode())
            h.update(_bytes(flat.as_strided((box.rows, box.cols), (box.stride, 1), box.start)))
    return h.hexdigest()


def data_digest(batches: Sequence[Any]) -> tuple[str | None, str]:
    """SHA-256 of a pool's batches; None and the name of the type where one holds what has no bytes of its own."""
    h = hashlib.sha256()
    try:
        feed(h, batches)
    except TypeError as e:
        return None, str(e)
    return h.hexdigest(), ""


def feed(h: _Hash, value: Any) -> None:
    """Hash a value with its type and length, so that no two different values give the same bytes."""
    if isinstance(value, Tensor) and value.layout == torch.strided and not value.is_quantized:
        frame(h, "tensor", f"{value.dtype} {tuple(value.shape)}".encode())
        h.update(_bytes(value))
    elif isinstance(value, np.ndarray | np.generic) and not value.dtype.hasobject:
        frame(h, "array", f"{value.dtype.str} {value.shape}".encode())
        h.update(np.ascontiguousarray(value).tobytes())
    elif isinstance(value, bytes | bytearray):
        frame(h, "bytes", bytes(value))
    elif value is None or isinstance(value, bool | int | float | complex | str):
        frame(h, type(value).__name__, repr(value).encode(errors="surrogatepass"))
    elif isinstance(value, Mapping):
        frame(h, "mapping", str(len(value)).encode())
        for key, item in value.items():
            feed(h, key)
            feed(h, item)
    elif isinstance(value, list | tuple):
        frame(h, "sequence", str(len(value)).encode())
        for item in value:
            feed(h, item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        frame(h, "dataclass", type(value).__qualname__.encode())
        feed(h, {f.name: getattr(value, f.name) for f in dataclasses.fields(value)})
    else:
        raise TypeError(type(value).__name__)


def frame(h: _Hash, kind: str, content: bytes) -> None:
    h.update(f"{kind} {len(content)}\n".encode())
    h.update(content)


def _bytes(t: Tensor) -> Any:
    """Elements in row-major order, as a buffer."""
    t = t.detach().resolve_conj().resolve_neg().cpu().contiguous()
    return t.view(-1).view(torch.uint8).numpy()


def model_digest(model: nn.Module) -> str:
    """SHA-256 of all of a model: its modules' names and types, every parameter and buffer."""
    h = hashlib.sha256()
    for name, module in model.named_modules():
        frame(h, "module", f"{name} {type(module).__module__}.{type(module).__qualname__}".encode())
    for name, t in (*model.named_parameters(), *model.named_buffers()):
        frame(h, "tensor", f"{name} {t.dtype} {tuple(t.shape)}".encode())
        h.update(_bytes(t))
    return h.hexdigest()
