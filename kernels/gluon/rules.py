"""Every cell that the kernels know: the rules of kernels/triton, read as Gluon."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from types import FunctionType

from triton import JITFunction
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from fastcells.kernels.gluon import activations
from fastcells.kernels.triton import activations as triton_activations
from fastcells.kernels.triton import rules
from fastcells.kernels.triton.rule import UpdateRule


def in_gluon(function: JITFunction) -> JITFunction:
    """A rule's function from its very source, where `tl` is Gluon's language, and the activations are this folder's."""
    plain = function.fn
    names = plain.__globals__ | {"tl": gl} | ACTIVATIONS
    twin = FunctionType(plain.__code__, names, plain.__name__, plain.__defaults__, plain.__closure__)
    twin.__module__, twin.__qualname__ = f"{__name__}.{plain.__module__}", plain.__qualname__  # distinct to a cache
    return gluon.jit(twin)


# What rules may call. Where this folder has no such function, Triton's source serves; what that calls comes before it.
ACTIVATIONS: dict[str, JITFunction] = {name: f for name, f in vars(activations).items() if isinstance(f, JITFunction)}
for _name in ("exp", "log", "log1p", "sqrt", "minimum", "maximum", "softplus"):
    ACTIVATIONS[_name] = in_gluon(getattr(triton_activations, _name))


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
