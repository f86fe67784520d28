"""The whole sequence in one launch, split over programs: each holds the weights of its hidden columns, loaded once.

A group of programs has all hidden columns, or a head's, each BLOCK_H of them in every gate, and does BLOCK_B rows of
the batch at a time: one batch tile after another, as many groups side by side as run at once, so that any batch is one
launch.

The float32 state of its columns stays with a program; the matmuls need all columns, so the programs of a group exchange
them each step, forward the new state, backward the gates' gradients, and a cell with a second product its operand or
gradient too. The mailboxes are the outputs themselves (`exchange.py`). Programs wait for each other: all of a
launch have to run at once, which `plan.py` sees to and a cooperative launch enforces.

Tensors are contiguous. State and accumulators are float32 whatever the storage dtype; the matmuls read the state
rounded to the storage dtype.
"""

import triton
import triton.language as tl

from fastcells.kernels.triton.ahead import load_rows, with_bias
from fastcells.kernels.triton.exchange import poison
from fastcells.kernels.triton.gathered import gathered_products, unbound
from fastcells.kernels.triton.tiles import (
    cast,
    freeze_finished,
    load_bias,
    load_extra,
    load_ids,
    load_resets,
    load_state,
    of_head,
    of_state,
    store_state,
    store_tiles,
    zero_started,
)
from fastcells.kernels.triton.words import apart, as_words, pack


