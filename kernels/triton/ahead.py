"""What a step reads of tensors that are complete before the launch: loaded one step ahead, and carried as it came.

A load takes as long as a step's matmuls. What a step reads is under way during the whole step before, and until it is
used it stays in the tensor's dtype and in the layout of the load: a conversion is the first to wait for it.
"""

import triton
import triton.language as tl

from fastcells.kernels.triton.tiles import of_state
from fastcells.kernels.triton.words import unpack


@triton.jit
def load_raw(ptr, stride, tile, mask, N: tl.constexpr):
    """N tiles in the dtype of the tensor; 0 where the mask is false."""
    tiles = ()
    for i in tl.static_range(N):
        tiles += (tl.load(ptr + i * stride + tile, mask=mask, other=0),)
    return tiles


@triton.jit
def load_rows(x_ptr, ids_ptr, ids, at, tile, cols, mask, V, H, GATES: tl.constexpr, N: tl.constexpr):
    """The first N gates' input projections: from element `at` on, or, given ids, the rows of the table that they name.

    An id outside [0, V), as padding may hold, acts as an all-zero input and is never read.
    """
    if ids_ptr is not None:
        known = (ids >= 0) & (ids < V)
        rows = tl.where(known, ids, 0).to(tl.int64) * (GATES * H)
        tiles = load_raw(x_ptr + rows, H, cols[None, :], mask & known, N)
    else:
        tiles = load_raw(x_ptr + at * GATES, H, tile, mask, N)
    return tiles


@triton.jit
def with_bias(rows, ids_ptr, b_ih, element: tl.constexpr, WORD: tl.constexpr, N: tl.constexpr):
    """What `load_rows` gave as float32; of a table, with the bias that the table is without."""
    tiles = ()
    for g in tl.static_range(N):
        tile = unpack(rows[g], element, WORD).to(tl.float32)
        if ids_ptr is not None:
            tile += b_ih[g]
        tiles += (tile,)
    return tiles


@triton.jit
def load_adjoint(
    d_out_ptr,  # [T, B, H], as the others counted in words
    saved_ptr,  # [T, B, SAVED, H]
    h_ptr,  # [T, B, H]
    c_ptr,  # [T, STATES - 1, B, H]
    h0_ptr,  # [B, H]
    c0_ptr,  # [STATES - 1, B, H]
    first,
    plane,
    t,
    words,
    tile,
    saved_tile,
    mask,
    at_start,  # whether the step is the forward pass's first one
    STATES: tl.constexpr,
    SAVED: tl.constexpr,
    REVERSE: tl.constexpr,
):
    """What the backward of step t reads: the gradient of its output, the state before it, and the saved tiles."""
    at = t * plane + first
    # Both branches of an `if` would wait for their loads before they meet: one load, from one place or another.
    before = at + (plane if REVERSE else -plane)
    read = (tl.load(d_out_ptr + at + tile, mask=mask, other=0),)
    read += (tl.load(tl.where(at_start, h0_ptr + first, h_ptr + before) + tile, mask=mask, other=0),)
    for s in tl.static_range(1, STATES):
        c0_at = of_state(first, first, plane, s, STATES)
        c_at = of_state(before, first, plane, s, STATES)
        read += (tl.load(tl.where(at_start, c0_ptr + c0_at, c_ptr + c_at) + tile, mask=mask, other=0),)
    return read + load_raw(saved_ptr + at * SAVED, words, saved_tile, mask, SAVED)


@triton.jit
def widen(words, element: tl.constexpr, WORD: tl.constexpr, FIRST: tl.constexpr, N: tl.constexpr):
    """N tiles of words as float32."""
    tiles = ()
    for i in tl.static_range(FIRST, FIRST + N):
        tiles += (unpack(words[i], element, WORD).to(tl.float32),)
    return tiles
