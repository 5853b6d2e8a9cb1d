"""What is at a path where a run wants to write, and whether it may."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..errors import ArgumentError, ArgumentTypeError, OutputError
from . import state
from .folder import FORMAT, Run, layout
from .plain import differences
from .reading import needed
from .spec import Spec

# Settings of where and how a run was made, which change what is rounded, not what it estimates.
CIRCUMSTANCES = ("versions", "backend", "devices", "stacked", "stacked_asked")


def at(path: str | os.PathLike[str]) -> tuple[Path, Run]:
    """The absolute path of a store, and its run's files. Raises OutputError where no store can be."""
    if not isinstance(path, str | os.PathLike) or not isinstance(os.fspath(path), str):
        raise ArgumentTypeError(
            f"output_path is a {type(path).__name__}: give a path, such as 'samples.zarr'"
        )
    text = os.fspath(path)
    if not text or "\0" in text:
        raise ArgumentError(f"output_path is {text!r}: give a path, such as 'samples.zarr'")
    if re.match(r"[A-Za-z][\w+.-]+:/", text):  # Path keeps one slash of a URL
        raise ArgumentError(
            f"output_path is {text!r}, no local path: write to a local one and copy the finished store"
        )
    try:
        place = Path(path).expanduser().absolute().resolve()
    except RuntimeError as e:  # of a home directory or a circle of links
        raise ArgumentError(f"output_path is {text!r}, which leads nowhere ({e}): give another path") from e
    for folder in (place, *place.parents):
        if folder.exists() and not folder.is_dir():
            what = "is a file" if folder == place else f"cannot be made: {folder} is a file"
            raise OutputError(f"{path} {what}: give a path that is free, such as samples.zarr")
    if place == Path.cwd() or place in Path.cwd().parents:
        raise OutputError(f"{path} is the working directory or above it: give a path that is free")
    return place, Run(place.with_name(f"{place.name}.run"))


def absent(path: Path) -> bool:
    """Whether a new store can take the path: nothing or an empty folder is there."""
    return not path.exists() or not any(path.iterdir())


def finished(path: Path, identity: Any) -> str | None:
    """Where the finished store of this very run is there: how differently it was made, or nothing; None if it is not.

    Raises OutputError if it is another finished one.
    """
    if absent(path):
        return None
    attrs = _attributes(path)
    if attrs is None or attrs.get("completed") != 1:
        return None
    own = attrs.get("llc_fast")
    if not isinstance(own, dict) or "identity" not in own:
        raise OutputError(f"{path} holds a finished store that llc_fast did not write: {_elsewhere('it')}")
    was, stored = _parted(own["identity"])
    now, asked = _parted(identity)
    different = differences(stored, asked)
    if different:
        raise OutputError(
            f"{path} holds a finished run that differs from this one: {_elsewhere('it')}{different}"
        )
    return differences(was, now)


def _parted(identity: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Where a run was made, and what it is of: a finished one stays good when versions and machines change."""
    settings = identity.get("settings")
    if not isinstance(settings, dict):
        return {}, identity
    where = {name: settings[name] for name in CIRCUMSTANCES if name in settings}
    return where, {**identity, "settings": {k: v for k, v in settings.items() if k not in where}}


def _elsewhere(what: str) -> str:
    return f"choose another path (or delete {what} if not needed)"


def check_unfinished(
    path: Path, run: Run, identity: Any, specs: Iterable[Spec], resume: bool
) -> dict[str, Any]:
    """The manifest of the run that can be continued here. Raises OutputError if there is none, or not this one."""
    delete = _elsewhere(f"{path} and {run.folder.name} beside it")
    found = _attributes(path)
    if not run.manifest.exists() or (found is not None and "llc_fast" not in found):
        raise OutputError(_foreign(path, run, found))
    try:
        note = json.loads(run.manifest.read_bytes())
        stored, arrays, attrs = note["identity"], note["layout"], note["attrs"]
    except (ValueError, KeyError, TypeError) as e:
        raise OutputError(f"{run.manifest} is damaged, so {path} cannot be continued: {delete}") from e
    different = differences(stored, identity)
    if different:
        raise OutputError(f"{path} holds an unfinished run that differs from this one: {delete}{different}")
    if note["format"] != FORMAT or arrays != json.loads(json.dumps(layout(specs))):
        raise OutputError(f"{path} holds an unfinished run of another version of llc_fast: {delete}")
    if not resume:
        raise OutputError(f"{path} holds this run, unfinished: resume=True continues it; else {delete}")
    return {"attrs": attrs}


def last_checkpoint(path: Path, run: Run) -> Any:
    """What the checkpoint holds, or None if there is none. Raises OutputError if it is damaged."""
    try:
        return state.load(run.checkpoint)
    except FileNotFoundError:
        return None
    except state.Damaged as e:
        raise OutputError(
            f"{run.checkpoint} is damaged ({e}), so {path} cannot be continued: what {path} holds can still be "
            f"read; to start anew {_elsewhere(f'{path} and {run.folder}')}"
        ) from e


def _attributes(path: Path) -> dict[str, Any] | None:
    """The root's attributes; None if they cannot be read."""
    zarr = needed("zarr")
    try:
        return dict(zarr.open_group(str(path), mode="r").attrs.asdict())
    except Exception:  # of zarr or its JSON reader, other ones in each version
        return None


def _foreign(path: Path, run: Run, attrs: dict[str, Any] | None) -> str:
    """Why a folder with content is not continued."""
    if not any((path / name).exists() for name in ("zarr.json", ".zgroup")):
        return f"{path} is a folder with other content and no zarr.json: choose another path"
    if attrs is None:
        return f"{path} is a Zarr store whose metadata cannot be read: {_elsewhere('it')}"
    if "llc_fast" not in attrs:
        return f"{path} is a Zarr store of another program, no run of llc_fast is known for it: {_elsewhere('it')}"
    return (
        f"{path} holds an unfinished run, but {run.folder.name} with its checkpoint is not beside it, so it "
        f"cannot be continued: put that back, or {_elsewhere('the store')}"
    )
