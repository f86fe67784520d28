"""The adjoint of `kernels/step.py`: one time step backward in one launch, or two for a cell with a second product."""

import triton
import triton.language as tl

from fastcells.kernels.tiles import (
    cast,
    keep_ended,
    load_state,
    load_tiles,
    product,
    store_tiles,
    zero_ended,
)


@triton.jit
def through_weights(
    d_ptr,  # [rows of this program, GATES, H] gradient of the products
    w_ptr,  # [GATES, H, H]
    start,  # [BLOCK_B, BLOCK_H] float32 to add to
    rows,
    cols,
    B,
    H,
    GATES: tl.constexpr,
    FIRST: tl.constexpr,
    N: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """`start + sum of d[:, g] @ w[g]` at `cols`, over the gates FIRST to FIRST + N."""
    row = tl.arange(0, BLOCK_B)[:, None]
    gate = (tl.full((), 0, tl.int64) + H) * H
    total = start
    for g in tl.static_range(N):
        for k0 in range(0, H, BLOCK_K):
            k = k0 + tl.arange(0, BLOCK_K)
            d_tile = row * (GATES * H) + ((FIRST + g) * H + k[None, :])
            d = tl.load(d_ptr + d_tile, mask=(rows < B)[:, None] & (k < H)[None, :], other=0.0)
            w_mask = (k < H)[:, None] & (cols < H)[None, :]
            w = tl.load(w_ptr + (FIRST + g) * gate + (k[:, None] * H + cols[None, :]), mask=w_mask, other=0.0)
            total = product(d, w, total, PRECISION)
    return total


@triton.jit(do_not_specialize=["t", "B"])
def step_backward_kernel(
    w_ptr,  # [GATES, H, H]
    lengths_ptr,  # [B] int32, read if RAGGED
    d_later_ptr,  # [B, GATES, H] gradient of the products one step later, read if HAS_LATER
    d_carry_ptr,  # [STATES, B, H] float32: gradient of the state after this step, without what the products give
    d_carry_new_ptr,  # [STATES, B, H] float32 out: the same for the state before this step
    d_out_ptr,  # [B, H] gradient of this step's output
    saved_ptr,  # [B, SAVED, H]
    h_ptr,  # [B, H] state before the step
    c_ptr,  # [B, H], as c_new_ptr for a cell with a c only
    h_new_ptr,  # [B, H] state after the step
    c_new_ptr,  # [B, H]
    d_x_ptr,  # [B, GATES, H] out: gradient of the input projection
    d_gates_ptr,  # [B, GATES, H] out: gradient of the products, written unless SAME_GRADIENT
    t,
    B,
    H,
    BACKWARD: tl.constexpr,
    GATES: tl.constexpr,
    STATES: tl.constexpr,
    SAVED: tl.constexpr,
    THROUGH: tl.constexpr,  # how many gates' products read h itself
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
    HAS_LATER: tl.constexpr,
    PART: tl.constexpr,  # 0: all; 1, 2: the two launches of a cell with a second product; 3: d_carry_new only
    RAGGED: tl.constexpr,
    SAME_GRADIENT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    zero = tl.full((), 0, tl.int64)  # makes what it is added to 64 bits wide
    first = (zero + tl.program_id(0) * BLOCK_B) * H  # of this program's rows in a [B, H] plane
    plane = (zero + B) * H
    rows = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    cols = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    mask = (rows < B)[:, None] & (cols < H)[None, :]
    # Offsets within the program's rows fit 32 bits; what does not is added to the pointer as a scalar.
    row = tl.arange(0, BLOCK_B)[:, None]
    tile = row * H + cols[None, :]
    gate_tile = row * (GATES * H) + cols[None, :]
    d_state = load_tiles(d_carry_ptr + first, plane, tile, mask, STATES)
    if HAS_LATER:
        d_h_state = through_weights(
            d_later_ptr + first * GATES,
            w_ptr,
            d_state[0],
            rows,
            cols,
            B,
            H,
            GATES,
            0,
            THROUGH,
            BLOCK_B,
            BLOCK_K,
            PRECISION,
        )
        d_state = (d_h_state,) + d_state[1:]
    if PART == 3:
        store_tiles(d_carry_new_ptr + first, plane, tile, mask, d_state)
    else:
        active = mask
        if RAGGED:
            length = tl.load(lengths_ptr + rows, mask=rows < B, other=0)
            active = active & (t < length)[:, None]
        if PART != 2:  # the second launch finds it added already
            d_out = tl.load(d_out_ptr + first + tile, mask=active, other=0.0).to(tl.float32)
            d_state = (d_state[0] + d_out,) + d_state[1:]
        saved = load_tiles(saved_ptr + first * SAVED, H, row * (SAVED * H) + cols[None, :], mask, SAVED)
        prev = load_state(h_ptr, c_ptr, first, tile, mask, STATES)
        new = load_state(h_new_ptr, c_new_ptr, first, tile, mask, STATES)
        if PART == 1:
            d_last_gate = tl.where(active, BACKWARD(d_state, saved, prev, new), 0.0)
            tl.store(
                d_x_ptr + first * GATES + (GATES - 1) * H + gate_tile,
                cast(d_last_gate, d_x_ptr.dtype.element_ty),
                mask=mask,
            )
            store_tiles(d_carry_new_ptr + first, plane, tile, mask, d_state)
        else:
            if PART == 2:
                d_reset = through_weights(
                    d_x_ptr + first * GATES,
                    w_ptr,
                    tl.zeros_like(d_state[0]),
                    rows,
                    cols,
                    B,
                    H,
                    GATES,
                    GATES - 1,
                    1,
                    BLOCK_B,
                    BLOCK_K,
                    PRECISION,
                )
                d_x, d_h, d_prev = BACKWARD(d_state, saved, prev, new, d_reset)
            else:
                d_x, d_h, d_prev = BACKWARD(d_state, saved, prev, new)
            if RAGGED:
                d_x = zero_ended(active, d_x, GATES)
                d_h = zero_ended(active, d_h, GATES)
                d_prev = keep_ended(active, d_prev, d_state, STATES)
            if PART == 2:  # the last gate's is written, and other programs are reading it
                for g in tl.static_range(GATES - 1):
                    tl.store(
                        d_x_ptr + first * GATES + g * H + gate_tile, cast(d_x[g], d_x_ptr.dtype.element_ty), mask=mask
                    )
            else:
                store_tiles(d_x_ptr + first * GATES, H, gate_tile, mask, d_x)
                if not SAME_GRADIENT:
                    store_tiles(d_gates_ptr + first * GATES, H, gate_tile, mask, d_h)
            store_tiles(d_carry_new_ptr + first, plane, tile, mask, d_prev)
