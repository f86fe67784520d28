"""The reverse pass: gradients of a graph's inputs from those of its outputs, as operations of the same kind.

An adjoint uses a function's result where it can (sigmoid, tanh, exp, sqrt), so that this is what is worth keeping. At
a tie minimum and maximum halve the gradient, and relu has none at 0, as torch has it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from fastcells.defined.builder import Builder
from fastcells.defined.graph import LEAVES, LOGICAL

# (builder, operands, result, its gradient) -> the operands' gradients, None where there is none
Adjoint = Callable[[Builder, tuple[int, ...], int, int], tuple[int | None, ...]]


def gradients(builder: Builder, given: Iterable[tuple[int, int]], wanted: Iterable[int]) -> dict[int, int]:
    """Add the adjoint of all that a builder holds.

    given: (node, its gradient). Returns the place of each wanted node's gradient, a constant 0 where it has none.
    """
    found: dict[int, int] = {}

    def add(place: int, d: int | None) -> None:
        if d is not None and builder.nodes[place].op != "constant" and not builder.is_logical(place):
            found[place] = builder.op("add", found[place], d) if place in found else d

    last = len(builder.nodes)
    for place, d_given in given:
        add(place, d_given)
    for place in range(last - 1, -1, -1):
        node = builder.nodes[place]
        if place in found and node.op not in LEAVES | LOGICAL:
            for arg, d in zip(node.args, ADJOINTS[node.op](builder, node.args, place, found[place]), strict=True):
                add(arg, d)
    return {place: found.get(place, builder.constant(0)) for place in wanted}


def _mul(b: Builder, args: tuple[int, ...], y: int, d: int) -> tuple[int, int]:
    return b.op("mul", d, args[1]), b.op("mul", d, args[0])


def _div(b: Builder, args: tuple[int, ...], y: int, d: int) -> tuple[int, int]:
    d_numerator = b.op("mul", d, b.op("div", b.constant(1), args[1]))
    return d_numerator, b.op("neg", b.op("mul", d_numerator, y))


def _abs(b: Builder, args: tuple[int, ...], y: int, d: int) -> tuple[int]:
    zero = b.constant(0)
    sign = b.op("where", b.op("lt", args[0], zero), b.constant(-1), b.constant(1))
    return (b.op("mul", d, b.op("where", b.op("eq", args[0], zero), zero, sign)),)


def _extremum(comparison: str) -> Adjoint:
    def adjoint(b: Builder, args: tuple[int, ...], y: int, d: int) -> tuple[int, int]:
        half, one, zero = b.constant(0.5), b.constant(1), b.constant(0)
        tie, first = b.op("eq", *args), b.op(comparison, *args)
        share = b.op("where", tie, half, b.op("where", first, one, zero))
        other = b.op("where", tie, half, b.op("where", first, zero, one))
        return b.op("mul", d, share), b.op("mul", d, other)

    return adjoint


def _relu(b: Builder, args: tuple[int, ...], y: int, d: int) -> tuple[int]:
    return (b.op("mul", d, b.op("where", b.op("le", y, b.constant(0)), b.constant(0), b.constant(1))),)


def _where(b: Builder, args: tuple[int, ...], y: int, d: int) -> tuple[None, int, int]:
    """By where again and not by a product: what was not chosen may be infinite."""
    zero = b.constant(0)
    return None, b.op("where", args[0], d, zero), b.op("where", args[0], zero, d)


def _sigmoid(b: Builder, args: tuple[int, ...], y: int, d: int) -> tuple[int]:
    return (b.op("mul", d, b.op("mul", y, b.op("sub", b.constant(1), y))),)


def _tanh(b: Builder, args: tuple[int, ...], y: int, d: int) -> tuple[int]:
    return (b.op("mul", d, b.op("sub", b.constant(1), b.op("mul", y, y))),)


def _softplus(b: Builder, args: tuple[int, ...], y: int, d: int) -> tuple[int]:
    return (b.op("mul", d, b.op("sigmoid", args[0])),)


def _log1p(b: Builder, args: tuple[int, ...], y: int, d: int) -> tuple[int]:
    return (b.op("mul", d, b.op("div", b.constant(1), b.op("add", args[0], b.constant(1)))),)


ADJOINTS: Mapping[str, Adjoint] = {
    "add": lambda b, args, y, d: (d, d),
    "sub": lambda b, args, y, d: (d, b.op("neg", d)),
    "mul": _mul,
    "div": _div,
    "neg": lambda b, args, y, d: (b.op("neg", d),),
    "abs": _abs,
    "minimum": _extremum("lt"),
    "maximum": _extremum("gt"),
    "relu": _relu,
    "where": _where,
    "sigmoid": _sigmoid,
    "tanh": _tanh,
    "exp": lambda b, args, y, d: (b.op("mul", d, y),),
    "log": lambda b, args, y, d: (b.op("mul", d, b.op("div", b.constant(1), args[0])),),
    "log1p": _log1p,
    "softplus": _softplus,
    "sqrt": lambda b, args, y, d: (b.op("mul", d, b.op("div", b.constant(0.5), y)),),
}
