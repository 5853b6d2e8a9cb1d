"""SHA-256 of a function: its code, and whatever it looks at."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from torch import nn

from .digests import feed, frame, model_digest

DEPTH = 8  # functions within functions, after which names alone count


def loss_digest(loss_fn: Any) -> str:
    """What tells a loss from another: its code, defaults, what it closes over, and the globals that it names.

    Follows partials, methods, callable objects and wrappers. What has no bytes of its own counts by its type.
    "default" for None.
    """
    if loss_fn is None:
        return "default"
    h = hashlib.sha256()
    _value(h, loss_fn, set(), DEPTH)
    name = getattr(loss_fn, "__qualname__", type(loss_fn).__qualname__)
    return f"{name} {h.hexdigest()}"


def _value(h: Any, value: Any, seen: set[int], depth: int) -> None:
    """Hash a value, be it a function or what a function uses."""
    if depth < 0 or id(value) in seen:
        frame(h, "again", b"")
        return
    if isinstance(value, functools.partial):
        for part in (value.func, value.args, value.keywords):
            _value(h, part, seen | {id(value)}, depth - 1)
    elif isinstance(value, MethodType):
        _value(h, value.__func__, seen, depth - 1)
        _value(h, value.__self__, seen, depth - 1)
    elif isinstance(value, FunctionType):
        _function(h, value, seen | {id(value)}, depth)
    elif isinstance(value, nn.Module):
        frame(h, "model", model_digest(value).encode())
        _function(h, type(value).forward, seen | {id(value)}, depth)
    elif isinstance(value, ModuleType | type):
        frame(h, "name", f"{getattr(value, '__module__', '')} {value.__name__}".encode())
    elif isinstance(value, Mapping):
        frame(h, "mapping", str(len(value)).encode())
        for key, item in value.items():
            _value(h, key, seen, depth - 1)
            _value(h, item, seen, depth - 1)
    elif isinstance(value, list | tuple):
        frame(h, "sequence", str(len(value)).encode())
        for item in value:
            _value(h, item, seen, depth - 1)
    else:
        try:
            feed(h, value)
        except TypeError:
            _object(h, value, seen | {id(value)}, depth)


def _function(h: Any, fn: Any, seen: set[int], depth: int) -> None:
    code = getattr(fn, "__code__", None)
    if not isinstance(code, CodeType):
        frame(h, "name", f"{getattr(fn, '__module__', '')} {getattr(fn, '__qualname__', '')}".encode())
        return
    names = _code(h, code)
    cells = []
    for cell in fn.__closure__ or ():
        try:
            cells.append(cell.cell_contents)
        except ValueError:  # empty
            cells.append(None)
    for part in (fn.__defaults__, fn.__kwdefaults__, cells):
        _value(h, part, seen, depth - 1)
    for name in sorted(names & fn.__globals__.keys()):
        used = fn.__globals__[name]
        if getattr(used, "__module__", "").partition(".")[0] not in ("torch", "numpy", "llc_fast"):
            frame(h, "global", name.encode())
            _value(h, used, seen, depth - 1)


def _object(h: Any, value: Any, seen: set[int], depth: int) -> None:
    frame(h, "object", f"{type(value).__module__} {type(value).__qualname__}".encode())
    call = next((c.__dict__["__call__"] for c in type(value).__mro__ if "__call__" in c.__dict__), None)
    if isinstance(call, FunctionType):
        _function(h, call, seen, depth)
        _value(h, getattr(value, "__dict__", None), seen, depth - 1)


def _code(h: Any, code: CodeType) -> set[str]:
    """Hash a function's code; the names that it and the functions in it look up."""
    frame(h, "code", code.co_code)
    frame(h, "names", repr((code.co_names, code.co_varnames)).encode())
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names |= _code(h, constant)
        else:
            fixed = sorted(constant, key=repr) if isinstance(constant, frozenset) else constant
            frame(h, "constant", repr(fixed).encode())
    return names
