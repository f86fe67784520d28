"""The launchers of the sequence kernels: the whole sequence in one launch, one program a batch tile."""

from __future__ import annotations

from fastcells.kernels.triton.launch import (
    Backward,
    BackwardPass,
    Forward,
    ForwardPass,
    block_arguments,
    elements_in_a_word,
    num_tiles,
)
from fastcells.kernels.triton.plan import Blocks
from fastcells.kernels.triton.sequence import sequence_backward_kernel, sequence_forward_kernel


def sequence_forward(forward: ForwardPass, blocks: Blocks) -> Forward:
    out = forward.results()
    sequence_forward_kernel[num_tiles(blocks, forward.state)[0], forward.heads](
        **forward.sequence_arguments(out),
        **forward.extra_arguments(),
        **forward.head_arguments(),
        **block_arguments(blocks),
        WORD=elements_in_a_word(forward.w),
    )
    return out


def sequence_backward(backward: BackwardPass, blocks: Blocks) -> Backward:
    """The adjoint of `sequence_forward`."""
    out, (batch_tiles, _) = backward.results(), num_tiles(blocks, backward.state)
    out = out._replace(d_extra=backward.extra_gradients(batch_tiles))
    sequence_backward_kernel[batch_tiles, backward.heads](
        **backward.sequence_arguments(out),
        **backward.extra_arguments(),
        **backward.head_arguments(),
        **block_arguments(blocks),
        d_extra_ptr=out.d_extra,
        WORD=elements_in_a_word(backward.w),
    )
    return out
