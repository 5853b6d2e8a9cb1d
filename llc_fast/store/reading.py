"""Opening a store, and the two libraries that this needs."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ArgumentError, DataError

if TYPE_CHECKING:
    import numpy as np
    import xarray as xr


DAMAGED = "the store is damaged: take it from a copy, or sample anew at another path"


def require() -> None:
    """Raise ArgumentError unless stores can be written and read here."""
    for name, fits, least in (
        ("xarray", hasattr(needed("xarray"), "DataTree"), "2024.10"),
        ("zarr", hasattr(needed("zarr"), "create_array"), "3"),
    ):
        if not fits:
            raise ArgumentError(
                f"stores need {name} {least} or later, here is {needed(name).__version__}: "
                "pip install -U 'llc-fast[store]'"
            )


def needed(name: str) -> Any:
    """xarray or zarr, imported when it is used."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as e:
        raise ArgumentError(f"stores need {e.name}: pip install 'llc-fast[store]'") from e


def open_tree(source: Any) -> xr.DataTree:
    """The tree of a store, read lazily; also while a run still writes it.

    source: a path, or a zarr store such as a Writer's `store`. Raises DataError.
    """
    require()
    xarray = needed("xarray")
    remedy = DAMAGED
    if isinstance(source, str | Path):
        path = Path(source).expanduser()
        if not path.exists():
            raise DataError(f"{path} does not exist: give the path of a Zarr store")
        if not path.is_dir():
            raise DataError(f"{path} is a file: give the folder of a Zarr store")
        if not any((path / name).exists() for name in ("zarr.json", ".zgroup")):
            raise DataError(f"{path} is no Zarr store: it has no zarr.json")
        if path.with_name(f"{path.name}.run").is_dir():
            remedy = "if a run was killed while writing it, sample(..., resume=True) repairs it, else it is damaged"
        source = str(path)
    try:
        tree: xr.DataTree = xarray.open_datatree(source, engine="zarr", consolidated=False)
    except Exception as e:
        raise DataError(f"{source} cannot be read as a Zarr store ({type(e).__name__}: {e}): {remedy}") from e
    return tree


def values(array: xr.DataArray, name: str, tree: xr.DataTree) -> np.ndarray:
    """What an array of a tree holds. Raises DataError, naming the store, where its chunks are damaged."""
    try:
        found: np.ndarray = array.values
        return found
    except MemoryError:
        raise
    except Exception as e:  # of zarr and its codecs, other ones in each version
        raise DataError(f"{name} of {named(tree)} cannot be read ({type(e).__name__}: {e}): {DAMAGED}") from e


def named(tree: xr.DataTree) -> str:
    """What to call a tree in a message: its store's path where there is one."""
    return str(tree.encoding.get("source") or "the tree")
