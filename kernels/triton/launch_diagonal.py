"""The launchers of the kernels for diagonal recurrent weights: the whole sequence in one launch."""

from __future__ import annotations

import torch

from fastcells.kernels.triton.diagonal import diagonal_backward_kernel, diagonal_forward_kernel
from fastcells.kernels.triton.launch import (
    Arguments,
    Backward,
    BackwardPass,
    Forward,
    ForwardPass,
    block_arguments,
    num_tiles,
)
from fastcells.kernels.triton.plan import DiagonalBlocks


def diagonal_forward(forward: ForwardPass, blocks: DiagonalBlocks) -> Forward:
    out = forward.results()
    diagonal_forward_kernel[num_tiles(blocks, forward.state)](
        **_without_product(forward.sequence_arguments(out)),
        **forward.extra_arguments(),
        **block_arguments(blocks),
        STEPS=blocks.steps,
    )
    return out


def diagonal_backward(backward: BackwardPass, blocks: DiagonalBlocks) -> Backward:
    """The adjoint of `diagonal_forward`, W_hh's gradient included."""
    grid = num_tiles(blocks, backward.state)
    size = grid[0], backward.rule.spec.num_gates, backward.state[0].shape[1]
    d_w, d_extra = backward.w.new_empty(size, dtype=torch.float32), backward.extra_gradients(grid[0])
    out = backward.results()._replace(d_w=d_w, d_extra=d_extra)
    diagonal_backward_kernel[grid](
        **_without_product(backward.sequence_arguments(out)),
        **backward.extra_arguments(),
        **block_arguments(blocks),
        d_w_ptr=d_w,
        d_extra_ptr=d_extra,
        STEPS=blocks.steps,
    )
    return out


def _without_product(arguments: Arguments) -> Arguments:
    """Without what is a matmul's."""
    matmuls = ("PRECISION", "RESET_HIDDEN", "BACKWARD_LAST_GATE")
    return {name: value for name, value in arguments.items() if name not in matmuls}
