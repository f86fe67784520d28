"""The rules are kernels/triton's own source, and only what they call is Gluon's."""

from __future__ import annotations

import inspect

import pytest

from fastcells.kernels.gluon import activations
from fastcells.kernels.gluon.rules import RULES
from fastcells.kernels.triton.rules import RULES as TRITON_RULES

FUNCTIONS = ("forward", "backward", "reset_hidden", "backward_last_gate")


@pytest.mark.parametrize("name", TRITON_RULES)
def test_one_statement_of_each_cell(name: str) -> None:
    assert RULES[name].spec is TRITON_RULES[name].spec
    for function in FUNCTIONS:
        theirs, ours = getattr(TRITON_RULES[name], function), getattr(RULES[name], function)
        assert (ours is None) == (theirs is None)
        if ours is not None:
            assert ours.fn.__code__ is theirs.fn.__code__
            assert inspect.getsource(ours.fn) == inspect.getsource(theirs.fn)
            assert ours.is_gluon()


@pytest.mark.parametrize("name", TRITON_RULES)
def test_no_function_of_tritons_is_left(name: str) -> None:
    for function in FUNCTIONS:
        ours = getattr(RULES[name], function)
        for used in ours.fn.__code__.co_names if ours is not None else ():
            value = ours.fn.__globals__.get(used)
            if used in ("sigmoid", "tanh", "relu"):
                assert value is getattr(activations, used)
            elif value is not None:
                assert used == "tl" and value.__name__.startswith("triton.experimental.gluon"), used
