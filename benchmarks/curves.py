"""How does the cost of a step grow?

With parameters, tensors, the part that is selected, chains, threads, and with a step's statistics.
"""

from __future__ import annotations

from collections.abc import Iterator

from . import _growth, _parts, _variants
from ._table import Table
from ._work import Setting


def tables(setting: Setting) -> Iterator[Table]:
    by_size = _growth.parameters(setting)
    yield by_size
    by_tensor = _growth.tensors(setting)
    yield by_tensor
    yield _growth.lines(by_size, by_tensor)
    yield _parts.selection(setting)
    yield _variants.chains(setting)
    if not setting.cuda:
        yield _variants.threads(setting)
    yield _variants.statistics(setting)
