"""Tests run against the installed package: the checkout's own `llc_fast/` has no extensions in it."""

import sys
from pathlib import Path

ROOT = str(Path(__file__).resolve().parent)
sys.path[:] = [p for p in sys.path if p not in ("", ROOT)]
