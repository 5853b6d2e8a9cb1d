"""The most memory that a call takes."""

from __future__ import annotations

import ctypes
import gc
import re
import sys
from collections.abc import Callable
from pathlib import Path

import torch

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_bytes(call: Callable[[], object], device: torch.device | str = "cpu") -> int | None:
    """Bytes of memory during the call beyond those before it; None where it cannot be known.

    On a GPU what PyTorch handed out, on a CPU the process's resident memory (Linux). Make the call once before, so
    that libraries it loads are not counted.
    """
    gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    if not _reset():
        call()
        return None
    before = _resident("VmRSS")
    call()
    return max(0, _resident("VmHWM") - before)


def _reset() -> bool:
    """Free memory back to the system, where the allocator can, and the high-water mark down to what is in use."""
    if not sys.platform.startswith("linux"):
        return False
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)
    try:
        RESET.write_text("5")
    except OSError:
        return False
    return True


def _resident(key: str) -> int:
    found = re.search(rf"^{key}:\s*(\d+) kB", STATUS.read_text(), re.M)
    assert found is not None
    return int(found[1]) << 10
