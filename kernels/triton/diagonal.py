"""Cells whose units read themselves alone, the whole sequence in one launch: no matmul, and nobody to wait for.

A program owns BLOCK_B rows of the batch and BLOCK_H hidden columns of every gate, for all steps. What a step reads
besides the state takes longer to come than the step to compute: STEPS of them are loaded at once, while as many before
are computed.

Tensors are contiguous. State and accumulators are float32 whatever the storage dtype.
"""

import triton
import triton.language as tl

from fastcells.kernels.triton.ahead import load_adjoint, load_rows, widen, with_bias
from fastcells.kernels.triton.tiles import (
    add_tiles,
    freeze_finished,
    load_bias,
    load_extra,
    load_ids,
    load_resets,
    load_state,
    offsets,
    owned,
    store_column_sums,
    store_state,
    store_tiles,
    zero_finished,
    zero_started,
    zero_tiles,
)


@triton.jit
def load_inputs(
    x_ptr,  # as the kernel's pointers
    ids_ptr,
    resets_ptr,
    i,
    T,
    B,
    first_row,
    batch,
    row,
    rows,
    cols,
    mask,
    x_tile,
    V,
    H,
    GATES: tl.constexpr,
    STEPS: tl.constexpr,
    REVERSE: tl.constexpr,
):
    """Of STEPS steps from the walk's i-th on: all gates' input projections, and where the step starts from zeros."""
    tiles = ()
    starts = ()
    for k in tl.static_range(STEPS):
        t = T - 1 - (i + k) if REVERSE else i + k
        there = (rows < tl.where(i + k < T, B, 0))[:, None]
        ids = load_ids(ids_ptr, t * batch + first_row, row, there)
        at = t * (batch * H) + first_row * H
        tiles += load_rows(x_ptr, ids_ptr, ids, at, x_tile, cols, mask & there, V, H, GATES, GATES)
        starts += (load_resets(resets_ptr, t * batch + first_row, row, there),)
    return tiles, starts


@triton.jit(do_not_specialize=["T", "B"])
def diagonal_forward_kernel(
    x_ptr,  # [T, B, GATES, H] input projection with b_ih; given ids [V, GATES, H], W_ih^T
    ids_ptr,  # [T, B] int32 or int64, rows of x_ptr; or None
    b_ih_ptr,  # [GATES, H] bias of the input projection, given ids; or None
    w_ptr,  # [GATES, H] recurrent weight
    b_ptr,  # [GATES, H] recurrent bias, or None
    extra_ptr,  # [EXTRA, H] further parameters, or None
    lengths_ptr,  # [B] int32: how many steps each row has; or None
    resets_ptr,  # [T, B] uint8: not 0 where a row's step starts from zeros; or None
    h0_ptr,  # [B, H] initial state
    c0_ptr,  # [STATES - 1, B, H], as all c pointers for a cell with more than h only
    h_ptr,  # [T, B, H] out: state after each step
    c_ptr,  # [T, STATES - 1, B, H] out
    saved_ptr,  # [T, B, SAVED, H] out, or None
    h_n_ptr,  # [B, H] out: final state
    c_n_ptr,  # [STATES - 1, B, H] out
    T,
    B,
    H,
    V,
    FORWARD: tl.constexpr,
    GATES: tl.constexpr,
    STATES: tl.constexpr,
    SAVED: tl.constexpr,
    EXTRA: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
    STEPS: tl.constexpr,
    REVERSE: tl.constexpr,
):
    first_row, batch, rows, cols, mask = owned(tl.program_id(0), tl.program_id(1), B, H, BLOCK_B, BLOCK_H)
    first, plane, row, tile, x_tile, saved_tile = offsets(first_row, batch, cols, H, GATES, SAVED, BLOCK_B)
    element: tl.constexpr = w_ptr.dtype.element_ty
    w = load_extra(w_ptr, cols, H, GATES, BLOCK_B, BLOCK_H)
    b = load_bias(b_ptr, cols, H, GATES)
    b_ih = load_bias(b_ih_ptr, cols, H, GATES)
    extra = load_extra(extra_ptr, cols, H, EXTRA, BLOCK_B, BLOCK_H)
    if lengths_ptr is not None:
        length = tl.load(lengths_ptr + rows, mask=rows < B, other=0)
    state = load_state(h0_ptr, c0_ptr, first, first, plane, tile, mask, STATES)
    ahead, starts_ahead = load_inputs(
        x_ptr, ids_ptr, resets_ptr, 0, T, B, first_row, batch, row, rows, cols, mask, x_tile, V, H,
        GATES, STEPS, REVERSE,
    )  # fmt: skip
    for first_i in range(0, T, STEPS):
        now = ahead
        starts = starts_ahead
        ahead, starts_ahead = load_inputs(
            x_ptr, ids_ptr, resets_ptr, first_i + STEPS, T, B, first_row, batch, row, rows, cols, mask, x_tile, V, H,
            GATES, STEPS, REVERSE,
        )  # fmt: skip
        for k in tl.static_range(STEPS):
            t = T - 1 - (first_i + k) if REVERSE else first_i + k
            there = mask & (first_i + k < T)
            x = with_bias(now[k * GATES : (k + 1) * GATES], ids_ptr, b_ih, element, 1, GATES)
            before = state if resets_ptr is None else zero_started(starts[k], state, STATES)
            h = ()
            for g in tl.static_range(GATES):
                h += (before[0] * w[g] + b[g],)
            new, saved = FORWARD(x, h, before + extra)
            active = there
            if lengths_ptr is not None:
                active = there & (t < length)[:, None]
            state = freeze_finished(active, new, state, STATES)
            at = t * plane + first
            store_state(h_ptr, c_ptr, at, first, plane, tile, there, state, STATES)
            if saved_ptr is not None:
                store_tiles(saved_ptr + at * SAVED, H, saved_tile, there, saved)
    store_state(h_n_ptr, c_n_ptr, first, first, plane, tile, mask, state, STATES)


