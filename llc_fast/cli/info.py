"""What `llc-fast info` says."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import platform
from typing import Any

import torch

from .. import __version__, backends
from ..backends import cpu_backend

_VERSIONS = ("torch", "triton", "numpy", "transformers", "tokenizers", "safetensors")


def show(*, as_json: bool) -> None:
    facts = collect()
    print(json.dumps(facts, indent=2) if as_json else _text(facts))


def versions() -> dict[str, str | None]:
    """Version of llc_fast, Python and the packages that matter here; None if not installed."""
    found: dict[str, str | None] = {"llc_fast": __version__, "python": platform.python_version()}
    for name in _VERSIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def collect() -> dict[str, Any]:
    """Facts about this installation and machine, ready for JSON."""
    isas = cpu_backend.isas()
    return {
        "versions": versions(),
        "platform": platform.platform(),
        "isa": {"in_use": isas[0] if isas else None, "available": isas},
        "backends": {name: backends.missing(name) for name in backends.NAMES},
        "cuda": {
            "architectures": _architectures(),
            "torch": torch.version.cuda,
            "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        },
        "threads": torch.get_num_threads(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "openmp": bool(getattr(_extension("_cpu"), "openmp", False)),
    }


def _architectures() -> list[str]:
    """What the CUDA extension holds: machine code (sm_90), PTX (compute_80) or both; empty if it was not built."""
    names = str(getattr(_extension("_cuda"), "archs", "")).replace(";", ",").split(",")
    found = []
    for number, _, kind in (name.strip().partition("-") for name in names if name.strip()):
        found += [f"sm_{number}"] if kind != "virtual" else []
        found += [f"compute_{number}"] if kind != "real" else []
    return found


def _extension(name: str) -> Any:
    try:
        return importlib.import_module(f"llc_fast.{name}")
    except ImportError:
        return None


def _text(facts: dict[str, Any]) -> str:
    isa, cuda = facts["isa"], facts["cuda"]
    others = ", ".join(isa["available"]) or "none"
    lines = {name: version or "not installed" for name, version in facts["versions"].items()}
    lines["platform"] = facts["platform"]
    lines["cpu"] = f"{isa['in_use'] or 'no extension'} (available: {others})"
    lines["threads"] = (
        f"{facts['threads']} of {facts['cores']} cores, OpenMP {'on' if facts['openmp'] else 'off'}"
    )
    lines["cuda code"] = ", ".join(cuda["architectures"]) or "not built"
    lines["cuda in torch"] = cuda["torch"] or "none"
    lines["gpus"] = ", ".join(cuda["devices"]) or "none"
    width = max(map(len, lines))
    text = [f"{name:{width}}  {value}" for name, value in lines.items()]
    text.append("backends, best first:")
    text += [f"  {name:{width - 2}}  {why or 'ready'}" for name, why in facts["backends"].items()]
    return "\n".join(text)
