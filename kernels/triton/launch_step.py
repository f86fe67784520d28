"""The launchers of the step kernels: one launch a time step, for any shape.

What no step changes is bound once; the loop over time says what a step adds: its number and its neighbours', and the
two tensors between which the state goes to and fro.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from fastcells.kernels.triton.launch import Backward, BackwardPass, Forward, ForwardPass, block_arguments, num_tiles
from fastcells.kernels.triton.plan import StepBlocks
from fastcells.kernels.triton.step import reset_hidden_kernel, step_forward_kernel
from fastcells.kernels.triton.step_backward import step_backward_kernel

NONE = -1  # in place of a step's number, where there is no such step


def step_forward(forward: ForwardPass, blocks: StepBlocks) -> Forward:
    """One launch a step (two for a cell with a second product)."""
    T, rule = forward.x.steps, forward.rule
    out = forward.results()
    carry = _stacked(forward.state)
    carry_new = torch.empty_like(carry)
    grid = *num_tiles(blocks, forward.state, forward.heads), forward.heads
    shared = {
        "reset_hidden_ptr": None if rule.reset_hidden is None else torch.empty_like(forward.state[0]),
        "BLOCK_K": blocks.inner,
        **block_arguments(blocks),
        **forward.extra_arguments(),
        **forward.head_arguments(),
    }
    reset_hidden = partial(
        reset_hidden_kernel[grid], **forward.input_arguments(out.hidden), **shared, RESET_HIDDEN=rule.reset_hidden
    )
    step = partial(step_forward_kernel[grid], **forward.step_arguments(out), **shared)
    before = NONE
    for t in range(T - 1, -1, -1) if forward.reverse else range(T):
        if rule.reset_hidden is not None:
            reset_hidden(carry_ptr=carry, t=t, before=before)
        step(carry_ptr=carry, carry_new_ptr=carry_new, t=t, before=before)
        carry, carry_new, before = carry_new, carry, t
    _copy(carry, out.last)
    return out


def step_backward(backward: BackwardPass, blocks: StepBlocks) -> Backward:
    """The adjoint of `step_forward`: one launch a step (two for a cell with a second product), and one at the end."""
    T, rule = len(backward.d_hidden), backward.rule
    grid = *num_tiles(blocks, backward.state, backward.heads), backward.heads
    out = backward.results()._replace(d_extra=backward.extra_gradients(grid[0], zero=True))
    carry = _stacked(backward.d_last)
    carry_new = torch.empty_like(carry)
    num_gates = rule.spec.num_gates
    step = partial(
        step_backward_kernel[grid],
        **backward.step_arguments(out),
        **backward.extra_arguments(),
        **backward.head_arguments(),
        d_extra_ptr=out.d_extra,
        THROUGH=num_gates if rule.reset_hidden is None else num_gates - 1,
        BLOCK_K=blocks.inner,
        **block_arguments(blocks),
    )
    order = range(T) if backward.reverse else range(T - 1, -1, -1)
    later = NONE
    for t, before in zip(order, [*order[1:], NONE], strict=True):
        here = partial(step, t=t, before=before, later=later, d_carry_ptr=carry, d_carry_new_ptr=carry_new)
        has_later = later != NONE
        if rule.backward_last_gate is None:
            here(BACKWARD=rule.backward, HAS_LATER=has_later, PART=0)
        else:
            here(BACKWARD=rule.backward_last_gate, HAS_LATER=has_later, PART=1)
            carry, carry_new = carry_new, carry
            here(d_carry_ptr=carry, d_carry_new_ptr=carry_new, BACKWARD=rule.backward, HAS_LATER=False, PART=2)
        carry, carry_new, later = carry_new, carry, t
    end = partial(step, t=NONE, before=NONE, later=later, d_carry_ptr=carry, d_carry_new_ptr=carry_new)
    end(BACKWARD=rule.backward, HAS_LATER=True, PART=3)
    _copy(carry_new, out.d_state)
    return out


def _stacked(state: tuple[Tensor, ...]) -> Tensor:
    """[states, B, H] in float32, of h and the others."""
    return torch.cat([s.view(-1, *state[0].shape) for s in state]).float()


def _copy(stacked: Tensor, state: tuple[Tensor, ...]) -> None:
    """The inverse of `_stacked`."""
    state[0].copy_(stacked[0])
    for others in state[1:]:
        others.copy_(stacked[1:].view_as(others))
