"""The demo's parts that are not training: code and prose taken apart, and what it says of a result."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"

SOURCE = '''#!/usr/bin/env python
"""Module words."""

import os  # trailing words

# A comment that is long enough to be read as prose, since it goes on over more than
# one line.
# short


def f(x):
    """Function words.

    >>> f(1)
    1
    """
    s = "# no comment"
    return s  # more


class Empty:
    """Only words."""
'''


@pytest.fixture(autouse=True)
def examples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)


def test_code_and_prose_are_taken_apart() -> None:
    import stdlib_text

    code, prose = stdlib_text.split(SOURCE)
    assert code == (
        'import os\n\ndef f(x):\n    s = "# no comment"\n    return s\n\nclass Empty:\n    """Only words."""'
    )
    assert prose == (
        "Module words.\n\nA comment that is long enough to be read as prose, since it goes on over more than\n"
        "one line.\nshort\n\nFunction words.\n\n1\n\nOnly words."
    )
    compile(code, "code", "exec")


def test_the_standard_library_has_both_and_keeps_modules_apart(tmp_path: Path) -> None:
    import json

    import stdlib_text

    files = stdlib_text.write(tmp_path)
    names = {}
    for name, file in files.items():
        records = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        names[name] = {r["source"] for r in records}
        assert sum(len(r["text"]) for r in records) > (10**5 if "heldout" in name else 10**6)
    for dataset in ("code", "prose"):
        assert not names[f"{dataset}.train"] & names[f"{dataset}.heldout"]
    assert not names["code.train"] & names["prose.heldout"]
    assert {"argparse.py", "textwrap.py"} <= names["code.train"] | names["code.heldout"]


def test_the_demo_explains_what_was_found() -> None:
    import demo

    def cell(component: str, dataset: str, llc: float, mcse: float, marks: str = "") -> dict[str, Any]:
        found = {"component": component, "dataset": dataset, "llc_mean": llc, "mcse": mcse}
        return found | {"weights": 100, "marks": marks, "r_hat": 1.02}

    cells = [cell("l0h0", "code", 1.0, 0.3), cell("l0h0", "prose", 3.0, 0.4, "†")]
    cells += [cell("l0h1", "code", 2.0, 0.03), cell("l0h1", "prose", 1.5, 0.04)]
    text = demo.explain({"cells": cells})
    assert "from 1.00 (l0h0 on code)" in text
    assert "to 3.00 (l0h0 on prose)" in text
    assert "is in l0h1: 0.50 ± 0.05 more on code,\n   10 standard errors" in text
    assert "1 of 4 values carry a mark. (R-hat is tested" in text
    assert "train_tiny" not in sys.modules
