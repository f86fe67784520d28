"""The whole sequence in one launch, split over programs: each holds the weights of its hidden columns, loaded once.

A group of programs has all hidden columns, each BLOCK_H of them in every gate, and does BLOCK_B rows of the batch at a
time: one batch tile after another, as many groups side by side as run at once, so that any batch is one launch.

The float32 state of its columns stays with a program; the matmuls need all columns, so the programs of a group exchange
them each step, forward the new state, backward the gates' gradients, and a cell with a second product its operand or
gradient too. The mailboxes are the outputs themselves (`exchange.py`). Programs wait for each other: all of a
launch have to run at once, which `plan.py` sees to and a cooperative launch enforces.

Tensors are contiguous. State and accumulators are float32 whatever the storage dtype; the matmuls read the state
rounded to the storage dtype.
"""

import triton
import triton.language as tl

from fastcells.kernels.triton.tiles import (
    cast,
    freeze_finished,
    gathered_products,
    load_bias,
    load_ids,
    load_input,
    load_state,
    store_state,
    store_tiles,
)


@triton.jit(do_not_specialize=["T", "B"])
def split_forward_kernel(
    x_ptr,  # [T, B, GATES, H] input projection with b_ih; given ids [V, GATES, H], W_ih^T
    ids_ptr,  # [T, B] int32 or int64, rows of x_ptr; or None
    b_ih_ptr,  # [GATES, H] bias of the input projection, given ids; or None
    w_ptr,  # [GATES, H, H] recurrent weight
    b_ptr,  # [GATES, H] recurrent bias, or None
    lengths_ptr,  # [B] int32: how many steps each row has; or None
    counter_ptr,  # [batch tiles, 32] int32: arrivals, for an exchange that counts
    reset_hidden_ptr,  # [T, B, H] mailbox: operand of the second product, for a cell with one
    h0_ptr,  # [B, H] initial state
    c0_ptr,  # [B, H], as all c pointers for a cell with a c only
    h_ptr,  # [T, B, H] out, and mailbox: state after each step
    c_ptr,  # [T, B, H] out
    saved_ptr,  # [T, B, SAVED, H] out, or None
    h_n_ptr,  # [B, H] out: final state
    c_n_ptr,  # [B, H] out
    T,
    B,
    H,
    V,
    PUBLISH: tl.constexpr,
    ARRIVE: tl.constexpr,
    WAIT: tl.constexpr,
    GATHER: tl.constexpr,
    FORWARD: tl.constexpr,
    RESET_HIDDEN: tl.constexpr,  # the second product's rule, or None
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
    # Aligned rows are loaded several elements at once if the compiler knows that they are. In others each element has
    # its own mask and address; a constant H folds most of these, which else fill registers until they spill.
    H = KNOWN_H if KNOWN_H else H // 8 * 8
    zero = tl.full((), 0, tl.int64)  # makes what it is added to 64 bits wide
    plane = (zero + B) * H
    # Offsets within a tile's rows fit 32 bits; what does not is added to the pointer as a scalar.
    row = tl.arange(0, BLOCK_B)[:, None]
    cols = tl.program_id(0) * BLOCK_H + tl.arange(0, BLOCK_H)
    tile = row * H + cols[None, :]
    x_tile = row * (GATES * H) + cols[None, :]
    saved_tile = row * (SAVED * H) + cols[None, :]
    w = ()
    for g in tl.static_range(GATES):  # w[g][k, n] multiplies h[k] into column n
        for part in tl.static_range(INNER):
            k = part * BLOCK_K + tl.arange(0, BLOCK_K)
            weight_mask = (k < H)[:, None] & (cols < H)[None, :]
            # The first column counts as a scalar: offsets that a constant H makes constants share one register.
            first_column = w_ptr + (zero + g * H + tl.program_id(0) * BLOCK_H) * H
            offsets = tl.arange(0, BLOCK_H)[None, :] * H + k[:, None]
            w += (tl.load(first_column + offsets, mask=weight_mask, other=0.0),)
            if KNOWN_H:
                tl.debug_barrier()  # of the elements loaded one by one, those of a single tile are in registers
    b = load_bias(b_ptr, cols, H, GATES)
    b_ih = load_bias(b_ih_ptr, cols, H, GATES)
    element: tl.constexpr = w_ptr.dtype.element_ty
    none = ()
    for _ in tl.static_range(GATES):
        none += (tl.zeros((BLOCK_B, BLOCK_H), tl.float32),)
    everyone = tl.num_programs(0)
    # All programs of a group walk the same tiles in the same order, so that nobody waits for one that never comes. Each
    # tile has its own counter and mailboxes: a program may be ahead of the others, in the next tile already.
    for batch_tile in range(tl.program_id(1), tl.cdiv(B, BLOCK_B), tl.num_programs(1)):
        first_row = zero + batch_tile * BLOCK_B
        first = first_row * H  # of the tile's rows in a [B, H] plane
        rows = batch_tile * BLOCK_B + tl.arange(0, BLOCK_B)
        row_mask = (rows < B)[:, None]
        mask = row_mask & (cols < H)[None, :]
        if lengths_ptr is not None:
            length = tl.load(lengths_ptr + rows, mask=rows < B, other=0)
        counter = counter_ptr + batch_tile * 32
        arrivals = 0
        state = load_state(h0_ptr, c0_ptr, first, tile, mask, STATES)
        source = h0_ptr + first  # the state before the step
        ids = load_ids(ids_ptr, (zero + (T - 1 if REVERSE else 0)) * B + first_row, row, row_mask)
        for i in range(T):
            t = T - 1 - i if REVERSE else i
            at = t * plane + first
            # Under way while this program waits, as the next step's ids are, which name what is loaded then.
            x = load_input(x_ptr, ids_ptr, ids, b_ih, at, x_tile, cols, mask, V, H, GATES, GATES)
            more = (rows < tl.where(i + 1 < T, B, 0))[:, None]
            ids = load_ids(ids_ptr, (zero + (t - 1 if REVERSE else t + 1)) * B + first_row, row, more)
            WAIT(counter, arrivals)
            through: tl.constexpr = GATES if RESET_HIDDEN is None else GATES - 1  # gates whose product reads h itself
            sums = gathered_products(
                source, H, w, none, row_mask, H, i > 0, GATHER, 0, through, BLOCK_B, BLOCK_K, INNER, PRECISION
            )
            h = ()
            for g in tl.static_range(through):
                h += (sums[g] + b[g],)
            if RESET_HIDDEN is not None:
                PUBLISH(reset_hidden_ptr + at + tile, cast(RESET_HIDDEN(x, h, state), element), mask)
                ARRIVE(counter)
                arrivals += everyone
                WAIT(counter, arrivals)
                sums = gathered_products(
                    reset_hidden_ptr + at, H, w, none, row_mask, H, True, GATHER,
                    through, 1, BLOCK_B, BLOCK_K, INNER, PRECISION,
                )  # fmt: skip
                h += (sums[0] + b[through],)
            new, saved = FORWARD(x, h, state)
            if lengths_ptr is not None:
                new = freeze_finished((t < length)[:, None], new, state, STATES)
            state = new
            # First what the others wait for.
            PUBLISH(h_ptr + at + tile, cast(state[0], element), mask)
            ARRIVE(counter)
            arrivals += everyone
            source = h_ptr + at
            if STATES == 2:
                tl.store(c_ptr + at + tile, cast(state[1], element), mask=mask)
            if saved_ptr is not None:
                store_tiles(saved_ptr + at * SAVED, H, saved_tile, mask, saved)
        store_state(h_n_ptr, c_n_ptr, first, tile, mask, state, STATES)
