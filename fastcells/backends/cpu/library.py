"""The C recurrences as operators of torch.library, for torch.compile.

`cpu_forward` and `cpu_backward` take the tensors that C reads and return those that it writes, in the order of
kernels/cpu/arguments.h:

    cpu_forward(x, h0, c0, w, b, lengths, resets, cell, reverse, save) -> out, hidden, cells, saved, h_n, c_n
    cpu_backward(d_hidden, d_h_n, d_c_n, h0, c0, w, lengths, resets, hidden, cells, saved, cell, reverse)
        -> d_x, d_gates, d_h0, d_c0

An empty tensor stands for one that C does not write.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastcells.backends.cpu import arguments, native

Outputs = tuple[Tensor, ...]


def _operator(kernel: str) -> Callable[..., Outputs]:
    rows = arguments.TABLES.get(kernel, [])  # none without the C module, where nobody calls the operators
    names = [a.name for a in rows if a.kind == "read"]
    tensors = [f"Tensor{'?' if a.when else ''} {a.name}" for a in rows if a.kind == "read"]
    options = ["str cell", "bool reverse", *(["bool save"] if kernel == "forward" else [])]
    returned = ["Tensor" for a in rows if a.kind in arguments.ALLOCATE]

    def run(*given: Tensor | None, cell: str, reverse: bool, save: bool) -> Outputs:
        tensors = dict(zip(names, given, strict=True))
        written = native.recur(kernel, cell, tensors, reverse, save)
        return tuple(_first(given).new_empty(0) if t is None else t for t in written.values())

    def fake(*given: Tensor | None, cell: str, reverse: bool, save: bool) -> Outputs:
        like, tensors = _first(given), dict(zip(names, given, strict=True))
        w = tensors["w"]
        assert w is not None
        shapes = arguments.shapes(cell, like.shape[0], like.shape[1], w.shape[1])
        plan = arguments.recurrence(kernel, cell, save, save or tensors["lengths"] is not None)
        return tuple(like.new_empty(shapes[shape] if new else 0) for _, new, shape in plan.writes)

    def in_order(function: Callable[..., Outputs]) -> Callable[..., Outputs]:
        def call(*given: object) -> Outputs:
            cell, reverse, save = (*given[len(names) :], False)[:3]
            return function(*given[: len(names)], cell=cell, reverse=reverse, save=save)

        return call

    schema = f"({', '.join([*tensors, *options])}) -> ({', '.join(returned)})"
    operator = torch.library.custom_op(f"fastcells::cpu_{kernel}", in_order(run), mutates_args=(), schema=schema)
    operator.register_fake(in_order(fake))
    return operator


def _first(given: tuple[Tensor | None, ...]) -> Tensor:
    assert given[0] is not None
    return given[0]


cpu_forward = _operator("forward")
cpu_backward = _operator("backward")
