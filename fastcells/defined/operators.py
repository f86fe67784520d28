"""The operators that a cell's equations may use: each torch function, method and Python operator, as graph operations.

Each entry is a function of a `Builder` and the operands, which are places of nodes; a further parameter is what torch
calls it. An entry's own signature is what refuses arguments that torch knows and a graph does not.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from fastcells.defined.builder import Builder

Lower = Callable[..., int]


def _plain(op: str, operands: int) -> Lower:
    """An operation that the graph has as it is, of numbers."""

    def unary(b: Builder, input: int) -> int:
        return b.op(op, as_number(b, input))

    def binary(b: Builder, input: int, other: int) -> int:
        return b.op(op, as_number(b, input), as_number(b, other))

    return unary if operands == 1 else binary


def _logical(op: str) -> Lower:
    """Of truth values, of which another kind is refused."""

    def lower(b: Builder, *conditions: int) -> int:
        for place in conditions:
            if not b.is_logical(place):
                raise TypeError("its operands must be comparisons")
        return b.op(op, *conditions)

    return lower


def as_number(b: Builder, place: int) -> int:
    """1 for true and 0 for false, as torch counts them in arithmetic."""
    return b.op("where", place, b.constant(1), b.constant(0)) if b.is_logical(place) else place


def _where(b: Builder, condition: int, input: int, other: int) -> int:
    if not b.is_logical(condition):
        raise TypeError("its condition must be a comparison")
    return b.op("where", condition, as_number(b, input), as_number(b, other))


def _where_method(b: Builder, input: int, condition: int, other: int) -> int:
    return _where(b, condition, input, other)


def _clamp(b: Builder, input: int, min: int | None = None, max: int | None = None) -> int:
    """Not minimum and maximum: at a bound, as torch's, it is still the operand that the gradient goes to."""
    if min is None and max is None:
        raise TypeError("it needs min or max")
    result = input
    if max is not None:
        result = b.op("where", b.op("gt", input, max), max, result)
    if min is not None:
        result = b.op("where", b.op("lt", input, min), min, result)
    return result


def _clamp_min(b: Builder, input: int, min: int) -> int:
    return _clamp(b, input, min=min)


def _clamp_max(b: Builder, input: int, max: int) -> int:
    return _clamp(b, input, max=max)


def _power(b: Builder, input: int, exponent: int) -> int:
    value = b.nodes[exponent].value if b.nodes[exponent].op == "constant" else None
    if value is None or (value != 0.5 and (value != int(value) or not 1 <= abs(value) <= 8)):
        shown = "a tensor" if value is None else f"{value:g}"
        raise TypeError(f"an exponent must be an integer from 1 to 8, its negative, or 0.5, not {shown}")
    if value == 0.5:
        return b.op("sqrt", input)
    result = input
    for _ in range(int(abs(value)) - 1):
        result = b.op("mul", result, input)
    return result if value > 0 else b.op("div", b.constant(1), result)


def _square(b: Builder, input: int) -> int:
    return b.op("mul", input, input)


def _reciprocal(b: Builder, input: int) -> int:
    return b.op("div", b.constant(1), input)


def _log_sigmoid(b: Builder, input: int) -> int:
    return b.op("neg", b.op("softplus", b.op("neg", input)))


def _positive(b: Builder, input: int) -> int:
    return input


def _of_both(op: str, builtin: Any, *names: str) -> dict[Any, Lower]:
    """Operators of two numbers: torch's functions and methods of these names, and Python's operator."""
    lower = _plain(op, 2)
    return {builtin: lower, **dict.fromkeys(names, lower), **{getattr(torch, name): lower for name in names}}


def _of_one(lower: Lower, *names: str) -> dict[Any, Lower]:
    functions = {getattr(torch, name): lower for name in names if hasattr(torch, name)}
    return {**dict.fromkeys(names, lower), **functions}


_sigmoid, _tanh, _relu, _neg, _abs = (_plain(op, 1) for op in ("sigmoid", "tanh", "relu", "neg", "abs"))

OPERATORS: dict[Any, Lower] = {
    **_of_both("add", operator.add, "add"),
    **_of_both("sub", operator.sub, "sub", "subtract"),
    **_of_both("mul", operator.mul, "mul", "multiply"),
    **_of_both("div", operator.truediv, "div", "divide", "true_divide"),
    **_of_both("lt", operator.lt, "lt", "less"),
    **_of_both("le", operator.le, "le", "less_equal"),
    **_of_both("gt", operator.gt, "gt", "greater"),
    **_of_both("ge", operator.ge, "ge", "greater_equal"),
    **_of_both("eq", operator.eq, "eq"),
    **_of_both("ne", operator.ne, "ne", "not_equal"),
    **{target: _plain("minimum", 2) for target in (torch.minimum, "minimum", torch.min, "min")},
    **{target: _plain("maximum", 2) for target in (torch.maximum, "maximum", torch.max, "max")},
    **{target: _logical("and") for target in (operator.and_, torch.logical_and, "logical_and")},
    **{target: _logical("or") for target in (operator.or_, torch.logical_or, "logical_or")},
    **{target: _logical("not") for target in (operator.invert, torch.logical_not, "logical_not")},
    **_of_one(_neg, "neg", "negative"),
    **_of_one(_abs, "abs", "absolute"),
    **_of_one(_sigmoid, "sigmoid"),
    **_of_one(_tanh, "tanh"),
    **_of_one(_relu, "relu"),
    **_of_one(_plain("exp", 1), "exp"),
    **_of_one(_plain("log", 1), "log"),
    **_of_one(_plain("log1p", 1), "log1p"),
    **_of_one(_plain("sqrt", 1), "sqrt"),
    **_of_one(_square, "square"),
    **_of_one(_reciprocal, "reciprocal"),
    **_of_one(_power, "pow"),
    **_of_one(_clamp, "clamp", "clip"),
    **_of_one(_clamp_min, "clamp_min"),
    **_of_one(_clamp_max, "clamp_max"),
    operator.neg: _neg,
    operator.pos: _positive,
    operator.abs: _abs,
    operator.pow: _power,
    torch.where: _where,
    "where": _where_method,
    torch.special.expit: _sigmoid,
    F.sigmoid: _sigmoid,
    F.tanh: _tanh,
    F.relu: _relu,
    F.softplus: _plain("softplus", 1),
    F.logsigmoid: _log_sigmoid,
}


def name_of(target: Any) -> str:
    """An operator as its user knows it: "torch.matmul", "+", "Tensor.sum"."""
    if isinstance(target, str):
        return f"Tensor.{target}"
    module = getattr(target, "__module__", None) or "torch"
    name = getattr(target, "__name__", str(target))
    if module in ("_operator", "builtins", "operator"):
        return f"operator.{name}" if module != "builtins" or hasattr(operator, name) else name
    return f"torch.{name}" if module.startswith("torch._C") else f"{module}.{name}"
