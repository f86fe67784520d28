"""The launchers of the step kernels: one launch a time step, for any shape.

What no step changes is bound once; the loop over time says what a step adds: its number and its neighbours', and the
two tensors between which the state goes to and fro.
"""

from __future__ import annotations

from functools import partial

import torch
import triton
from torch import Tensor

from fastcells.kernels.triton.launch import Backward, Forward, Input, backward_arguments, launch_options, new_outputs
from fastcells.kernels.triton.plan import Blocks
from fastcells.kernels.triton.rule import UpdateRule
from fastcells.kernels.triton.step import reset_kernel, step_forward_kernel
from fastcells.kernels.triton.step_backward import step_backward_kernel

NONE = -1  # in place of a step's number, where there is no such step


def step_forward(
    rule: UpdateRule,
    x: Input,
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
    """One launch a step (two for a cell with a second product)."""
    T, (B, H) = x.steps, state[0].shape
    out = new_outputs(rule, T, state[0], save)
    carry = torch.stack([s.float() for s in state])
    carry_new = torch.empty_like(carry)
    shared = {
        **x.arguments(),
        "w_ptr": w,
        "b_ptr": b,
        "h0_ptr": state[0],
        "h_ptr": out.hidden,
        "reset_ptr": None if rule.reset is None else torch.empty_like(state[0]),
        "B": B,
        "H": H,
        "GATES": rule.gates,
        "STATES": rule.states,
        "HAS_BIAS": b is not None,
        "PRECISION": precision,
        **_tile(blocks),
    }
    reset = partial(reset_kernel[_grid(B, H, blocks)], **shared, RESET=rule.reset)
    step = partial(
        step_forward_kernel[_grid(B, H, blocks)],
        **shared,
        lengths_ptr=lengths,
        c_ptr=out.cells,
        saved_ptr=out.saved,
        FORWARD=rule.forward,
        SAVED=rule.saved,
        HAS_RESET=rule.reset is not None,
        RAGGED=lengths is not None,
        SAVE=out.saved is not None,
    )
    before = NONE
    for t in range(T - 1, -1, -1) if reverse else range(T):
        if rule.reset is not None:
            reset(carry_ptr=carry, t=t, before=before)
        step(carry_ptr=carry, carry_new_ptr=carry_new, t=t, before=before)
        carry, carry_new, before = carry_new, carry, t
    for last, s in zip(out.last, carry, strict=True):
        last.copy_(s)
    return out


def step_backward(
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
    """The adjoint of `step_forward`: one launch a step (two for a cell with a second product), and one at the end."""
    T, B, H = forward.hidden.shape
    d_x = d_out.new_empty(T, B, rule.gates, H)
    d_gates = d_x if rule.same_gradient else torch.empty_like(d_x)
    carry = torch.stack([d.float() for d in d_last])
    carry_new = torch.empty_like(carry)
    step = partial(
        step_backward_kernel[_grid(B, H, blocks)],
        **backward_arguments(rule, forward, d_out, state, w, lengths, d_x, d_gates, precision),
        THROUGH=rule.gates if rule.reset is None else rule.gates - 1,
        **_tile(blocks),
    )
    order = range(T) if reverse else range(T - 1, -1, -1)
    later = NONE
    for t, before in zip(order, [*order[1:], NONE], strict=True):
        here = partial(step, t=t, before=before, later=later)
        has_later = later != NONE
        if rule.backward_reset is None:
            here(d_carry_ptr=carry, d_carry_new_ptr=carry_new, BACKWARD=rule.backward, HAS_LATER=has_later, PART=0)
        else:
            reset = rule.backward_reset
            here(d_carry_ptr=carry, d_carry_new_ptr=carry_new, BACKWARD=reset, HAS_LATER=has_later, PART=1)
            carry, carry_new = carry_new, carry
            here(d_carry_ptr=carry, d_carry_new_ptr=carry_new, BACKWARD=rule.backward, HAS_LATER=False, PART=2)
        carry, carry_new, later = carry_new, carry, t
    step(
        d_carry_ptr=carry,
        d_carry_new_ptr=carry_new,
        t=NONE,
        before=NONE,
        later=later,
        BACKWARD=rule.backward,
        HAS_LATER=True,
        PART=3,
    )
    return Backward(d_x, d_gates, tuple(s.to(d_out.dtype, copy=True) for s in carry_new))


def _grid(B: int, H: int, blocks: Blocks) -> tuple[int, int]:
    return triton.cdiv(B, blocks.batch), triton.cdiv(H, blocks.hidden)


def _tile(blocks: Blocks) -> dict[str, int]:
    return {
        "BLOCK_B": blocks.batch,
        "BLOCK_H": blocks.hidden,
        "BLOCK_K": blocks.inner,
        **launch_options(blocks),
    }
