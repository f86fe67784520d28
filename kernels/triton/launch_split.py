"""The launchers of the split sequence kernels: they prepare the mailbox, and launch what runs at once together.

Two launches, whatever T and B: one fills the mailbox or clears the counters. All tensors are contiguous and on one
device.
"""

from __future__ import annotations

import math

import torch
import triton
from torch import Tensor

from fastcells.kernels.triton.exchange import EXCHANGES, Exchange
from fastcells.kernels.triton.launch import (
    Backward,
    Forward,
    Input,
    backward_arguments,
    launch_options,
    pair,
    whole_backward_arguments,
)
from fastcells.kernels.triton.plan import Split
from fastcells.kernels.triton.rule import UpdateRule
from fastcells.kernels.triton.split_backward import split_backward_kernel
from fastcells.kernels.triton.split_forward import split_forward_kernel

COUNTER_LINE = 32  # int32 words between two counters: they lie in different cache lines


def split_forward(
    rule: UpdateRule,
    x: Input,
    state: tuple[Tensor, ...],
    w: Tensor,  # [G*H, H]
    b: Tensor | None,  # [G*H]
    lengths: Tensor | None,  # [B] int32
    *,
    reverse: bool,
    save: bool,
    split: Split,
    precision: str,
) -> Forward:
    """The whole sequence, split over programs that exchange the state each step."""
    T, (B, H) = x.steps, state[0].shape
    exchange = EXCHANGES[split.exchange]
    # One tensor for both mailboxes of a cell with a second product, so that one launch fills it. 16 divides the
    # address of either, whatever T and B: for another Triton would compile another kernel.
    size = triton.cdiv(T * B * H, 8) * 8
    mailboxes = _mailbox(exchange, (1 if rule.reset is None else 2, size), like=w)
    hidden = _part(mailboxes[0], (T, B, H))
    reset = None if rule.reset is None else _part(mailboxes[1], (T, B, H))
    cells = torch.empty_like(hidden) if rule.states == 2 else None
    saved = w.new_empty(T, B, rule.saved, H) if save and rule.saved else None
    last = tuple(torch.empty_like(s) for s in state)
    h0, c0 = pair(state)
    h_n, c_n = pair(last)
    counters = _counters(exchange, B, split, w)
    split_forward_kernel[_grid(B, H, split)](
        **x.arguments(),
        w_ptr=w,
        b_ptr=b,
        lengths_ptr=lengths,
        h0_ptr=h0,
        c0_ptr=c0,
        h_ptr=hidden,
        c_ptr=cells,
        reset_ptr=reset,
        saved_ptr=saved,
        h_n_ptr=h_n,
        c_n_ptr=c_n,
        counter_ptr=counters,
        T=T,
        B=B,
        H=H,
        **_functions(exchange),
        FORWARD=rule.forward,
        RESET=rule.reset,
        GATES=rule.gates,
        STATES=rule.states,
        SAVED=rule.saved,
        **_tile(H, split),
        HAS_BIAS=b is not None,
        RAGGED=lengths is not None,
        REVERSE=reverse,
        SAVE=saved is not None,
        PRECISION=precision,
        **_options(split),
    )
    return Forward(hidden, cells, saved, last)


def split_backward(
    rule: UpdateRule,
    forward: Forward,
    d_out: Tensor,  # [T, B, H]
    d_last: tuple[Tensor, ...],
    state: tuple[Tensor, ...],
    w: Tensor,
    lengths: Tensor | None,
    *,
    reverse: bool,
    split: Split,
    precision: str,
) -> Backward:
    """The adjoint of `split_forward`, split in the same way; the programs exchange the gates' gradients."""
    T, B, H = forward.hidden.shape
    exchange = EXCHANGES[split.exchange]
    d_gates = _mailbox(exchange, (T, B, rule.gates, H), like=d_out)
    d_x = d_gates if rule.same_gradient else torch.empty_like(d_gates)
    d_state = tuple(torch.empty_like(s) for s in state)
    split_backward_kernel[_grid(B, H, split)](
        **backward_arguments(rule, forward, d_out, state, w, lengths, d_x, d_gates, precision),
        **whole_backward_arguments(rule, T, d_last, d_state, reverse),
        counter_ptr=_counters(exchange, B, split, d_out),
        **_functions(exchange),
        **_tile(H, split),
        **_options(split),
    )
    return Backward(d_x, d_gates, d_state)


def _mailbox(exchange: Exchange, shape: tuple[int, ...], like: Tensor) -> Tensor:
    mailbox = like.new_empty(shape)
    if exchange.prefilled:
        mailbox.view(torch.int16 if mailbox.element_size() == 2 else torch.int32).fill_(-1)  # the sentinel
    return mailbox


def _part(mailbox: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """The first elements of a mailbox, but no view to autograd: what is returned to a user may be changed in place."""
    view, part = mailbox[: math.prod(shape)].view(shape), mailbox.new_empty(0)
    return part.set_(mailbox.untyped_storage(), view.storage_offset(), view.shape, view.stride())


def _counters(exchange: Exchange, B: int, split: Split, like: Tensor) -> Tensor:
    make = like.new_empty if exchange.prefilled else like.new_zeros  # a mailbox with a sentinel does without
    return make(triton.cdiv(B, split.blocks.batch), COUNTER_LINE, dtype=torch.int32)


def _grid(B: int, H: int, split: Split) -> tuple[int, int]:
    """Column tiles, and groups of programs: never more of them than batch tiles."""
    columns, tiles = triton.cdiv(H, split.blocks.hidden), triton.cdiv(B, split.blocks.batch)
    return columns, min(split.groups, tiles)


def _functions(exchange: Exchange) -> dict[str, triton.JITFunction]:
    return {
        "PUBLISH": exchange.publish,
        "ARRIVE": exchange.arrive,
        "WAIT": exchange.wait,
        "GATHER": exchange.gather,
    }


def _tile(H: int, split: Split) -> dict[str, int]:
    blocks = split.blocks
    return {
        "BLOCK_B": blocks.batch,
        "BLOCK_H": blocks.hidden,
        "BLOCK_K": blocks.inner,
        "INNER": triton.cdiv(H, blocks.inner),
        "KNOWN_H": H if H % 8 else 0,
    }


def _options(split: Split) -> dict[str, int | bool]:
    # Cooperative: the driver refuses a grid that cannot run at once, where programs would wait for ever.
    return {**launch_options(split.blocks), "launch_cooperative_grid": True}
