"""The process in which kernels are compiled and executed, one for each test file that asks."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

import pytest

from tests.ptx.worker import Run, worker


@pytest.fixture(scope="module")
def execute() -> Iterator[Run]:
    """execute(function, *arguments) in a process where Triton compiles."""
    if find_spec("triton") is None:
        pytest.skip("the kernels are written in Triton")
    with worker() as run:
        yield run
