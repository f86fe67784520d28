"""The idiom tests themselves: each subject runs what its name says, and a fault is seen."""

from __future__ import annotations

from typing import Any

import pytest

import fastcells
from tests.support.idiom_cases import ABOVE, ALL, CELL_IN_TRITON, IMPLS, TRITON, Given
from tests.support.idiom_outcomes import Raised, call, check, outcome


def test_the_implementation_that_is_meant() -> None:
    """Every subject runs what its name says, with gradients wanted."""
    for subject in [*ALL, *TRITON, CELL_IN_TRITON]:
        found = fastcells.explain(subject.module(True), subject.given(True).x)
        assert found.path == subject.path, f"{subject}: {found}"
    assert {s.kind for s in IMPLS if s.path == "cpu" and s.impl == "auto"} == set(ABOVE)


def test_a_fault_is_seen() -> None:
    """Negative control: gradients off by 1 %, an error on one side, a view."""
    subject = IMPLS[0]

    def idiom(module: Any, given: Given) -> Any:
        return [t * (1.01 if isinstance(module, fastcells.GRU) else 1) for t in call(module, given)]

    def views(module: Any, given: Given) -> Any:
        outs = call(module, given)
        return [t[:] for t in outs] if isinstance(module, fastcells.GRU) else outs

    def raising(module: Any, given: Given) -> Any:
        raise (RuntimeError if isinstance(module, fastcells.GRU) else ValueError)("no")

    for fault in (idiom, views, raising):
        with pytest.raises(AssertionError):
            check(fault, subject)
    assert isinstance(outcome(raising, subject, True), Raised)
