"""The adjoint of `forward.py`, split in the same way: the programs exchange the gates' gradients.

A program owns BLOCK_H columns of the state's gradient for BLOCK_B sequences: the sum over gates and n of
`W[g][n, k] d[g][n]`. Columns k are M of `mma`, the batch is N, and n is split over the warps.

A cell's gradients are linear in that of its state. So what the rule makes of a step's saved values is known before the
gradient is: its gradients for a state's gradient of 1 are the factors by which the real one is multiplied. They are
computed while the program waits, from tiles loaded two steps ahead; then a gate's gradient is one product away.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from fastcells.kernels.gluon.directions import own_direction, walk
from fastcells.kernels.gluon.exchange import poll, publish, report, sentinel
from fastcells.kernels.gluon.tiles import (
    barrier,
    few_sums,
    freeze_finished,
    load_all,
    load_resets,
    load_weights,
    offsets,
    owned,
    owners_layout,
    polled,
    prefetch_all,
    product,
    products_layout,
    shared_layout,
    store_all,
    to_float32,
    unless_started,
    zero_started,
)


@gluon.jit
def load_step(
    d_out_ptr, saved_ptr, h_ptr, c_ptr, h0_ptr, c0_ptr,
    at, before, at_start, first_state, own, own_saved, H: gl.constexpr, STATES: gl.constexpr, SAVED: gl.constexpr,
):  # fmt: skip
    """What the backward of one step reads, as stored: (d_out, saved, the state before it).

    at, before: rows of the step and of the one before it in [T * B, ...] planes; at_start: there is none before it, and
    what was before is row first_state of a [B, ...] plane.
    """
    saved = load_all(saved_ptr + at * (SAVED * H) + own_saved, H, SAVED)
    before = gl.where(at_start, first_state, before)
    prev = (gl.load(gl.where(at_start, h0_ptr, h_ptr) + before * H + own),)
    if STATES == 2:
        prev += (gl.load(gl.where(at_start, c0_ptr, c_ptr) + before * H + own),)
    return gl.load(d_out_ptr + at * H + own), saved, prev


@gluon.jit
def unit(like, i: gl.constexpr, N: gl.constexpr):
    """N tiles of zeros but for the i-th, which is of ones."""
    tiles = ()
    for j in gl.static_range(N):
        tiles += (gl.full_like(like, 1.0 if i == j else 0.0),)
    return tiles


@gluon.jit
def factors(saved, prev, new, BACKWARD: gl.constexpr, BACKWARD_LAST_GATE: gl.constexpr, STATES: gl.constexpr):
    """What a step's gradients are multiples of: for each state's gradient, those that a gradient of 1 gives.

    One entry for each state, and one more for the second product's operand: (d_x, d_h, d_prev). Then for each state the
    gradient of the last gate's product, for a cell with a second one.
    """
    saved = to_float32(saved)
    prev = to_float32(prev)
    new = to_float32(new)
    all_gates = ()
    last_gate = ()
    for s in gl.static_range(STATES):
        one = unit(prev[0], s, STATES)
        if BACKWARD_LAST_GATE is None:
            all_gates += (BACKWARD(one, saved, prev, new),)
        else:
            all_gates += (BACKWARD(one, saved, prev, new, gl.zeros_like(prev[0])),)
            last_gate += (((BACKWARD_LAST_GATE(one, saved, prev, new),),),)
    if BACKWARD_LAST_GATE is not None:
        none = unit(prev[0], STATES, STATES)
        all_gates += (BACKWARD(none, saved, prev, new, gl.full_like(prev[0], 1.0)),)
    return all_gates, last_gate


@gluon.jit
def combine(d, by, which: gl.constexpr, N: gl.constexpr):
    """N gradients: the sum over the given ones, each with its factors `by[i][which]`."""
    tiles = ()
    for j in gl.static_range(N):
        tile = d[len(d) - 1] * by[len(d) - 1][which][j]
        for i in gl.static_range(1, len(d)):
            tile = gl.fma(d[len(d) - 1 - i], by[len(d) - 1 - i][which][j], tile)
        tiles += (tile,)
    return tiles


@gluon.jit
def combine_all(d, by, by_last_gate, GATES: gl.constexpr, STATES: gl.constexpr, EACH_GATE: gl.constexpr):
    """(d_x, d_h, d_prev) so far, before the last gradient that they are made of; not EACH_GATE: the last gate's."""
    if EACH_GATE:
        return combine(d, by, 0, GATES), combine(d, by, 1, GATES), combine(d, by, 2, STATES)
    else:
        none = combine(d, by_last_gate, 0, 1)
        return none, none, none


