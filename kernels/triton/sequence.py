"""The whole sequence in one launch, forward and backward: one program per batch tile, weights loaded once.

A program owns BLOCK_B rows of the batch and all H hidden columns (BLOCK_H >= H), or those of a head, so that programs
have nothing to tell each other. Shapes whose weights do not fit one program belong to the step kernels.

Tensors are contiguous. State and accumulators are float32 whatever the storage dtype; the matmuls read the state
rounded to the storage dtype.
"""

import triton
import triton.language as tl

from fastcells.kernels.triton.ahead import load_adjoint, load_rows, widen, with_bias
from fastcells.kernels.triton.gathered import unbound
from fastcells.kernels.triton.tiles import (
    add_tiles,
    cast,
    freeze_finished,
    load_bias,
    load_extra,
    load_ids,
    load_resets,
    load_state,
    of_head,
    of_state,
    offsets,
    owned,
    product,
    store_column_sums,
    store_state,
    store_tiles,
    zero_finished,
    zero_started,
    zero_tiles,
)
from fastcells.kernels.triton.words import as_words


@triton.jit
def load_weights(w_ptr, row, col, mask, H, GATES: tl.constexpr):
    """Every gate's weights at the rows and columns of its [H, H]."""
    w = ()
    for g in tl.static_range(GATES):
        w += (tl.load(w_ptr + (g * H + row) * H + col, mask=mask, other=0.0),)
    return w


