"""The adjoint of `split_forward.py`, split in the same way: the programs exchange the gates' gradients."""

import triton
import triton.language as tl

from fastcells.kernels.triton.tiles import (
    cast,
    freeze_finished,
    gathered_products,
    load_state,
    load_tiles,
    store_state,
    store_tiles,
    zero_finished,
)


@triton.jit
def step_inputs(
    d_out_ptr,
    saved_ptr,
    h_ptr,
    c_ptr,
    h0_ptr,
    c0_ptr,
    first,
    plane,
    t,
    H,
    tile,
    saved_tile,
    mask,
    at_start,  # whether the step is the forward pass's first one
    STATES: tl.constexpr,
    SAVED: tl.constexpr,
    REVERSE: tl.constexpr,
):
    """What the backward of step t reads: the gradient of its output, the saved tiles, and the state before it."""
    at = t * plane + first
    d_out = tl.load(d_out_ptr + at + tile, mask=mask, other=0.0).to(tl.float32)
    saved = load_tiles(saved_ptr + at * SAVED, H, saved_tile, mask, SAVED)
    if at_start:
        prev = load_state(h0_ptr, c0_ptr, first, tile, mask, STATES)
    else:
        prev = load_state(h_ptr, c_ptr, at + (plane if REVERSE else -plane), tile, mask, STATES)
    return d_out, saved, prev


