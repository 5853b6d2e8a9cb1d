"""The command line, `llc-fast`; what it needs beyond torch is the extra llc-fast[cli]."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

EXTRA = ("typer", "rich", "transformers", "tokenizers", "safetensors", "matplotlib", "pyarrow")


def main() -> None:
    """Run `llc-fast` with the process's arguments, and exit: 0 done, 1 some cells failed, 2 an error, 130 Ctrl-C."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # model directories are local
    try:
        from .app import app

        app(gather(sys.argv[1:]), prog_name="llc-fast")
    except ModuleNotFoundError as e:
        if (e.name or "").partition(".")[0] not in EXTRA:
            raise
        print(f"error: llc-fast needs {e.name}: pip install 'llc-fast[cli]'", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        sys.exit(130)


def gather(arguments: Sequence[str]) -> list[str]:
    """The arguments with `--data NAME=a b NAME=c` made three options, for file lists that the shell expanded.

    After `--data NAME=FILE`, whatever names an existing file, or starts with `NAME=`, belongs to it.
    """
    found: list[str] = []
    name = ""
    previous = ""
    for argument in arguments:
        if previous == "--data" or argument.startswith("--data="):
            name = argument.removeprefix("--data=").partition("=")[0] + "="
        elif name and argument.startswith(name):
            found.append("--data")
        elif name and Path(argument).is_file():
            found.append("--data")
            argument = name + argument
        else:
            name = ""
        found.append(argument)
        previous = argument
    return found
