"""SHA-256 of what an estimate was made of: weights and data."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from .types import Box


class _Hash(Protocol):
    def update(self, data: Any, /) -> None: ...


def weights_digest(weights: Iterable[tuple[str, Sequence[Box], Tensor]]) -> str:
    """SHA-256 of selected weights: of each parameter its name, dtype, shape, boxes and their elements' bytes."""
    h = hashlib.sha256()
    for name, boxes, parameter in weights:
        _frame(h, "parameter", f"{name} {parameter.dtype} {tuple(parameter.shape)}".encode())
        flat = parameter.detach().cpu().contiguous().view(-1)
        for box in boxes:
            _frame(h, "box", f"{box.start} {box.rows} {box.cols} {box.stride}".encode())
            h.update(_bytes(flat.as_strided((box.rows, box.cols), (box.stride, 1), box.start)))
    return h.hexdigest()


def data_digest(batches: Sequence[Any]) -> tuple[str | None, str]:
    """SHA-256 of a pool's batches; None and the name of the type where one holds what has no bytes of its own."""
    h = hashlib.sha256()
    try:
        _feed(h, batches)
    except TypeError as e:
        return None, str(e)
    return h.hexdigest(), ""


def _feed(h: _Hash, value: Any) -> None:
    """Hash a value with its type and length, so that no two different values give the same bytes."""
    if isinstance(value, Tensor) and value.layout == torch.strided and not value.is_quantized:
        _frame(h, "tensor", f"{value.dtype} {tuple(value.shape)}".encode())
        h.update(_bytes(value))
    elif isinstance(value, np.ndarray | np.generic) and not value.dtype.hasobject:
        _frame(h, "array", f"{value.dtype.str} {value.shape}".encode())
        h.update(np.ascontiguousarray(value).tobytes())
    elif isinstance(value, bytes | bytearray):
        _frame(h, "bytes", bytes(value))
    elif value is None or isinstance(value, bool | int | float | complex | str):
        _frame(h, type(value).__name__, repr(value).encode(errors="surrogatepass"))
    elif isinstance(value, Mapping):
        _frame(h, "mapping", str(len(value)).encode())
        for key, item in value.items():
            _feed(h, key)
            _feed(h, item)
    elif isinstance(value, list | tuple):
        _frame(h, "sequence", str(len(value)).encode())
        for item in value:
            _feed(h, item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        _frame(h, "dataclass", type(value).__qualname__.encode())
        _feed(h, {f.name: getattr(value, f.name) for f in dataclasses.fields(value)})
    else:
        raise TypeError(type(value).__name__)


def _frame(h: _Hash, kind: str, content: bytes) -> None:
    h.update(f"{kind} {len(content)}\n".encode())
    h.update(content)


def _bytes(t: Tensor) -> Any:
    """Elements in row-major order, as a buffer."""
    t = t.detach().resolve_conj().resolve_neg().cpu().contiguous()
    return t.view(-1).view(torch.uint8).numpy()


def loss_digest(loss_fn: Any) -> str:
    """What tells a loss from another: its name, and SHA-256 of its code and of the values that it closes over.

    Values without bytes of their own count by their type. "default" for None.
    """
    if loss_fn is None:
        return "default"
    fn = getattr(loss_fn, "__wrapped__", loss_fn)
    name = f"{getattr(fn, '__module__', '')}.{getattr(fn, '__qualname__', type(fn).__qualname__)}"
    code = getattr(fn, "__code__", None) or getattr(type(fn).__call__, "__code__", None)
    h = hashlib.sha256()
    if code is not None:
        _feed_code(h, code)
    cells = [*(getattr(fn, "__closure__", None) or ()), *(getattr(fn, "__defaults__", None) or ())]
    for cell in cells:
        try:
            value = getattr(cell, "cell_contents", cell)
            _feed(h, value)
        except (TypeError, ValueError):  # without bytes, or empty
            _frame(h, "object", type(getattr(cell, "cell_contents", cell)).__qualname__.encode())
    return f"{name} {h.hexdigest()}"


def _feed_code(h: _Hash, code: Any) -> None:
    _frame(h, "code", code.co_code)
    _frame(h, "names", repr((code.co_names, code.co_varnames)).encode())
    for constant in code.co_consts:
        if hasattr(constant, "co_code"):
            _feed_code(h, constant)
        else:
            fixed = sorted(constant, key=repr) if isinstance(constant, frozenset) else constant
            _frame(h, "constant", repr(fixed).encode())
