"""The launchers of the split sequence kernels: they prepare the mailbox, and launch what runs at once together.

Two launches, whatever T and B: one fills the mailbox or clears the counters.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastcells.kernels.triton import fault
from fastcells.kernels.triton.exchange import EXCHANGES, Exchange
from fastcells.kernels.triton.launch import (
    Arguments,
    Backward,
    BackwardPass,
    Forward,
    ForwardPass,
    Pass,
    block_arguments,
    cdiv,
    elements_in_a_word,
    num_tiles,
)
from fastcells.kernels.triton.mailbox import fill_with_sentinel, first_elements
from fastcells.kernels.triton.plan import Split
from fastcells.kernels.triton.split_backward import split_backward_kernel
from fastcells.kernels.triton.split_forward import split_forward_kernel

COUNTER_LINE = 32  # int32 words between two counters: they lie in different cache lines


def split_forward(forward: ForwardPass, split: Split) -> Forward:
    """The whole sequence, split over programs that exchange the state each step."""
    device, what = forward.w.device, f"split_forward of {forward.rule.spec.name}"
    fault.raise_fault(device, what)
    T, (B, H) = forward.x.steps, forward.state[0].shape
    # One tensor for both mailboxes of a cell with a second product, so that one launch fills it. 16 divides the
    # address of either, whatever T and B: for another Triton would compile another kernel.
    size = cdiv(T * B * H, 8) * 8
    second = forward.rule.reset_hidden is not None
    mailboxes = _mailbox(EXCHANGES[split.exchange], (2 if second else 1, size), like=forward.w)
    out = forward.results(hidden=first_elements(mailboxes[0], (T, B, H)))
    split_forward_kernel[_grid(split, forward)](
        **forward.sequence_arguments(out),
        **forward.extra_arguments(),
        reset_hidden_ptr=first_elements(mailboxes[1], (T, B, H)) if second else None,
        **_arguments(split, forward),
        **_options(split),
    )
    fault.raise_own_fault(device, what)
    return out


def split_backward(backward: BackwardPass, split: Split) -> Backward:
    """The adjoint of `split_forward`, split in the same way; the programs exchange the gates' gradients."""
    device, what = backward.w.device, f"split_backward of {backward.rule.spec.name}"
    fault.raise_fault(device, what)
    (T, B, H), gates = backward.d_hidden.shape, backward.rule.spec.num_gates
    mailbox = _mailbox(EXCHANGES[split.exchange], (T, B, gates, H), like=backward.d_hidden)
    grid = _grid(split, backward)
    out = backward.results(d_gates=mailbox)._replace(d_extra=backward.extra_gradients(grid[1]))
    split_backward_kernel[grid](
        **backward.sequence_arguments(out),
        **backward.extra_arguments(),
        d_extra_ptr=out.d_extra,
        **_arguments(split, backward),
        **_options(split),
    )
    fault.raise_own_fault(device, what)
    return out


def _mailbox(exchange: Exchange, shape: tuple[int, ...], like: Tensor) -> Tensor:
    mailbox = like.new_empty(shape)
    if exchange.prefilled:
        fill_with_sentinel(mailbox)
    return mailbox


def _grid(split: Split, given: Pass) -> tuple[int, int, int]:
    """Column tiles of a head, groups of programs, never more of them than batch tiles, and heads."""
    batch_tiles, column_tiles = num_tiles(split.blocks, given.state, given.heads)
    return column_tiles, min(split.groups, batch_tiles), given.heads


def _arguments(split: Split, given: Pass) -> Arguments:
    """Of both kernels, because they are split."""
    exchange, blocks, H = EXCHANGES[split.exchange], split.blocks, given.state[0].shape[1]
    make = given.w.new_empty if exchange.prefilled else given.w.new_zeros  # a sentinel does without counters
    return {
        "counter_ptr": make(given.heads * num_tiles(blocks, given.state)[0], COUNTER_LINE, dtype=torch.int32),
        "PUBLISH": exchange.publish,
        "ARRIVE": exchange.arrive,
        "WAIT": exchange.wait,
        "GATHER": exchange.gather,
        "fault_ptr": fault.fault_word(given.w.device),
        "patience": fault.PATIENCE,
        "BLOCK_K": blocks.inner,
        "INNER": cdiv(given.w.shape[1], blocks.inner),
        # What a second product keeps meanwhile leaves less room.
        "AT_ONCE": split.polled if given.rule.reset_hidden is None else max(1, split.polled * 3 // 4),
        "TIE": blocks.warps == 1,
        "WORD": elements_in_a_word(given.w),
        "KNOWN_H": H if H % 8 else 0,
        **given.head_arguments(),
    }


def _options(split: Split) -> Arguments:
    # Cooperative: the driver refuses a grid that cannot run at once, where programs would wait for ever.
    return {**block_arguments(split.blocks), "launch_cooperative_grid": True}
