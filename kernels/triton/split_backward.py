"""The adjoint of `split_forward.py`, split in the same way: the programs exchange the gates' gradients."""

import triton
import triton.language as tl

from fastcells.kernels.triton.ahead import load_adjoint, widen
from fastcells.kernels.triton.exchange import poison
from fastcells.kernels.triton.gathered import gathered_products, unbound
from fastcells.kernels.triton.tiles import (
    add_tiles,
    freeze_finished,
    load_extra,
    load_resets,
    load_state,
    of_head,
    of_state,
    store_column_sums,
    store_state,
    store_tiles,
    zero_finished,
    zero_started,
    zero_tiles,
)
from fastcells.kernels.triton.words import as_words, pack


@triton.jit(do_not_specialize=["T", "B", "patience"])
def split_backward_kernel(
    w_ptr,  # [GATES, H, H]
    extra_ptr,  # [EXTRA, H] further parameters, or None
    lengths_ptr,  # [B] int32: how many steps each row has; or None
    resets_ptr,  # [T, B] uint8: not 0 where a row's step starts from zeros; or None
    counter_ptr,  # [heads, batch tiles, 32] int32: arrivals, for an exchange that counts
    d_gates_ptr,  # [T, B, GATES, H] out, and mailbox: gradient of the recurrent products
    h0_ptr,  # [B, H] initial state
    c0_ptr,  # [STATES - 1, B, H], as all c pointers for a cell with more than h only
    h_ptr,  # [T, B, H] state after each step
    c_ptr,  # [T, STATES - 1, B, H]
    saved_ptr,  # [T, B, SAVED, H]
    d_out_ptr,  # [T, B, H] gradient of every output
    d_h_n_ptr,  # [B, H] gradient of the final state
    d_c_n_ptr,  # [STATES - 1, B, H]
    d_x_ptr,  # [T, B, GATES, H] out: gradient of the input projection; None where it is d_gates
    d_h0_ptr,  # [B, H] out: gradient of the initial state
    d_c0_ptr,  # [STATES - 1, B, H] out
    d_extra_ptr,  # [groups, EXTRA, H] float32 out: what each adds to the parameters' gradients; or None
    fault_ptr,  # [1] int32: 1 once a program waited in vain
    T,
    B,
    H,
    patience,  # polls of one wait
    BACKWARD: tl.constexpr,
    BACKWARD_LAST_GATE: tl.constexpr,  # the second product's rule, or None
    PUBLISH: tl.constexpr,
    ARRIVE: tl.constexpr,
    WAIT: tl.constexpr,
    GATHER: tl.constexpr,
    GATES: tl.constexpr,
    STATES: tl.constexpr,
    SAVED: tl.constexpr,
    EXTRA: tl.constexpr,
    UNITS: tl.constexpr,  # hidden columns of a head, with w_ptr [heads, GATES, UNITS, UNITS]; 0 without heads
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
    INNER: tl.constexpr,  # parts of BLOCK_K columns that make up all H
    AT_ONCE: tl.constexpr,  # of these, of all gates, those polled together
    WORD: tl.constexpr,  # elements in a word
    TIE: tl.constexpr,  # whether no gate's sum is there before the others: for programs of one warp
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
    unit = tl.program_id(0) * BLOCK_H + tl.arange(0, BLOCK_H)
    word_unit = tl.program_id(0) * (BLOCK_H // WORD) + tl.arange(0, BLOCK_H // WORD)
    if KNOWN_H:
        # The first column counts as a scalar, in the pointers: offsets that a constant H folds share registers.
        first_column = tl.program_id(0) * BLOCK_H
        column = tl.arange(0, BLOCK_H)[None, :]
        word_column = tl.arange(0, BLOCK_H // WORD)[None, :]
    else:
        first_column = 0
        column = unit[None, :]
        word_column = word_unit[None, :]
    tile = row * H + column
    x_tile = row * (GATES * H) + column
    # The same in words.
    words = H // WORD
    units = UNITS if UNITS else H
    head_words = UNITS // WORD if UNITS else words
    first_word_of_head = of_head(0, tl.program_id(2), UNITS // WORD)
    word_plane = (zero + B) * words
    word_tile = row * words + word_column
    gates_tile = row * (GATES * words) + word_column
    saved_tile = row * (SAVED * words) + word_column
    w_ptr += first_column
    if UNITS:
        w_ptr += tl.program_id(2) * (GATES * UNITS * UNITS)
        first_column += tl.program_id(2) * UNITS
    h0_ptr += first_column
    h_ptr += first_column
    d_out_ptr += first_column
    d_h_n_ptr += first_column
    if d_x_ptr is not None:
        d_x_ptr += first_column
    d_h0_ptr += first_column
    if SAVED:
        saved_ptr += first_column
    if STATES > 1:
        c0_ptr += first_column
        c_ptr += first_column
        d_c_n_ptr += first_column
        d_c0_ptr += first_column
    h0_words = as_words(h0_ptr, WORD)
    h_words = as_words(h_ptr, WORD)
    c0_words = h0_words
    c_words = h_words
    if STATES > 1:
        c0_words = as_words(c0_ptr, WORD)
        c_words = as_words(c_ptr, WORD)
    d_out_words = as_words(d_out_ptr, WORD)
    saved_words = as_words(saved_ptr, WORD)
    gates_words = as_words(d_gates_ptr, WORD)
    w = ()
    for g in tl.static_range(GATES):  # w[g][n, k] takes the gradient of column n back to h[k]
        for part in tl.static_range(INNER):
            for half in tl.static_range(WORD):  # of the words of the gradient
                n = part * BLOCK_K + tl.arange(0, BLOCK_K // WORD) * WORD + half
                weight_mask = (n < units)[:, None] & (unit < units)[None, :]
                gate = w_ptr + (zero + g * units) * units
                w += (tl.load(gate + n[:, None] * units + column, mask=weight_mask, other=0.0),)
    cols = of_head(unit, tl.program_id(2), UNITS)
    extra = load_extra(extra_ptr, cols, H, EXTRA, BLOCK_B, BLOCK_H)
    d_extra = zero_tiles(EXTRA, BLOCK_B, BLOCK_H)
    everyone = tl.num_programs(0)
    # As in the forward pass, all programs of a group walk the same tiles in the same order.
    for batch_tile in range(tl.program_id(1), tl.cdiv(B, BLOCK_B), tl.num_programs(1)):
        arrivals = 0
        counter = counter_ptr + batch_tile * 32
        if UNITS:
            counter += tl.program_id(2) * tl.cdiv(B, BLOCK_B) * 32
        first_row = zero + batch_tile * BLOCK_B
        first = first_row * H  # of the tile's rows in a [B, H] plane
        first_word = first_row * words
        rows = batch_tile * BLOCK_B + tl.arange(0, BLOCK_B)
        row_mask = (rows < B)[:, None]
        mask = row_mask & (unit < units)[None, :]
        word_mask = row_mask & (word_unit < head_words)[None, :]
        if lengths_ptr is not None:
            length = tl.load(lengths_ptr + rows, mask=rows < B, other=0)
        d_state = load_state(d_h_n_ptr, d_c_n_ptr, first, first, plane, tile, mask, STATES)
        d_state = (d_state[0] + poison(patience),) + d_state[1:]
        t = T * 0 if REVERSE else T - 1
        new = (tl.load(h_words + t * word_plane + first_word + word_tile, mask=word_mask, other=0),)
        for s in tl.static_range(1, STATES):
            c_at = of_state(t * word_plane + first_word, first_word, word_plane, s, STATES)
            new += (tl.load(c_words + c_at + word_tile, mask=word_mask, other=0),)
        ahead = load_adjoint(
            d_out_words, saved_words, h_words, c_words, h0_words, c0_words, first_word, word_plane, t, words,
            word_tile, saved_tile, word_mask, T == 1, STATES, SAVED, REVERSE,
        )  # fmt: skip
        starts = load_resets(resets_ptr, (zero + t) * B + first_row, row, row_mask)
        for i in range(T):
            t = i if REVERSE else T - 1 - i
            at = t * plane + first
            mailbox = gates_words + (t * word_plane + first_word) * GATES
            own_mail = mailbox + first_column // WORD + gates_tile
            mailbox += first_word_of_head
            d_out = widen(ahead, element, WORD, 0, 1)[0]
            prev = widen(ahead, element, WORD, 1, STATES)
            prev = prev if resets_ptr is None else zero_started(starts, prev, STATES)
            saved = widen(ahead, element, WORD, 1 + STATES, SAVED)
            after = widen(new, element, WORD, 0, STATES)
            after = (after[0] + poison(patience),) + after[1:]  # relu looks at the new state alone
            new = ahead[1 : 1 + STATES]
            if lengths_ptr is not None:
                active = ((t < length) | (patience == 0))[:, None]
                d_out = tl.where(active, d_out, 0.0)
            d_state = (d_state[0] + d_out,) + d_state[1:]
            if BACKWARD_LAST_GATE is None:
                d_x, d_h, d_prev = BACKWARD(d_state, saved, prev + extra, after)
            else:
                d_last_gate = BACKWARD_LAST_GATE(d_state, saved, prev + extra, after)
                if lengths_ptr is not None:
                    d_last_gate = tl.where(active, d_last_gate, 0.0)
                PUBLISH(own_mail + through * words, pack(d_last_gate, element, WORD), word_mask)
                ARRIVE(counter, patience)
                arrivals += everyone
                patience = WAIT(counter, arrivals, patience, fault_ptr)
                sums, patience = gathered_products(
                    mailbox + through * words, words, GATES * words, w, row_mask, head_words, True, patience,
                    fault_ptr, GATHER, through, 1, 1, AT_ONCE, BLOCK_B, BLOCK_K, INNER, WORD, TIE, PRECISION,
                )  # fmt: skip
                d_reset_hidden = unbound(sums[0], BLOCK_B, BLOCK_H) + poison(patience)
                d_x, d_h, d_prev = BACKWARD(d_state, saved, prev + extra, after, d_reset_hidden)
                if lengths_ptr is not None:
                    active = ((t < length) | (patience == 0))[:, None]
            d_extra = add_tiles(d_extra, d_prev[STATES:], mask if lengths_ptr is None else mask & active, EXTRA)
            d_prev = d_prev[:STATES]
            if resets_ptr is not None:  # here, and later what the product adds: kept until then it would cost registers
                d_prev = zero_started(starts, d_prev, STATES)
            if lengths_ptr is not None:
                d_x = zero_finished(active, d_x, GATES)
                d_h = zero_finished(active, d_h, GATES)
            # First what the others wait for.
            for g in tl.static_range(through):
                PUBLISH(own_mail + g * words, pack(d_h[g], element, WORD), word_mask)
            ARRIVE(counter, patience)
            arrivals += everyone
            if d_x_ptr is not None:
                store_tiles(d_x_ptr + at * GATES, H, x_tile, mask, d_x)
            patience = WAIT(counter, arrivals, patience, fault_ptr)
            sums, patience = gathered_products(
                mailbox, words, GATES * words, w, row_mask, head_words, True, patience, fault_ptr, GATHER,
                0, through, through, AT_ONCE, BLOCK_B, BLOCK_K, INNER, WORD, TIE, PRECISION,
            )  # fmt: skip
            total = sums[0]
            for g in tl.static_range(1, through):
                total += sums[g]
            # The next step's, after this one's matmuls: the compiler lets what comes last keep its layout.
            more = (rows < tl.where(i + 1 < T, B, 0))[:, None] & (word_unit < head_words)[None, :]
            ahead = load_adjoint(
                d_out_words, saved_words, h_words, c_words, h0_words, c0_words, first_word, word_plane,
                t + 1 if REVERSE else t - 1, words, word_tile, saved_tile, more, i + 2 == T, STATES, SAVED, REVERSE,
            )  # fmt: skip
            total = unbound(total, BLOCK_B, BLOCK_H)
            total = total if resets_ptr is None else tl.where(starts == 0, total, 0.0)
            d_prev = (d_prev[0] + (total + poison(patience)),) + d_prev[1:]
            more = (rows < tl.where(i + 1 < T, B, 0))[:, None]
            starts = load_resets(resets_ptr, (zero + (t + 1 if REVERSE else t - 1)) * B + first_row, row, more)
            if lengths_ptr is not None:
                active = ((t < length) | (patience == 0))[:, None]
                d_prev = freeze_finished(active, d_prev, d_state, STATES)
            d_state = d_prev
        poisoned = ()
        for s in tl.static_range(STATES):  # what does not go through the matmuls would be left out
            poisoned += (d_state[s] + poison(patience),)
        store_state(d_h0_ptr, d_c0_ptr, first, first, plane, tile, mask, poisoned, STATES)
    if EXTRA:
        store_column_sums(d_extra_ptr + tl.program_id(1) * EXTRA * H, cols, H, unit < units, d_extra)
