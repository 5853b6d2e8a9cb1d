"""What a reader needs to judge a timing: the machine, what it was doing, and the versions of all that ran."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import re
import subprocess
import time
from pathlib import Path

import torch

import llc_fast
from llc_fast.backends import cpu_backend

PACKAGES = ("torch", "triton", "numpy", "devinterp", "posteriors", "blackjax", "jax", "transformers")


def machine(device: torch.device | str = "cpu") -> dict[str, object]:
    """Facts, ready for JSON; the load is that of the last minute, so take them before anything is run.

    A run adds what `state` says at its end as "after".
    """
    facts: dict[str, object] = {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": commit(),
        "cpu": cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "isa": cpu_backend.isas()[0] if cpu_backend.isas() else None,
        "cache_bytes": cache("cpu"),
        "memory_bytes": memory(),
        **state(),
        "python": platform.python_version(),
        "versions": versions(),
    }
    if torch.device(device).type == "cuda":
        found = torch.cuda.get_device_properties(device)
        facts["gpu"] = {
            "name": found.name,
            "memory_bytes": found.total_memory,
            "capability": f"{found.major}.{found.minor}",
            "multiprocessors": found.multi_processor_count,
            "cache_bytes": cache(device),
            "cuda": torch.version.cuda,
            "now": gpu_now(),
        }
    return facts


def state(device: torch.device | str = "cpu") -> dict[str, object]:
    """What changes while a benchmark runs: clocks, and the load of the last minute, 5 and 15."""
    load = [round(x, 2) for x in os.getloadavg()] if hasattr(os, "getloadavg") else None
    facts: dict[str, object] = {"clock_mhz": clock(), "load": load}
    if torch.device(device).type == "cuda":
        facts["gpu"] = gpu_now()
    return facts


def versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"llc_fast": llc_fast.__version__}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def commit() -> str | None:
    """The checkout's commit, with a + if it has been changed since; None outside of one."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        head = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"], cwd=root, capture_output=True, text=True, check=True
        )
        changed = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"], cwd=root, capture_output=True, text=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")


def cpu() -> str:
    found = re.search(r"^model name\s*:\s*(.*)$", _read("/proc/cpuinfo"), re.M)
    return found[1] if found else platform.processor() or platform.machine()


def clock() -> float | None:
    """Mean clock of the cores now, in MHz."""
    values = [float(x) for x in re.findall(r"^cpu MHz\s*:\s*([\d.]+)$", _read("/proc/cpuinfo"), re.M)]
    return round(sum(values) / len(values)) if values else None


def cache(device: torch.device | str) -> int:
    """Bytes of the largest cache: what rotating operands have to exceed. 64 MiB where it is not known."""
    if torch.device(device).type == "cuda":
        return int(getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 64 << 20))
    sizes = [_read(str(p)).strip() for p in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    units = {"K": 10, "M": 20, "G": 30}
    return max((int(s[:-1]) << units[s[-1]] for s in sizes if s and s[-1] in units), default=64 << 20)


def memory(device: torch.device | str = "cpu") -> int:
    """Bytes of memory that are free now."""
    if torch.device(device).type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    found = re.search(r"^MemAvailable:\s*(\d+) kB", _read("/proc/meminfo"), re.M)
    return int(found[1]) << 10 if found else 8 << 30


def gpu_now() -> str | None:
    """Clocks, power and temperature of the first GPU, as nvidia-smi prints them."""
    query = "clocks.sm,clocks.mem,power.draw,temperature.gpu,pstate,driver_version"
    try:
        run = subprocess.run(
            ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=20,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return run.stdout.strip().splitlines()[0] if run.returncode == 0 and run.stdout.strip() else None


class Others:
    """How much of the machine's processors other work takes, from now on."""

    def __init__(self) -> None:
        self._start = self._now()

    def share(self) -> float | None:
        """Of all processors' time since then, between 0 and 1; None where the system does not tell, or too soon."""
        (wall, busy, own), (wall_before, busy_before, own_before) = self._now(), self._start
        if busy is None or busy_before is None or wall - wall_before < 1.0:
            return None
        taken = (busy - busy_before) - (own - own_before)
        return min(1.0, max(0.0, taken / ((wall - wall_before) * (os.cpu_count() or 1))))

    @staticmethod
    def _now() -> tuple[float, float | None, float]:
        """Seconds: of a clock, of all processors' work, and of this process and the children it has waited for."""
        used = os.times()
        own = used.user + used.system + used.children_user + used.children_system
        found = re.match(r"cpu +(.+)", _read("/proc/stat"))
        if found is None:
            return time.monotonic(), None, own
        user, nice, system, _, _, irq, soft, steal, *_ = map(int, found[1].split())
        return time.monotonic(), (user + nice + system + irq + soft + steal) / os.sysconf("SC_CLK_TCK"), own


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
