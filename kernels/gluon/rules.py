"""Every cell that the kernels know, by name: the rules of kernels/triton, read as Gluon."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from types import FunctionType

from triton import JITFunction
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from fastcells.kernels.gluon import activations
from fastcells.kernels.triton import rules
from fastcells.kernels.triton.rule import UpdateRule

ACTIVATIONS = {name: value for name, value in vars(activations).items() if isinstance(value, JITFunction)}


def in_gluon(function: JITFunction) -> JITFunction:
    """A rule's function from its very source, where `tl` is Gluon's language, and the activations are this folder's."""
    plain = function.fn
    names = plain.__globals__ | {"tl": gl} | ACTIVATIONS
    twin = FunctionType(plain.__code__, names, plain.__name__, plain.__defaults__, plain.__closure__)
    twin.__module__, twin.__qualname__ = f"{__name__}.{plain.__module__}", plain.__qualname__  # distinct to a cache
    return gluon.jit(twin)


def _rule_in_gluon(rule: UpdateRule) -> UpdateRule:
    second = rule.reset_hidden is not None
    return replace(
        rule,
        forward=in_gluon(rule.forward),
        backward=in_gluon(rule.backward),
        reset_hidden=in_gluon(rule.reset_hidden) if second else None,
        backward_last_gate=in_gluon(rule.backward_last_gate) if second else None,
    )


@cache
def rule_of(key: str) -> UpdateRule:
    """A cell's, by `CellSpec.key`."""
    return _rule_in_gluon(rules.rule_of(key))
