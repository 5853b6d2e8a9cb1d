"""Opening a store, and the two libraries that this needs."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ArgumentError, DataError

if TYPE_CHECKING:
    import xarray as xr


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
    xarray = needed("xarray")
    needed("zarr")
    if isinstance(source, str | Path):
        path = Path(source).expanduser()
        if not path.exists():
            raise DataError(f"{path} does not exist: give the path of a Zarr store")
        if not path.is_dir():
            raise DataError(f"{path} is a file: give the folder of a Zarr store")
        if not any((path / name).exists() for name in ("zarr.json", ".zgroup")):
            raise DataError(f"{path} is no Zarr store: it has no zarr.json")
        source = str(path)
    try:
        tree: xr.DataTree = xarray.open_datatree(source, engine="zarr", consolidated=False)
    except Exception as e:
        raise DataError(
            f"{source} cannot be read as a Zarr store ({type(e).__name__}: {e}): if a run was killed while "
            "writing it, sample(..., resume=True) repairs it, else it is damaged"
        ) from e
    return tree
