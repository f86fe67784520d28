"""The compiled kernels, executed: right, without a race, and with an end, whatever the order of warps and stores.

A selection of the cases, in which all meets that meets in any; `make ptx` runs them all.
"""

from __future__ import annotations

import pytest

from tests.ptx import cases
from tests.ptx.selection import EVERY, QUICK, pairs
from tests.ptx.worker import Run


@pytest.mark.parametrize("case", QUICK, ids=str)
def test_case(case: cases.Case, execute: Run) -> None:
    result: cases.Result = execute(cases.run, case)
    assert not any(result.races.values()), result.describe_races()
    assert max(result.errors.values()) <= result.limit, result.errors


def test_the_selection_has_every_pair() -> None:
    met = set[object]().union(*map(pairs, QUICK))
    assert met == set().union(*map(pairs, EVERY)) and len(QUICK) < len(EVERY) / 4
    for value in ("JANET", "rnn_relu"):  # of a rule that is missing, it is said
        assert met != set().union(*(pairs(case) for case in QUICK if case.rule != value))