@gluon.jit
def add(d, by, tiles):
    """The tiles, and one more given gradient with its factors."""
    sums = ()
    for j in gl.static_range(len(tiles)):
        sums += (gl.fma(d, by[j], tiles[j]),)
    return sums


@gluon.jit
def zero_finished(t, length, tiles):
    """The tiles in the rows whose sequence has step t, 0 in the others; length None: all have."""
    kept = ()
    for i in gl.static_range(len(tiles)):
        kept += (gl.where(t < length, tiles[i], 0.0) if length is not None else tiles[i],)
    return kept


@gluon.jit
def publish_all(pointers, stride, tiles, dtype: gl.constexpr):
    for i in gl.static_range(len(tiles)):
        publish(pointers + i * stride, tiles[i].to(dtype))


@gluon.jit
def poll_gates(
    mailbox, least, patience, given_up_ptr, FIRST: gl.constexpr, N: gl.constexpr,
    WIDTH: gl.constexpr, BLOCK_K: gl.constexpr, INNER: gl.constexpr, PACK: gl.constexpr,
):  # fmt: skip
    """What the programs publish of N gates, from gate FIRST on: INNER operands each."""
    pointers = ()
    for g in gl.static_range(N):
        for part in gl.static_range(INNER):
            pointers += (mailbox + (FIRST + g) * WIDTH + part * BLOCK_K,)
    return poll(pointers, least, patience, given_up_ptr, PACK)


@gluon.jit
def taken_back(
    operands, w, sums, OWNERS: gl.constexpr, FIRST: gl.constexpr, N: gl.constexpr,
    SHAPE: gl.constexpr, PRECISION: gl.constexpr,
):  # fmt: skip
    """N gates' gradients through the weights, from gate FIRST on: their sum, each thread its elements'."""
    INNER: gl.constexpr = len(operands) // N
    none = gl.zeros(SHAPE, gl.float32, layout=products_layout(SHAPE[0]))
    total = none
    APART: gl.constexpr = few_sums(SHAPE)
    for g in gl.static_range(N):
        acc = none if APART else total
        for part in gl.static_range(INNER):
            acc = product(w[(FIRST + g) * INNER + part], operands[g * INNER + part], acc, PRECISION)
        total = total + acc if APART and g > 0 else acc
    sums.store(total)
    barrier()
    return gl.sum(sums.load(OWNERS), axis=0)


