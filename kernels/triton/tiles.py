"""Tiles: matmuls, and loads and stores of tuples with one tile a gate, a state or a saved value."""

import os

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


@triton.jit
def owned(batch_tile, column_tile, B, H, BLOCK_B: tl.constexpr, BLOCK_H: tl.constexpr):
    """What a program owns of a [B, H] plane: (first_row, batch, rows, cols, mask).

    rows and cols: the numbers of its rows and columns, [BLOCK_B] and [BLOCK_H]; mask: which of them there are. Offsets
    from its first row on fit 32 bits. What does not is added to a pointer as a scalar, made from first_row, the number
    of that row, and batch, which is B: both 64 bits wide, and so is what they are multiplied with.
    """
    zero = tl.full((), 0, tl.int64)  # makes what it is added to 64 bits wide
    rows = batch_tile * BLOCK_B + tl.arange(0, BLOCK_B)
    cols = column_tile * BLOCK_H + tl.arange(0, BLOCK_H)
    mask = (rows < B)[:, None] & (cols < H)[None, :]
    return zero + batch_tile * BLOCK_B, zero + B, rows, cols, mask


@triton.jit
def of_head(cols, head, UNITS: tl.constexpr):
    """Hidden columns by their numbers within a head of UNITS; without heads UNITS is 0."""
    return cols + head * UNITS if UNITS else cols


@triton.jit
def offsets(first_row, batch, cols, H, GATES: tl.constexpr, SAVED: tl.constexpr, BLOCK_B: tl.constexpr):
    """Where a program's part of a plane lies: (first, plane, row, tile, x_tile, saved_tile).

    first: its first element in a [B, H] plane, of which plane is the size. The others are offsets from there: row the
    numbers of its rows, [BLOCK_B, 1], tile those of its elements, x_tile and saved_tile the same in a [B, GATES, H] and
    a [B, SAVED, H].
    """
    row = tl.arange(0, BLOCK_B)[:, None]
    tile = row * H + cols[None, :]
    x_tile = row * (GATES * H) + cols[None, :]
    saved_tile = row * (SAVED * H) + cols[None, :]
    return first_row * H, batch * H, row, tile, x_tile, saved_tile


@triton.jit
def product(a, b, acc, PRECISION: tl.constexpr):
    """`acc + a @ b` in float32. PRECISION: Triton's input_precision, for float32 operands."""
    if INTERPRETED:  # its dot multiplies in float32 whatever the precision, and takes the bits of bfloat16 for integers
        if a.dtype == tl.float32 and PRECISION == "tf32":
            return one_product(a, b, acc)
        if a.dtype == tl.float32 and PRECISION == "tf32x3":
            return three_products(a, b, acc)
        # Of 16 bits, the products are exact in float32.
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision="ieee")
    return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def one_product(a, b, acc):
    """The interpreter's "tf32": Triton hands the tensor core each float32 as it is, and that ignores 13 bits."""
    return tl.dot(cut_to_tf32(a), cut_to_tf32(b), acc, input_precision="ieee")


@triton.jit
def three_products(a, b, acc):
    """The interpreter's "tf32x3": the steps, and their order, into which Triton takes it apart."""
    a_big, b_big = round_to_tf32(a), round_to_tf32(b)
    none = tl.zeros_like(acc)
    small = one_product(a_big, b - b_big, one_product(a - a_big, b_big, none))
    # What is infinite has NaN for its small part; the big parts' product alone says what becomes of it.
    return one_product(a_big, b_big, tl.where(small == small, small, 0.0)) + acc


@triton.jit
def cut_to_tf32(x):
    """float32 without the last 13 bits of its mantissa. A NaN stays one."""
    bits = x.to(tl.int32, bitcast=True) & -0x2000
    return tl.where(x == x, bits.to(tl.float32, bitcast=True), x)


@triton.jit
def round_to_tf32(x):
    """The nearest float32 with 10 bits of mantissa, on a tie away from 0: PTX's cvt.rna.tf32. A NaN stays one."""
    bits = (x.to(tl.int32, bitcast=True) + 0x1000) & -0x2000
    return tl.where(x == x, bits.to(tl.float32, bitcast=True), x)


