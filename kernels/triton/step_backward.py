"""The adjoint of `step.py`: one time step backward in one launch, or two for a cell with a second product."""

import triton
import triton.language as tl

from fastcells.kernels.triton.ahead import load_raw, widen
from fastcells.kernels.triton.tiles import (
    cast,
    freeze_finished,
    load_extra,
    load_resets,
    load_state,
    of_head,
    offsets,
    owned,
    product,
    store_tiles,
    zero_finished,
    zero_started,
)


@triton.jit
def through_weights(
    d_ptr,  # [rows of this program, GATES, H] gradient of the products
    w_ptr,  # [GATES, units, units]
    start,  # [BLOCK_B, BLOCK_H] float32 to add to
    row_mask,  # [BLOCK_B, 1]
    cols,
    H,
    units,
    GATES: tl.constexpr,
    FIRST: tl.constexpr,
    N: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """`start + sum of d[:, g] @ w[g]` at `cols`, over the gates FIRST to FIRST + N."""
    row = tl.arange(0, BLOCK_B)[:, None]
    gate = (tl.full((), 0, tl.int64) + units) * units
    total = start
    for g in range(N):
        for k0 in range(0, units, BLOCK_K):
            k = k0 + tl.arange(0, BLOCK_K)
            d_tile = row * (GATES * H) + ((FIRST + g) * H + k[None, :])
            d = tl.load(d_ptr + d_tile, mask=row_mask & (k < units)[None, :], other=0.0)
            w_mask = (k < units)[:, None] & (cols < units)[None, :]
            w = tl.load(w_ptr + (FIRST + g) * gate + (k[:, None] * units + cols[None, :]), mask=w_mask, other=0.0)
            total = product(d, w, total, PRECISION)
    return total


@triton.jit
def add_column_sums(ptr, cols, H, known, tiles, mask):
    """Of each tile, as far as it is in the mask, to a [tiles, H] in float32; known: which of its columns there are."""
    for i in tl.static_range(len(tiles)):
        so_far = tl.load(ptr + i * H + cols, mask=known, other=0.0)
        tl.store(ptr + i * H + cols, so_far + tl.sum(tl.where(mask, tiles[i], 0.0), axis=0), mask=known)


@triton.jit(do_not_specialize=["t", "before", "later", "B"])
def step_backward_kernel(
    w_ptr,  # [GATES, H, H]
    extra_ptr,  # [EXTRA, H] further parameters, or None
    lengths_ptr,  # [B] int32: how many steps each row has; or None
    resets_ptr,  # [T, B] uint8: not 0 where a row's step starts from zeros; or None
    h0_ptr,  # [B, H] initial state
    c0_ptr,  # [STATES - 1, B, H], as c_ptr for a cell with more than h only
    h_ptr,  # [T, B, H] state after each step
    c_ptr,  # [T, STATES - 1, B, H]
    saved_ptr,  # [T, B, SAVED, H]
    d_out_ptr,  # [T, B, H] gradient of every output
    d_x_ptr,  # [T, B, GATES, H] out: gradient of the input projection; None where it is d_gates
    d_gates_ptr,  # [T, B, GATES, H] in and out: gradient of the products
    d_carry_ptr,  # [STATES, B, H] float32: gradient of the state after this step, without what the products give
    d_carry_new_ptr,  # [STATES, B, H] float32 out: the same for the state before this step
    d_extra_ptr,  # [batch tiles, EXTRA, H] float32 in and out: the parameters' gradients so far; or None
    t,  # the step
    before,  # the step whose state it started from; negative: the initial state
    later,  # the step that started from its state, if HAS_LATER
    B,
    H,
    BACKWARD: tl.constexpr,
    GATES: tl.constexpr,
    STATES: tl.constexpr,
    SAVED: tl.constexpr,
    EXTRA: tl.constexpr,
    UNITS: tl.constexpr,  # hidden columns of a head, with w_ptr [heads, GATES, UNITS, UNITS]; 0 without heads
    THROUGH: tl.constexpr,  # how many gates' products read h itself
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
    HAS_LATER: tl.constexpr,
    PART: tl.constexpr,  # 0: all; 1, 2: the two launches of a cell with a second product; 3: d_carry_new only
    PRECISION: tl.constexpr,
):
    units = UNITS if UNITS else H
    first_row, batch, rows, unit, mask = owned(tl.program_id(0), tl.program_id(1), B, units, BLOCK_B, BLOCK_H)
    cols = of_head(unit, tl.program_id(2), UNITS)
    first_unit = of_head(0, tl.program_id(2), UNITS)
    if UNITS:
        w_ptr += tl.program_id(2) * (GATES * UNITS * UNITS)
    first, plane, row, tile, gate_tile, saved_tile = offsets(first_row, batch, cols, H, GATES, SAVED, BLOCK_B)
    row_mask = (rows < B)[:, None]
    d_state = load_raw(d_carry_ptr + first, plane, tile, mask, STATES)
    if HAS_LATER:
        d_products = d_gates_ptr + (later * plane + first) * GATES + first_unit
        read_rows = row_mask
        if resets_ptr is not None:  # of what starts from zeros nothing comes back
            read_rows = row_mask & (load_resets(resets_ptr, later * batch + first_row, row, row_mask) == 0)
        d_h_state = through_weights(
            d_products, w_ptr, d_state[0], read_rows, unit, H, units, GATES, 0, THROUGH, BLOCK_B, BLOCK_K, PRECISION
        )
        d_state = (d_h_state,) + d_state[1:]
    if PART == 3:
        store_tiles(d_carry_new_ptr + first, plane, tile, mask, d_state)
    else:
        at = t * plane + first
        d_gates_step = d_gates_ptr + at * GATES
        active = mask
        if lengths_ptr is not None:
            length = tl.load(lengths_ptr + rows, mask=rows < B, other=0)
            active = active & (t < length)[:, None]
        if PART != 2:  # the second launch finds it added already
            d_out = tl.load(d_out_ptr + at + tile, mask=active, other=0.0).to(tl.float32)
            d_state = (d_state[0] + d_out,) + d_state[1:]
        saved = load_raw(saved_ptr + at * SAVED, H, saved_tile, mask, SAVED)
        saved = widen(saved, saved_ptr.dtype.element_ty, 1, 0, SAVED)
        if before < 0:
            prev = load_state(h0_ptr, c0_ptr, first, first, plane, tile, mask, STATES)
        else:
            prev = load_state(h_ptr, c_ptr, before * plane + first, first, plane, tile, mask, STATES)
        if resets_ptr is not None:
            starts = load_resets(resets_ptr, t * batch + first_row, row, row_mask)
            prev = zero_started(starts, prev, STATES)
        new = load_state(h_ptr, c_ptr, at, first, plane, tile, mask, STATES)
        extra = load_extra(extra_ptr, cols, H, EXTRA, BLOCK_B, BLOCK_H)
        if PART == 1:
            d_last_gate = tl.where(active, BACKWARD(d_state, saved, prev + extra, new), 0.0)
            tl.store(
                d_gates_step + (GATES - 1) * H + gate_tile, cast(d_last_gate, d_gates_ptr.dtype.element_ty), mask=mask
            )
            store_tiles(d_carry_new_ptr + first, plane, tile, mask, d_state)
        else:
            if PART == 2:
                none = tl.zeros_like(d_state[0])
                d_reset_hidden = through_weights(
                    d_gates_step + first_unit,
                    w_ptr,
                    none,
                    row_mask,
                    unit,
                    H,
                    units,
                    GATES,
                    GATES - 1,
                    1,
                    BLOCK_B,
                    BLOCK_K,
                    PRECISION,
                )
                d_x, d_h, d_prev = BACKWARD(d_state, saved, prev + extra, new, d_reset_hidden)
            else:
                d_x, d_h, d_prev = BACKWARD(d_state, saved, prev + extra, new)
            if EXTRA:
                add_column_sums(
                    d_extra_ptr + tl.program_id(0) * EXTRA * H, cols, H, unit < units, d_prev[STATES:], active
                )
                d_prev = d_prev[:STATES]
            if resets_ptr is not None:
                d_prev = zero_started(starts, d_prev, STATES)
            if lengths_ptr is not None:
                d_x = zero_finished(active, d_x, GATES)
                d_h = zero_finished(active, d_h, GATES)
                d_prev = freeze_finished(active, d_prev, d_state, STATES)
            if d_x_ptr is not None:
                store_tiles(d_x_ptr + at * GATES, H, gate_tile, mask, d_x)
            if PART == 2:  # the last gate's is written, and other programs are reading it
                store_tiles(d_gates_step, H, gate_tile, mask, d_h[:-1])
            else:
                store_tiles(d_gates_step, H, gate_tile, mask, d_h)
            store_tiles(d_carry_new_ptr + first, plane, tile, mask, d_prev)
