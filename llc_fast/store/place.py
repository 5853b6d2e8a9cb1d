"""What is at a path where a run wants to write, and whether it may."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import OutputError
from . import state
from .files import replaced
from .plain import differences
from .reading import needed
from .spec import Spec

FORMAT = 1


class Run(NamedTuple):
    """The files beside a store while a run goes on."""

    folder: Path

    @property
    def manifest(self) -> Path:
        return self.folder / "run.json"

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint"

    @property
    def moved(self) -> Path:
        return self.folder / "moved"

    @property
    def tree(self) -> Path:
        return self.folder / "tree"

    def describe(self, specs: Iterable[Spec], attrs: Any, identity: Any) -> None:
        """Write down what run this is."""
        note = {"format": FORMAT, "identity": identity, "layout": _layout(specs), "attrs": attrs}
        with replaced(self.manifest) as file:
            file.write(json.dumps(note).encode())

    def journal(self) -> int | None:
        """How many of the last steps are done; None if they have not begun."""
        return int(self.moved.read_text()) if self.moved.exists() else None

    def mark(self, steps: int) -> None:
        with replaced(self.moved) as file:
            file.write(b"%d" % steps)


def at(path: str | Path) -> tuple[Path, Run]:
    """The absolute path of a store, and its run's files. Raises OutputError where no store can be."""
    if "://" in str(path):
        raise OutputError(f"{path} is not a local path: write to a local one and copy the finished store")
    place = Path(path).expanduser().absolute().resolve()
    if place.exists() and not place.is_dir():
        raise OutputError(f"{path} is a file: give a path that is free, such as samples.zarr")
    if place == Path.cwd() or place in Path.cwd().parents:
        raise OutputError(f"{path} is the working directory or above it: give a path that is free")
    return place, Run(place.with_name(f"{place.name}.run"))


def absent(path: Path) -> bool:
    """Whether a new store can take the path: nothing or an empty folder is there."""
    return not path.exists() or not any(path.iterdir())


def finished(path: Path, identity: Any) -> bool:
    """Whether the finished store of this very run is there. Raises OutputError if it is another finished one."""
    if absent(path):
        return False
    attrs = _attributes(path)
    if attrs is None or attrs.get("completed") != 1:
        return False
    own = attrs.get("llc_fast")
    if not isinstance(own, dict) or "identity" not in own:
        raise OutputError(
            f"{path} holds a finished store that llc_fast did not write: choose another path or delete it"
        )
    different = differences(own["identity"], identity)
    if different:
        raise OutputError(
            f"{path} holds a finished run that differs from this one: choose another path or delete it{different}"
        )
    return True


def check_unfinished(
    path: Path, run: Run, identity: Any, specs: Iterable[Spec], resume: bool
) -> dict[str, Any]:
    """The manifest of the run that can be continued here. Raises OutputError if there is none, or not this one."""
    delete = f"choose another path, or delete {path} and {run.folder.name} beside it"
    if not run.manifest.exists():
        raise OutputError(_foreign(path, run))
    try:
        note = json.loads(run.manifest.read_bytes())
        stored, layout, attrs = note["identity"], note["layout"], note["attrs"]
    except (ValueError, KeyError, TypeError) as e:
        raise OutputError(f"{run.manifest} is damaged, so {path} cannot be continued: {delete}") from e
    different = differences(stored, identity)
    if different:
        raise OutputError(f"{path} holds an unfinished run that differs from this one: {delete}{different}")
    if note["format"] != FORMAT or layout != json.loads(json.dumps(_layout(specs))):
        raise OutputError(f"{path} holds an unfinished run of another version of llc_fast: {delete}")
    if not resume:
        raise OutputError(f"{path} holds this run, unfinished: resume=True continues it, else {delete}")
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
            f"read; delete {path} and {run.folder} to start anew"
        ) from e


def _layout(specs: Iterable[Spec]) -> list[Any]:
    return [spec.layout() for spec in specs]


def _attributes(path: Path) -> dict[str, Any] | None:
    """The root's attributes; None if they cannot be read."""
    zarr = needed("zarr")
    try:
        return dict(zarr.open_group(str(path), mode="r").attrs.asdict())
    except Exception:  # of zarr or its JSON reader, other ones in each version
        return None


def _foreign(path: Path, run: Run) -> str:
    """Why a folder with content is not continued."""
    if not any((path / name).exists() for name in ("zarr.json", ".zgroup")):
        return f"{path} is a folder with other content and no zarr.json: choose another path"
    attrs = _attributes(path)
    if attrs is None:
        return f"{path} is a Zarr store whose metadata cannot be read: choose another path or delete it"
    if "llc_fast" not in attrs:
        return (
            f"{path} holds an unfinished store that llc_fast did not write: choose another path or delete it"
        )
    return (
        f"{path} holds an unfinished run, but {run.folder.name} with its checkpoint is not beside it, so it "
        "cannot be continued: put that back, choose another path or delete the store"
    )
