"""A nested state in one file, with a digest at its end; written and read without a second copy in memory."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..errors import ArgumentTypeError
from .files import replaced

MAGIC = b"llc_fast checkpoint 1\n"
DIGEST = 16  # bytes


class Damaged(ValueError):
    """The file is not what was written."""


def dump(path: Path, state: Any) -> None:
    """Write a state of dicts, lists, tuples, numbers, strings, bytes, None, arrays and tensors; whole or not at all."""
    blobs: list[Any] = []
    form = _encode(state, "state", blobs)
    head = json.dumps({"form": form, "sizes": [blob.nbytes for blob in blobs]}).encode()
    with replaced(path) as file:
        digest = hashlib.blake2b(digest_size=DIGEST)
        for part in (MAGIC, len(head).to_bytes(8, "little"), _digest(head), head):
            digest.update(part)
            file.write(part)
        for blob in blobs:
            content = _view(blob)
            digest.update(content)
            file.write(content)
        file.write(digest.digest())


def load(path: Path) -> Any:
    """What `dump` wrote. Raises Damaged."""
    size = path.stat().st_size
    with path.open("rb") as file:
        digest = hashlib.blake2b(digest_size=DIGEST)
        start = file.read(len(MAGIC) + 8 + DIGEST)
        if not start.startswith(MAGIC):
            raise Damaged("it does not start as a checkpoint does")
        length = int.from_bytes(start[len(MAGIC) : len(MAGIC) + 8], "little")
        text = file.read(min(length, size))
        if _digest(text) != start[len(MAGIC) + 8 :]:
            raise Damaged("its head cannot be read")
        head = json.loads(text)
        whole = len(start) + length + sum(head["sizes"]) + DIGEST
        if whole != size:
            raise Damaged(f"it has {size} bytes, not {whole}")
        digest.update(start + text)
        state = _decode(head["form"], file, digest)
        if file.read() != digest.digest():
            raise Damaged("its digest does not fit its content")
    return state


def _encode(value: Any, where: str, blobs: list[Any]) -> Any:
    torch = sys.modules.get("torch")  # without it there is no tensor
    if torch is not None and isinstance(value, torch.Tensor):
        blobs.append(value.detach())
        return ["tensor", str(value.dtype).removeprefix("torch."), list(value.shape)]
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biufcUS":
        blobs.append(np.asarray(value))
        return ["array" if isinstance(value, np.ndarray) else "scalar", value.dtype.str, list(value.shape)]
    if isinstance(value, bytes):
        blobs.append(np.frombuffer(value, np.uint8))
        return ["bytes", len(value)]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, dict):
        for key in value:
            if type(key) not in (str, int):
                raise ArgumentTypeError(f"{where} has a key {key!r}, expected words and whole numbers")
        return ["dict", [[k, _encode(v, f"{where}[{k!r}]", blobs)] for k, v in value.items()]]
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return [kind, [_encode(v, f"{where}[{i}]", blobs) for i, v in enumerate(value)]]
    raise ArgumentTypeError(f"{where} is a {type(value).__name__}, which a checkpoint cannot hold")


def _decode(form: Any, file: BinaryIO, digest: Any) -> Any:
    """Blobs come in the order of the form, so each is read straight into its place."""
    if not isinstance(form, list):
        return form
    kind = form[0]
    if kind == "dict":
        return {key: _decode(value, file, digest) for key, value in form[1]}
    if kind in ("list", "tuple"):
        values = [_decode(value, file, digest) for value in form[1]]
        return values if kind == "list" else tuple(values)
    if kind == "bytes":
        data = file.read(form[1])
        digest.update(data)
        return data
    whole: Any
    if kind == "tensor":
        import torch

        whole = torch.empty(form[2], dtype=getattr(torch, form[1]))
    else:
        whole = np.empty(form[2], dtype=form[1])
    part = _view(whole)
    file.readinto(part)  # type: ignore[attr-defined]
    digest.update(part)
    return whole[()] if kind == "scalar" else whole


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=DIGEST).digest()


def _view(blob: Any) -> memoryview:
    """The bytes of an array or tensor, in place where they lie in order on the CPU."""
    if not isinstance(blob, np.ndarray):
        import torch

        blob = blob.cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    flat: Any = np.ascontiguousarray(blob).reshape(-1).view(np.uint8)
    return memoryview(flat)
