"""Each instruction of the machine's table, executed in a kernel of its own, against Python's numbers."""

from __future__ import annotations

import math
import random
import re
import zlib

import numpy as np
import pytest

from tests.ptx import scalars
from tests.ptx.memory import Fault
from tests.ptx.operations import TABLE
from tests.ptx.parse import Unsupported, parse
from tests.ptx.small import run, text
from tests.ptx.translate import Translation
from tests.ptx.values import bits_of

THREADS = 64
WIDEST = 8  # bytes of a register in the kernels' buffers
# Numbers at which something changes: zeros, ones, the largest, infinities, NaN, the smallest; of 16 and of 32 bits.
EDGES = (
    0, 1, 2, 31, 32, 33, 63, 64, 0x7FFF, 0x8000, 0xFFFF, 0x3F80, 0x3C00, 0x7F80, 0x7C00, 0xFF80, 0x7FC0, 0x7F7F, 0x7BFF,
    0x3F800000, 0xBF800000, 0x7F800000, 0xFF800000, 0x7FC00000, 0x7F7FFFFF, 0x80000000, 0x7FFFFFFF, 0xFFFFFFFF,
    0x3F801000, 0x4F000000, 0x7FFFFFFFFFFFFFFF, 0x8000000000000000, 0xFFFFFFFFFFFFFFFF,
)  # fmt: skip
# The special functions are approximate on the device; here they are as exact as numpy's float32.
APPROXIMATE = ("ex2", "tanh", "rcp", "div")


def operand_bits(kind: str, rng: random.Random) -> int:
    """Of a number of this type: an edge, any bits, or, for a float, one of everyday size."""
    bits = 1 if kind == "pred" else bits_of(kind)
    chance = rng.random()
    if chance < 0.3:
        return rng.choice(EDGES) & ((1 << bits) - 1)
    if chance < 0.7 and kind.lstrip("b").startswith("f") and "x2" not in kind:
        return scalars.bits_of_float(rng.gauss(0, 3), kind)
    if chance < 0.5 and bits >= 16:
        return rng.randrange(70)  # a shift, a position
    return rng.getrandbits(bits)


def register(kind: str, number: int) -> str:
    return {1: "%p", 16: "%rs", 32: "%r", 64: "%rd"}[1 if kind == "pred" else max(16, bits_of(kind))] + str(number)


def kernel(opcode: str) -> str:
    """Load the operands of each thread, execute, store the results."""
    operation = TABLE[opcode]
    lines = [f"mad.wide.u32 %rd3, %r1, {WIDEST * len(operation.operands)}, %rd1;"]
    names = []
    for i, kind in enumerate(operation.operands):
        names.append(register(kind, 10 + i))
        bits = 16 if kind == "pred" or bits_of(kind) == 8 else bits_of(kind)
        loaded = f"%rs{40 + i}" if kind == "pred" else names[-1]
        lines.append(f"ld.global.b{bits} {{ {loaded} }}, [ %rd3 + {WIDEST * i} ];")
        lines += [f"and.b16 {loaded}, {loaded}, 1;", f"setp.ne.b16 {names[-1]}, {loaded}, 0;"] if kind == "pred" else []
    results = [register(kind, 30 + i) for i, kind in enumerate(operation.results)]
    if opcode.startswith("lop3"):
        names[-1] = "0xE4"  # an immediate, as in every kernel
    lines.append(f"{opcode} {'|'.join(results)}, {', '.join(names)};")
    lines.append(f"mad.wide.u32 %rd4, %r1, {WIDEST * len(results)}, %rd2;")
    for i, (kind, name) in enumerate(zip(operation.results, results, strict=True)):
        if kind == "pred":
            lines.append(f"selp.b16 %rs{50 + i}, 1, 0, {name};")
            name = f"%rs{50 + i}"
        bits = 16 if kind == "pred" or bits_of(kind) == 8 else bits_of(kind)
        lines.append(f"st.global.b{bits} [ %rd4 + {WIDEST * i} ], {{ {name} }};")
    return "\n".join(lines)


