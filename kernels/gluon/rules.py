"""Every cell that the kernels know, by name: the rules of kernels/triton, read as Gluon."""

from __future__ import annotations

from dataclasses import replace
from types import FunctionType

from triton import JITFunction
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from fastcells.kernels.gluon.activations import relu, sigmoid, tanh
from fastcells.kernels.triton.rule import UpdateRule
from fastcells.kernels.triton.rules import RULES as TRITON_RULES


def in_gluon(function: JITFunction) -> JITFunction:
    """A rule's function from its very source, where `tl` is Gluon's language, and the activations are this folder's."""
    plain = function.fn
    names = plain.__globals__ | {"tl": gl, "sigmoid": sigmoid, "tanh": tanh, "relu": relu}
    twin = FunctionType(plain.__code__, names, plain.__name__, plain.__defaults__, plain.__closure__)
    twin.__module__, twin.__qualname__ = __name__, plain.__qualname__  # distinct to a cache of compiled kernels
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


RULES: dict[str, UpdateRule] = {name: _rule_in_gluon(rule) for name, rule in TRITON_RULES.items()}