@gluon.jit(do_not_specialize=["T", "B", "patience", "nothing"])
def backward_kernel(
    w_ptr,  # [GATES, H, H]
    lengths_ptr,  # [B] int32: how many steps each row has, in both directions; or None
    resets_ptr,  # [T, B] uint8: not 0 where a row's step starts from zeros, in both directions; or None
    zeros_ptr,  # [GATES, WIDTH] zeros, given resets; or None
    mailbox_ptr,  # [T, B, GATES, WIDTH] gradient of the recurrent products, as the programs hand it on
    given_up_ptr,  # [1] int32 in the mailbox's memory: whether a program waited in vain
    fault_ptr,  # [1] int32 in the host's memory
    d_gates_ptr,  # [T, B, GATES, H] out: the same; None where it is the mailbox
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
    patience,
    nothing,  # 0
    H: gl.constexpr,
    BACKWARD: gl.constexpr,
    BACKWARD_LAST_GATE: gl.constexpr,  # the second product's rule, or None
    GATES: gl.constexpr,
    STATES: gl.constexpr,
    SAVED: gl.constexpr,
    BLOCK_B: gl.constexpr,
    BLOCK_H: gl.constexpr,
    SPLIT: gl.constexpr,  # parts of the gates' columns, one a warp
    BLOCK_K: gl.constexpr,  # columns of an operand
    INNER: gl.constexpr,  # operands of a warp and gate
    REVERSE: gl.constexpr,  # of the first direction
    PRECISION: gl.constexpr,
    DIRECTIONS: gl.constexpr,  # 1 or 2, as in the forward pass
    AHEAD: gl.constexpr,  # steps by which the L2 fetches what is loaded, or 0
):
    WIDTH: gl.constexpr = SPLIT * INNER * BLOCK_K
    element: gl.constexpr = w_ptr.dtype.element_ty
    BITS: gl.constexpr = element.primitive_bitwidth
    THROUGH: gl.constexpr = GATES if BACKWARD_LAST_GATE is None else GATES - 1  # gates whose product reads h itself
    PACK: gl.constexpr = BLOCK_K * BLOCK_B // 32
    SHAPE: gl.constexpr = [SPLIT, BLOCK_H, BLOCK_B]
    OWNERS: gl.constexpr = owners_layout(SPLIT, BLOCK_H, BLOCK_B)
    direction, origin, batch = own_direction(T, B, DIRECTIONS)
    column = gl.program_id(0) * BLOCK_H
    w_ptr += direction * (GATES * H * H)
    w = load_weights(w_ptr, column, True, H, GATES, BLOCK_H, SPLIT, BLOCK_K, INNER, PRECISION)
    own_row, cols = owned(column, H, BLOCK_H, BLOCK_B, SPLIT)
    polled_row, k = polled(SPLIT, BLOCK_K, INNER, BLOCK_B, BITS)
    sums = gl.allocate_shared_memory(gl.float32, SHAPE, shared_layout())
    second_sums = gl.allocate_shared_memory(gl.float32, SHAPE, shared_layout()) if THROUGH < GATES else sums
    least = gl.to_tensor(sentinel(BITS))
    # As in the forward pass, all programs of a group walk the same tiles in the same order.
    for batch_tile in range(gl.program_id(1), gl.cdiv(B, BLOCK_B), gl.num_programs(1)):
        first_row = batch_tile * BLOCK_B
        mail_row = gl.minimum(polled_row, B - 1 - first_row)
        mail = mail_row * (GATES * WIDTH) + k
        row = gl.minimum(own_row, B - 1 - first_row)
        own, own_x, own_saved = offsets(row, cols, H, GATES, SAVED)
        own_mail = row * (GATES * WIDTH) + cols
        length = gl.load(lengths_ptr + first_row + row) if lengths_ptr is not None else None
        t, turn, step = walk(T, batch, direction, not REVERSE, DIRECTIONS)
        at = origin + t * batch + first_row  # row of a [T * B, ...] plane
        first_state = direction * batch + first_row  # and of a [B, ...] one
        known = (gl.load(d_h_n_ptr + first_state * H + own).to(gl.float32),)
        new = (gl.load(h_ptr + at * H + own),)
        if STATES == 2:
            known += (gl.load(d_c_n_ptr + first_state * H + own).to(gl.float32),)
            new += (gl.load(c_ptr + at * H + own),)
        d_out, saved, prev = load_step(
            d_out_ptr, saved_ptr, h_ptr, c_ptr, h0_ptr, c0_ptr,
            at, at + step, T == 1, first_state, own, own_saved, H, STATES, SAVED,
        )  # fmt: skip
        starts = load_resets(resets_ptr, at - origin, row)
        mail_starts = load_resets(resets_ptr, at - origin, mail_row)
        before = zero_started(resets_ptr, starts, prev)
        by, by_last_gate = factors(saved, before, new, BACKWARD, BACKWARD_LAST_GATE, STATES)
        new = prev
        # What is known of the state's gradient before the others' part of it, and of what they wait for.
        known = (known[0] + zero_finished(t, length, (d_out.to(gl.float32),))[0],) + known[1:]
        others = gl.zeros_like(known[0])
        rest = combine_all(known, by, by_last_gate, GATES, STATES, THROUGH == GATES)
        following = at + gl.where(T > 1, step, 0)
        d_out, saved, prev = load_step(
            d_out_ptr, saved_ptr, h_ptr, c_ptr, h0_ptr, c0_ptr,
            following, following + step, T <= 2, first_state, own, own_saved, H, STATES, SAVED,
        )  # fmt: skip
        next_starts = load_resets(resets_ptr, following - origin, row)
        to = mailbox_ptr + at * (GATES * WIDTH) + own_mail
        source = mailbox_ptr + at * (GATES * WIDTH) + mail
        for i in range(T):
            d_state = (known[0] + others,) + known[1:]
            if THROUGH == GATES:
                last = others
                by_last = by[0]
            else:
                d_last_gate = zero_finished(t, length, add(others, by_last_gate[0][0], rest[0]))
                publish_all(to + THROUGH * WIDTH, WIDTH, d_last_gate, element)
                operands = poll_gates(source, least, patience, given_up_ptr, THROUGH, 1, WIDTH, BLOCK_K, INNER, PACK)
                rest = combine_all(d_state, by, by_last_gate, GATES, STATES, True)
                last = taken_back(operands, w, second_sums, OWNERS, THROUGH, 1, SHAPE, PRECISION)
                by_last = by[STATES]
            # First what the others wait for.
            d_h = zero_finished(t, length, add(last, by_last[1], rest[1]))
            publish_all(to, WIDTH, d_h[:THROUGH], element)
            if d_x_ptr is not None:
                store_all(
                    d_x_ptr + at * (GATES * H) + own_x, H, zero_finished(t, length, add(last, by_last[0], rest[0]))
                )
            if d_gates_ptr is not None:
                store_all(d_gates_ptr + at * (GATES * H) + own_x, H, d_h)
            around = zero_started(resets_ptr, starts, add(last, by_last[2], rest[2]))
            known = freeze_finished(t, length, around, d_state)
            # In the shadow of the exchange: the next step's factors, and the loads for the one after that. In this
            # order, so that what is loaded needs no copy, which would wait for it.
            t += turn
            starts = next_starts
            before = zero_started(resets_ptr, starts, prev)
            by, by_last_gate = factors(saved, before, new, BACKWARD, BACKWARD_LAST_GATE, STATES)
            d_out = gl.where(i + 1 < T, d_out.to(gl.float32), 0.0)
            known = (known[0] + zero_finished(t, length, (d_out,))[0],) + known[1:]
            rest = combine_all(known, by, by_last_gate, GATES, STATES, THROUGH == GATES)
            new = prev
            at = following
            following = at + gl.where(i + 2 < T, step, 0)
            d_out, saved, prev = load_step(
                d_out_ptr, saved_ptr, h_ptr, c_ptr, h0_ptr, c0_ptr,
                following, following + step, i + 3 >= T, first_state, own, own_saved, H, STATES, SAVED,
            )  # fmt: skip
            next_starts = load_resets(resets_ptr, following - origin, row)
            if AHEAD:
                soon = following + gl.where(i + 2 + AHEAD < T, step * AHEAD, 0)
                prefetch_all(saved_ptr + soon * (SAVED * H) + own_saved, H, SAVED)
                prefetch_all(d_out_ptr + soon * H + own, H, 1)
                prefetch_all(h_ptr + soon * H + own, H, 1)
                if STATES == 2:
                    prefetch_all(c_ptr + soon * H + own, H, 1)
            # Nothing goes back from a row that started from zeros.
            polled_source = unless_started(resets_ptr, mail_starts, source, zeros_ptr, k)
            mail_starts = load_resets(resets_ptr, at - origin, mail_row)
            if THROUGH == GATES:
                barrier()  # the sums overwrite what was read in the step before
            operands = poll_gates(polled_source, least, patience, given_up_ptr, 0, THROUGH, WIDTH, BLOCK_K, INNER, PACK)
            to += step * (GATES * WIDTH)
            source += step * (GATES * WIDTH)
            others = taken_back(operands, w, sums, OWNERS, 0, THROUGH, SHAPE, PRECISION)
        d_state = (known[0] + others,) + known[1:]
        gl.store(d_h0_ptr + first_state * H + own, d_state[0].to(element))
        if STATES == 2:
            gl.store(d_c0_ptr + first_state * H + own, d_state[1].to(element))
    report(given_up_ptr, fault_ptr)
