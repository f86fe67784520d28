"""The compiled kernels, executed: right, without a race, and with an end, whatever the order of warps and stores.

A selection of the cases; `make ptx` runs them all.
"""

from __future__ import annotations

import pytest

from tests.ptx import cases
from tests.ptx.selection import QUICK
from tests.ptx.worker import Run


@pytest.mark.parametrize("case", QUICK, ids=str)
def test_case(case: cases.Case, execute: Run) -> None:
    result: cases.Result = execute(cases.run, case)
    assert not any(result.races.values()), result.describe_races()
    assert max(result.errors.values()) <= result.limit, result.errors
