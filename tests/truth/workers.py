"""Child processes of a warm parent: forked, so that they start at once, and killed at will."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

PATIENCE = 120.0  # seconds; a child that takes longer hangs
LAST = 12  # file operations; with them a run ends


@dataclass(frozen=True)
class Ended:
    """status: the exit code, negative for a signal. said: what the job returned, or its error."""

    status: int
    said: dict[str, Any]

    @property
    def killed(self) -> bool:
        return self.status == -signal.SIGKILL


class Worker:
    """A job in a forked child. Threads do not outlive a fork, so the parent must not have started any."""

    def __init__(self, job: Callable[[], dict[str, Any]]) -> None:
        self._read, write = os.pipe()
        self.pid = os.fork()
        self.began = time.monotonic()
        if self.pid:
            os.close(write)
            return
        code = 1
        try:
            os.close(self._read)
            try:
                said = job()
                code = 0
            except BaseException as e:  # whatever it is, the parent is to hear of it
                said = {"error": str(e), "type": type(e).__name__}
            os.write(write, json.dumps(said).encode())
        finally:
            os._exit(code)  # not through the parent's own exit

    def kill(self, after: float) -> None:
        """SIGKILL so many seconds after its start, unless it has ended."""
        time.sleep(max(0.0, self.began + after - time.monotonic()))
        os.kill(self.pid, signal.SIGKILL)  # it is not reaped yet, so the number is still its own

    def wait(self) -> Ended:
        """Its end. A child that hangs is killed, and says so."""
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                break
            if time.monotonic() > self.began + PATIENCE:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                raise TimeoutError(f"a child ran for {PATIENCE:.0f} s")
            time.sleep(0.002)
        with os.fdopen(self._read, "rb") as pipe:
            text = pipe.read()
        return Ended(os.waitstatus_to_exitcode(status), json.loads(text) if text else {})


def counting(job: Callable[[], dict[str, Any]], kill_at: int | None = None) -> Callable[[], dict[str, Any]]:
    """A job that says how many file operations it did, or kills itself before one of them.

    Operations: what brings a file to the disk or into its place, the moments at which a writer is half done.
    """

    def counted() -> dict[str, Any]:
        done = 0

        def watched(call: Callable[..., Any]) -> Callable[..., Any]:
            def operation(*args: Any, **kwargs: Any) -> Any:
                nonlocal done
                if done == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)
                done += 1
                return call(*args, **kwargs)

            return operation

        for name in ("fsync", "replace", "rename", "unlink", "rmdir"):
            setattr(os, name, watched(getattr(os, name)))
        return {**job(), "operations": done}

    return counted


def moment(random_: random.Random, *, seconds: float, operations: int) -> tuple[str, float]:
    """When to kill a run that takes so long: at a time, before a file operation, or before one of its last."""
    how = random_.choice(("time", "time", "operation", "last"))
    if how == "time":
        return how, random_.uniform(0, seconds)
    first = max(0, operations - LAST) if how == "last" else 0
    return "operation", random_.randrange(first, operations)
