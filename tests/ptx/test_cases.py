"""The cases notice a kernel that ignores what it is given, or changes it. Each fault is planted in its arguments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest

from tests.ptx import cases
from tests.ptx.worker import Run

CASE = cases.Case("sequence", "gru", "float32", 17, 3, 3, ids=True, ragged=True, reverse=True, resets=True)


def _other_ids(given: Any, **bounds: int) -> Any:
    return given._replace(ids=given.ids.clamp(**bounds))


FORWARD: dict[str, Callable[[Any], Any]] = {
    "right": lambda given: given,
    "lengths": lambda given: replace(given, lengths=None),
    "resets": lambda given: replace(given, resets=None),
    "resets' order": lambda given: replace(given, resets=given.resets.flip(0)),
    "reverse": lambda given: replace(given, reverse=False),
    "bias": lambda given: replace(given, b=None),
    "input bias": lambda given: replace(given, x=given.x._replace(bias=0 * given.x.bias)),
    "negative ids": lambda given: replace(given, x=_other_ids(given.x, min=0)),
    "large ids": lambda given: replace(given, x=_other_ids(given.x, max=cases.VOCABULARY - 1)),
    "first state": lambda given: replace(given, state=(0 * given.state[0],)),
    "changed input": lambda given: replace(given, state=(given.state[0].mul_(0.5),)),
}
BACKWARD: dict[str, Callable[[Any], Any]] = {
    "right": lambda given: given,
    "lengths": lambda given: replace(given, lengths=None),
    "resets": lambda given: replace(given, resets=None),
    "resets' order": lambda given: replace(given, resets=given.resets.flip(0)),
    "reverse": lambda given: replace(given, reverse=False),
    "d_last": lambda given: replace(given, d_last=(0 * given.d_last[0],)),
    "d_hidden": lambda given: replace(given, d_hidden=0 * given.d_hidden),
    "first state": lambda given: replace(given, state=(0 * given.state[0],)),
    "saved": lambda given: replace(given, forward=given.forward._replace(saved=given.forward.saved.flip(2))),
    "changed input": lambda given: replace(given, w=given.w.mul_(0.5)),
}


BOTH = cases.Case("gluon", "gru", "bfloat16", 32, 3, 3, ids=True, both=True)


def _first_twice(t: Any) -> Any:
    return t[:1].expand_as(t).contiguous()


BOTH_FORWARD: dict[str, Callable[[Any], Any]] = {
    "right": lambda given: given,
    "weights": lambda given: replace(given, w=_first_twice(given.w)),
    "bias": lambda given: replace(given, b=_first_twice(given.b)),
    "state": lambda given: replace(given, state=(_first_twice(given.state[0]),)),
    "table": lambda given: replace(given, x=given.x._replace(x=_first_twice(given.x.x))),
    "input bias": lambda given: replace(given, x=given.x._replace(bias=_first_twice(given.x.bias))),
    "time": lambda given: replace(given, reverse=True),
}
BOTH_BACKWARD: dict[str, Callable[[Any], Any]] = {
    "right": lambda given: given,
    "weights": lambda given: replace(given, w=_first_twice(given.w)),
    "state": lambda given: replace(given, state=(_first_twice(given.state[0]),)),
    "d_hidden": lambda given: replace(given, d_hidden=_first_twice(given.d_hidden)),
    "d_last": lambda given: replace(given, d_last=(_first_twice(given.d_last[0]),)),
    "time": lambda given: replace(given, reverse=True),
}


def is_right_of_both(fault: str, backward: bool) -> bool:
    """Of both directions in one launch, when the launcher gets the first one's twice, or the second one first."""
    launchers = list(cases.LAUNCHERS["gluon"])
    changed, launcher = (BOTH_BACKWARD if backward else BOTH_FORWARD)[fault], launchers[backward]
    launchers[backward] = lambda given, plan: launcher(changed(given), plan)
    with patch.dict(cases.LAUNCHERS, gluon=tuple(launchers)):
        return cases.run(replace(BOTH, backward=backward)).right


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_what_is_the_other_directions_is_noticed(backward: bool, execute: Run) -> None:
    faults = BOTH_BACKWARD if backward else BOTH_FORWARD
    found = {fault: execute(is_right_of_both, fault, backward) for fault in faults}
    assert found == {fault: fault == "right" for fault in found}


def is_right(name: str, fault: str) -> bool:
    """Of the case, when the launcher of this name gets other arguments than it should."""
    changes, launcher = (FORWARD if name == "run_forward" else BACKWARD), getattr(cases, name)
    with patch.object(cases, name, lambda given, plan: launcher(changes[fault](given), plan)):
        return cases.run(replace(CASE, backward=name == "run_backward")).right


@pytest.mark.parametrize("name", ["run_forward", "run_backward"])
def test_ignored_arguments_are_noticed(name: str, execute: Run) -> None:
    found = {fault: execute(is_right, name, fault) for fault in (FORWARD if name == "run_forward" else BACKWARD)}
    assert found == {fault: fault == "right" for fault in found}
