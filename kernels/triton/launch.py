"""The launchers of the sequence kernels with one program a batch tile, and what all launchers share.

A launcher takes tensors and gives tensors; one function for each way to run a cell over time. All tensors are
contiguous and on one device; `fastcells/triton_ops.py` sees to it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from fastcells.kernels.triton.plan import Blocks
from fastcells.kernels.triton.rule import UpdateRule
from fastcells.kernels.triton.sequence import sequence_backward_kernel, sequence_forward_kernel


class Input(NamedTuple):
    """What a step reads beside the state: a tensor of its own, or the row of a table."""

    x: Tensor  # [T, B, G*H] the input projection; with ids [V, G*H], W_ih^T
    ids: Tensor | None = None  # [T, B] int32 or int64
    bias: Tensor | None = None  # [G*H] b_ih, with ids

    @property
    def steps(self) -> int:
        return len(self.x if self.ids is None else self.ids)

    def arguments(self) -> dict[str, Tensor | int | bool | None]:
        """As the kernels take it."""
        return {
            "x_ptr": self.x,
            "ids_ptr": self.ids,
            "b_ih_ptr": self.bias,
            "V": 0 if self.ids is None else len(self.x),
            "TOKENS": self.ids is not None,
            "HAS_INPUT_BIAS": self.bias is not None,
        }


class Forward(NamedTuple):
    hidden: Tensor  # [T, B, H]
    cells: Tensor | None  # [T, B, H], for a cell with a c
    saved: Tensor | None  # [T, B, saved, H]
    last: tuple[Tensor, ...]  # each [B, H]


class Backward(NamedTuple):
    d_x: Tensor  # [T, B, G, H]
    d_gates: Tensor  # [T, B, G, H]; d_x itself where the two are the same
    d_state: tuple[Tensor, ...]  # each [B, H]


def new_outputs(rule: UpdateRule, T: int, h0: Tensor, save: bool) -> Forward:
    B, H = h0.shape
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
    """The whole sequence in one launch."""
    T, (B, H) = x.steps, state[0].shape
    out = new_outputs(rule, T, state[0], save)
    h0, c0 = pair(state)
    h_n, c_n = pair(out.last)
    sequence_forward_kernel[(triton.cdiv(B, blocks.batch),)](
        **x.arguments(),
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
    sequence_backward_kernel[(triton.cdiv(B, blocks.batch),)](
        **backward_arguments(rule, forward, d_out, state, w, lengths, d_x, d_gates, precision),
        **whole_backward_arguments(rule, T, d_last, d_state, reverse),
        BLOCK_B=blocks.batch,
        BLOCK_H=blocks.hidden,
        **launch_options(blocks),
    )
    return Backward(d_x, d_gates, d_state)


def backward_arguments(
    rule: UpdateRule,
    forward: Forward,
    d_out: Tensor,  # [T, B, H]
    state: tuple[Tensor, ...],
    w: Tensor,
    lengths: Tensor | None,
    d_x: Tensor,
    d_gates: Tensor,
    precision: str,
) -> dict[str, Any]:
    """What every backward kernel takes: of the sequence in one program or split, and of a step."""
    _, B, H = forward.hidden.shape
    h0, c0 = pair(state)
    return {
        "w_ptr": w,
        "lengths_ptr": lengths,
        "h0_ptr": h0,
        "c0_ptr": c0,
        "h_ptr": forward.hidden,
        "c_ptr": forward.cells,
        "saved_ptr": forward.hidden if forward.saved is None else forward.saved,  # not looked at if nothing is saved
        "d_out_ptr": d_out,
        "d_x_ptr": d_x,
        "d_gates_ptr": d_gates,
        "B": B,
        "H": H,
        "GATES": rule.gates,
        "STATES": rule.states,
        "SAVED": rule.saved,
        "RAGGED": lengths is not None,
        "SAME_GRADIENT": rule.same_gradient,
        "PRECISION": precision,
    }


def whole_backward_arguments(
    rule: UpdateRule, T: int, d_last: tuple[Tensor, ...], d_state: tuple[Tensor, ...], reverse: bool
) -> dict[str, Any]:
    """What those of the whole sequence take besides."""
    d_h_n, d_c_n = pair(d_last)
    d_h0, d_c0 = pair(d_state)
    return {
        "d_h_n_ptr": d_h_n,
        "d_c_n_ptr": d_c_n,
        "d_h0_ptr": d_h0,
        "d_c0_ptr": d_c0,
        "T": T,
        "BACKWARD": rule.backward,
        "BACKWARD_RESET": rule.backward_reset,
        "REVERSE": reverse,
    }
