"""The Gluon kernels compile for cards that this machine need not have, and keep what they hold in registers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from fastcells.kernels.triton.rules import RULES
from tests.ptx.worker import worker

pytestmark = pytest.mark.slow

Compiled = Callable[..., list[dict[str, Any]]]
TIGHT = [  # the largest of each kind, and rows that are no multiples of anything
    ("gru", "bfloat16", 1024, 32),
    ("lstm", "bfloat16", 1024, 32),
    ("gru_reset_before", "bfloat16", 1024, 32),
    ("lstm", "bfloat16", 256, 256),
    ("gru", "bfloat16", 107, 32),
    ("gru", "float32", 512, 32),
    ("lstm", "float32", 512, 32),
    ("gru", "float32x3", 256, 32),
    ("lstm", "float32x3", 256, 32),
]


def _compiled(*cases: tuple[Any, ...]) -> list[dict[str, Any]]:
    from tests.support import gluon_kernels  # not where TRITON_INTERPRET is set

    return gluon_kernels.compiled(cases)


@pytest.fixture(scope="module")
def compiled() -> Iterator[Compiled]:
    """compiled(case, ...): figures of each case's kernels, from one process where Triton compiles."""
    with worker() as run:
        yield lambda *cases: run(_compiled, *cases)


def assert_in_registers(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        assert max(row["spills"], row["reloads"]) <= 1, f"more than one register spills within a step: {row}"
        assert row["registers"] <= 255
        assert row["matmuls"] == row["expected"], row
        assert row["barriers"] == 2, f"one for the sums, one for the next ones: {row}"
        assert row["cooperative"], "programs that wait for each other"


@pytest.mark.parametrize("target", [90, 100], ids=["sm_90", "sm_100"])
def test_each_cell(target: int, compiled: Compiled) -> None:
    rows = compiled(*((rule, "bfloat16", 256, 32, target, None) for rule in RULES))
    assert len(rows) == 2 * len(RULES)
    assert_in_registers(rows)


@pytest.mark.parametrize("target", [90, 100], ids=["sm_90", "sm_100"])
def test_both_directions_in_one_launch(target: int, compiled: Compiled) -> None:
    cases = [("gru", "bfloat16", 256), ("lstm", "bfloat16", 256), ("gru_reset_before", "float32", 107)]
    rows = compiled(*((*case, 32, target, None, 2) for case in cases))
    assert len(rows) == 2 * len(cases)
    assert_in_registers(rows)


def test_resets(compiled: Compiled) -> None:
    """A flag for each row costs no barrier and no register that is not there."""
    rows = compiled(*((rule, "bfloat16", 256, 32, 90, None, 1, True) for rule in RULES))
    assert len(rows) == 2 * len(RULES)
    assert_in_registers(rows)


@pytest.mark.parametrize("case", TIGHT, ids=lambda case: "-".join(map(str, case)))
def test_the_tightest_fit(case: tuple[str, str, int, int], compiled: Compiled) -> None:
    assert_in_registers(compiled((*case, 90, None)))


def test_what_does_not_fit_is_seen(compiled: Compiled) -> None:
    """The figures are read rightly: with twice the columns that the plan gives a program, they are no longer kept."""
    rows = compiled(("lstm", "bfloat16", 512, 8, 90, (8, 32, 4, 128, 1)))
    assert all(row["reloads"] > 1 and row["stack"] > 0 for row in rows)
