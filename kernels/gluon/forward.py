"""The whole sequence forward, split over programs that hold their columns' weights in registers.

A program owns BLOCK_H hidden columns of BLOCK_B sequences. The products are W h^T: rows of W are M of `mma`, and the
batch is N, which may then be 8. K is split over the warps. A poll loads h into the operand's registers, so that only
the partial sums pass through shared memory, once a step: a barrier, and each thread adds up the parts of its elements
and owns them from there on: state, input, what is saved, the store. The other barrier of a step keeps the next sums
from overwriting these; it lies in the shadow of the exchange.

Rows past the batch and columns past H are the last ones once more: computed twice, and stored twice with one value.

With DIRECTIONS 2 one launch runs both directions of a layer, and what is not shared has a leading dimension of 2.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from fastcells.kernels.gluon.directions import own_direction, walk
from fastcells.kernels.gluon.exchange import never, no_sentinel, poll, publish, report, sentinel
from fastcells.kernels.gluon.tiles import (
    after,
    barrier,
    few_sums,
    freeze_finished,
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
    unless_started,
    zero_started,
)


@gluon.jit
def load_ids(ids_ptr, at, row):
    """The token ids of one step's rows; without ids nothing is read."""
    return gl.load(ids_ptr + at + row) if ids_ptr is not None else row


@gluon.jit
def load_input(x_ptr, ids_ptr, ids, at, own_x, cols, V, H: gl.constexpr, GATES: gl.constexpr):
    """Each gate's input projection, from row `at` on, or, given ids, the rows of the table that they name, as stored.

    An id outside [0, V), as padding may hold, acts as an all-zero input and is never read.
    """
    tiles = ()
    if ids_ptr is not None:
        known = (ids >= 0) & (ids < V)
        row = gl.where(known, ids, 0).to(gl.int64) * (GATES * H)
        for g in gl.static_range(GATES):
            tiles += (gl.load(x_ptr + row + cols + g * H, mask=known, other=0.0),)
    else:
        for g in gl.static_range(GATES):
            tiles += (gl.load(x_ptr + at * (GATES * H) + own_x + g * H),)
    return tiles


@gluon.jit
def with_bias(x, b_ih):
    """The loaded tiles in float32; rows of the table have no bias yet."""
    tiles = ()
    for g in gl.static_range(len(x)):
        tiles += (x[g].to(gl.float32) + b_ih[g] if b_ih is not None else x[g].to(gl.float32),)
    return tiles


@gluon.jit
def load_bias(b_ptr, cols, H: gl.constexpr, GATES: gl.constexpr):
    """Each gate's, [BLOCK_H, 1] float32, or 0."""
    tiles = ()
    for g in gl.static_range(GATES):
        tiles += (gl.load(b_ptr + g * H + cols).to(gl.float32) if b_ptr is not None else 0.0,)
    return tiles


@gluon.jit
def products(
    w,
    operands,
    sums,
    nothing,
    FIRST: gl.constexpr,
    N: gl.constexpr,
    SHAPE: gl.constexpr,
    PRECISION: gl.constexpr,
):
    """N gates' partial sums, from gate FIRST on, into shared memory."""
    INNER: gl.constexpr = len(operands)
    TIED: gl.constexpr = few_sums(SHAPE)
    none = gl.zeros(SHAPE, gl.float32, layout=products_layout(SHAPE[0]))
    parts = ()
    for g in gl.static_range(N):
        acc = none
        for part in gl.static_range(INNER):
            acc = product(w[(FIRST + g) * INNER + part], operands[part], acc, PRECISION)
        parts += (acc,)
    for g in gl.static_range(N):
        sums[FIRST + g].store(after(parts[g], parts[N - 1], nothing) if TIED and g < N - 1 else parts[g])


@gluon.jit
def poll_row(
    source, least, patience, given_up_ptr, BLOCK_K: gl.constexpr, INNER: gl.constexpr, PACK: gl.constexpr
):  # fmt: skip
    """INNER operands, from a warp's part of each row on."""
    pointers = ()
    for part in gl.static_range(INNER):
        pointers += (source + part * BLOCK_K,)
    return poll(pointers, least, patience, given_up_ptr, PACK)


@gluon.jit
def add_up(sums, b, FIRST: gl.constexpr, N: gl.constexpr, OWNERS: gl.constexpr):
    """N gates' products with their bias, from gate FIRST on, each thread its elements'."""
    h = ()
    for g in gl.static_range(FIRST, FIRST + N):
        h += (gl.sum(sums[g].load(OWNERS), axis=0) + b[g],)
    return h