@triton.jit
def cast(x, dtype: tl.constexpr):
    """float32 to the storage dtype, to the nearest and on a tie to the even one, as the hardware does."""
    if INTERPRETED and dtype != tl.float32:
        number = x == x
        if dtype == tl.bfloat16:  # the interpreter cuts the low bits off
            bits = x.to(tl.int32, bitcast=True)
            x = ((bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000).to(tl.float32, bitcast=True)
        x = tl.where(number, x, float("nan"))  # and keeps what a NaN holds, of which the hardware keeps nothing
    return x.to(dtype)


@triton.jit
def load_tiles(ptr, stride, tile, mask, N: tl.constexpr):
    """N tiles as float32; 0 where the mask is false."""
    tiles = ()
    for i in tl.static_range(N):
        tiles += (tl.load(ptr + i * stride + tile, mask=mask, other=0.0).to(tl.float32),)
    return tiles


@triton.jit
def store_tiles(ptr, stride, tile, mask, tiles):
    """All tiles, in the dtype of the tensor."""
    for i in tl.static_range(len(tiles)):
        tl.store(ptr + i * stride + tile, cast(tiles[i], ptr.dtype.element_ty), mask=mask)


@triton.jit
def of_state(at, first, plane, s, STATES: tl.constexpr):
    """Where state s, from 1 on, lies in a [T, STATES - 1, B, H] or, with `at` being `first`, a [STATES - 1, B, H].

    at: where h lies in a [T, B, H]; first: in its [B, H], of which plane is the size.
    """
    if STATES > 2:
        at += (STATES - 2) * (at - first) + (s - 1) * plane
    return at


@triton.jit
def load_state(h_ptr, c_ptr, at, first, plane, tile, mask, STATES: tl.constexpr):
    """h and, from c_ptr, the other states as float32; `at` and what follows as in `of_state`."""
    state = (tl.load(h_ptr + at + tile, mask=mask, other=0.0).to(tl.float32),)
    for s in tl.static_range(1, STATES):
        c_at = of_state(at, first, plane, s, STATES)
        state += (tl.load(c_ptr + c_at + tile, mask=mask, other=0.0).to(tl.float32),)
    return state


@triton.jit
def store_state(h_ptr, c_ptr, at, first, plane, tile, mask, state, STATES: tl.constexpr):
    """h and the other states in the tensors' dtype, to where `load_state` reads them."""
    tl.store(h_ptr + at + tile, cast(state[0], h_ptr.dtype.element_ty), mask=mask)
    for s in tl.static_range(1, STATES):
        c_at = of_state(at, first, plane, s, STATES)
        tl.store(c_ptr + c_at + tile, cast(state[s], c_ptr.dtype.element_ty), mask=mask)


@triton.jit
def load_extra(extra_ptr, cols, H, N: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_H: tl.constexpr):
    """The first N of further parameters, [N, H], each as a tile of equal rows."""
    tiles = ()
    for i in tl.static_range(N):
        row = tl.load(extra_ptr + i * H + cols, mask=cols < H, other=0.0).to(tl.float32)
        tiles += (tl.broadcast_to(row[None, :], (BLOCK_B, BLOCK_H)),)
    return tiles


@triton.jit
def zero_tiles(N: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_H: tl.constexpr):
    tiles = ()
    for _ in tl.static_range(N):
        tiles += (tl.zeros((BLOCK_B, BLOCK_H), tl.float32),)
    return tiles


@triton.jit
def add_tiles(totals, tiles, mask, N: tl.constexpr):
    """The sums of N tiles each, to which what is not in the mask adds nothing."""
    sums = ()
    for i in tl.static_range(N):
        sums += (totals[i] + tl.where(mask, tiles[i], 0.0),)
    return sums


@triton.jit
def store_column_sums(ptr, cols, H, known, tiles):
    """Of each tile, to a [tiles, H] in float32; known: which of its columns there are."""
    for i in tl.static_range(len(tiles)):
        tl.store(ptr + i * H + cols, tl.sum(tiles[i], axis=0), mask=known)


@triton.jit
def freeze_finished(active, new, old, N: tl.constexpr):
    """`new` in the rows whose sequence goes on, `old` in the others."""
    tiles = ()
    for i in tl.static_range(N):
        tiles += (tl.where(active, new[i], old[i]),)
    return tiles


@triton.jit
def zero_finished(active, tiles, N: tl.constexpr):
    """The tiles in the rows whose sequence goes on, 0 in the others."""
    kept = ()
    for i in tl.static_range(N):
        kept += (tl.where(active, tiles[i], 0.0),)
    return kept


@triton.jit
def zero_started(starts, tiles, N: tl.constexpr):
    """The tiles, 0 in the rows where `starts`, from `load_resets`, is not 0."""
    return zero_finished(starts == 0, tiles, N)


@triton.jit
def load_ids(ids_ptr, at, row, row_mask):
    """The token ids of one step, [BLOCK_B, 1]: from element `at` on, -1 where masked; without ids nothing is read."""
    return tl.load(ids_ptr + at + row, mask=row_mask, other=-1) if ids_ptr is not None else row


@triton.jit
def load_resets(resets_ptr, at, row, row_mask):
    """Of one step, not 0 in the rows that start from zeros, [BLOCK_B, 1]; without resets nothing is read."""
    return tl.load(resets_ptr + at + row, mask=row_mask, other=0) if resets_ptr is not None else row


@triton.jit
def load_bias(b_ptr, cols, H, N: tl.constexpr):
    """Bias of the first N gates, each [1, BLOCK_H] float32; 0 without a bias."""
    tiles = ()
    for g in tl.static_range(N):
        if b_ptr is not None:
            b = tl.load(b_ptr + g * H + cols, mask=cols < H, other=0.0).to(tl.float32)
        else:
            b = tl.zeros_like(cols).to(tl.float32)
        tiles += (b[None, :],)
    return tiles
