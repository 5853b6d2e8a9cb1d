"""One writer to a store: a lock that the kernel releases when its holder dies."""

from __future__ import annotations

import importlib
import json
import os
import socket
import weakref
from pathlib import Path
from typing import Any

from ..errors import OutputError

_held: weakref.WeakSet[Lock] = weakref.WeakSet()


class Lock:
    """The lock of a run folder, which is made if it is not there. Raises OutputError if a living process has it."""

    def __init__(self, folder: Path, store: Path) -> None:
        self.path = folder / "lock"
        self._fd = -1
        _fcntl(store)  # before a folder is made
        while self._fd < 0:
            folder.mkdir(exist_ok=True)
            try:
                fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            except FileNotFoundError:
                continue  # its last holder has just removed the folder
            try:
                self._take(fd, store)
            except BaseException:
                os.close(fd)
                raise
        note = json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode()
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, note, 0)
        _held.add(self)

    def _take(self, fd: int, store: Path) -> None:
        fcntl = _fcntl(store)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            raise OutputError(
                f"{store} is being written by {_holder(fd)}: wait until it ends, stop it, or choose another path"
            ) from e
        except OSError as e:
            raise OutputError(
                f"{self.path.parent} is on a file system without locks ({e.strerror}), so a second writer "
                "could not be kept out: choose a path on another one"
            ) from e
        try:
            current = os.stat(self.path)
        except FileNotFoundError:
            current = None
        if current is not None and os.path.samestat(current, os.fstat(fd)):
            self._fd = fd
        else:
            os.close(fd)  # a finishing process removed this file after it was opened

    def release(self) -> None:
        """Let go; a forked child only forgets, as an unlock there would be its parent's."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        _held.discard(self)


def _fcntl(store: Path) -> Any:
    """The module of file locks, which Windows does not have."""
    try:
        return importlib.import_module("fcntl")
    except ModuleNotFoundError as e:
        raise OutputError(
            f"{store} cannot be written: this system has no fcntl, so a second writer could not be kept out; "
            "leave output_path out, or use Linux, macOS or WSL"
        ) from e


def _holder(fd: int) -> str:
    try:
        note = json.loads(os.pread(fd, 4096, 0))
        return f"process {note['pid']} on {note['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def _forget() -> None:
    for lock in [*_held]:
        lock.release()


if hasattr(os, "register_at_fork"):  # where there are forks
    os.register_at_fork(after_in_child=_forget)
