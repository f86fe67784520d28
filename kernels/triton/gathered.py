"""The recurrent products of the split kernels: weights held by the program, operands gathered from all of its group."""

import triton
import triton.language as tl

from fastcells.kernels.triton.tiles import product
from fastcells.kernels.triton.words import apart


@triton.jit
def gathered_products(
    mail_ptr,  # [rows of this program, A, words of H], counted in words
    gate_stride,
    row_stride,
    w,  # [BLOCK_K, BLOCK_H] for each gate and, within it, each of the INNER parts of H
    start,  # N tiles [BLOCK_B, BLOCK_H] float32 to add to
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
    PRECISION: tl.constexpr,
):
    """`start[g] + a[g] @ w[FIRST + g]` for N gates, and the patience that is left.

    Part by part, the gates in turn: their matrix instructions do not depend on each other and overlap.
    """
    row = tl.arange(0, BLOCK_B)[:, None]
    k = tl.arange(0, BLOCK_K // WORD)[None, :]
    element: tl.constexpr = w[0].dtype
    sums = start
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
            for half in tl.static_range(WORD):
                totals = ()
                for g in tl.static_range(N):
                    if A == 1 or g == i % A:
                        weight = w[((FIRST + g) * INNER + i // A) * WORD + half]
                        totals += (product(halves[half], weight, sums[g], PRECISION),)
                    else:
                        totals += (sums[g],)
                sums = totals
    return sums, patience


@triton.jit
def unbound(x, BLOCK_B: tl.constexpr, BLOCK_H: tl.constexpr):
    """x, in a form that the compiler gives the layout of what it is added to.

    Matrix instructions leave their result in a layout of their own. Left alone, the compiler converts all that meets
    it to that one, each through shared memory: inputs, saved values, what is published. A sum over nothing makes it
    convert the product instead, once.
    """
    return tl.sum(tl.reshape(x, (BLOCK_B, 1, BLOCK_H)), axis=1)
