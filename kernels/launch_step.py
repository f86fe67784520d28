"""The launchers of the step kernels: one launch a time step, for any shape."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from fastcells.kernels.launch import Backward, Forward, Input, launch_options, new_outputs, pair
from fastcells.kernels.plan import Blocks
from fastcells.kernels.rule import UpdateRule
from fastcells.kernels.step import reset_kernel, step_forward_kernel
from fastcells.kernels.step_backward import step_backward_kernel


def step_forward(
    rule: UpdateRule,
    x: Input,
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
    T, (B, H) = x.steps, state[0].shape
    out = new_outputs(rule, T, state[0], save)
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
                **x.at(t).arguments(),
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
            **x.at(t).arguments(),
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