@triton.jit(do_not_specialize=["T", "B", "patience"])
def split_forward_kernel(
    x_ptr,  # [T, B, GATES, H] input projection with b_ih; given ids [V, GATES, H], W_ih^T
    ids_ptr,  # [T, B] int32 or int64, rows of x_ptr; or None
    b_ih_ptr,  # [GATES, H] bias of the input projection, given ids; or None
    w_ptr,  # [GATES, H, H] recurrent weight
    b_ptr,  # [GATES, H] recurrent bias, or None
    extra_ptr,  # [EXTRA, H] further parameters, or None
    lengths_ptr,  # [B] int32: how many steps each row has; or None
    resets_ptr,  # [T, B] uint8: not 0 where a row's step starts from zeros; or None
    counter_ptr,  # [heads, batch tiles, 32] int32: arrivals, for an exchange that counts
    reset_hidden_ptr,  # [T, B, H] mailbox: operand of the second product, for a cell with one
    h0_ptr,  # [B, H] initial state
    c0_ptr,  # [STATES - 1, B, H], as all c pointers for a cell with more than h only
    h_ptr,  # [T, B, H] out, and mailbox: state after each step
    c_ptr,  # [T, STATES - 1, B, H] out
    saved_ptr,  # [T, B, SAVED, H] out, or None
    h_n_ptr,  # [B, H] out: final state
    c_n_ptr,  # [STATES - 1, B, H] out
    fault_ptr,  # [1] int32: 1 once a program waited in vain
    T,
    B,
    H,
    V,
    patience,  # polls of one wait
    PUBLISH: tl.constexpr,
    ARRIVE: tl.constexpr,
    WAIT: tl.constexpr,
    GATHER: tl.constexpr,
    FORWARD: tl.constexpr,
    RESET_HIDDEN: tl.constexpr,  # the second product's rule, or None
    GATES: tl.constexpr,
    STATES: tl.constexpr,
    SAVED: tl.constexpr,
    EXTRA: tl.constexpr,
    UNITS: tl.constexpr,  # hidden columns of a head, with w_ptr [heads, GATES, UNITS, UNITS]; 0 without heads
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
    INNER: tl.constexpr,  # parts of BLOCK_K columns that make up all H
    AT_ONCE: tl.constexpr,  # of these, those polled together
    WORD: tl.constexpr,  # elements in a word
    TIE: tl.constexpr,  # whether no gate's sum is there before the others: for programs of one warp
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
    units = UNITS if UNITS else H
    unit = tl.program_id(0) * BLOCK_H + tl.arange(0, BLOCK_H)
    cols = of_head(unit, tl.program_id(2), UNITS)
    tile = row * H + cols[None, :]
    saved_tile = row * (SAVED * H) + cols[None, :]
    # The same in words.
    words = H // WORD
    word_plane = (zero + B) * words
    head_words = UNITS // WORD if UNITS else words
    first_word_of_head = of_head(0, tl.program_id(2), UNITS // WORD)
    word_unit = tl.program_id(0) * (BLOCK_H // WORD) + tl.arange(0, BLOCK_H // WORD)
    word_cols = of_head(word_unit, tl.program_id(2), UNITS // WORD)
    word_tile = row * words + word_cols[None, :]
    x_tile = row * (GATES * words) + word_cols[None, :]
    x_ptr = as_words(x_ptr, WORD)
    h_mail = as_words(h_ptr, WORD)
    if RESET_HIDDEN is not None:
        reset_hidden_mail = as_words(reset_hidden_ptr, WORD)
    element: tl.constexpr = w_ptr.dtype.element_ty
    if UNITS:
        w_ptr += tl.program_id(2) * (GATES * UNITS * UNITS)
    w = ()
    for g in tl.static_range(GATES):  # w[g][k, n] multiplies h[k] into column n
        for part in tl.static_range(INNER):
            k = part * (BLOCK_K // WORD) + tl.arange(0, BLOCK_K // WORD)
            weight_mask = (k < head_words)[:, None] & (unit < units)[None, :]
            # The first column counts as a scalar: offsets that a constant H makes constants share one register.
            first_column = as_words(w_ptr, WORD) + (zero + g * units + tl.program_id(0) * BLOCK_H) * head_words
            offsets = tl.arange(0, BLOCK_H)[None, :] * head_words + k[:, None]
            w += apart(tl.load(first_column + offsets, mask=weight_mask, other=0), element, WORD)
            if KNOWN_H:
                tl.debug_barrier()  # of the elements loaded one by one, those of a single tile are in registers
    b = load_bias(b_ptr, cols, H, GATES)
    b_ih = load_bias(b_ih_ptr, cols, H, GATES)
    extra = load_extra(extra_ptr, cols, H, EXTRA, BLOCK_B, BLOCK_H)
    through: tl.constexpr = GATES if RESET_HIDDEN is None else GATES - 1  # gates whose product reads h itself
    everyone = tl.num_programs(0)
    # All programs of a group walk the same tiles in the same order, so that nobody waits for one that never comes. Each
    # tile has its own counter and mailboxes: a program may be ahead of the others, in the next tile already.
    for batch_tile in range(tl.program_id(1), tl.cdiv(B, BLOCK_B), tl.num_programs(1)):
        first_row = zero + batch_tile * BLOCK_B
        first = first_row * H  # of the tile's rows in a [B, H] plane
        first_word = first_row * words
        rows = batch_tile * BLOCK_B + tl.arange(0, BLOCK_B)
        row_mask = (rows < B)[:, None]
        mask = row_mask & (unit < units)[None, :]
        word_mask = row_mask & (word_unit < head_words)[None, :]
        if lengths_ptr is not None:
            length = tl.load(lengths_ptr + rows, mask=rows < B, other=0)
        counter = counter_ptr + batch_tile * 32
        if UNITS:
            counter += tl.program_id(2) * tl.cdiv(B, BLOCK_B) * 32
        arrivals = 0
        state = load_state(h0_ptr, c0_ptr, first, first, plane, tile, mask, STATES)
        source = as_words(h0_ptr, WORD) + first_word  # the state before the step
        # Loaded a step ahead, and the ids, which name what is loaded, two steps.
        t_first = zero + (T - 1 if REVERSE else 0)
        starts = load_resets(resets_ptr, t_first * B + first_row, row, row_mask)
        ids = load_ids(ids_ptr, t_first * B + first_row, row, row_mask)
        at_first = t_first * word_plane + first_word
        ahead = load_rows(x_ptr, ids_ptr, ids, at_first, x_tile, word_cols, word_mask, V, words, GATES, GATES)
        second = (rows < tl.where(T > 1, B, 0))[:, None]
        ids = load_ids(ids_ptr, (t_first - 1 if REVERSE else t_first + 1) * B + first_row, row, second)
        for i in range(T):
            t = T - 1 - i if REVERSE else i
            at = t * plane + first
            word_at = t * word_plane + first_word
            # A row that starts from zeros waits for nobody's state, and the mask makes zeros of it.
            gathered_rows = row_mask if resets_ptr is None else row_mask & (starts == 0)
            before = state if resets_ptr is None else zero_started(starts, state, STATES)
            patience = WAIT(counter, arrivals, patience, fault_ptr)
            sums, patience = gathered_products(
                source + first_word_of_head, 0, words, w, gathered_rows, head_words, i > 0, patience, fault_ptr,
                GATHER, 0, through, 1, AT_ONCE, BLOCK_B, BLOCK_K, INNER, WORD, TIE, PRECISION,
            )  # fmt: skip
            x = with_bias(ahead, ids_ptr, b_ih, element, WORD, GATES)
            h = ()
            for g in tl.static_range(through):
                h += (unbound(sums[g], BLOCK_B, BLOCK_H) + (b[g] + poison(patience)),)
            if RESET_HIDDEN is not None:
                reset_hidden = pack(RESET_HIDDEN(x, h, before + extra), element, WORD)
                PUBLISH(reset_hidden_mail + word_at + word_tile, reset_hidden, word_mask)
                ARRIVE(counter, patience)
                arrivals += everyone
                patience = WAIT(counter, arrivals, patience, fault_ptr)
                sums, patience = gathered_products(
                    reset_hidden_mail + word_at + first_word_of_head, 0, words, w, row_mask, head_words, True,
                    patience, fault_ptr, GATHER, through, 1, 1, AT_ONCE, BLOCK_B, BLOCK_K, INNER, WORD, TIE, PRECISION,
                )  # fmt: skip
                h += (unbound(sums[0], BLOCK_B, BLOCK_H) + (b[through] + poison(patience)),)
            # The next step's, after this one's matmuls: the compiler lets what comes last keep its layout.
            more = (rows < tl.where(i + 1 < T, B, 0))[:, None] & (word_unit < head_words)[None, :]
            word_at_next = word_at + (-word_plane if REVERSE else word_plane)
            ahead = load_rows(x_ptr, ids_ptr, ids, word_at_next, x_tile, word_cols, more, V, words, GATES, GATES)
            more = (rows < tl.where(i + 1 < T, B, 0))[:, None]
            starts = load_resets(resets_ptr, (zero + (t - 1 if REVERSE else t + 1)) * B + first_row, row, more)
            more = (rows < tl.where(i + 2 < T, B, 0))[:, None]
            ids = load_ids(ids_ptr, (zero + (t - 2 if REVERSE else t + 2)) * B + first_row, row, more)
            new, saved = FORWARD(x, h, before + extra)
            if lengths_ptr is not None:
                active = ((t < length) | (patience == 0))[:, None]
                new = freeze_finished(active, new, state, STATES)
            state = new
            # First what the others wait for.
            PUBLISH(h_mail + word_at + word_tile, pack(state[0], element, WORD), word_mask)
            ARRIVE(counter, patience)
            arrivals += everyone
            source = h_mail + word_at
            for s in tl.static_range(1, STATES):
                c_at = of_state(at, first, plane, s, STATES)
                tl.store(c_ptr + c_at + tile, cast(state[s], element), mask=mask)
            if saved_ptr is not None:
                store_tiles(saved_ptr + at * SAVED, H, saved_tile, mask, saved)
        poisoned = ()
        for s in tl.static_range(STATES):  # in the last step a row that had finished was still its own
            poisoned += (state[s] + poison(patience),)
        store_state(h_n_ptr, c_n_ptr, first, first, plane, tile, mask, poisoned, STATES)
