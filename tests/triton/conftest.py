"""Test files that import triton are skipped where there is none; plan.py and its tests do without.

Where there is one, its interpreter is made quicker, for the tests of the other folders too.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

import pytest

if find_spec("triton") is not None:
    from tests.support import quick_interpreter

    quick_interpreter.install()

WITHOUT = ("__init__.py", "test_plan.py")


class NeedsTriton(pytest.Module):
    def collect(self) -> Iterable[pytest.Item | pytest.Collector]:
        pytest.skip("the kernels are written in Triton")


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    if find_spec("triton") is None and module_path.name not in WITHOUT:
        return NeedsTriton.from_parent(parent, path=module_path)
    return None
