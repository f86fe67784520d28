"""What the instructions compute that touch nothing but registers: one table, from opcode to function.

A function takes and returns arrays of the types that its row names. Float32 arithmetic is rounded to nearest; the
approximate instructions (ex2, rcp, div.full, tanh) give the correctly rounded result, which is within their error.
What the table does not have, the machine does not run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from tests.ptx.values import SIGNED, UNSIGNED, Array, bits_of, dtype_of, float_to_tf32


@dataclass(frozen=True)
class Operation:
    """An instruction on registers: the types of its results and operands, and what it computes."""

    results: tuple[str, ...]
    operands: tuple[str, ...]
    function: Callable[..., Any]


TABLE: dict[str, Operation] = {}

INTEGERS = tuple(f"{sign}{bits}" for sign in "su" for bits in (16, 32, 64))
UNTYPED = ("b16", "b32", "b64")
SMALLEST = np.float32(2.0**-126)  # normal float32
HALVES = ("f16", "bf16", "f16x2", "bf16x2")
COMPARISONS: dict[str, Callable[[Array, Array], Array]] = {
    "eq": np.equal,
    "ne": lambda a, b: (a < b) | (a > b),  # of floats: false if one is NaN
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}
UNORDERED: dict[str, Callable[[Array, Array], Array]] = {  # true if one is NaN
    "equ": lambda a, b: ~((a < b) | (a > b)),
    "neu": np.not_equal,
    "ltu": lambda a, b: ~(a >= b),
    "leu": lambda a, b: ~(a > b),
    "gtu": lambda a, b: ~(a <= b),
    "geu": lambda a, b: ~(a < b),
    "num": lambda a, b: ~(np.isnan(a) | np.isnan(b)),
    "nan": lambda a, b: np.isnan(a) | np.isnan(b),
}


def _add(opcode: str, results: str, operands: str, function: Callable[..., Any]) -> None:
    TABLE[opcode] = Operation(tuple(results.split()), tuple(operands.split()), function)


def fma(a: Array, b: Array, c: Array) -> Array:
    """One rounding, but for a tie in float64 that a float64 sum cannot see: about one case in 2^29."""
    wide = a.astype(np.float64) * b.astype(np.float64) + c.astype(np.float64)
    return wide.astype(np.float32)


def flush(x: Array) -> Array:
    """0 of the same sign for a number too small to be normal."""
    return np.where(np.abs(x) < SMALLEST, np.copysign(np.float32(0), x), x)


def flushed(function: Callable[..., Array], *operands: Array) -> Array:
    """What an instruction with `.ftz` gives."""
    return flush(function(*(flush(x) for x in operands)))


def divide_approximately(a: Array, b: Array) -> Array:
    """div.approx: 0 for a divisor above 2^126, or NaN if an infinity is divided by it."""
    huge = (np.abs(b) > np.float32(2.0**126)) & np.isfinite(b)
    return np.where(huge, np.where(np.isfinite(a), np.copysign(np.float32(0), a / b), np.float32(np.nan)), a / b)


def shift_left(a: Array, count: Array) -> Array:
    bits = a.dtype.itemsize * 8
    return np.where(count < bits, a << np.minimum(count, bits - 1).astype(a.dtype), a.dtype.type(0))


def shift_right(a: Array, count: Array) -> Array:
    """Counts from the width on give 0, or the sign."""
    bits = a.dtype.itemsize * 8
    shifted = a >> np.minimum(count, bits - 1).astype(a.dtype)
    return shifted if a.dtype.kind == "i" else np.where(count < bits, shifted, a.dtype.type(0))


def multiply_high(a: Array, b: Array) -> Array:
    wide = (SIGNED if a.dtype.kind == "i" else UNSIGNED)[64]
    return ((a.astype(wide) * b.astype(wide)) >> wide(32)).astype(a.dtype)


def multiply_wide(a: Array, b: Array) -> Array:
    wide = (SIGNED if a.dtype.kind == "i" else UNSIGNED)[a.dtype.itemsize * 16]
    product: Array = a.astype(wide) * b.astype(wide)
    return product


def _mask(length: Array) -> Array:
    return (np.uint64(1) << np.minimum(length, 32).astype(np.uint64)) - np.uint64(1)


def extract_unsigned(a: Array, position: Array, length: Array) -> Array:
    position, length = position & np.uint32(255), length & np.uint32(255)
    return shift_right(a, position) & _mask(length).astype(np.uint32)


def extract_signed(a: Array, position: Array, length: Array) -> Array:
    """Past the word's end, and past the field's, its sign is repeated."""
    position, length = position & np.uint32(255), length & np.uint32(255)
    unused = np.uint32(64) - np.minimum(length, 32)
    field = shift_left(shift_right(a.astype(np.int64), position), unused)
    return np.where(length == 0, np.int32(0), shift_right(field, unused).astype(np.int32))


def insert(a: Array, b: Array, position: Array, length: Array) -> Array:
    """b, with the lowest bits of a in its place."""
    position, length = position & np.uint32(255), length & np.uint32(255)
    mask = shift_left(_mask(length), position).astype(np.uint32)
    return (b & ~mask) | (shift_left(a, position) & mask)


def permute_bytes(a: Array, b: Array, selectors: Array) -> Array:
    both = a.astype(np.uint64) | (b.astype(np.uint64) << np.uint64(32))
    out: Array = np.zeros(1, np.uint32)
    for i in range(4):
        selector = (selectors >> np.uint32(4 * i)) & np.uint32(15)
        byte = (both >> (np.uint64(8) * (selector & np.uint32(7)).astype(np.uint64))) & np.uint64(255)
        sign = np.where(byte & np.uint64(128), np.uint64(255), np.uint64(0))
        out = out | (np.where(selector & np.uint32(8), sign, byte).astype(np.uint32) << np.uint32(8 * i))
    return out


def look_up(a: Array, b: Array, c: Array, table: Array) -> Array:
    """lop3: bit by bit, the bit of the table that a, b and c number."""
    out: Array = np.zeros(1, np.uint32)
    for i in range(8):
        if int(table[0]) >> i & 1:
            out = out | (a if i & 4 else ~a) & (b if i & 2 else ~b) & (c if i & 1 else ~c)
    return out


def clamped(kind: str) -> Callable[[Array], Array]:
    """A float as an integer: towards 0, and no further than the type goes; 0 for NaN."""
    limits = np.iinfo(dtype_of(kind))

    def convert(x: Array) -> Array:
        inside = np.clip(np.nan_to_num(np.trunc(x.astype(np.float64))), limits.min, limits.max)
        return inside.astype(dtype_of(kind))

    return convert


def _astype(kind: type, a: Array) -> Array:
    return a.astype(kind)


def _registers() -> None:
    for kind in (*INTEGERS, *UNTYPED, "f32", "f64", "pred"):
        _add(f"mov.{kind}", kind, kind, lambda a: a)
    for kind in (*INTEGERS, *UNTYPED, "f32"):
        _add(f"selp.{kind}", kind, f"{kind} {kind} pred", lambda a, b, p: np.where(p, a, b))
    for kind in (*UNTYPED, "pred"):
        _add(f"not.{kind}", kind, kind, np.invert)
        _add(f"and.{kind}", kind, f"{kind} {kind}", np.bitwise_and)
        _add(f"or.{kind}", kind, f"{kind} {kind}", np.bitwise_or)
        _add(f"xor.{kind}", kind, f"{kind} {kind}", np.bitwise_xor)
    _add("prmt.b32", "b32", "b32 b32 b32", permute_bytes)
    _add("lop3.b32", "b32", "b32 b32 b32 b32", look_up)
    _add("bfi.b32", "b32", "b32 b32 u32 u32", insert)
    _add("bfe.u32", "u32", "u32 u32 u32", extract_unsigned)
    _add("bfe.s32", "s32", "s32 u32 u32", extract_signed)


def _integers() -> None:
    for kind in INTEGERS:
        _add(f"add.{kind}", kind, f"{kind} {kind}", np.add)
        _add(f"sub.{kind}", kind, f"{kind} {kind}", np.subtract)
        _add(f"mul.lo.{kind}", kind, f"{kind} {kind}", np.multiply)
        _add(f"mad.lo.{kind}", kind, f"{kind} {kind} {kind}", lambda a, b, c: a * b + c)
        _add(f"min.{kind}", kind, f"{kind} {kind}", np.minimum)
        _add(f"max.{kind}", kind, f"{kind} {kind}", np.maximum)
        _add(f"shr.{kind}", kind, f"{kind} u32", shift_right)
    for kind in UNTYPED:
        _add(f"shl.{kind}", kind, f"{kind} u32", shift_left)
        _add(f"shr.{kind}", kind, f"{kind} u32", shift_right)
    for kind in ("s16", "s32", "s64"):
        _add(f"neg.{kind}", kind, kind, np.negative)
        _add(f"abs.{kind}", kind, kind, np.abs)
    for kind in ("s16", "u16", "s32", "u32"):
        wide = f"{kind[0]}{2 * bits_of(kind)}"
        _add(f"mul.wide.{kind}", wide, f"{kind} {kind}", multiply_wide)
        _add(f"mad.wide.{kind}", wide, f"{kind} {kind} {wide}", lambda a, b, c: multiply_wide(a, b) + c)
    for kind in ("s32", "u32"):
        _add(f"mul.hi.{kind}", kind, f"{kind} {kind}", multiply_high)
    for kind in ("u16x2", "s16x2"):
        for name, function in (("add", np.add), ("min", np.minimum), ("max", np.maximum)):
            _add(f"{name}.{kind}", kind, f"{kind} {kind}", function)


def _floats() -> None:
    sums: dict[str, Callable[[Array, Array], Array]] = {"add": np.add, "sub": np.subtract, "mul": np.multiply}
    for name, function in sums.items():
        for kind in ("f32", "f32x2", *HALVES):
            _add(f"{name}.{kind}", kind, f"{kind} {kind}", function)
            _add(f"{name}.rn.{kind}", kind, f"{kind} {kind}", function)
    for kind in ("f32", "f32x2", *HALVES):
        _add(f"fma.rn.{kind}", kind, f"{kind} {kind} {kind}", fma)
    for kind in ("f32", *HALVES):
        _add(f"min.{kind}", kind, f"{kind} {kind}", np.fmin)  # of a number and a NaN, the number
        _add(f"max.{kind}", kind, f"{kind} {kind}", np.fmax)
        _add(f"min.NaN.{kind}", kind, f"{kind} {kind}", np.minimum)
        _add(f"max.NaN.{kind}", kind, f"{kind} {kind}", np.maximum)
    _add("neg.f32", "f32", "f32", np.negative)
    _add("abs.f32", "f32", "f32", np.abs)
    for kind in HALVES:  # of the bits, so that a NaN stays the one it is
        bits, sign = f"b{bits_of(kind)}", UNSIGNED[bits_of(kind)](0x80008000 if kind.endswith("x2") else 0x8000)
        _add(f"neg.{kind}", bits, bits, partial(np.bitwise_xor, sign))
        _add(f"abs.{kind}", bits, bits, partial(np.bitwise_and, ~sign))
    for kind in ("f16", "bf16"):  # of 16 bits and float32 together, rounded to float32 once
        for name in ("add", "sub"):
            for rounding in ("", ".rn"):
                _add(f"{name}{rounding}.f32.{kind}", "f32", f"{kind} f32", sums[name])
        _add(f"fma.rn.f32.{kind}", "f32", f"{kind} {kind} f32", fma)
    special: dict[str, Callable[..., Array]] = {
        "ex2.approx": np.exp2,
        "rcp.approx": partial(np.divide, np.float32(1)),
        "div.full": np.divide,
        "div.approx": divide_approximately,
    }
    for name, function in special.items():
        operands = "f32 f32" if name.startswith("div") else "f32"
        _add(f"{name}.f32", "f32", operands, function)
        _add(f"{name}.ftz.f32", "f32", operands, partial(flushed, function))
    for name in ("add", "sub", "mul"):
        _add(f"{name}.ftz.f32", "f32", "f32 f32", partial(flushed, sums[name]))
    _add("fma.rn.ftz.f32", "f32", "f32 f32 f32", partial(flushed, fma))
    _add("rcp.rn.f32", "f32", "f32", special["rcp.approx"])
    _add("div.rn.f32", "f32", "f32 f32", np.divide)
    _add("sqrt.rn.f32", "f32", "f32", np.sqrt)
    _add("tanh.approx.f32", "f32", "f32", np.tanh)


def _comparisons() -> None:
    combined: dict[str, Callable[[Array, Array], Array]] = {"and": np.bitwise_and, "or": np.bitwise_or}
    unsigned = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}
    for kind in (*INTEGERS, *UNTYPED, "f32", *HALVES):
        floats = kind.lstrip("b").startswith("f")
        names = COMPARISONS | (UNORDERED if floats else {"ne": np.not_equal})
        names |= {} if floats else {name: COMPARISONS[same] for name, same in unsigned.items()}
        for name, function in names.items():
            if kind.endswith("x2"):  # one predicate for each half
                _add(f"setp.{name}.{kind}", "pred pred", f"{kind} {kind}", _of_halves(function))
                continue
            _add(f"setp.{name}.{kind}", "pred", f"{kind} {kind}", function)
            for word, combine in combined.items():
                both = _then(function, combine)
                _add(f"setp.{name}.{word}.{kind}", "pred", f"{kind} {kind} pred", both)


def _of_halves(function: Callable[[Array, Array], Array]) -> Callable[[Array, Array], tuple[Array, Array]]:
    def compare(a: Array, b: Array) -> tuple[Array, Array]:
        found = function(a, b)
        return found[:, 0], found[:, 1]

    return compare


def _then(
    compare: Callable[[Array, Array], Array], combine: Callable[[Array, Array], Array]
) -> Callable[[Array, Array, Array], Array]:
    return lambda a, b, p: combine(compare(a, b), p)


def _conversions() -> None:
    whole = [f"{sign}{bits}" for sign in "su" for bits in (8, 16, 32, 64)]
    for to in whole:
        for source in whole:  # as C does: the sign of the source, the bits of the result
            _add(f"cvt.{to}.{source}", to, source, partial(_astype, dtype_of(to)))
    for half in ("f16", "bf16"):
        _add(f"cvt.f32.{half}", "f32", half, lambda a: a)
        _add(f"cvt.rn.{half}.f32", half, "f32", lambda a: a)
        # The first operand is the upper half.
        _add(
            f"cvt.rn.{half}x2.f32",
            f"{half}x2",
            "f32 f32",
            lambda high, low: np.stack(np.broadcast_arrays(low, high), -1),
        )
    _add("cvt.rna.tf32.f32", "b32", "f32", float_to_tf32)
    for kind in ("s32", "u32", "s64", "u64"):
        _add(f"cvt.rn.f32.{kind}", "f32", kind, lambda a: a.astype(np.float32))
    for kind in ("s32", "u32"):
        _add(f"cvt.rzi.{kind}.f32", kind, "f32", clamped(kind))


for _part in (_registers, _integers, _floats, _comparisons, _conversions):
    _part()
