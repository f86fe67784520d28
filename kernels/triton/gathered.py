"""The recurrent products of the split kernels: weights held by the program, operands gathered from all of its group."""

import triton
import triton.language as tl

from fastcells.kernels.triton.exchange import poison
from fastcells.kernels.triton.tiles import product
from fastcells.kernels.triton.words import apart


@triton.jit
def gathered_products(
    mail_ptr,  # [rows of this program, A, words of H], counted in words
    gate_stride,
    row_stride,
    w,  # [BLOCK_K, BLOCK_H] for each gate and, within it, each of the INNER parts of H
    row_mask,  # [BLOCK_B, 1]
    words,  # in a row
    published,
    patience,
    fault_ptr,
    GATHER: tl.constexpr,
    FIRST: tl.constexpr,
    N: tl.constexpr,
    A: tl.constexpr,  # operands: 1, which all N gates multiply, or one for each
    AT_ONCE: tl.constexpr,  # tiles that are polled together: as many as the registers have room for
    BLOCK_B: tl.constexpr,
    BLOCK_K: tl.constexpr,
    INNER: tl.constexpr,
    WORD: tl.constexpr,
    TIE: tl.constexpr,  # whether no gate's sum is there before the others: for programs of one warp
    PRECISION: tl.constexpr,
):
    """`a[g] @ w[FIRST + g]` for N gates, and the patience that is left; NaN where there was none.

    Each gate, and of words each half, has a sum of its own, so that their matrix instructions overlap.
    """
    row = tl.arange(0, BLOCK_B)[:, None]
    k = tl.arange(0, BLOCK_K // WORD)[None, :]
    element: tl.constexpr = w[0].dtype
    # Not a constant zero: of a sum of products that start from zero the compiler makes one long chain.
    start = tl.broadcast_to(poison(patience), (BLOCK_B, w[0].shape[1]))
    sums = ()
    for _ in tl.static_range(N * WORD):
        sums += (start,)
    for first in tl.static_range(0, INNER * A, AT_ONCE):
        pointers = ()
        masks = ()
        for i in tl.static_range(first, min(first + AT_ONCE, INNER * A)):
            column = k + i // A * (BLOCK_K // WORD)
            pointers += (mail_ptr + (i % A) * gate_stride + row * row_stride + column,)
            masks += (row_mask & (column < words),)
        # 0 where masked: were h infinite, the weights' zeros past column H would make NaN of it.
        tiles, patience = GATHER(pointers, masks, published, patience, fault_ptr)
        for i in tl.static_range(first, min(first + AT_ONCE, INNER * A)):
            halves = apart(tiles[i - first], element, WORD)
            totals = ()
            for g in tl.static_range(N):
                for half in tl.static_range(WORD):
                    if A == 1 or g == i % A:
                        weight = w[((FIRST + g) * INNER + i // A) * WORD + half]
                        totals += (product(halves[half], weight, sums[g * WORD + half], PRECISION),)
                    else:
                        totals += (sums[g * WORD + half],)
            sums = totals
    if TIE:
        sums = tied(sums, patience)
    gates = ()
    for g in tl.static_range(N):
        gates += (sums[g] if WORD == 1 else sums[g * 2] + sums[g * 2 + 1],)
    return gates, patience


@triton.jit
def tied(tiles, patience):
    """The tiles, none of which is there before the others are.

    Else ptxas computes one gate's matrix instructions, then its activation, and only then starts with the next gate:
    one after another, since a matrix instruction waits for the one before in its chain.
    """
    nothing = (patience < 0).to(tl.int32)  # 0, which the compiler does not know
    all_bits = tiles[0].to(tl.int32, bitcast=True) & nothing
    for i in tl.static_range(1, len(tiles)):
        all_bits |= tiles[i].to(tl.int32, bitcast=True) & nothing
    kept = ()
    for i in tl.static_range(len(tiles)):
        kept += ((tiles[i].to(tl.int32, bitcast=True) | all_bits).to(tl.float32, bitcast=True),)
    return kept


@triton.jit
def unbound(x, BLOCK_B: tl.constexpr, BLOCK_H: tl.constexpr):
    """x, in a form that the compiler gives the layout of what it is added to.

    Matrix instructions leave their result in a layout of their own. Left alone, the compiler converts all that meets
    it to that one, each through shared memory: inputs, saved values, what is published. A sum over nothing makes it
    convert the product instead, once.
    """
    return tl.sum(tl.reshape(x, (BLOCK_B, 1, BLOCK_H)), axis=1)
