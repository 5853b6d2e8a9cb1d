"""The Zarr tree of a run: written as it goes, readable while it runs, killable at any moment, one writer only."""

from .reading import open_tree, require
from .spec import Spec
from .writer import Writer

__all__ = ["Spec", "Writer", "open_tree", "require"]
