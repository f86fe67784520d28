"""The recurrence over time in torch operators, differentiable any number of times.

`recur` is what `functional.py` calls. First derivatives come from the backward written by hand in each cell, which
leaves two or three operators in the loop over time and takes dW_hh in one matmul. Where that cannot serve (second
derivatives, `torch.func` transforms, forward-mode derivatives, `torch.compile`) the same equations run as plain
differentiable steps.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastcells.autocast import autocast_dtype, no_autocast
from fastcells.backends.torch.cell import Before, State, TorchCell, Trace
from fastcells.errors import CannotRun
from fastcells.transforms import any_batched, traced, transformed


def recur(
    cell: TorchCell,
    x_proj: Tensor,
    state: State,
    w_hh: Tensor,
    b_hh: Tensor | None,
    *,
    w_hr: Tensor | None = None,
    mask: Tensor | None = None,
    resets: Tensor | None = None,
    reverse: bool = False,
) -> tuple[Tensor, State]:
    """Run `cell` over time.

    x_proj: [T, B, G*H] input projection with its bias. state: (h,) or (h, c), each [B, H]. w_hh: [G*H, H].
    w_hr: [P, H], an LSTM's projection; h is then [B, P]. mask: bool [T, B, 1], false where a sequence has ended.
    resets: bool [T, B], true where a step starts from zeros.
    Returns the outputs [T, B, H], zero where the mask is false, and the final state.
    """
    if resets is not None:
        resets = resets.unsqueeze(-1) if mask is None else resets.unsqueeze(-1) & mask
    assert w_hr is None or cell.plain_operators, "dispatch refuses a projection where there is no kernel for it"
    if torch.jit.is_tracing():  # type: ignore[attr-defined]
        raise CannotRun(
            "this recurrence",
            "torch.jit.trace would record it for as many steps as this input has; torch.compile takes any number, and "
            "what explain() calls 'aten' or 'one-hot' can be traced",
        )
    plainly = w_hr is not None or plain_operators_wanted(cell, x_proj)
    if plainly or (resets is not None and not cell.knows_resets):
        return unroll(cell, x_proj, state, w_hh, b_hh, w_hr, mask, reverse, resets)
    inputs = (x_proj, w_hh, b_hh, *state)
    if torch.is_grad_enabled() and any(p is not None and p.requires_grad for p in inputs):
        out, *last = Recurrence.apply(cell, reverse, mask, resets, *inputs)
        return out, tuple(last)
    with torch.no_grad():  # the cells write into buffers, which autograd would refuse
        steps = _steps(x_proj, reverse)
        trace = cell.forward(x_proj, state, w_hh, b_hh, steps, mask, save=False, **_given(resets))
    return _outputs(trace, mask), trace.last


def unroll(
    cell: TorchCell,
    x_proj: Tensor,
    state: State,
    w_hh: Tensor,
    b_hh: Tensor | None,
    w_hr: Tensor | None,
    mask: Tensor | None,
    reverse: bool,
    resets: Tensor | None = None,
) -> tuple[Tensor, State]:
    """The recurrence as a plain loop of differentiable steps. resets: bool [T, B, 1], false where the mask is."""
    out: list[Tensor] = [x_proj] * len(x_proj)
    for t in _steps(x_proj, reverse):
        if resets is not None:
            state = tuple(torch.where(resets[t], 0, s) for s in state)
        new = cell.step(x_proj[t], state, w_hh, b_hh)
        if w_hr is not None:
            new = (new[0] @ w_hr.t(), *new[1:])
        if mask is not None:
            new = tuple(torch.where(mask[t], n, old) for n, old in zip(new, state, strict=True))
        state = new
        out[t] = state[0] if mask is None else torch.where(mask[t], state[0], 0)
    return torch.stack(out), state


class Recurrence(torch.autograd.Function):
    """All steps of one cell, with the cell's own backward."""

    @staticmethod
    def forward(
        ctx: Any,
        cell: TorchCell,
        reverse: bool,
        mask: Tensor | None,
        resets: Tensor | None,
        x_proj: Tensor,
        w_hh: Tensor,
        b_hh: Tensor | None,
        *state: Tensor,
    ) -> tuple[Tensor, ...]:
        steps = _steps(x_proj, reverse)
        trace = cell.forward(x_proj, state, w_hh, b_hh, steps, mask, save=True, **_given(resets))
        ctx.cell, ctx.reverse = cell, reverse
        # Everything of the user's, so that a change in place is seen.
        ctx.save_for_backward(mask, resets, x_proj, w_hh, b_hh, *state, trace.hidden, *trace.saved)
        out = _outputs(trace, mask)
        # The caller's, who may change it in place. On a GPU that is an error, as it is with cuDNN, which saves it too.
        return out.clone() if out is trace.hidden and out.device.type == "cpu" else out, *trace.last

    @staticmethod
    def backward(ctx: Any, d_out: Tensor, *d_last: Tensor) -> tuple[Tensor | None, ...]:
        cell: TorchCell = ctx.cell
        mask, resets, x_proj, w_hh, b_hh, *rest = ctx.saved_tensors
        state, hidden, saved = tuple(rest[: cell.states]), rest[cell.states], tuple(rest[cell.states + 1 :])
        # create_graph=True, or is_grads_batched=True: buffers cannot serve. A compiled backward is neither.
        if not torch.compiler.is_compiling() and (torch.is_grad_enabled() or any_batched(d_out, *d_last)):
            return _differentiable_backward(cell, ctx.reverse, mask, resets, x_proj, w_hh, b_hh, state, d_out, d_last)
        with no_autocast(x_proj):  # backward may be called inside one that forward was not
            steps = _steps(x_proj, ctx.reverse)
            before = Before(hidden, state[0], steps, resets)
            d_hidden = _mask_out(d_out, mask)
            d_x, d_gates, d_state = cell.backward(
                d_hidden, d_last, saved, hidden, before, state, w_hh, steps, mask, **_given(resets)
            )
            _, _, _, _, _, needs_w, needs_b, *_ = ctx.needs_input_grad
            d_w, d_b = cell.weight_gradients(d_gates, before, saved, needs_w, needs_b)
        gradients = (d_x, d_w if needs_w else None, d_b if needs_b else None, *d_state)
        return None, None, None, None, *gradients


