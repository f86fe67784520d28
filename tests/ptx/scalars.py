"""What one thread's instruction gives, in Python's own numbers: the oracle of the machine's instructions.

Written from the PTX manual, without numpy and without `operations.py`, which it judges.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

Number = Any  # int, float or bool


def float_of(bits: int, kind: str) -> float:
    if kind == "bf16":
        bits, kind = bits << 16, "f32"
    code, size = {"f32": ("f", 4), "f16": ("e", 2), "f64": ("d", 8)}[kind]
    value: float = struct.unpack(f"<{code}", bits.to_bytes(size, "little"))[0]
    return value


def bits_of_float(value: float, kind: str) -> int:
    """The nearest number of this type, on a tie the even one."""
    if math.isnan(value):
        return {"f64": 0x7FF8 << 48, "f32": 0x7FFFFFFF, "f16": 0x7FFF, "bf16": 0x7FFF}[kind]
    if kind == "bf16":
        low = bits_of_float(_towards_zero(value), "f32") >> 16
        if math.isinf(value) or float_of(low, "bf16") == value:
            return low
        high = low + 1  # the next away from 0
        far = float_of(high, "bf16")
        limit = Fraction(2) ** 128 if math.isinf(far) else Fraction(abs(far))
        below, above = abs(Fraction(value)) - abs(Fraction(float_of(low, "bf16"))), limit - abs(Fraction(value))
        return low if below < above or (below == above and low % 2 == 0) else high
    code = {"f64": "d", "f32": "f", "f16": "e"}[kind]
    try:
        return int.from_bytes(struct.pack(f"<{code}", value), "little")
    except OverflowError:
        infinite = {"f32": 0x7F800000, "f16": 0x7C00}[kind]
        return infinite | (0 if value > 0 else {"f32": 1 << 31, "f16": 1 << 15}[kind])


def _towards_zero(value: float) -> float:
    """As a float32 whose magnitude is not larger."""
    if math.isinf(value):
        return value
    bits = bits_of_float(value, "f32")
    nearest = float_of(bits, "f32")
    return nearest if abs(nearest) <= abs(value) else float_of(bits - 1, "f32")


def width(kind: str) -> int:
    return 1 if kind == "pred" else int("".join(c for c in kind.removeprefix("bf").split("x")[0] if c.isdigit()))


def decode(bits: int, kind: str) -> Number:
    if kind == "pred":
        return bool(bits & 1)
    if kind.lstrip("b").startswith("f"):
        return float_of(bits, kind)
    bits &= (1 << width(kind)) - 1
    return bits - (1 << width(kind)) if kind[0] == "s" and bits >> (width(kind) - 1) else bits


def encode(value: Number, kind: str) -> int:
    if kind == "pred":
        return int(value)
    if isinstance(value, float):
        return bits_of_float(value, kind)
    return int(value) & ((1 << width(kind)) - 1)


def _minimum(a: Number, b: Number) -> Number:
    return b if a != a else a if b != b else min(a, b)


def _maximum(a: Number, b: Number) -> Number:
    return b if a != a else a if b != b else max(a, b)


def _product(a: Number, b: Number) -> Number:
    return a * b


def _fused(a: float, b: float, c: float) -> float:
    if all(map(math.isfinite, (a, b, c))):
        exact = Fraction(a) * Fraction(b) + Fraction(c)
        try:
            return float(exact) if exact else a * b + c
        except OverflowError:
            return math.inf if exact > 0 else -math.inf
    return a * b + c


def _quotient(a: float, b: float) -> float:
    if b == 0 and a == a and a != 0:
        return math.copysign(math.inf, a) * math.copysign(1, b)
    return math.nan if b == 0 else a / b


def _power_of_two(a: float) -> float:
    try:
        return float(2.0**a)
    except OverflowError:
        return math.inf


def _field(a: int, position: int, length: int, signed: bool) -> int:
    """bfe, bit by bit: past the field's end its last bit, past the word's the word's last, or 0."""
    position, length = position & 255, length & 255
    last = min(position + length - 1, 31)
    sign = (a >> last & 1) if signed and length else 0
    out = 0
    for i in range(32):
        bit = a >> (position + i) & 1 if i < length and position + i <= 31 else sign
        out |= bit << i
    return out


def _insert(a: int, b: int, position: int, length: int) -> int:
    position, length = position & 255, length & 255
    for i in range(min(length, max(0, 32 - position))):
        b = b & ~(1 << (position + i)) | (a >> i & 1) << (position + i)
    return b


def _bytes(a: int, b: int, selectors: int) -> int:
    pool = (a | b << 32).to_bytes(8, "little")
    chosen = [pool[selectors >> 4 * i & 7] for i in range(4)]
    signs = [selectors >> 4 * i & 8 for i in range(4)]
    return int.from_bytes(
        bytes((255 if c & 128 else 0) if s else c for c, s in zip(chosen, signs, strict=True)), "little"
    )


def _table(a: int, b: int, c: int, table: int) -> int:
    return sum((table >> ((a >> i & 1) * 4 + (b >> i & 1) * 2 + (c >> i & 1)) & 1) << i for i in range(32))