@triton.jit(do_not_specialize=["T", "B"])
def split_backward_kernel(
    w_ptr,  # [GATES, H, H]
    lengths_ptr,  # [B] int32: how many steps each row has; or None
    counter_ptr,  # [batch tiles, 32] int32: arrivals, for an exchange that counts
    d_gates_ptr,  # [T, B, GATES, H] out, and mailbox: gradient of the recurrent products
    h0_ptr,  # [B, H] initial state
    c0_ptr,  # [B, H], as all c pointers for a cell with a c only
    h_ptr,  # [T, B, H] state after each step
    c_ptr,  # [T, B, H]
    saved_ptr,  # [T, B, SAVED, H]
    d_out_ptr,  # [T, B, H] gradient of every output
    d_h_n_ptr,  # [B, H] gradient of the final state
    d_c_n_ptr,  # [B, H]
    d_x_ptr,  # [T, B, GATES, H] out: gradient of the input projection; None where it is d_gates
    d_h0_ptr,  # [B, H] out: gradient of the initial state
    d_c0_ptr,  # [B, H] out
    T,
    B,
    H,
    BACKWARD: tl.constexpr,
    BACKWARD_LAST_GATE: tl.constexpr,  # the second product's rule, or None
    PUBLISH: tl.constexpr,
    ARRIVE: tl.constexpr,
    WAIT: tl.constexpr,
    GATHER: tl.constexpr,
    GATES: tl.constexpr,
    STATES: tl.constexpr,
    SAVED: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
    INNER: tl.constexpr,  # parts of BLOCK_K columns that make up all H
    KNOWN_H: tl.constexpr,  # H, unless 8 divides it: then 0
    REVERSE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    element: tl.constexpr = w_ptr.dtype.element_ty
    through: tl.constexpr = GATES if BACKWARD_LAST_GATE is None else GATES - 1  # gates whose product reads h itself
    # Aligned rows are loaded several elements at once if the compiler knows that they are. In others each element has
    # its own mask and address; a constant H folds most of these, which else fill registers until they spill.
    H = KNOWN_H if KNOWN_H else H // 8 * 8
    zero = tl.full((), 0, tl.int64)  # makes what it is added to 64 bits wide
    plane = (zero + B) * H
    # Offsets within a tile's rows fit 32 bits; what does not is added to the pointer as a scalar.
    row = tl.arange(0, BLOCK_B)[:, None]
    cols = tl.program_id(0) * BLOCK_H + tl.arange(0, BLOCK_H)
    if KNOWN_H:
        # The first column counts as a scalar, in the pointers: offsets that a constant H folds share registers.
        first_column = tl.program_id(0) * BLOCK_H
        column = tl.arange(0, BLOCK_H)[None, :]
    else:
        first_column = 0
        column = cols[None, :]
    tile = row * H + column
    x_tile = row * (GATES * H) + column
    saved_tile = row * (SAVED * H) + column
    w_ptr += first_column
    h0_ptr += first_column
    h_ptr += first_column
    d_out_ptr += first_column
    d_h_n_ptr += first_column
    if d_x_ptr is not None:
        d_x_ptr += first_column
    d_h0_ptr += first_column
    if SAVED:
        saved_ptr += first_column
    if STATES == 2:
        c0_ptr += first_column
        c_ptr += first_column
        d_c_n_ptr += first_column
        d_c0_ptr += first_column
    w = ()
    for g in tl.static_range(GATES):  # w[g][n, k] takes the gradient of column n back to h[k]
        for part in tl.static_range(INNER):
            n = part * BLOCK_K + tl.arange(0, BLOCK_K)
            weight_mask = (n < H)[:, None] & (cols < H)[None, :]
            gate = w_ptr + (zero + g * H) * H
            w += (tl.load(gate + n[:, None] * H + column, mask=weight_mask, other=0.0),)
    everyone = tl.num_programs(0)
    # As in the forward pass, all programs of a group walk the same tiles in the same order.
    for batch_tile in range(tl.program_id(1), tl.cdiv(B, BLOCK_B), tl.num_programs(1)):
        first = (zero + batch_tile * BLOCK_B) * H  # of the tile's rows in a [B, H] plane
        rows = batch_tile * BLOCK_B + tl.arange(0, BLOCK_B)
        row_mask = (rows < B)[:, None]
        mask = row_mask & (cols < H)[None, :]
        if lengths_ptr is not None:
            length = tl.load(lengths_ptr + rows, mask=rows < B, other=0)
        counter = counter_ptr + batch_tile * 32
        arrivals = 0
        d_state = load_state(d_h_n_ptr, d_c_n_ptr, first, tile, mask, STATES)
        t = T * 0 if REVERSE else T - 1
        new = load_state(h_ptr, c_ptr, t * plane + first, tile, mask, STATES)
        d_out, saved, prev = step_inputs(
            d_out_ptr, saved_ptr, h_ptr, c_ptr, h0_ptr, c0_ptr, first, plane, t, H, tile, saved_tile, mask, T == 1,
            STATES, SAVED, REVERSE,
        )  # fmt: skip
        for i in range(T):
            t = i if REVERSE else T - 1 - i
            at = t * plane + first
            mailbox = d_gates_ptr + at * GATES
            if lengths_ptr is not None:
                active = (t < length)[:, None]
                d_out = tl.where(active, d_out, 0.0)
            d_state = (d_state[0] + d_out,) + d_state[1:]
            if BACKWARD_LAST_GATE is None:
                d_x, d_h, d_prev = BACKWARD(d_state, saved, prev, new)
            else:
                d_last_gate = BACKWARD_LAST_GATE(d_state, saved, prev, new)
                if lengths_ptr is not None:
                    d_last_gate = tl.where(active, d_last_gate, 0.0)
                PUBLISH(mailbox + through * H + first_column + x_tile, cast(d_last_gate, element), mask)
                ARRIVE(counter)
                arrivals += everyone
                WAIT(counter, arrivals)
                d_reset_hidden = gathered_products(
                    mailbox + through * H, GATES * H, w, (tl.zeros_like(d_last_gate),), row_mask, H, True, GATHER,
                    through, 1, BLOCK_B, BLOCK_K, INNER, PRECISION,
                )  # fmt: skip
                d_x, d_h, d_prev = BACKWARD(d_state, saved, prev, new, d_reset_hidden[0])
            if lengths_ptr is not None:
                d_x = zero_finished(active, d_x, GATES)
                d_h = zero_finished(active, d_h, GATES)
            # First what the others wait for.
            for g in tl.static_range(through):
                PUBLISH(mailbox + g * H + first_column + x_tile, cast(d_h[g], element), mask)
            ARRIVE(counter)
            arrivals += everyone
            if d_x_ptr is not None:
                store_tiles(d_x_ptr + at * GATES, H, x_tile, mask, d_x)
            # What the next step reads is under way while this program waits.
            new = prev
            t_next = t + 1 if REVERSE else t - 1
            more = (rows < tl.where(i + 1 < T, B, 0))[:, None] & (cols < H)[None, :]
            d_out, saved, prev = step_inputs(
                d_out_ptr, saved_ptr, h_ptr, c_ptr, h0_ptr, c0_ptr, first, plane, t_next, H, tile, saved_tile,
                more, i + 2 == T, STATES, SAVED, REVERSE,
            )  # fmt: skip
            WAIT(counter, arrivals)
            sums = (d_prev[0],)
            for g in tl.static_range(through):
                sums = gathered_products(
                    mailbox + g * H, GATES * H, w, sums, row_mask, H, True, GATHER,
                    g, 1, BLOCK_B, BLOCK_K, INNER, PRECISION,
                )  # fmt: skip
            d_prev = sums + d_prev[1:]
            if lengths_ptr is not None:
                d_prev = freeze_finished(active, d_prev, d_state, STATES)
            d_state = d_prev
        store_state(d_h0_ptr, d_c0_ptr, first, tile, mask, d_state, STATES)
