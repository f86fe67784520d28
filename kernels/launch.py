"""The launchers: tensors in, tensors out, one function for each way to run a cell over time.

All tensors are contiguous and on one device; `fastcells/triton_ops.py` sees to it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from fastcells.kernels.plan import Blocks
from fastcells.kernels.rule import UpdateRule
from fastcells.kernels.sequence import sequence_backward_kernel, sequence_forward_kernel
from fastcells.kernels.step import reset_kernel, step_backward_kernel, step_forward_kernel


class Forward(NamedTuple):
    hidden: Tensor  # [T, B, H]
    cells: Tensor | None  # [T, B, H], for a cell with a c
    saved: Tensor | None  # [T, B, saved, H]
    last: tuple[Tensor, ...]  # each [B, H]


class Backward(NamedTuple):
    d_x: Tensor  # [T, B, G, H]
    d_gates: Tensor  # [T, B, G, H]; d_x itself where the two are the same
    d_state: tuple[Tensor, ...]  # each [B, H]


def _outputs(rule: UpdateRule, x: Tensor, h0: Tensor, save: bool) -> Forward:
    T, B, H = len(x), *h0.shape
    cells = h0.new_empty(T, B, H) if rule.states == 2 else None
    saved = h0.new_empty(T, B, rule.saved, H) if save and rule.saved else None
    return Forward(h0.new_empty(T, B, H), cells, saved, tuple(torch.empty_like(h0) for _ in range(rule.states)))


def pair(state: tuple[Tensor | None, ...]) -> tuple[Tensor | None, Tensor | None]:
    """(h, c), c being None for a cell without."""
    return (state[0], state[1]) if len(state) == 2 else (state[0], None)


def launch_options(blocks: Blocks) -> dict[str, int]:
    return {"num_warps": blocks.warps, "num_stages": blocks.stages, "maxnreg": blocks.registers}


def sequence_forward(
    rule: UpdateRule,
    x: Tensor,  # [T, B, G*H]
    state: tuple[Tensor, ...],
    w: Tensor,  # [G*H, H]
    b: Tensor | None,  # [G*H]
    lengths: Tensor | None,  # [B] int32
    *,
    reverse: bool,
    save: bool,
    blocks: Blocks,
    precision: str,
) -> Forward:
    """The whole sequence in one launch."""
    T, (B, H) = len(x), state[0].shape
    out = _outputs(rule, x, state[0], save)
    h0, c0 = pair(state)
    h_n, c_n = pair(out.last)
    sequence_forward_kernel[(triton.cdiv(B, blocks.batch),)](
        x_ptr=x,
        w_ptr=w,
        b_ptr=b,
        lengths_ptr=lengths,
        h0_ptr=h0,
        c0_ptr=c0,
        h_ptr=out.hidden,
        c_ptr=out.cells,
        saved_ptr=out.saved,
        h_n_ptr=h_n,
        c_n_ptr=c_n,
        T=T,
        B=B,
        H=H,
        FORWARD=rule.forward,
        RESET=rule.reset,
        GATES=rule.gates,
        STATES=rule.states,
        SAVED=rule.saved,
        BLOCK_B=blocks.batch,
        BLOCK_H=blocks.hidden,
        HAS_BIAS=b is not None,
        RAGGED=lengths is not None,
        REVERSE=reverse,
        SAVE=out.saved is not None,
        PRECISION=precision,
        **launch_options(blocks),
    )
    return out


def sequence_backward(
    rule: UpdateRule,
    forward: Forward,
    d_out: Tensor,  # [T, B, H]
    d_last: tuple[Tensor, ...],
    state: tuple[Tensor, ...],
    w: Tensor,
    lengths: Tensor | None,
    *,
    reverse: bool,
    blocks: Blocks,
    precision: str,
) -> Backward:
    """The adjoint of `sequence_forward`, in one launch."""
    T, B, H = forward.hidden.shape
    d_x = d_out.new_empty(T, B, rule.gates, H)
    d_gates = d_x if rule.same_gradient else torch.empty_like(d_x)
    d_state = tuple(torch.empty_like(s) for s in state)
    h0, c0 = pair(state)
    d_h_n, d_c_n = pair(d_last)
    d_h0, d_c0 = pair(d_state)
    sequence_backward_kernel[(triton.cdiv(B, blocks.batch),)](
        w_ptr=w,
        lengths_ptr=lengths,
        h0_ptr=h0,
        c0_ptr=c0,
        h_ptr=forward.hidden,
        c_ptr=forward.cells,
        saved_ptr=forward.hidden if forward.saved is None else forward.saved,  # not looked at where nothing is saved
        d_out_ptr=d_out,
        d_h_n_ptr=d_h_n,
        d_c_n_ptr=d_c_n,
        d_x_ptr=d_x,
        d_gates_ptr=d_gates,
        d_h0_ptr=d_h0,
        d_c0_ptr=d_c0,
        T=T,
        B=B,
        H=H,
        BACKWARD=rule.backward,
        BACKWARD_RESET=rule.backward_reset,
        GATES=rule.gates,
        STATES=rule.states,
        SAVED=rule.saved,
        BLOCK_B=blocks.batch,
        BLOCK_H=blocks.hidden,
        RAGGED=lengths is not None,
        REVERSE=reverse,
        SAME_GRADIENT=rule.same_gradient,
        PRECISION=precision,
        **launch_options(blocks),
    )
    return Backward(d_x, d_gates, d_state)


def step_forward(
    rule: UpdateRule,
    x: Tensor,
    state: tuple[Tensor, ...],
    w: Tensor,
    b: Tensor | None,
    lengths: Tensor | None,
    *,
    reverse: bool,
    save: bool,
    blocks: Blocks,
    precision: str,
) -> Forward:
    """One launch a step (two for a cell with a second product)."""
    T, (B, H) = len(x), state[0].shape
    out = _outputs(rule, x, state[0], save)
    carry = torch.stack([s.float() for s in state])
    carry_new = torch.empty_like(carry)
    reset = torch.empty_like(state[0]) if rule.reset is not None else None
    h = state[0]
    grid = (triton.cdiv(B, blocks.batch), triton.cdiv(H, blocks.hidden))
    tile = {
        "BLOCK_B": blocks.batch,
        "BLOCK_H": blocks.hidden,
        "BLOCK_K": blocks.inner,
        **launch_options(blocks),
    }
    for t in range(T - 1, -1, -1) if reverse else range(T):
        if rule.reset is not None:
            reset_kernel[grid](
                x_ptr=x[t],
                w_ptr=w,
                b_ptr=b,
                h_ptr=h,
                carry_ptr=carry,
                reset_ptr=reset,
                B=B,
                H=H,
                RESET=rule.reset,
                GATES=rule.gates,
                STATES=rule.states,
                HAS_BIAS=b is not None,
                PRECISION=precision,
                **tile,
            )
        step_forward_kernel[grid](
            x_ptr=x[t],
            w_ptr=w,
            b_ptr=b,
            lengths_ptr=lengths,
            h_ptr=h,
            reset_ptr=reset,
            carry_ptr=carry,
            carry_new_ptr=carry_new,
            h_new_ptr=out.hidden[t],
            c_new_ptr=None if out.cells is None else out.cells[t],
            saved_ptr=None if out.saved is None else out.saved[t],
            t=t,
            B=B,
            H=H,
            FORWARD=rule.forward,
            GATES=rule.gates,
            STATES=rule.states,
            SAVED=rule.saved,
            HAS_BIAS=b is not None,
            HAS_RESET=rule.reset is not None,
            RAGGED=lengths is not None,
            SAVE=out.saved is not None,
            PRECISION=precision,
            **tile,
        )
        h, carry, carry_new = out.hidden[t], carry_new, carry
    for last, s in zip(out.last, carry, strict=True):
        last.copy_(s)
    return out


def step_backward(
    rule: UpdateRule,
    forward: Forward,
    d_out: Tensor,
    d_last: tuple[Tensor, ...],
    state: tuple[Tensor, ...],
    w: Tensor,
    lengths: Tensor | None,
    *,
    reverse: bool,
    blocks: Blocks,
    precision: str,
) -> Backward:
    """The adjoint of `step_forward`: one launch a step (two for a cell with a second product), and one at the end."""
    T, B, H = forward.hidden.shape
    d_x = d_out.new_empty(T, B, rule.gates, H)
    d_gates = d_x if rule.same_gradient else torch.empty_like(d_x)
    carry = torch.stack([d.float() for d in d_last])
    carry_new = torch.empty_like(carry)
    grid = (triton.cdiv(B, blocks.batch), triton.cdiv(H, blocks.hidden))
    through = rule.gates if rule.reset is None else rule.gates - 1
    h0, c0 = pair(state)
    later: Tensor | None = None

    def launch(part: int, backward: triton.JITFunction, t: int, before: int | None, has_later: bool) -> None:
        step_backward_kernel[grid](
            w_ptr=w,
            lengths_ptr=lengths,
            d_later_ptr=later,
            d_carry_ptr=carry,
            d_carry_new_ptr=carry_new,
            d_out_ptr=d_out[t],
            saved_ptr=forward.hidden if forward.saved is None else forward.saved[t],
            h_ptr=h0 if before is None else forward.hidden[before],
            c_ptr=c0 if before is None or forward.cells is None else forward.cells[before],
            h_new_ptr=forward.hidden[t],
            c_new_ptr=None if forward.cells is None else forward.cells[t],
            d_x_ptr=d_x[t],
            d_gates_ptr=d_gates[t],
            t=t,
            B=B,
            H=H,
            BACKWARD=backward,
            GATES=rule.gates,
            STATES=rule.states,
            SAVED=rule.saved,
            THROUGH=through,
            BLOCK_B=blocks.batch,
            BLOCK_H=blocks.hidden,
            BLOCK_K=blocks.inner,
            HAS_LATER=has_later,
            PART=part,
            RAGGED=lengths is not None,
            SAME_GRADIENT=rule.same_gradient,
            PRECISION=precision,
            **launch_options(blocks),
        )

    order = list(range(T - 1, -1, -1) if reverse else range(T))
    for i in range(T - 1, -1, -1):
        t, before = order[i], order[i - 1] if i else None
        if rule.backward_reset is None:
            launch(0, rule.backward, t, before, later is not None)
        else:
            launch(1, rule.backward_reset, t, before, later is not None)
            carry, carry_new = carry_new, carry
            launch(2, rule.backward, t, before, False)
        carry, carry_new = carry_new, carry
        later = d_gates[t]
    launch(3, rule.backward, order[0], None, True)
    return Backward(d_x, d_gates, tuple(s.to(d_out.dtype, copy=True) for s in carry_new))