def _shift_right(a: int, count: int, kind: str) -> int:
    return a >> min(count, 4 * 64) if kind[0] == "s" else (a >> count if count < width(kind) else 0)


ORDERED: dict[str, Callable[[Number, Number], bool]] = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b and a == a and b == b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
}
ORDERED |= {unsigned: ORDERED[name] for unsigned, name in (("lo", "lt"), ("ls", "le"), ("hi", "gt"), ("hs", "ge"))}


def compare(name: str, a: Number, b: Number) -> bool:
    unordered = a != a or b != b
    if name in ("num", "nan"):
        return unordered == (name == "nan")
    return ORDERED[name](a, b) if name in ORDERED else unordered or ORDERED[name.removesuffix("u")](a, b)


ARITHMETIC: dict[str, Callable[..., Number]] = {
    "mov": lambda a: a,
    "not": lambda a: not a if isinstance(a, bool) else ~a,
    "and": lambda a, b: a & b,
    "or": lambda a, b: a | b,
    "xor": lambda a, b: a ^ b,
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": _product,
    "min": _minimum,
    "max": _maximum,
    "neg": lambda a: -a,
    "abs": abs,
    "selp": lambda a, b, p: a if p else b,
    "shl": lambda a, count: a << count if count < 64 else 0,
    "fma": _fused,
    "ex2": _power_of_two,
    "rcp": lambda a: _quotient(1.0, a),
    "div": _quotient,
    "tanh": math.tanh,
    "sqrt": lambda a: math.sqrt(a) if a >= 0 else math.nan,
    "prmt": _bytes,
    "lop3": _table,
    "bfi": _insert,
}


def result(opcode: str, operands: Sequence[Number], kinds: Sequence[str]) -> Number | tuple[Number, ...]:
    """What the instruction gives for these values of these types."""
    name, *parts = opcode.split(".")
    kind = parts[-1]
    if kind.endswith("x2") and name != "cvt":  # each half by itself
        halves = [(x & ((1 << width(kind)) - 1), x >> width(kind)) for x in operands]
        return _of_halves(opcode, halves, kind.removesuffix("x2"))
    if name == "setp":
        found = compare(parts[0], operands[0], operands[1])
        if len(parts) == 3:
            return found and operands[2] if parts[1] == "and" else found or operands[2]
        return found
    if name == "cvt":
        return _converted(parts, operands)
    if name in ("mul", "mad") and parts[0] in ("lo", "wide", "hi"):
        product = operands[0] * operands[1]
        return (product >> 32 if parts[0] == "hi" else product) + (operands[2] if name == "mad" else 0)
    if name in ("min", "max") and "NaN" in parts and any(x != x for x in operands):
        return math.nan
    if name in ("neg", "abs") and kind in ("f16", "bf16"):
        return operands[0] ^ 0x8000 if name == "neg" else operands[0] & 0x7FFF
    if name == "shr":
        return _shift_right(operands[0], operands[1], kind)
    if name == "bfe":
        return _field(operands[0] & 0xFFFFFFFF, operands[1], operands[2], kind == "s32")
    if "ftz" in parts:
        value: Any = result(opcode.replace(".ftz", ""), [_flush(x) for x in operands], kinds)
        return _flush(value)
    if name == "div" and "approx" in parts and 2.0**126 < abs(operands[1]) < math.inf:
        return 0.0 * operands[0] * math.copysign(1.0, operands[1])  # NaN of an infinity
    try:
        return ARITHMETIC[name](*operands)
    except OverflowError:
        return math.inf


def _flush(x: float) -> float:
    """0 for a float32 too small to be normal."""
    rounded = float_of(bits_of_float(x, "f32"), "f32")
    return math.copysign(0.0, x) if abs(rounded) < 2.0**-126 else x


def _of_halves(opcode: str, halves: list[tuple[int, int]], kind: str) -> Number | tuple[Number, ...]:
    single = opcode.removesuffix("x2")
    bits_only = opcode.startswith(("neg", "abs"))
    values = [[bits if bits_only else decode(bits, kind) for bits in half] for half in halves]
    low, high = (result(single, [v[i] for v in values], [kind] * len(values)) for i in (0, 1))
    if opcode.startswith("setp"):
        return low, high
    low_bits, high_bits = (encode(x, f"b{width(kind)}" if bits_only else kind) for x in (low, high))
    return low_bits | high_bits << width(kind)


def _converted(parts: list[str], operands: Sequence[Number]) -> Number:
    to, source = parts[-2:]
    if to.endswith("x2"):
        high, low = (bits_of_float(x, to.removesuffix("x2")) for x in operands)
        return low | high << 16
    (value,) = operands
    if to == "tf32":
        if math.isnan(value):
            return 0x7FFFFFFF
        bits = bits_of_float(value, "f32")
        return (bits + 0x1000) & 0xFFFFE000  # half of the last bit kept, and cut
    if "rzi" in parts:
        low, high = (-(1 << width(to) - 1), (1 << width(to) - 1) - 1) if to[0] == "s" else (0, (1 << width(to)) - 1)
        if math.isnan(value):
            return 0
        return min(max(math.trunc(value), low), high) if math.isfinite(value) else (high if value > 0 else low)
    return float(value) if to == "f32" and source[0] in "su" else value
