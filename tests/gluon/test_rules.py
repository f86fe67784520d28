"""The rules are kernels/triton's own source, and only what they call is Gluon's."""

from __future__ import annotations

import inspect

import pytest

from fastcells.kernels.gluon import activations
from fastcells.kernels.gluon.rules import ACTIVATIONS, rule_of
from fastcells.kernels.triton import activations as triton_activations
from fastcells.kernels.triton import rules
from tests.support.defined_cases import CASES

FUNCTIONS = ("forward", "backward", "reset_hidden", "backward_last_gate")
KEYS = {**{name: name for name in rules.RULES}, **{name: case.spec.key for name, case in CASES.items()}}
EACH = pytest.mark.parametrize("key", KEYS.values(), ids=KEYS)


@EACH
def test_one_statement_of_each_cell(key: str) -> None:
    assert rule_of(key).spec is rules.rule_of(key).spec
    for function in FUNCTIONS:
        theirs, ours = getattr(rules.rule_of(key), function), getattr(rule_of(key), function)
        assert (ours is None) == (theirs is None)
        if ours is not None:
            assert ours.fn.__code__ is theirs.fn.__code__
            assert inspect.getsource(ours.fn) == inspect.getsource(theirs.fn)
            assert ours.is_gluon()


@EACH
def test_no_function_of_tritons_is_left(key: str) -> None:
    for function in FUNCTIONS:
        ours = getattr(rule_of(key), function)
        for used in ours.fn.__code__.co_names if ours is not None else ():
            value = ours.fn.__globals__.get(used)
            if used in ACTIVATIONS:
                assert value is ACTIVATIONS[used] is getattr(activations, used, value) and value.is_gluon()
            elif value is not None:
                assert used == "tl" and value.__name__.startswith("triton.experimental.gluon"), used


def test_what_is_called_is_gluon_throughout() -> None:
    """Also of the functions that Triton's source serves for."""
    borrowed = [name for name in ACTIVATIONS if not hasattr(activations, name)]
    assert "softplus" in borrowed and "sigmoid" not in borrowed
    for name in borrowed:
        scope = ACTIVATIONS[name].fn.__globals__
        assert ACTIVATIONS[name].fn.__code__ is getattr(triton_activations, name).fn.__code__
        assert scope["exp2"] is activations.exp2 and scope["tl"].__name__.startswith("triton.experimental.gluon")
    assert all(
        ACTIVATIONS["softplus"].fn.__globals__[name] is ACTIVATIONS[name] for name in ("maximum", "log1p", "exp")
    )