@triton.jit(do_not_specialize=["T", "B"])
def sequence_forward_kernel(
    x_ptr,  # [T, B, GATES, H] input projection with b_ih; given ids [V, GATES, H], W_ih^T
    ids_ptr,  # [T, B] int32 or int64, rows of x_ptr; or None
    b_ih_ptr,  # [GATES, H] bias of the input projection, given ids; or None
    w_ptr,  # [GATES, H, H] recurrent weight
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
    RESET_HIDDEN: tl.constexpr,  # the second product's rule, or None
    GATES: tl.constexpr,
    STATES: tl.constexpr,
    SAVED: tl.constexpr,
    EXTRA: tl.constexpr,
    UNITS: tl.constexpr,  # hidden columns of a head, with w_ptr [heads, GATES, UNITS, UNITS]; 0 without heads
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
    WORD: tl.constexpr,  # elements in a word
    REVERSE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    units = UNITS if UNITS else H
    first_row, batch, rows, unit, mask = owned(tl.program_id(0), 0, B, units, BLOCK_B, BLOCK_H)
    cols = of_head(unit, tl.program_id(1), UNITS)
    first, plane, row, tile, _, saved_tile = offsets(first_row, batch, cols, H, GATES, SAVED, BLOCK_B)
    # The same in words.
    words = H // WORD
    word_unit = tl.arange(0, BLOCK_H // WORD)
    word_cols = of_head(word_unit, tl.program_id(1), UNITS // WORD)
    head_words = UNITS // WORD if UNITS else words
    first_word, word_plane, _, _, x_tile, _ = offsets(first_row, batch, word_cols, words, GATES, SAVED, BLOCK_B)
    x_ptr = as_words(x_ptr, WORD)
    weight_mask = (unit < units)[:, None] & (unit < units)[None, :]
    if UNITS:
        w_ptr += tl.program_id(1) * (GATES * UNITS * UNITS)
    # w[g][k, n] multiplies h[k] into column n.
    w = load_weights(w_ptr, unit[None, :], unit[:, None], weight_mask, units, GATES)
    b = load_bias(b_ptr, cols, H, GATES)
    b_ih = load_bias(b_ih_ptr, cols, H, GATES)
    extra = load_extra(extra_ptr, cols, H, EXTRA, BLOCK_B, BLOCK_H)
    if lengths_ptr is not None:
        length = tl.load(lengths_ptr + rows, mask=rows < B, other=0)
    state = load_state(h0_ptr, c0_ptr, first, first, plane, tile, mask, STATES)
    none = tl.zeros((BLOCK_B, BLOCK_H), tl.float32)
    element: tl.constexpr = w_ptr.dtype.element_ty
    # Loaded a step ahead, and the ids, which name what is loaded, two steps.
    t = T - 1 if REVERSE else 0
    starts = load_resets(resets_ptr, t * batch + first_row, row, (rows < B)[:, None])
    ids = load_ids(ids_ptr, t * batch + first_row, row, (rows < B)[:, None])
    word_mask = (rows < B)[:, None] & (word_unit < head_words)[None, :]
    ahead = load_rows(
        x_ptr, ids_ptr, ids, t * word_plane + first_word, x_tile, word_cols, word_mask, V, words, GATES, GATES
    )
    second = (rows < tl.where(T > 1, B, 0))[:, None]
    ids = load_ids(ids_ptr, (t - 1 if REVERSE else t + 1) * batch + first_row, row, second)
    for i in range(T):
        t = T - 1 - i if REVERSE else i
        at = t * plane + first
        x = with_bias(ahead, ids_ptr, b_ih, element, WORD, GATES)
        before = state if resets_ptr is None else zero_started(starts, state, STATES)
        # Columns past H stay 0: were h infinite, the weights' zeros there would make NaN of it.
        operand = cast(tl.where(mask, before[0], 0.0), element)
        h = ()
        through: tl.constexpr = GATES if RESET_HIDDEN is None else GATES - 1  # gates whose product reads h itself
        for g in tl.static_range(through):
            h += (unbound(product(operand, w[g], none, PRECISION), BLOCK_B, BLOCK_H) + b[g],)
        if RESET_HIDDEN is not None:
            operand = cast(tl.where(mask, RESET_HIDDEN(x, h, before + extra), 0.0), element)
            h += (unbound(product(operand, w[through], none, PRECISION), BLOCK_B, BLOCK_H) + b[through],)
        # The next step's, after this one's matmuls: the compiler lets what comes last keep its layout.
        more = (rows < tl.where(i + 1 < T, B, 0))[:, None] & (word_unit < head_words)[None, :]
        at_next = (t - 1 if REVERSE else t + 1) * word_plane + first_word
        ahead = load_rows(x_ptr, ids_ptr, ids, at_next, x_tile, word_cols, more, V, words, GATES, GATES)
        more = (rows < tl.where(i + 1 < T, B, 0))[:, None]
        starts = load_resets(resets_ptr, (t - 1 if REVERSE else t + 1) * batch + first_row, row, more)
        more = (rows < tl.where(i + 2 < T, B, 0))[:, None]
        ids = load_ids(ids_ptr, (t - 2 if REVERSE else t + 2) * batch + first_row, row, more)
        new, saved = FORWARD(x, h, before + extra)
        if lengths_ptr is not None:
            new = freeze_finished((t < length)[:, None], new, state, STATES)
        state = new
        store_state(h_ptr, c_ptr, at, first, plane, tile, mask, state, STATES)
        if saved_ptr is not None:
            store_tiles(saved_ptr + at * SAVED, H, saved_tile, mask, saved)
    store_state(h_n_ptr, c_n_ptr, first, first, plane, tile, mask, state, STATES)


@triton.jit(do_not_specialize=["T", "B"])
def sequence_backward_kernel(
    w_ptr,  # [GATES, H, H]
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
    d_extra_ptr,  # [batch tiles, EXTRA, H] float32 out: what each adds to the parameters' gradients; or None
    T,
    B,
    H,
    BACKWARD: tl.constexpr,
    BACKWARD_LAST_GATE: tl.constexpr,  # the second product's rule, or None
    GATES: tl.constexpr,
    STATES: tl.constexpr,
    SAVED: tl.constexpr,
    EXTRA: tl.constexpr,
    UNITS: tl.constexpr,  # hidden columns of a head, with w_ptr [heads, GATES, UNITS, UNITS]; 0 without heads
    BLOCK_B: tl.constexpr,
    BLOCK_H: tl.constexpr,
    WORD: tl.constexpr,  # elements in a word
    REVERSE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    element: tl.constexpr = w_ptr.dtype.element_ty
    units = UNITS if UNITS else H
    first_row, batch, rows, unit, mask = owned(tl.program_id(0), 0, B, units, BLOCK_B, BLOCK_H)
    cols = of_head(unit, tl.program_id(1), UNITS)
    first, plane, row, tile, x_tile, _ = offsets(first_row, batch, cols, H, GATES, SAVED, BLOCK_B)
    # The same in words.
    words = H // WORD
    word_unit = tl.arange(0, BLOCK_H // WORD)
    word_cols = of_head(word_unit, tl.program_id(1), UNITS // WORD)
    head_words = UNITS // WORD if UNITS else words
    first_word, word_plane, _, word_tile, _, saved_tile = offsets(
        first_row, batch, word_cols, words, GATES, SAVED, BLOCK_B
    )
    h_words = as_words(h_ptr, WORD)
    h0_words = as_words(h0_ptr, WORD)
    c_words = h_words
    c0_words = h0_words
    if STATES > 1:
        c_words = as_words(c_ptr, WORD)
        c0_words = as_words(c0_ptr, WORD)
    d_out_words = as_words(d_out_ptr, WORD)
    saved_words = as_words(saved_ptr, WORD)
    weight_mask = (unit < units)[:, None] & (unit < units)[None, :]
    if UNITS:
        w_ptr += tl.program_id(1) * (GATES * UNITS * UNITS)
    # w[g][n, k] takes the gradient of column n back to h[k].
    w = load_weights(w_ptr, unit[:, None], unit[None, :], weight_mask, units, GATES)
    if lengths_ptr is not None:
        length = tl.load(lengths_ptr + rows, mask=rows < B, other=0)
    extra = load_extra(extra_ptr, cols, H, EXTRA, BLOCK_B, BLOCK_H)
    d_extra = zero_tiles(EXTRA, BLOCK_B, BLOCK_H)
    d_state = load_state(d_h_n_ptr, d_c_n_ptr, first, first, plane, tile, mask, STATES)
    none = tl.zeros((BLOCK_B, BLOCK_H), tl.float32)
    t = T * 0 if REVERSE else T - 1
    word_mask = (rows < B)[:, None] & (word_unit < head_words)[None, :]
    new = (tl.load(h_words + t * word_plane + first_word + word_tile, mask=word_mask, other=0),)
    for s in tl.static_range(1, STATES):
        c_at = of_state(t * word_plane + first_word, first_word, word_plane, s, STATES)
        new += (tl.load(c_words + c_at + word_tile, mask=word_mask, other=0),)
    ahead = load_adjoint(
        d_out_words, saved_words, h_words, c_words, h0_words, c0_words, first_word, word_plane, t, words, word_tile,
        saved_tile, word_mask, T == 1, STATES, SAVED, REVERSE,
    )  # fmt: skip
    starts = load_resets(resets_ptr, t * batch + first_row, row, (rows < B)[:, None])
    for i in range(T):
        t = i if REVERSE else T - 1 - i
        at = t * plane + first
        d_out = widen(ahead, element, WORD, 0, 1)[0]
        prev = widen(ahead, element, WORD, 1, STATES)
        prev = prev if resets_ptr is None else zero_started(starts, prev, STATES)
        saved = widen(ahead, element, WORD, 1 + STATES, SAVED)
        after = widen(new, element, WORD, 0, STATES)
        new = ahead[1 : 1 + STATES]
        counted = mask
        if lengths_ptr is not None:
            active = (t < length)[:, None]
            counted = mask & active
            d_out = tl.where(active, d_out, 0.0)
        d_state = (d_state[0] + d_out,) + d_state[1:]
        if BACKWARD_LAST_GATE is None:
            d_x, d_h, d_prev = BACKWARD(d_state, saved, prev + extra, after)
        else:
            d_last_gate = BACKWARD_LAST_GATE(d_state, saved, prev + extra, after)
            d_reset_hidden = product(cast(tl.where(mask, d_last_gate, 0.0), element), w[GATES - 1], none, PRECISION)
            d_reset_hidden = unbound(d_reset_hidden, BLOCK_B, BLOCK_H)
            d_x, d_h, d_prev = BACKWARD(d_state, saved, prev + extra, after, d_reset_hidden)
        d_extra = add_tiles(d_extra, d_prev[STATES:], counted, EXTRA)
        d_prev = d_prev[:STATES]
        if resets_ptr is not None:  # here, and what the product adds later: kept until then, it would cost registers
            d_prev = zero_started(starts, d_prev, STATES)
        if lengths_ptr is not None:
            d_x = zero_finished(active, d_x, GATES)
            d_h = zero_finished(active, d_h, GATES)
        if d_x_ptr is not None:
            store_tiles(d_x_ptr + at * GATES, H, x_tile, mask, d_x)
        store_tiles(d_gates_ptr + at * GATES, H, x_tile, mask, d_h)
        through = none
        for g in tl.static_range(GATES if BACKWARD_LAST_GATE is None else GATES - 1):
            through = product(cast(tl.where(mask, d_h[g], 0.0), element), w[g], through, PRECISION)
        # The next step's, after this one's matmuls: the compiler lets what comes last keep its layout.
        more = (rows < tl.where(i + 1 < T, B, 0))[:, None] & (word_unit < head_words)[None, :]
        ahead = load_adjoint(
            d_out_words, saved_words, h_words, c_words, h0_words, c0_words, first_word, word_plane,
            t + 1 if REVERSE else t - 1, words, word_tile, saved_tile, more, i + 2 == T, STATES, SAVED, REVERSE,
        )  # fmt: skip
        through = unbound(through, BLOCK_B, BLOCK_H)
        through = through if resets_ptr is None else tl.where(starts == 0, through, 0.0)
        d_prev = (d_prev[0] + through,) + d_prev[1:]
        more = (rows < tl.where(i + 1 < T, B, 0))[:, None]
        starts = load_resets(resets_ptr, (t + 1 if REVERSE else t - 1) * batch + first_row, row, more)
        if lengths_ptr is not None:
            d_prev = freeze_finished(active, d_prev, d_state, STATES)
        d_state = d_prev
    store_state(d_h0_ptr, d_c0_ptr, first, first, plane, tile, mask, d_state, STATES)
    if EXTRA:
        store_column_sums(d_extra_ptr + tl.program_id(0) * EXTRA * H, cols, H, unit < units, d_extra)