@triton.jit
def load_adjoints(
    d_out_ptr,  # as the kernel's pointers
    saved_ptr,
    h_ptr,
    c_ptr,
    h0_ptr,
    c0_ptr,
    resets_ptr,
    i,
    T,
    B,
    first_row,
    batch,
    row,
    rows,
    mask,
    tile,
    saved_tile,
    H,
    STATES: tl.constexpr,
    SAVED: tl.constexpr,
    STEPS: tl.constexpr,
    REVERSE: tl.constexpr,
):
    """Of STEPS steps from the walk's i-th on: what `load_adjoint` gives, and where the step started from zeros."""
    tiles = ()
    starts = ()
    for k in tl.static_range(STEPS):
        t = i + k if REVERSE else T - 1 - (i + k)
        there = (rows < tl.where(i + k < T, B, 0))[:, None]
        tiles += load_adjoint(
            d_out_ptr, saved_ptr, h_ptr, c_ptr, h0_ptr, c0_ptr, first_row * H, batch * H, t, H, tile, saved_tile,
            mask & there, i + k + 1 == T, STATES, SAVED, REVERSE,
        )  # fmt: skip
        starts += (load_resets(resets_ptr, t * batch + first_row, row, there),)
    return tiles, starts


@triton.jit(do_not_specialize=["T", "B"])
def diagonal_backward_kernel(
    w_ptr,  # [GATES, H]
    extra_ptr,  # [EXTRA, H] further parameters, or None
    lengths_ptr,  # [B] int32: how many steps each row has; or None
    resets_ptr,  # [T, B] uint8: not 0 where a row's step starts from zeros; or None
    h0_ptr,  # [B, H] initial state
    c0_ptr,  # [STATES - 1, B, H], as all c pointers for a cell with more than h only
    h_ptr,  # [T, B, H] state after each step
    c_ptr,  # [T, STATES - 1, B, H]
    saved_ptr,  # [T, B, SAVED, H]
    d_out_ptr,  # [T, B, H] gradient of every output
    d_h_n_ptr,  # [B, H] gradient of the final state
    d_c_n_ptr,  # [STATES - 1, B, H]
    d_x_ptr,  # [T, B, GATES, H] out: gradient of the input projection; None where it is d_gates
    d_gates_ptr,  # [T, B, GATES, H] out: gradient of the recurrent products
    d_h0_ptr,  # [B, H] out: gradient of the initial state
    d_c0_ptr,  # [STATES - 1, B, H] out
    d_w_ptr,  # [batch tiles, GATES, H] float32 out: what each adds to the recurrent weight's gradient
    d_extra_ptr,  # [batch tiles, EXTRA, H] float32 out: the same of the parameters'; or None
    T,
    B,
    H,
    BACKWARD: tl.constexpr,
    GATES: tl.constexpr,
    STATES: tl.constexpr,
    SAVED: tl.constexpr,
    EXTRA: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
    STEPS: tl.constexpr,
    REVERSE: tl.constexpr,
):
    first_row, batch, rows, cols, mask = owned(tl.program_id(0), tl.program_id(1), B, H, BLOCK_B, BLOCK_H)
    first, plane, row, tile, x_tile, saved_tile = offsets(first_row, batch, cols, H, GATES, SAVED, BLOCK_B)
    element: tl.constexpr = w_ptr.dtype.element_ty
    each: tl.constexpr = 1 + STATES + SAVED  # tiles that a step reads
    w = load_extra(w_ptr, cols, H, GATES, BLOCK_B, BLOCK_H)
    extra = load_extra(extra_ptr, cols, H, EXTRA, BLOCK_B, BLOCK_H)
    if lengths_ptr is not None:
        length = tl.load(lengths_ptr + rows, mask=rows < B, other=0)
    d_state = load_state(d_h_n_ptr, d_c_n_ptr, first, first, plane, tile, mask, STATES)
    last = (T * 0 if REVERSE else T - 1) * plane + first
    after = load_state(h_ptr, c_ptr, last, first, plane, tile, mask, STATES)
    d_w = zero_tiles(GATES, BLOCK_B, BLOCK_H)
    d_extra = zero_tiles(EXTRA, BLOCK_B, BLOCK_H)
    ahead, starts_ahead = load_adjoints(
        d_out_ptr, saved_ptr, h_ptr, c_ptr, h0_ptr, c0_ptr, resets_ptr, 0, T, B, first_row, batch, row, rows,
        mask, tile, saved_tile, H, STATES, SAVED, STEPS, REVERSE,
    )  # fmt: skip
    for first_i in range(0, T, STEPS):
        now = ahead
        starts = starts_ahead
        ahead, starts_ahead = load_adjoints(
            d_out_ptr, saved_ptr, h_ptr, c_ptr, h0_ptr, c0_ptr, resets_ptr, first_i + STEPS, T, B, first_row, batch,
            row, rows, mask, tile, saved_tile, H, STATES, SAVED, STEPS, REVERSE,
        )  # fmt: skip
        for k in tl.static_range(STEPS):
            t = first_i + k if REVERSE else T - 1 - (first_i + k)
            there = mask & (first_i + k < T)
            active = there
            if lengths_ptr is not None:
                active = there & (t < length)[:, None]
            d_out = widen(now, element, 1, k * each, 1)[0]
            before = widen(now, element, 1, k * each + 1, STATES)
            saved = widen(now, element, 1, k * each + 1 + STATES, SAVED)
            prev = before if resets_ptr is None else zero_started(starts[k], before, STATES)
            d_new = (d_state[0] + tl.where(active, d_out, 0.0),) + d_state[1:]
            d_x, d_h, d_prev = BACKWARD(d_new, saved, prev + extra, after)
            after = before
            d_x = zero_finished(active, d_x, GATES)
            d_h = zero_finished(active, d_h, GATES)
            through = d_prev[0]
            by_weight = ()
            for g in tl.static_range(GATES):
                through += d_h[g] * w[g]
                by_weight += (d_h[g] * prev[0],)
            d_w = add_tiles(d_w, by_weight, active, GATES)
            d_extra = add_tiles(d_extra, d_prev[STATES:], active, EXTRA)
            d_prev = (through,) + d_prev[1:STATES]
            if resets_ptr is not None:
                d_prev = zero_started(starts[k], d_prev, STATES)
            at = (t * plane + first) * GATES
            if d_x_ptr is not None:
                store_tiles(d_x_ptr + at, H, x_tile, there, d_x)
            store_tiles(d_gates_ptr + at, H, x_tile, there, d_h)
            d_state = freeze_finished(active, d_prev, d_new, STATES)
    store_state(d_h0_ptr, d_c0_ptr, first, first, plane, tile, mask, d_state, STATES)
    store_column_sums(d_w_ptr + tl.program_id(0) * GATES * H, cols, H, cols < H, d_w)
    if EXTRA:
        store_column_sums(d_extra_ptr + tl.program_id(0) * EXTRA * H, cols, H, cols < H, d_extra)
