"""One time step in one launch: the recurrent matmuls of all gates and the elementwise update, forward.

A program owns BLOCK_B rows of the batch and BLOCK_H hidden columns, all of one head, of every gate; the inner dimension
is tiled, so that any B and H will do. A cell with a second product takes one more launch a step, which gives that
product's operand.

A launch gets whole tensors and the number of its step. A step's slice would do as well, but lies at an address that
16 divides in some steps only, and Triton compiles a kernel for either kind.

The state goes from step to step in float32 (`carry`), beside the copy in the storage dtype that the matmuls read.
"""

import triton
import triton.language as tl

from fastcells.kernels.triton.ahead import load_raw, load_rows, with_bias
from fastcells.kernels.triton.tiles import (
    cast,
    freeze_finished,
    load_bias,
    load_extra,
    load_ids,
    load_resets,
    of_head,
    offsets,
    owned,
    product,
    store_state,
    store_tiles,
    zero_started,
)


@triton.jit
def gate_products(
    a_ptr,  # [rows of this program, H]
    w_ptr,  # [GATES, units, units]
    row_mask,  # [BLOCK_B, 1]
    cols,
    H,
    units,
    FIRST: tl.constexpr,
    N: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """`a @ w[g].T` at `cols` for the gates FIRST to FIRST + N: a tuple of [BLOCK_B, BLOCK_H]."""
    row = tl.arange(0, BLOCK_B)[:, None]
    gate = (tl.full((), 0, tl.int64) + units) * units
    products = ()
    for _ in tl.static_range(N):
        products += (tl.zeros((BLOCK_B, BLOCK_H), tl.float32),)
    for k0 in range(0, units, BLOCK_K):
        k = k0 + tl.arange(0, BLOCK_K)
        a = tl.load(a_ptr + row * H + k[None, :], mask=row_mask & (k < units)[None, :], other=0.0)
        sums = ()
        for g in tl.static_range(N):
            w_mask = (k < units)[:, None] & (cols < units)[None, :]
            w = tl.load(w_ptr + (FIRST + g) * gate + (cols[None, :] * units + k[:, None]), mask=w_mask, other=0.0)
            sums += (product(a, w, products[g], PRECISION),)
        products = sums
    return products


@triton.jit
def input_of_step(
    x_ptr,  # as the kernels' pointers
    ids_ptr,
    b_ih_ptr,
    t,
    first_row,
    batch,
    row,
    row_mask,
    cols,
    mask,
    x_tile,
    V,
    H,
    GATES: tl.constexpr,
    N: tl.constexpr,
):
    """The first N gates' input projections of step t."""
    ids = load_ids(ids_ptr, t * batch + first_row, row, row_mask)
    b_ih = load_bias(b_ih_ptr, cols, H, N)
    at = t * (batch * H) + first_row * H
    rows = load_rows(x_ptr, ids_ptr, ids, at, x_tile, cols, mask, V, H, GATES, N)
    return with_bias(rows, ids_ptr, b_ih, x_ptr.dtype.element_ty, 1, N)


@triton.jit(do_not_specialize=["t", "before", "B"])
def reset_hidden_kernel(
    x_ptr,  # [T, B, GATES, H]; given ids [V, GATES, H]
    ids_ptr,  # [T, B], or None
    b_ih_ptr,  # [GATES, H], or None
    w_ptr,  # [GATES, H, H]
    b_ptr,  # [GATES, H], or None
    extra_ptr,  # [EXTRA, H], or None
    resets_ptr,  # [T, B] uint8, or None
    h0_ptr,  # [B, H]
    h_ptr,  # [T, B, H]
    reset_hidden_ptr,  # [B, H] out: operand of the last gate's product
    carry_ptr,  # [STATES, B, H] float32
    t,
    before,
    B,
    H,
    V,
    RESET_HIDDEN: tl.constexpr,
    GATES: tl.constexpr,
    STATES: tl.constexpr,
    EXTRA: tl.constexpr,
    UNITS: tl.constexpr,  # hidden columns of a head, with w_ptr [heads, GATES, UNITS, UNITS]; 0 without heads
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    units = UNITS if UNITS else H
    first_row, batch, rows, unit, mask = owned(tl.program_id(0), tl.program_id(1), B, units, BLOCK_B, BLOCK_H)
    cols = of_head(unit, tl.program_id(2), UNITS)
    first_unit = of_head(0, tl.program_id(2), UNITS)
    if UNITS:
        w_ptr += tl.program_id(2) * (GATES * UNITS * UNITS)
    first, plane, row, tile, x_tile, _ = offsets(first_row, batch, cols, H, GATES, 0, BLOCK_B)
    row_mask = (rows < B)[:, None]
    x = input_of_step(x_ptr, ids_ptr, b_ih_ptr, t, first_row, batch, row, row_mask, cols, mask, x_tile, V, H, GATES, 1)
    h_before = tl.where(before < 0, h0_ptr, h_ptr + before * plane) + first + first_unit
    read_rows = row_mask
    if resets_ptr is not None:
        starts = load_resets(resets_ptr, t * batch + first_row, row, row_mask)
        read_rows = row_mask & (starts == 0)
    product = gate_products(h_before, w_ptr, read_rows, unit, H, units, 0, 1, BLOCK_B, BLOCK_H, BLOCK_K, PRECISION)
    h = (product[0] + load_bias(b_ptr, cols, H, 1)[0],)
    state = load_raw(carry_ptr + first, plane, tile, mask, STATES)
    if resets_ptr is not None:
        state = zero_started(starts, state, STATES)
    extra = load_extra(extra_ptr, cols, H, EXTRA, BLOCK_B, BLOCK_H)
    reset_hidden = RESET_HIDDEN(x, h, state + extra)
    tl.store(reset_hidden_ptr + first + tile, cast(reset_hidden, reset_hidden_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["t", "before", "B"])
def step_forward_kernel(
    x_ptr,  # [T, B, GATES, H] input projection with b_ih; given ids [V, GATES, H], W_ih^T
    ids_ptr,  # [T, B] int32 or int64, rows of x_ptr; or None
    b_ih_ptr,  # [GATES, H] bias of the input projection, given ids; or None
    w_ptr,  # [GATES, H, H] recurrent weight
    b_ptr,  # [GATES, H] recurrent bias, or None
    extra_ptr,  # [EXTRA, H] further parameters, or None
    lengths_ptr,  # [B] int32: how many steps each row has; or None
    resets_ptr,  # [T, B] uint8: not 0 where a row's step starts from zeros; or None
    h0_ptr,  # [B, H] initial state h, as the matmuls read it
    h_ptr,  # [T, B, H] in and out: state h after each step, as the matmuls read it
    c_ptr,  # [T, STATES - 1, B, H] out, for a cell with more than h
    reset_hidden_ptr,  # [B, H] operand of the last gate's product, for a cell with two; or None
    carry_ptr,  # [STATES, B, H] float32 state before the step
    carry_new_ptr,  # [STATES, B, H] float32 out: state after the step
    saved_ptr,  # [T, B, SAVED, H] out, or None
    t,  # the step
    before,  # the step whose state it starts from; negative: the initial state
    B,
    H,
    V,
    FORWARD: tl.constexpr,
    GATES: tl.constexpr,
    STATES: tl.constexpr,
    SAVED: tl.constexpr,
    EXTRA: tl.constexpr,
    UNITS: tl.constexpr,  # hidden columns of a head, with w_ptr [heads, GATES, UNITS, UNITS]; 0 without heads
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    units = UNITS if UNITS else H
    first_row, batch, rows, unit, mask = owned(tl.program_id(0), tl.program_id(1), B, units, BLOCK_B, BLOCK_H)
    cols = of_head(unit, tl.program_id(2), UNITS)
    first_unit = of_head(0, tl.program_id(2), UNITS)
    if UNITS:
        w_ptr += tl.program_id(2) * (GATES * UNITS * UNITS)
    first, plane, row, tile, x_tile, saved_tile = offsets(first_row, batch, cols, H, GATES, SAVED, BLOCK_B)
    row_mask = (rows < B)[:, None]
    x = input_of_step(
        x_ptr, ids_ptr, b_ih_ptr, t, first_row, batch, row, row_mask, cols, mask, x_tile, V, H, GATES, GATES
    )
    state = load_raw(carry_ptr + first, plane, tile, mask, STATES)
    h_before = tl.where(before < 0, h0_ptr, h_ptr + before * plane) + first + first_unit
    through: tl.constexpr = GATES - 1 if reset_hidden_ptr is not None else GATES  # gates whose product reads h itself
    read_rows = row_mask
    before_step = state
    if resets_ptr is not None:
        starts = load_resets(resets_ptr, t * batch + first_row, row, row_mask)
        before_step = zero_started(starts, state, STATES)
        read_rows = row_mask & (starts == 0)
    products = gate_products(
        h_before, w_ptr, read_rows, unit, H, units, 0, through, BLOCK_B, BLOCK_H, BLOCK_K, PRECISION
    )
    if reset_hidden_ptr is not None:
        products += gate_products(
            reset_hidden_ptr + first + first_unit,
            w_ptr,
            row_mask,
            unit,
            H,
            units,
            through,
            1,
            BLOCK_B,
            BLOCK_H,
            BLOCK_K,
            PRECISION,
        )
    b = load_bias(b_ptr, cols, H, GATES)
    h = ()
    for g in tl.static_range(GATES):
        h += (products[g] + b[g],)
    extra = load_extra(extra_ptr, cols, H, EXTRA, BLOCK_B, BLOCK_H)
    new, saved = FORWARD(x, h, before_step + extra)
    if lengths_ptr is not None:
        length = tl.load(lengths_ptr + rows, mask=rows < B, other=0)
        new = freeze_finished((t < length)[:, None], new, state, STATES)
    at = t * plane + first
    store_tiles(carry_new_ptr + first, plane, tile, mask, new)
    store_state(h_ptr, c_ptr, at, first, plane, tile, mask, new, STATES)
    if saved_ptr is not None:
        store_tiles(saved_ptr + at * SAVED, H, saved_tile, mask, saved)
