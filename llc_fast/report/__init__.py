"""Results on disk: a directory written whole, JSON and arrays, and the heat map."""

from .document import MARKS, Cell, Table, to_json, to_npz
from .heatmap import heatmap
from .output import check, write

__all__ = ["MARKS", "Cell", "Table", "check", "heatmap", "to_json", "to_npz", "write"]