def _differentiable_backward(
    cell: TorchCell,
    reverse: bool,
    mask: Tensor | None,
    resets: Tensor | None,
    x_proj: Tensor,
    w_hh: Tensor,
    b_hh: Tensor | None,
    state: State,
    d_out: Tensor,
    d_last: tuple[Tensor, ...],
) -> tuple[Tensor | None, ...]:
    """The same gradients by autograd through `unroll`, so that they can be differentiated in turn."""
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        # Fresh views: were one input computed from another, its gradient must not pass through that other one here.
        x, w, b = x_proj.view_as(x_proj), w_hh.view_as(w_hh), None if b_hh is None else b_hh.view_as(b_hh)
        s = tuple(p.view_as(p) for p in state)
        out, last = unroll(cell, x, s, w, b, None, mask, reverse, resets)
    inputs = (x, w, b, *s)
    wanted = [p for p in inputs if p is not None and p.requires_grad]
    gradients = iter(torch.autograd.grad((out, *last), wanted, (d_out, *d_last), create_graph=again, allow_unused=True))
    return None, None, None, None, *(next(gradients) if p is not None and p.requires_grad else None for p in inputs)


def _given(resets: Tensor | None) -> dict[str, Tensor]:
    """As an argument of a cell that knows resets; of the others none is asked."""
    return {} if resets is None else {"resets": resets}


def _steps(x_proj: Tensor, reverse: bool) -> range:
    T = len(x_proj)
    return range(T - 1, -1, -1) if reverse else range(T)


def _outputs(trace: Trace, mask: Tensor | None) -> Tensor:
    return _mask_out(trace.hidden, mask) if trace.out is None else trace.out


def _mask_out(hidden: Tensor, mask: Tensor | None) -> Tensor:
    # Not a product: what stands in the padding may be NaN.
    return hidden if mask is None else torch.where(mask, hidden, 0)


def plain_operators_wanted(cell: TorchCell, x_proj: Tensor) -> bool:
    """Whether a caller looks through the operators or changes them: a hand-written backward would hide them.

    Raises:
        CannotRun: `cell` was asked for by name, and has no plain operators to show.
    """
    if torch.compiler.is_compiling():
        return cell.plain_operators  # a compiler that sees the steps fuses them; an operator of our own is opaque to it
    if traced() and cell.plain_operators:  # a graph of operators is recorded, which buffers would have no place in
        return True
    wanted = transformed() or autocast_dtype(x_proj) is not None
    if wanted and not cell.plain_operators:
        raise CannotRun(
            "impl='cpu', 'triton' and 'triton-step'",
            "kernels do not run under torch.jit.trace, torch.func transforms or with forward-mode derivatives; "
            "impl='torch' does",
        )
    return wanted
