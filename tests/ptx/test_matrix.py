"""Matrix instructions against the PTX manual's tables of which thread holds which element, and shuffles."""

from __future__ import annotations

import struct
from collections.abc import Callable

import numpy as np
import pytest

from tests.ptx.small import run
from tests.ptx.values import Array

# (row, column) of element i of a thread's fragment, in the manual's words: group = thread / 4, number = thread % 4.
Place = Callable[[int, int, int], tuple[int, int]]


def a16(group: int, number: int, i: int) -> tuple[int, int]:
    return group + (8 if i in (2, 3, 6, 7) else 0), number * 2 + (i & 1) + (8 if i >= 4 else 0)


def b16(group: int, number: int, i: int) -> tuple[int, int]:
    return number * 2 + (i & 1) + (8 if i >= 2 else 0), group


def a8(group: int, number: int, i: int) -> tuple[int, int]:
    return group + (8 if i in (1, 3) else 0), number + (4 if i >= 2 else 0)


def b8(group: int, number: int, i: int) -> tuple[int, int]:
    return number + (4 if i == 1 else 0), group


def accumulator(group: int, number: int, i: int) -> tuple[int, int]:
    return group + (8 if i >= 2 else 0), number * 2 + (i & 1)


def fragment(matrix: Array, place: Place, elements: int) -> Array:
    """[32, elements]: what each thread holds of a matrix."""
    return np.array([[matrix[place(t // 4, t % 4, i)] for i in range(elements)] for t in range(32)], matrix.dtype)


def words(elements: Array) -> Array:
    return np.ascontiguousarray(elements).view(np.uint32).reshape(32, -1)


def bfloat16(matrix: Array) -> Array:
    return (matrix.view(np.uint32) >> np.uint32(16)).astype(np.uint16)


def small_numbers(rows: int, columns: int, seed: int) -> Array:
    """Exact in 8 bits, so that every product and sum is exact too."""
    return np.random.default_rng(seed).integers(-9, 10, (rows, columns)).astype(np.float32)


FORMS = {
    "m16n8k16.row.col.f32.bf16.bf16.f32": (16, bfloat16, (a16, 8), (b16, 4)),
    "m16n8k16.row.col.f32.f16.f16.f32": (16, lambda m: m.astype(np.float16), (a16, 8), (b16, 4)),
    "m16n8k8.row.col.f32.tf32.tf32.f32": (8, lambda m: m, (a8, 4), (b8, 2)),
}


@pytest.mark.parametrize("warps", [1, 2])
@pytest.mark.parametrize("form", FORMS)
def test_matrix_product(form: str, warps: int) -> None:
    k, cast, (place_a, many_a), (place_b, many_b) = FORMS[form]
    rows, expected = [], []
    for warp in range(warps):
        a, b, c = small_numbers(16, k, warp), small_numbers(k, 8, 10 + warp), small_numbers(16, 8, 20 + warp)
        parts = [words(fragment(cast(m), p, n)) for m, p, n in ((a, place_a, many_a), (b, place_b, many_b))]
        rows.append(np.concatenate([*parts, words(fragment(c, accumulator, 4))], axis=1))
        expected.append(fragment(a @ b + c, accumulator, 4))
    first, second = np.concatenate(rows), np.zeros((32 * warps, 4), np.float32)
    A, B = first.shape[1] - 4 - many_b * (2 if k == 16 else 4) // 4, many_b * (2 if k == 16 else 4) // 4
    names = [f"%r{10 + i}" for i in range(first.shape[1])]
    lines = [f"mad.wide.u32 %rd3, %r1, {4 * len(names)}, %rd1;"]
    lines += [f"ld.global.b32 {{ {name} }}, [ %rd3 + {4 * i} ];" for i, name in enumerate(names)]
    results = ", ".join(f"%r{50 + i}" for i in range(4))
    operands = [", ".join(part) for part in (names[:A], names[A : A + B], names[A + B :])]
    lines.append(f"mma.sync.aligned.{form} {{ {results} }}, {', '.join(f'{{ {o} }}' for o in operands)};")
    lines.append(f"mad.wide.u32 %rd4, %r1, 16, %rd2;\nst.global.v4.b32 [ %rd4 ], {{ {results} }};")
    run("\n".join(lines), first, second, threads=32 * warps)
    assert (second == np.concatenate(expected)).all()


def test_tf32_products_cut_the_low_bits() -> None:
    """A float32 that differs from a tf32 in its last 13 bits multiplies as that tf32."""
    one = struct.unpack("<I", struct.pack("<f", 1.0))[0]
    body = f"""
    mov.b32 %r3, {one | 0x1FFF};
    mov.b32 %r4, {one};
    mov.b32 %r5, 0;
    mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {{%r6, %r7, %r8, %r9}},
        {{%r3, %r3, %r3, %r3}}, {{%r4, %r4}}, {{%r5, %r5, %r5, %r5}};
    mad.wide.u32 %rd3, %r1, 4, %rd2;
    st.global.b32 [ %rd3 ], {{ %r6 }};"""
    second = np.zeros(32, np.float32)
    run(body, np.zeros(1, np.uint32), second)
    assert (second == 8.0).all()


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("number", [1, 2, 4])
def test_ldmatrix_and_stmatrix(number: int, transposed: bool) -> None:
    """Thread t gets elements 2 (t % 4) and 1 more of row t / 4 of each 8 x 8 matrix, or of each column."""
    matrices = np.arange(number * 64, dtype=np.uint16).reshape(number, 8, 8)
    order = np.random.default_rng(0).permutation(8 * number)  # where each row lies: threads name them in any order
    first = np.zeros((32, 9), np.uint32)
    first[: 8 * number, 0] = 16 * order
    rows = matrices.reshape(-1, 8)
    first[: 8 * number, 1:5] = rows.view(np.uint32)
    trans = ".trans" if transposed else ""
    registers = ", ".join(f"%r{20 + i}" for i in range(number))
    guard = "" if number == 4 else "@%p1 "
    body = f"""
    mad.wide.u32 %rd3, %r1, 36, %rd1;
    ld.global.b32 {{ %r3 }}, [ %rd3 ];
    ld.global.b32 {{ %r4 }}, [ %rd3 + 4 ];
    ld.global.b32 {{ %r5 }}, [ %rd3 + 8 ];
    ld.global.b32 {{ %r6 }}, [ %rd3 + 12 ];
    ld.global.b32 {{ %r7 }}, [ %rd3 + 16 ];
    setp.lt.u32 %p1, %r1, {8 * number};
    {guard}st.shared.v4.b32 [ %r3 + 0 ], {{ %r4, %r5, %r6, %r7 }};
    bar.warp.sync -1;
    ldmatrix.sync.aligned.m8n8.x{number}{trans}.shared.b16 {{ {registers} }}, [ %r3 ];
    bar.warp.sync -1;
    add.s32 %r3, %r3, 1024;
    stmatrix.sync.aligned.m8n8.x{number}{trans}.shared.b16 [ %r3 ], {{ {registers} }};
    bar.warp.sync -1;
    mad.wide.u32 %rd4, %r1, 32, %rd2;
    ld.shared.v4.b32 {{ %r10, %r11, %r12, %r13 }}, [ %r3 + 0 ];
    st.global.v4.b32 [ %rd4 + 16 ], {{ %r10, %r11, %r12, %r13 }};
    """ + "\n".join(f"st.global.b32 [ %rd4 + {4 * i} ], {{ %r{20 + i} }};" for i in range(number))
    second = np.zeros((32, 8), np.uint32)
    machine = run(body, first, second)
    assert not machine.races
    for t in range(32):
        for i in range(number):
            matrix = matrices[i].T if transposed else matrices[i]
            assert second[t, i : i + 1].view(np.uint16).tolist() == matrix[t // 4, 2 * (t % 4) :][:2].tolist(), (t, i)
    assert (second[: 8 * number, 4:].copy().view(np.uint16) == rows).all()  # stored where it came from


@pytest.mark.parametrize(
    ("mode", "operand", "clamp", "source"),
    [
        ("idx", 5, 0x1F, lambda t: 5),
        ("bfly", 16, 0x1F, lambda t: t ^ 16),
        ("down", 3, 0x1F, lambda t: t + 3 if t + 3 < 32 else t),
        ("up", 3, 0, lambda t: t - 3 if t >= 3 else t),
        ("bfly", 4, 0x181F, lambda t: t ^ 4),  # among eights
        ("down", 3, 0x181F, lambda t: t + 3 if t % 8 + 3 < 8 else t),
    ],
)
def test_shuffle(mode: str, operand: int, clamp: int, source: Callable[[int], int]) -> None:
    first, second = np.arange(100, 132, dtype=np.uint32), np.zeros(64, np.uint32)
    body = f"""
    mad.wide.u32 %rd3, %r1, 4, %rd1;
    mad.wide.u32 %rd4, %r1, 4, %rd2;
    ld.global.b32 {{ %r3 }}, [ %rd3 ];
    shfl.sync.{mode}.b32 %r4|%p1, %r3, {operand}, {clamp}, -1;
    st.global.b32 [ %rd4 ], {{ %r4 }};
    selp.b32 %r5, 1, 0, %p1;
    st.global.b32 [ %rd4 + 128 ], {{ %r5 }};"""
    run(body, first, second)
    assert second[:32].tolist() == [100 + source(t) for t in range(32)]
    # The predicate: whether there was such a thread. Where there was none, a thread gets its own value.
    assert second[32:].tolist() == [int(mode in ("idx", "bfly") or source(t) != t) for t in range(32)]


@pytest.mark.parametrize(("operation", "expected"), [("max", 31), ("min", 0), ("add", 496), ("or", 31), ("xor", 0)])
def test_reduction_over_a_warp(operation: str, expected: int) -> None:
    second = np.zeros(64, np.uint32)
    kind = "b32" if operation in ("or", "xor") else "u32"
    body = f"""
    mov.u32 %r3, %laneid;
    redux.sync.{operation}.{kind} %r4, %r3, -1;
    mad.wide.u32 %rd4, %r1, 4, %rd2;
    st.global.b32 [ %rd4 ], {{ %r4 }};"""
    run(body, np.zeros(1, np.uint32), second, threads=64)
    assert (second == expected).all()


def test_vote() -> None:
    second = np.zeros((32, 3), np.uint32)
    body = """
    setp.lt.u32 %p1, %r1, 3;
    vote.sync.any.pred %p2, %p1, -1;
    vote.sync.all.pred %p3, %p1, -1;
    vote.sync.ballot.b32 %r3, %p1, -1;
    selp.b32 %r4, 1, 0, %p2;
    selp.b32 %r5, 1, 0, %p3;
    mad.wide.u32 %rd4, %r1, 12, %rd2;
    st.global.b32 [ %rd4 ], { %r3 };
    st.global.b32 [ %rd4 + 4 ], { %r4 };
    st.global.b32 [ %rd4 + 8 ], { %r5 };"""
    run(body, np.zeros(1, np.uint32), second)
    assert second.tolist() == [[7, 1, 0]] * 32
