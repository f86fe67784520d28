"""A graph computed with torch's operators, which autograd can look through."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fastcells.defined.graph import LEAVES, OPS, Graph

_UNLIKE = {"and": "logical_and", "or": "logical_or", "not": "logical_not"}  # what torch calls otherwise
FUNCTIONS: dict[str, Callable[..., Any]] = {
    op: getattr(torch, _UNLIKE.get(op, op)) for op in sorted(OPS - LEAVES - {"softplus"})
}
FUNCTIONS["softplus"] = F.softplus
# What torch computes of two tensors, or of a tensor and a number that comes second.
_TENSOR_FIRST = frozenset({"sub", "div", "lt", "le", "gt", "ge", "eq", "ne"})
_TENSORS_ONLY = frozenset({"minimum", "maximum"})


def apply(op: str, args: list[Any], like: Tensor) -> Any:
    """One operation of tensors and numbers. like: a tensor of the dtype and device that numbers are to have."""
    if op == "sub" and not isinstance(args[0], Tensor) and isinstance(args[1], Tensor):
        return torch.rsub(args[1], args[0])
    truth = zero_or_one(op, args)
    if truth is not None:
        return truth.to(like.dtype)
    if op in _TENSORS_ONLY or (op in _TENSOR_FIRST and not isinstance(args[0], Tensor)):
        args = [_tensor(a, like) for a in args]
    elif op == "where" and not isinstance(args[1], Tensor) and not isinstance(args[2], Tensor):
        args = [args[0], _tensor(args[1], like), args[2]]
    elif op in ("add", "mul") and not isinstance(args[0], Tensor):
        args = args[::-1]
    return FUNCTIONS[op](*args)


def zero_or_one(op: str, args: list[Any]) -> Tensor | None:
    """The truth values whose 0 and 1 the operation gives, if it does."""
    if op != "where" or not isinstance(args[0], Tensor) or any(isinstance(a, Tensor) for a in args[1:]):
        return None
    return {(1, 0): args[0], (0, 1): torch.logical_not(args[0])}.get((args[1], args[2]))


def evaluate(graph: Graph, inputs: Mapping[str, Tensor]) -> dict[str, Any]:
    """The graph's outputs, by name. inputs: tensors of one dtype whose shapes can be broadcast.

    An output that depends on no input is a number.
    """
    like = next(iter(inputs.values()))
    values: list[Any] = []
    for node in graph.nodes:
        if node.op == "input":
            values.append(inputs[node.name])
        elif node.op == "constant":
            values.append(node.value)
        else:
            values.append(apply(node.op, [values[arg] for arg in node.args], like))
    return {name: values[place] for name, place in graph.outputs}


def _tensor(value: Any, like: Tensor) -> Tensor:
    return value if isinstance(value, Tensor) else like.new_full((), value)