def close(opcode: str, actual: int, expected: int, kind: str) -> bool:
    """Equal bits; two NaN are; an approximate function may be a unit in the last place off."""
    floats = kind.removesuffix("x2") if kind.lstrip("b").startswith("f") else ""
    if not floats:
        return actual == expected
    width = scalars.width(floats)
    for shift in range(0, bits_of(kind), width):
        a, e = (x >> shift & ((1 << width) - 1) for x in (actual, expected))
        both = math.isnan(scalars.float_of(a, floats)) and math.isnan(scalars.float_of(e, floats))
        near = opcode.startswith(APPROXIMATE) and abs(a - e) <= 1
        zeros = opcode.startswith(("min", "max")) and scalars.float_of(a, floats) == scalars.float_of(e, floats) == 0
        if a != e and not both and not near and not zeros:  # of two zeros of other signs, min may take either
            return False
    return True


@pytest.mark.parametrize("opcode", TABLE)
def test_instruction(opcode: str) -> None:
    operation, rng = TABLE[opcode], random.Random(zlib.crc32(opcode.encode()))
    given = [[operand_bits(kind, rng) for kind in operation.operands] for _ in range(THREADS)]
    if opcode.startswith("lop3"):
        given = [[*row[:-1], 0xE4] for row in given]
    if opcode.startswith(("shl", "shr")):  # around the width, the lowest and the highest bit
        width = bits_of(operation.operands[0])
        given[:6] = [[a, width + more] for a in (1, 1 << (width - 1)) for more in (-1, 0, 1)]
    first = np.array(given, np.uint64)
    second = np.zeros((THREADS, len(operation.results)), np.uint64)
    run(kernel(opcode), first, second, threads=THREADS)
    for row, out in zip(given, second.tolist(), strict=True):
        values = [scalars.decode(b, k) if "x2" not in k else b for b, k in zip(row, operation.operands, strict=True)]
        expected = scalars.result(opcode, values, operation.operands)
        for value, actual, kind in zip(
            expected if isinstance(expected, tuple) else (expected,), out, operation.results, strict=True
        ):
            bits = value if "x2" in kind else scalars.encode(value, kind)
            actual &= (1 << (16 if kind == "pred" else bits_of(kind))) - 1
            assert close(opcode, actual, bits, kind), f"{opcode} {[hex(x) for x in row]}: {actual:#x}, not {bits:#x}"


@pytest.mark.parametrize(
    "line",
    [
        "popc.b32 %r3, %r1;",
        "add.cc.s32 %r3, %r1, %r1;",
        "add.s32 %q1, %r1, 1;",
        "@%p1 ret;",
        # by some of the threads
        "bar.sync 1, 64;",
        "bar.warp.sync 15;",
        "shfl.sync.idx.b32 %r4, %r3, 0, 31, 15;",
        "@%p1 shfl.sync.idx.b32 %r4, %r3, 0, 31, -1;",
        "redux.sync.add.u32 %r4, %r3, 7;",
        "vote.sync.any.pred %p2, %p1, 1;",
        # what orders nothing for other programs
        "fence.acq_rel.cta;",
        "fence.proxy.async;",
        "membar.cta;",
        "ld.acquire.cta.global.b32 { %r3 }, [ %rd1 ];",
        "ld.global.nc.b32 { %r3 }, [ %rd1 ];",
        "st.release.cta.global.b32 [ %rd1 ], { %r1 };",
        "red.release.cta.global.add.u32 [ %rd1 ], 1;",
    ],
)
def test_unknown_instructions_raise_with_their_text(line: str) -> None:
    with pytest.raises(Unsupported, match=re.escape(line.removeprefix("@%p1 ").split()[0].rstrip(";"))):
        Translation(parse(text(line)))


