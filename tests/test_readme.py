"""The examples of the README and of the docstrings run."""

from __future__ import annotations

import doctest
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def test_the_readme_s_python_runs_as_one_program(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert len(blocks) >= 4
    names: dict[str, object] = {}
    exec("\n".join(blocks), names)
    printed = capsys.readouterr().out
    assert "LLC" in printed
    assert "R-hat" in printed
    assert "note:" not in printed  # an example whose own chains had not settled would teach the wrong thing


@pytest.mark.parametrize(
    "name",
    ["llc_fast.ops", "llc_fast.functional", "llc_fast.optim.samplers", "llc_fast.estimate", "llc_fast.exact"],
)
def test_examples_in_docstrings_run(name: str) -> None:
    module = importlib.import_module(name)
    modules = [module]
    if hasattr(module, "__path__"):
        folder = Path(module.__path__[0])
        modules += [
            importlib.import_module(f"{name}.{p.stem}") for p in folder.glob("_*.py") if p.stem != "__init__"
        ]
    results = [doctest.testmod(m, optionflags=doctest.NORMALIZE_WHITESPACE) for m in modules]
    assert sum(r.attempted for r in results) > 0
    assert sum(r.failed for r in results) == 0
