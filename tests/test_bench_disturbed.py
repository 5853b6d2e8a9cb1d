"""Benchmarks notice other work on the machine, and say so beside the numbers."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest

from llc_fast.benchmarks import _machine, run
from llc_fast.benchmarks._table import Report, Table
from llc_fast.benchmarks._work import Setting

CORES = os.cpu_count() or 1


def test_other_work_is_noticed(monkeypatch):
    clocks = iter([(0.0, 100.0, 50.0), (10.0, 100.0 + 4.0 * CORES, 50.0 + 1.0 * CORES)])
    monkeypatch.setattr(_machine.Others, "_now", staticmethod(lambda: next(clocks)))
    assert _machine.Others().share() == pytest.approx(0.3)


@pytest.mark.parametrize(("share", "warned"), [(0.3, True), (0.01, False), (None, False)])
def test_a_disturbed_table_says_so(monkeypatch, share, warned):
    def tables(setting):
        yield Table("t", "T", [], "How to read it.")

    monkeypatch.setattr(run, "import_module", lambda *_: SimpleNamespace(tables=tables))
    monkeypatch.setattr(_machine.Others, "share", lambda self: share)
    (table,) = run.ask(["step"], Setting(scale="tiny"))
    assert table.others == share
    assert ("WARNING: other work took 30% of the processors" in table.text()) == warned
    assert table.text().endswith("How to read it.")


@pytest.mark.parametrize(
    ("others", "warned"), [([0.01, 0.02], False), ([0.01, None], False), ([None], True), ([0.3], True)]
)
def test_a_load_from_before_is_forgotten_where_tables_know_better(others, warned):
    machine = {"cores": 2, "threads": 2, "load": [1.5, 0, 0], "after": {"load": [2.0, 0, 0]}}
    tables = [Table(str(i), "T", [], others=share) for i, share in enumerate(others)]
    assert bool(Report("bench", machine, tables).warnings()) == warned