def test_a_reduction_of_some_threads_is_refused_where_a_register_says_so() -> None:
    first, second = np.zeros(1, np.uint32), np.zeros(1, np.uint32)
    run("mov.b32 %r5, -1;\nredux.sync.add.u32 %r4, %r1, %r5;", first, second)
    with pytest.raises(Unsupported, match="by the threads"):
        run("mov.b32 %r5, 7;\nredux.sync.add.u32 %r4, %r1, %r5;", first, second)


def test_inner_scopes_have_their_own_registers_and_labels() -> None:
    scope = """
    {
    .reg .b32 tmp, one; .reg .pred ok;
    mov.b32 tmp, %r1;
    mov.b32 one, 1;
    again: add.s32 tmp, tmp, one;
    setp.lt.s32 ok, tmp, 9; @ok bra again;
    add.s32 %r3, %r3, tmp;
    }
"""
    first, second = np.zeros(32, np.uint32), np.zeros(32, np.uint32)
    body = "mov.b32 %r3, 0;\n" + scope * 2
    run(body + "mad.wide.u32 %rd3, %r1, 4, %rd1;\nst.global.b32 [ %rd3 ], { %r3 };", first, second, threads=32)
    # Each thread goes round as often as it has to, whatever the others of its warp do.
    assert first.tolist() == [2 * max(9, t + 1) for t in range(32)]


def test_a_loop_with_an_atomic_is_refused_where_the_threads_of_a_warp_part() -> None:
    """Going round once more, a thread would add again; a store it leaves out."""
    body = """
    mov.b32 %r3, {start};
    mad.wide.u32 %rd3, %r1, 4, %rd1;
    again:
    {effect}
    add.s32 %r3, %r3, 1;
    setp.lt.s32 %p1, %r3, 40;
    @%p1 bra again;
"""
    store, add = "st.global.b32 [ %rd3 ], { %r3 };", "red.relaxed.gpu.global.add.u32 [ %rd3 ], 1;"
    first, second = np.zeros(32, np.uint32), np.zeros(32, np.uint32)
    run(body.format(start="%r1", effect=store), first, second)
    assert (first == 39).all()
    first[:] = 0
    run(body.format(start=0, effect=add), first, second)
    assert (first == 40).all()
    with pytest.raises(Fault, match="the threads of a warp part"):
        run(body.format(start="%r1", effect=add), first, second)


def test_a_narrow_value_fills_a_wide_register() -> None:
    """Loaded or converted: with its sign, if its type has one, or with zeros; and packed, the first part lowest."""
    body = """
    ld.global.s8 { %r10 }, [ %rd1 ];
    ld.global.u8 { %r11 }, [ %rd1 ];
    ld.global.s16 { %r12 }, [ %rd1 ];
    ld.global.u16 { %r13 }, [ %rd1 ];
    cvt.s8.s32 %r14, %r13;
    cvt.u8.s32 %r15, %r12;
    ld.global.b64 { %rd5 }, [ %rd1 ];
    mov.b64 { %r16, %r17 }, %rd5;
    mov.b32 { %rs1, %rs2 }, %r16;
    mov.b32 %r18, { %rs2, %rs1 };
    st.global.v4.b32 [ %rd2 ], { %r10, %r11, %r12, %r13 };
    st.global.v4.b32 [ %rd2 + 16 ], { %r14, %r15, %r16, %r17 };
    st.global.b32 [ %rd2 + 32 ], { %r18 };
"""
    first, second = np.array([0x1234FE80, 0x89ABCDEF], np.uint32), np.zeros(9, np.uint32)
    run(body, first, second)
    assert [hex(x) for x in second.tolist()] == [
        "0xffffff80", "0x80", "0xfffffe80", "0xfe80", "0xffffff80", "0x80", "0x1234fe80", "0x89abcdef", "0xfe801234",
    ]  # fmt: skip
