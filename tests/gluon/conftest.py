"""Test files that import triton are skipped where there is none; plan.py and its tests do without."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

WITHOUT = ("__init__.py", "test_plan.py", "test_backend.py")
collect_ignore = [
    path.name
    for path in Path(__file__).parent.glob("test_*.py")
    if find_spec("triton") is None and path.name not in WITHOUT
]
