"""Defined cells in C as operators of torch.library, for torch.compile: as library.py, with a cell's key for its name.

    cpu_defined_forward(x, state, w, b, extra, lengths, resets, cell, reverse, save) -> out, hidden, others, saved, last
    cpu_defined_backward(d_hidden, d_last, state, w, extra, lengths, resets, hidden, others, saved, cell, reverse)
        -> d_x, d_gates, d_state, d_extra, operand

An empty tensor stands for one that C does not write. The operators look up the programs themselves.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils import _python_dispatch

from fastcells.backends.base import Gradients, Inputs, Trace
from fastcells.backends.cpu import arguments, defined
from fastcells.backends.cpu.arguments import Tensors
from fastcells.defined.spec import DEFINED
from fastcells.spec import CellSpec, State

Outputs = tuple[Tensor, ...]
READ = {  # without the programs; none without the C module, where nobody calls the operators
    kernel: [a for a in arguments.TABLES.get(kernel, []) if a.kind == "read" and not a.name.endswith("program")]
    for kernel in ("defined_forward", "defined_backward")
}
WRITTEN = {
    kernel: [a.name for a in arguments.TABLES.get(kernel, []) if a.kind in arguments.ALLOCATE] for kernel in READ
}


def obstacle(key: str) -> str | None:
    """`DefinedCell.obstacle` of the cell with this key, asked in the middle of a compilation."""
    with _python_dispatch._disable_current_modes():  # what is kept for later calls must not be a fake
        return defined.defined_cell(DEFINED[key]).obstacle


# What torch.compiler.assume_constant_result does, without the import of torch._dynamo, which takes seconds.
obstacle._dynamo_marked_constant = True  # type: ignore[attr-defined]


def forward(spec: CellSpec, inputs: Inputs, save: bool) -> Trace:
    """As `DefinedCell.forward`."""
    given = defined.forward_tensors(spec, inputs)
    results = cpu_defined_forward(*_in_order("defined_forward", given), spec.key, inputs.steps.reverse, save)
    absent = set() if save and spec.num_states > 1 else {"others"}
    absent |= set() if save and spec.saved else {"saved"}
    absent |= set() if save or inputs.steps.lengths is not None else {"hidden"}
    return defined.trace_of(_by_name("defined_forward", results, absent))


def backward(spec: CellSpec, inputs: Inputs, trace: Trace, d_hidden: Tensor, d_last: State) -> Gradients:
    """As `DefinedCell.backward`."""
    given = defined.backward_tensors(spec, inputs, trace, d_hidden, d_last)
    results = cpu_defined_backward(*_in_order("defined_backward", given), spec.key, inputs.steps.reverse)
    absent = {"d_gates"} if spec.same_gradient else set()
    absent |= {"d_extra"} if given["extra"] is None else set()
    absent |= set() if spec.two_products and given["w"] is not None else {"operand"}
    return defined.gradients_of(spec, _by_name("defined_backward", results, absent))


def _in_order(kernel: str, given: Tensors) -> list[Tensor | None]:
    return [given[a.name] for a in READ[kernel]]


def _by_name(kernel: str, results: Outputs, absent: set[str]) -> Tensors:
    return {name: None if name in absent else t for name, t in zip(WRITTEN[kernel], results, strict=True)}


def _operator(kernel: str) -> Callable[..., Outputs]:
    names = [a.name for a in READ[kernel]]
    tensors = [f"Tensor{'?' if a.when else ''} {a.name}" for a in READ[kernel]]
    options = ["str cell", "bool reverse", *(["bool save"] if kernel == "defined_forward" else [])]

    def given_of(given: tuple[object, ...]) -> tuple[Tensors, defined.DefinedCell, bool, bool]:
        tensors: Tensors = dict(zip(names, given, strict=False))  # type: ignore[arg-type]
        key, reverse, save = (*given[len(names) :], False)[:3]
        return tensors, defined.defined_cell(DEFINED[str(key)]), bool(reverse), bool(save)

    def run(*given: object) -> Outputs:
        tensors, cell, reverse, save = given_of(given)
        first = tensors[names[0]]
        assert first is not None
        return tuple(first.new_empty(0) if t is None else t for t in cell.run(kernel, tensors, reverse, save).values())

    def fake(*given: object) -> Outputs:
        tensors, cell, _, save = given_of(given)
        like, state = tensors[names[0]], tensors["state"]
        assert like is not None and state is not None
        shapes = cell.shapes(like.shape[0], like.shape[1], state.shape[-1])
        plan = cell.plan(kernel, save, save or tensors["lengths"] is not None)
        return tuple(like.new_empty(shapes[shape] if new else 0) for _, new, shape in plan.writes)

    schema = f"({', '.join([*tensors, *options])}) -> ({', '.join(['Tensor'] * len(WRITTEN[kernel]))})"
    operator = torch.library.custom_op(f"fastcells::cpu_{kernel}", run, mutates_args=(), schema=schema)
    operator.register_fake(fake)
    return operator


cpu_defined_forward = _operator("defined_forward")
cpu_defined_backward = _operator("defined_backward")
