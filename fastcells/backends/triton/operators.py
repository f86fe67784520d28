"""The Triton recurrence: `run_forward` and `run_backward`, and the same as operators of torch.library.

torch.compile and CUDA graphs see one operator each, `fastcells::recurrence_forward` and
`fastcells::recurrence_backward`, which look up the plan themselves. A tensor that a cell does not have (c of a GRU,
say) is passed to them as None and returned empty. They know nothing of autograd.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, get_type_hints

import torch
from torch import Tensor

from fastcells.backends.kernel_backend import h_and_c
from fastcells.backends.triton.backend import gpu, matmul_precision, plan_for
from fastcells.kernels.triton import launch_diagonal, launch_sequence, launch_split, launch_step
from fastcells.kernels.triton import plan as plans
from fastcells.kernels.triton.launch import Backward, BackwardPass, Forward, ForwardPass, StepInput
from fastcells.kernels.triton.rule import UpdateRule
from fastcells.kernels.triton.rules import rule_of
from fastcells.spec.recurrent import DIAGONAL
from fastcells.tensor_memory import has_memory

if TYPE_CHECKING:
    from torch._library.custom_ops import CustomOpDef


def run_forward(given: ForwardPass, plan: plans.Plan) -> Forward:
    """All steps of a cell. RuntimeError if tensors differ in dtype or device."""
    forward = plain_forward(given)
    with torch.cuda.device_of(given.w):  # Triton launches on the current device, whatever the tensors' is
        return _forward_launcher(plan)(forward, plan)


def plain_forward(given: ForwardPass) -> ForwardPass:
    """As launchers take it. RuntimeError if tensors differ in dtype or device."""
    initial = {f"{name}0": s for name, s in zip(given.rule.spec.states, given.state, strict=False)}
    check_alike(x_proj=given.x.x, **initial, w_hh=given.w, b_hh=given.b, b_ih=given.x.bias, extra=given.extra)
    if all(map(_is_plain, (*given.state, given.w, *given.x, given.b, given.resets, given.extra))):
        return given  # as it is almost always: to make another takes as long as a launch
    return replace(
        given,
        state=tuple(_plain(s) for s in given.state),
        w=_plain(given.w),
        x=StepInput(_plain(given.x.x), _plain_or_none(given.x.ids), _plain_or_none(given.x.bias)),
        b=_plain_or_none(given.b),
        resets=_plain_or_none(given.resets),
        extra=_plain_or_none(given.extra),
    )


def run_backward(given: BackwardPass, plan: plans.Plan) -> Backward:
    """The adjoint of `run_forward`; d_extra is [E, H], d_w [G, H]."""
    backward = plain_backward(given)
    with torch.cuda.device_of(given.w):
        out = _backward_launcher(plan)(backward, plan)
        return out._replace(d_extra=_summed(out.d_extra, given.w), d_w=_summed(out.d_w, given.w))


def _summed(parts: Tensor | None, like: Tensor) -> Tensor | None:
    return None if parts is None else parts.sum(0).to(like.dtype)


def plain_backward(given: BackwardPass) -> BackwardPass:
    """As launchers take it."""
    if all(map(_is_plain, (*given.state, given.w, given.d_hidden, *given.d_last, given.resets, given.extra))):
        return given
    return replace(
        given,
        state=tuple(_plain(s) for s in given.state),
        w=_plain(given.w),
        d_hidden=_plain(given.d_hidden),
        d_last=tuple(_plain(d) for d in given.d_last),
        resets=_plain_or_none(given.resets),
        extra=_plain_or_none(given.extra),
    )


def _forward_launcher(plan: plans.Plan) -> Callable[..., Forward]:
    if isinstance(plan, plans.Split):
        return launch_split.split_forward
    if isinstance(plan, plans.DiagonalBlocks):
        return launch_diagonal.diagonal_forward
    return launch_step.step_forward if isinstance(plan, plans.StepBlocks) else launch_sequence.sequence_forward


def _backward_launcher(plan: plans.Plan) -> Callable[..., Backward]:
    if isinstance(plan, plans.Split):
        return launch_split.split_backward
    if isinstance(plan, plans.DiagonalBlocks):
        return launch_diagonal.diagonal_backward
    return launch_step.step_backward if isinstance(plan, plans.StepBlocks) else launch_sequence.sequence_backward


class ForwardArguments(NamedTuple):
    """What `recurrence_forward` takes."""

    x: Tensor  # [T, B, G*H] the input projection; with ids [V, G*H], W_ih^T
    h0: Tensor  # [B, H]
    c0: Tensor | None  # [B, H]; of a cell with more than two states [states - 1, B, H], as all that is named c
    w: Tensor  # [G*H, H], as in `Pass`
    b: Tensor | None  # [G*H]
    lengths: Tensor | None  # [B] int32
    rule: str  # `CellSpec.key`
    path: str  # "step", or "sequence" or "split", of which the shape decides
    reverse: bool
    save: bool
    ids: Tensor | None = None  # [T, B] int32 or int64
    b_ih: Tensor | None = None  # [G*H], with ids
    resets: Tensor | None = None  # [T, B] bool
    extra: Tensor | None = None  # [E, H] further parameters


class BackwardArguments(NamedTuple):
    """What `recurrence_backward` takes: hidden, cells and saved are results of `recurrence_forward`."""

    d_hidden: Tensor  # [T, B, H]
    d_h_n: Tensor  # [B, H]
    d_c_n: Tensor | None  # [B, H]
    h0: Tensor  # [B, H]
    c0: Tensor | None  # [B, H]
    w: Tensor  # [G*H, H]
    hidden: Tensor  # [T, B, H]
    cells: Tensor | None  # [T, B, H]
    saved: Tensor | None  # [T, B, num_saved, H]
    lengths: Tensor | None  # [B] int32
    rule: str
    path: str
    reverse: bool
    resets: Tensor | None = None  # [T, B] bool
    extra: Tensor | None = None  # [E, H]


A = TypeVar("A", ForwardArguments, BackwardArguments)


def _operator(
    name: str,
    arguments: type[A],
    results: int,
    run: Callable[[A], tuple[Tensor, ...]],
    fake: Callable[[A], tuple[Tensor, ...]],
) -> CustomOpDef:
    """Register an operator that takes the fields of `arguments`, and returns so many tensors."""
    types, any_name = get_type_hints(arguments), inspect.Parameter.POSITIONAL_OR_KEYWORD
    defaults = dict.fromkeys(arguments._fields, inspect.Parameter.empty) | arguments._field_defaults
    parameters = [
        inspect.Parameter(field, any_name, default=defaults[field], annotation=types[field])
        for field in arguments._fields
    ]

    def implementation(*args: Any, **options: Any) -> tuple[Tensor, ...]:
        return run(arguments(*args, **options))

    # What torch.library infers the schema from.
    signature = inspect.Signature(parameters, return_annotation=tuple[(Tensor,) * results])  # type: ignore[misc]
    implementation.__signature__ = signature  # type: ignore[attr-defined]
    operator = torch.library.custom_op(name, implementation, mutates_args=())
    operator.register_fake(lambda *args, **options: fake(arguments(*args, **options)))
    return operator


def forward_pass(a: ForwardArguments, precision: str, rules: Callable[[str], UpdateRule] = rule_of) -> ForwardPass:
    """As launchers take it. rules: of the kernels that will run."""
    x, state = StepInput(a.x, a.ids, a.b_ih), _given(a.h0, a.c0)
    common = (rules(a.rule), state, a.w, a.lengths, a.reverse, precision)
    return ForwardPass(*common, x, a.b, a.save, resets=_flags(a.resets), extra=a.extra)


def backward_pass(a: BackwardArguments, precision: str, rules: Callable[[str], UpdateRule] = rule_of) -> BackwardPass:
    """As launchers take it. rules: of the kernels that will run."""
    forward, state, d_last = Forward(a.hidden, a.cells, a.saved, ()), _given(a.h0, a.c0), _given(a.d_h_n, a.d_c_n)
    common = (rules(a.rule), state, a.w, a.lengths, a.reverse, precision)
    return BackwardPass(*common, forward, a.d_hidden, d_last, resets=_flags(a.resets), extra=a.extra)


def _flags(resets: Tensor | None) -> Tensor | None:
    """The same bytes: Triton has no pointer to bool."""
    return None if resets is None else resets.view(torch.uint8)


def _forward_tensors(out: Forward) -> tuple[Tensor, ...]:
    """hidden and cells [T, B, H], saved [T, B, num_saved, H], h_n and c_n [B, H]."""
    return _tensors(out.hidden, out.cells, out.saved, *h_and_c(out.last))


def _backward_tensors(out: Backward) -> tuple[Tensor, ...]:
    """d_x and d_gates [T, B, G*H], the second empty where it is the same; d_h0, d_c0 [B, H]; d_extra, d_w [., H]."""
    d_gates = None if out.d_gates is out.d_x else out.d_gates.flatten(2)
    return _tensors(out.d_x.flatten(2), d_gates, *h_and_c(out.d_state), out.d_extra, out.d_w)


def _plan(a: ForwardArguments | BackwardArguments, precision: str, backward: bool) -> plans.Plan:
    B, H = a.h0.shape
    found = plan_for(rule_of(a.rule).spec, a.path, B, H, a.h0.element_size(), gpu(a.h0.device), precision, backward)
    if isinstance(found, str):  # dispatch asks before; not everyone comes that way
        raise RuntimeError(f"impl='triton' cannot run: {found}")
    return found


def _run_forward(a: ForwardArguments) -> tuple[Tensor, ...]:
    given = forward_pass(a, matmul_precision(a.w.dtype, a.w.device))
    return _forward_tensors(run_forward(given, _plan(a, given.precision, backward=False)))


def _run_backward(a: BackwardArguments) -> tuple[Tensor, ...]:
    given = backward_pass(a, matmul_precision(a.w.dtype, a.w.device))
    return _backward_tensors(run_backward(given, _plan(a, given.precision, backward=True)))


recurrence_forward = _operator(
    "fastcells::recurrence_forward",
    ForwardArguments,
    5,
    run=_run_forward,
    fake=lambda a: _forward_tensors(forward_pass(a, "ieee").results()),
)
recurrence_backward = _operator(
    "fastcells::recurrence_backward",
    BackwardArguments,
    6,
    run=_run_backward,
    fake=lambda a: _backward_tensors(_fake_backward(a)),
)


def _given(*tensors: Tensor | None) -> tuple[Tensor, ...]:
    return tuple(t for t in tensors if t is not None)


def _fake_backward(a: BackwardArguments) -> Backward:
    given = backward_pass(a, "ieee")
    d_w = a.w.new_empty(given.rule.spec.num_gates, a.h0.shape[1]) if given.rule.spec.recurrent is DIAGONAL else None
    return given.results()._replace(d_extra=None if a.extra is None else torch.empty_like(a.extra), d_w=d_w)


def _tensors(first: Tensor, *others: Tensor | None) -> tuple[Tensor, ...]:
    """An operator returns tensors only: an empty one stands for None."""
    return first, *(first.new_empty(0) if t is None else t for t in others)


def _is_plain(tensor: Tensor | None) -> bool:
    """Contiguous, its values in memory as they are, at an address that 16 divides, as all tensors but slices are.

    For other addresses Triton compiles other kernels; and a layer's slice of a stacked state would be at either kind,
    depending on B.
    """
    if tensor is None:
        return True
    if not tensor.is_contiguous() or tensor.is_neg():
        return False
    address = tensor.data_ptr()
    return address % 16 == 0 and has_memory(tensor, address)


def _plain(tensor: Tensor) -> Tensor:
    return tensor if _is_plain(tensor) else tensor.clone(memory_format=torch.contiguous_format)


def _plain_or_none(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else _plain(tensor)


def check_alike(**tensors: Tensor | None) -> None:
    """Raise RuntimeError unless all tensors have one dtype and one device; the message names those that differ."""
    given = {name: t for name, t in tensors.items() if t is not None}
    if len({(t.dtype, t.device) for t in given.values()}) > 1:
        listed = ", ".join(f"{name} {t.dtype} on {t.device}" for name, t in given.items())
        raise RuntimeError(f"expected all tensors to have the same dtype and device, got {listed}")
