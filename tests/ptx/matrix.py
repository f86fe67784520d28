"""The instructions that a warp executes together: matrix products, shuffles, reductions.

A warp's matrix fragments lie in registers as the PTX manual's figures for mma.m16n8k16 and m16n8k8 say; arrays of
registers have one row for each warp, [warps, 32 threads, registers].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from tests.ptx.parse import Unsupported
from tests.ptx.values import Array, bfloat16_to_float, every_thread, half_to_float

WARP = 32
TF32 = np.uint32(0xFFFFE000)  # the bits of a float32 that the tensor core reads


def _fragments(registers: Sequence[Array], threads: int) -> Array:
    return np.stack([every_thread(x, threads).reshape(-1, WARP) for x in registers], -1)


def _sum(products: Array, accumulators: Sequence[Array], threads: int) -> list[Array]:
    """[warps, 16, 8] products, added where a thread has them: row t / 4 and 8 more, columns 2 (t % 4) and 1 more."""
    warps = threads // WARP
    mine = products.reshape(warps, 2, 8, 4, 2).transpose(0, 2, 3, 1, 4).reshape(threads, 4)
    return [(mine[:, i] + c.view(np.float32)).view(np.uint32) for i, c in enumerate(accumulators)]


def _product_of_halves(to_float: Callable[[Array], Array]) -> Callable[..., list[Array]]:
    def multiply(threads: int, a: Sequence[Array], b: Sequence[Array], c: Sequence[Array]) -> list[Array]:
        """m16n8k16. Thread t has rows t / 4 and 8 more of a, column t / 4 of b, and of K 2 (t % 4) and 1, 8, 9 more."""
        warps = threads // WARP
        # a: [warp, row, k pair, k half, row half, k in pair]; registers run over the row half first.
        wide_a = to_float(_fragments(a, threads).view(np.uint16)).reshape(warps, 8, 4, 2, 2, 2)
        wide_b = to_float(_fragments(b, threads).view(np.uint16)).reshape(warps, 8, 4, 2, 2)
        left = wide_a.transpose(0, 4, 1, 3, 2, 5).reshape(warps, 16, 16)
        right = wide_b.transpose(0, 3, 2, 4, 1).reshape(warps, 16, 8)
        return _sum(left @ right, c, threads)

    return multiply


def _product_of_tf32(threads: int, a: Sequence[Array], b: Sequence[Array], c: Sequence[Array]) -> list[Array]:
    """m16n8k8. Thread t has rows t / 4 and 8 more of a, column t / 4 of b, and of K t % 4 and 4 more."""
    warps = threads // WARP
    wide_a = (_fragments(a, threads) & TF32).view(np.float32).reshape(warps, 8, 4, 2, 2)
    wide_b = (_fragments(b, threads) & TF32).view(np.float32).reshape(warps, 8, 4, 2)
    left = wide_a.transpose(0, 4, 1, 3, 2).reshape(warps, 16, 8)
    right = wide_b.transpose(0, 3, 2, 1).reshape(warps, 8, 8)
    return _sum(left @ right, c, threads)


PRODUCTS: dict[str, Callable[..., list[Array]]] = {
    "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32": _product_of_halves(bfloat16_to_float),
    "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32": _product_of_halves(half_to_float),
    "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32": _product_of_tf32,
}


def all_take_part(masks: Array) -> None:
    """Refuse what only some threads of a warp would execute."""
    if (masks != np.uint32(0xFFFFFFFF)).any():
        raise Unsupported(f"by the threads {masks} of a warp")


def shuffle(threads: int, mode: str, a: Array, b: Array, c: Array) -> tuple[Array, Array]:
    """shfl.sync: (the value of another thread, whether it is one of this thread's part of the warp)."""
    value = every_thread(a, threads).reshape(-1, WARP)
    b, c = (every_thread(x, threads).reshape(-1, WARP).astype(np.int64) for x in (b, c))
    lane = np.arange(WARP)[None, :]
    segment, clamp = (c >> 8) & 31, c & 31
    last = (lane & segment) | (clamp & ~segment & 31)
    if mode == "idx":
        source = (lane & segment) | (b & 31 & ~segment)
    elif mode == "bfly":
        source = lane ^ (b & 31)
    elif mode == "down":
        source = lane + (b & 31)
    elif mode == "up":
        source = lane - (b & 31)
    else:
        raise Unsupported(f"shfl.{mode}")
    inside = source >= last if mode == "up" else source <= last
    return np.take_along_axis(value, np.where(inside, source, lane), axis=1).reshape(-1), inside.reshape(-1)


REDUCTIONS: dict[str, np.ufunc] = {
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "add": np.add,
    "min": np.minimum,
    "max": np.maximum,
}


def reduce_warp(threads: int, operation: str, a: Array) -> Array:
    """redux.sync: every thread gets the whole warp's."""
    value = every_thread(a, threads).reshape(-1, WARP)
    return np.repeat(REDUCTIONS[operation].reduce(value, axis=1, dtype=value.dtype), WARP)


def vote(threads: int, mode: str, p: Array) -> Array:
    """vote.sync: any, all, or ballot, a bit for each thread of the warp."""
    voted = every_thread(p, threads).reshape(-1, WARP)
    if mode == "ballot":
        bits = (voted.astype(np.uint32) << np.arange(WARP, dtype=np.uint32)).sum(1, dtype=np.uint32)
        return np.repeat(bits, WARP)
    if mode not in ("any", "all"):
        raise Unsupported(f"vote.{mode}")
    return np.repeat(voted.any(1) if mode == "any" else voted.all(1), WARP)