@gluon.jit(do_not_specialize=["T", "B", "V", "patience", "nothing"])
def forward_kernel(
    x_ptr,  # [T, B, GATES, H] input projection with b_ih; given ids [V, GATES, H], W_ih^T
    ids_ptr,  # [T, B] int32 or int64, rows of x_ptr, of both directions; or None
    b_ih_ptr,  # [GATES, H] bias of the input projection, given ids; or None
    w_ptr,  # [GATES, H, H] recurrent weight
    b_ptr,  # [GATES, H] recurrent bias, or None
    lengths_ptr,  # [B] int32: how many steps each row has, in both directions; or None
    resets_ptr,  # [T, B] uint8: not 0 where a row's step starts from zeros, in both directions; or None
    zeros_ptr,  # [WIDTH] zeros, given resets; or None
    first_ptr,  # [B, WIDTH] initial state, zeros past column H
    mailbox_ptr,  # [T, B, WIDTH] state after each step, as the programs hand it on
    reset_hidden_ptr,  # [T, B, WIDTH] mailbox: operand of the second product, for a cell with one
    given_up_ptr,  # [1] int32 in the mailboxes' memory: whether a program waited in vain
    fault_ptr,  # [1] int32 in the host's memory
    h0_ptr,  # [B, H] initial state
    c0_ptr,  # [B, H], as all c pointers for a cell with a c only
    h_ptr,  # [T, B, H] out: state after each step; None where it is the mailbox
    c_ptr,  # [T, B, H] out
    saved_ptr,  # [T, B, SAVED, H] out, or None
    h_n_ptr,  # [B, H] out: final state
    c_n_ptr,  # [B, H] out
    T,
    B,
    V,
    patience,
    nothing,  # 0
    H: gl.constexpr,
    FORWARD: gl.constexpr,
    RESET_HIDDEN: gl.constexpr,  # the second product's rule, or None
    GATES: gl.constexpr,
    STATES: gl.constexpr,
    SAVED: gl.constexpr,
    BLOCK_B: gl.constexpr,
    BLOCK_H: gl.constexpr,
    SPLIT: gl.constexpr,  # parts of K, one a warp
    BLOCK_K: gl.constexpr,  # columns of an operand
    INNER: gl.constexpr,  # operands of a warp
    REVERSE: gl.constexpr,  # of the first direction
    PRECISION: gl.constexpr,
    DIRECTIONS: gl.constexpr,  # 1 or 2
    AHEAD: gl.constexpr,  # steps by which the L2 fetches the input before it is loaded, or 0
):
    WIDTH: gl.constexpr = SPLIT * INNER * BLOCK_K
    element: gl.constexpr = w_ptr.dtype.element_ty
    BITS: gl.constexpr = element.primitive_bitwidth
    THROUGH: gl.constexpr = GATES if RESET_HIDDEN is None else GATES - 1  # gates whose product reads h itself
    PACK: gl.constexpr = BLOCK_K * BLOCK_B // 32
    SHAPE: gl.constexpr = [SPLIT, BLOCK_H, BLOCK_B]
    OWNERS: gl.constexpr = owners_layout(SPLIT, BLOCK_H, BLOCK_B)
    direction, origin, batch = own_direction(T, B, DIRECTIONS)
    column = gl.program_id(0) * BLOCK_H
    w_ptr += direction * (GATES * H * H)
    w = load_weights(w_ptr, column, False, H, GATES, BLOCK_H, SPLIT, BLOCK_K, INNER, PRECISION)
    own_row, cols = owned(column, H, BLOCK_H, BLOCK_B, SPLIT)
    polled_row, k = polled(SPLIT, BLOCK_K, INNER, BLOCK_B, BITS)
    own_bias = direction * (GATES * H) + cols
    b = load_bias(b_ptr, own_bias, H, GATES)
    b_ih = load_bias(b_ih_ptr, own_bias, H, GATES) if b_ih_ptr is not None else None
    if ids_ptr is not None:
        x_ptr += direction * V * (GATES * H)
    sums = ()
    for _ in gl.static_range(GATES):
        sums += (gl.allocate_shared_memory(gl.float32, SHAPE, shared_layout()),)
    # All programs of a group walk the same tiles in the same order, so that nobody waits for one that never comes.
    for batch_tile in range(gl.program_id(1), gl.cdiv(B, BLOCK_B), gl.num_programs(1)):
        first_row = batch_tile * BLOCK_B
        mail_row = gl.minimum(polled_row, B - 1 - first_row)
        mail = mail_row * WIDTH + k
        row = gl.minimum(own_row, B - 1 - first_row)
        own, own_x, own_saved = offsets(row, cols, H, GATES, SAVED)
        own_mail = row * WIDTH + cols
        length = gl.load(lengths_ptr + first_row + row) if lengths_ptr is not None else None
        t, turn, step = walk(T, batch, direction, REVERSE, DIRECTIONS)
        at = origin + t * batch + first_row  # row of a [T * B, ...] plane
        first_state = direction * batch + first_row  # and of a [B, ...] one
        state = (no_sentinel(gl.load(h0_ptr + first_state * H + own).to(gl.float32)),)
        if STATES == 2:
            state += (gl.load(c0_ptr + first_state * H + own).to(gl.float32),)
        x = load_input(x_ptr, ids_ptr, load_ids(ids_ptr, at - origin, row), at, own_x, cols, V, H, GATES)
        ids = load_ids(ids_ptr, at - origin + gl.where(T > 1, step, 0), row)
        # Whose flags are loaded a step ahead as well, for the thread's elements and for what it polls.
        starts = load_resets(resets_ptr, at - origin, row)
        mail_starts = load_resets(resets_ptr, at - origin, mail_row)
        source = first_ptr + first_state * WIDTH + mail
        least = gl.to_tensor(never(BITS))  # the initial state is there, whatever it holds
        for i in range(T):
            # The next step's input is under way while this program waits, as the ids are that name the one after.
            following = at + gl.where(i + 1 < T, step, 0)
            x_next = load_input(x_ptr, ids_ptr, ids, following, own_x, cols, V, H, GATES)
            ids = load_ids(ids_ptr, following - origin + gl.where(i + 2 < T, step, 0), row)
            if AHEAD and ids_ptr is None:
                soon = following + gl.where(i + 1 + AHEAD < T, step * AHEAD, 0)
                prefetch_all(x_ptr + soon * (GATES * H) + own_x, H, GATES)
            polled_source = unless_started(resets_ptr, mail_starts, source, zeros_ptr, k)
            before = zero_started(resets_ptr, starts, state)
            starts = load_resets(resets_ptr, following - origin, row)
            mail_starts = load_resets(resets_ptr, following - origin, mail_row)
            operands = poll_row(polled_source, least, patience, given_up_ptr, BLOCK_K, INNER, PACK)
            products(w, operands, sums, nothing, 0, THROUGH, SHAPE, PRECISION)
            barrier()
            h = add_up(sums, b, 0, THROUGH, OWNERS)
            x_now = with_bias(x, b_ih)
            if RESET_HIDDEN is not None:
                plane = reset_hidden_ptr + at * WIDTH
                publish(plane + own_mail, RESET_HIDDEN(x_now, h, before).to(element))
                operands = poll_row(plane + mail, sentinel(BITS), patience, given_up_ptr, BLOCK_K, INNER, PACK)
                products(w, operands, sums, nothing, THROUGH, 1, SHAPE, PRECISION)
                barrier()
                h += add_up(sums, b, THROUGH, 1, OWNERS)
            new, saved = FORWARD(x_now, h, before)
            state = freeze_finished(t, length, new, state)
            # First what the others wait for.
            publish(mailbox_ptr + at * WIDTH + own_mail, state[0].to(element))
            if h_ptr is not None:
                gl.store(h_ptr + at * H + own, state[0].to(element))
            if STATES == 2:
                gl.store(c_ptr + at * H + own, state[1].to(element))
            if saved_ptr is not None:
                store_all(saved_ptr + at * (SAVED * H) + own_saved, H, saved)
            if RESET_HIDDEN is None:
                barrier()  # the next sums overwrite what was read here
            source = mailbox_ptr + at * WIDTH + mail
            least = gl.to_tensor(sentinel(BITS))
            at = following
            t += turn
            x = x_next
        gl.store(h_n_ptr + first_state * H + own, state[0].to(element))
        if STATES == 2:
            gl.store(c_n_ptr + first_state * H + own, state[1].to(element))
    report(given_up_ptr, fault_ptr)
