"""The Triton recurrence on token ids: its kernels gather the rows of W_ih^T, and no [T, B, G*H] tensor is built."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastcells.autocast import no_autocast
from fastcells.backends.torch.cell import Before, State, TorchCell, Trace
from fastcells.backends.torch.recurrence import _mask_out, _steps, plain_operators_wanted, unroll
from fastcells.backends.triton.cell import TritonCell
from fastcells.token_ids import check_range, gather_rows
from fastcells.transforms import any_batched

Weights = tuple[Tensor, Tensor, Tensor | None, Tensor | None]  # w_ih, w_hh, b_ih, b_hh


def recur_on_ids(
    plain: TorchCell,
    path: str,
    ids: Tensor,
    state: State,
    weights: Weights,
    mask: Tensor | None,
    reverse: bool,
) -> tuple[Tensor, State]:
    """`recur` on rows of W_ih^T, named by ids [T, B], b_ih added. An id outside [0, I) acts as an all-zero input."""
    cell = TritonCell(plain, path)
    plain_operators_wanted(cell, weights[0])  # raises: there are none
    check_range(ids, weights[0].shape[1])
    if ids.dtype not in (torch.int32, torch.int64):
        ids = ids.int()
    if torch.is_grad_enabled() and any(p is not None and p.requires_grad for p in (*weights, *state)):
        out, *last = TokenRecurrence.apply(cell, reverse, mask, ids, *weights, *state)
        return out, tuple(last)
    with torch.no_grad():
        trace = _forward(cell, reverse, mask, ids, weights, state, save=False)
    return _mask_out(trace.hidden, mask), trace.last


def _forward(
    cell: TritonCell, reverse: bool, mask: Tensor | None, ids: Tensor, weights: Weights, state: State, save: bool
) -> Trace:
    w_ih, w_hh, b_ih, b_hh = weights
    # Rows of W_ih^T in one piece each: columns of W_ih would be as many memory transactions as there are elements.
    table = w_ih.t().contiguous()
    return cell.forward_on_ids(ids, table, b_ih, state, w_hh, b_hh, _steps(ids, reverse), mask, save)


class TokenRecurrence(torch.autograd.Function):
    """All steps of one cell on token ids, with the cell's own backward."""

    @staticmethod
    def forward(
        ctx: Any,
        cell: TritonCell,
        reverse: bool,
        mask: Tensor | None,
        ids: Tensor,
        w_ih: Tensor,
        w_hh: Tensor,
        b_ih: Tensor | None,
        b_hh: Tensor | None,
        *state: Tensor,
    ) -> tuple[Tensor, ...]:
        trace = _forward(cell, reverse, mask, ids, (w_ih, w_hh, b_ih, b_hh), state, save=True)
        ctx.cell, ctx.reverse = cell, reverse
        ctx.save_for_backward(mask, ids, w_ih, w_hh, b_ih, b_hh, *state, trace.hidden, *trace.saved)
        out = _mask_out(trace.hidden, mask)
        # As in torch_impl/recurrence.py.
        return out.clone() if out is trace.hidden and out.device.type == "cpu" else out, *trace.last

    @staticmethod
    def backward(ctx: Any, d_out: Tensor, *d_last: Tensor) -> tuple[Tensor | None, ...]:
        cell: TritonCell = ctx.cell
        mask, ids, w_ih, w_hh, b_ih, b_hh, *rest = ctx.saved_tensors
        state, hidden, saved = tuple(rest[: cell.states]), rest[cell.states], tuple(rest[cell.states + 1 :])
        # create_graph=True, or is_grads_batched=True: buffers cannot serve. A compiled backward is neither.
        if not torch.compiler.is_compiling() and (torch.is_grad_enabled() or any_batched(d_out, *d_last)):
            return _differentiable_backward(
                cell, ctx.reverse, mask, ids, (w_ih, w_hh, b_ih, b_hh), state, d_out, d_last
            )
        with no_autocast(w_ih):  # backward may be called inside one that forward was not
            steps = _steps(ids, ctx.reverse)
            before = Before(hidden, state[0], steps)
            d_hidden = _mask_out(d_out, mask)
            d_x, d_gates, d_state = cell.backward(d_hidden, d_last, saved, hidden, before, state, w_hh, steps, mask)
            _, _, _, _, needs_w_ih, needs_w_hh, needs_b_ih, needs_b_hh, *_ = ctx.needs_input_grad
            d_w_hh, d_b_hh = cell.weight_gradients(d_gates, before, saved, needs_w_hh, needs_b_hh)
            d_w_ih = _table_gradient(d_x, ids, w_ih.shape[1]) if needs_w_ih else None
            d_b_ih = d_x.sum((0, 1)) if needs_b_ih else None
        return *(None,) * 4, d_w_ih, d_w_hh, d_b_ih, d_b_hh, *d_state


def _table_gradient(d_x: Tensor, ids: Tensor, size: int) -> Tensor:
    """dW_ih [G*H, I] from d_x [T, B, G*H]: rows of the same id are summed, in an order that depends on the ids only.

    On a GPU torch sorts the ids and sums segments, without atomics; so the sum is the same each time. What is outside
    [0, I) goes to a row of its own, which is dropped.
    """
    known = torch.where((ids >= 0) & (ids < size), ids, size)
    rows = torch.ops.aten.embedding_dense_backward(d_x, known, size + 1, size, False)
    return rows[:size].t()


def _differentiable_backward(
    cell: TritonCell,
    reverse: bool,
    mask: Tensor | None,
    ids: Tensor,
    weights: Weights,
    state: State,
    d_out: Tensor,
    d_last: tuple[Tensor, ...],
) -> tuple[Tensor | None, ...]:
    """The same gradients by autograd through `unroll`, so that they can be differentiated in turn."""
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        # Fresh views: were one input computed from another, its gradient must not pass through that other one here.
        w_ih, w_hh = weights[0].view_as(weights[0]), weights[1].view_as(weights[1])
        b_ih, b_hh = (None if b is None else b.view_as(b) for b in weights[2:])
        s = tuple(p.view_as(p) for p in state)
        x = gather_rows(ids, w_ih, b_ih)
        out, last = unroll(cell, x, s, w_hh, b_hh, None, mask, reverse)
    inputs = (w_ih, w_hh, b_ih, b_hh, *s)
    wanted = [p for p in inputs if p is not None and p.requires_grad]
    gradients = iter(torch.autograd.grad((out, *last), wanted, (d_out, *d_last), create_graph=again, allow_unused=True))
    return *(None,) * 4, *(next(gradients) if p is not None and p.requires_grad else None for p in inputs)
