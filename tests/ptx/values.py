"""What a PTX register holds, and how an instruction reads it.

A register is an array of unsigned integers of its width, with one element for each thread of the warps that run in
lockstep, or with a single one where all threads have the same; a predicate is an array of bool. An instruction's type
says how these bits are read and written.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

UNSIGNED: dict[int, type] = {8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}
SIGNED: dict[int, type] = {8: np.int8, 16: np.int16, 32: np.int32, 64: np.int64}
FLOAT: dict[int, type] = {32: np.float32, 64: np.float64}
CANONICAL_NAN = 0x7FFF  # what a conversion to 16 bits makes of any NaN; 0x7FFFFFFF in 32 bits


@cache
def bits_of(kind: str) -> int:
    """How many bits a value of this type has: 32 for f32, and for the pair bf16x2."""
    number, _, pair = re.sub(r"^[a-z]+", "", kind).partition("x")
    return int(number) * (int(pair) if pair else 1)


def bfloat16_to_float(bits: Array) -> Array:
    wide: Array = bits.astype(np.uint32) << np.uint32(16)
    return wide.view(np.float32)


def float_to_bfloat16(x: Array) -> Array:
    """To the nearest, on a tie to the even one."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(x), np.uint16(CANONICAL_NAN), rounded.astype(np.uint16))


def half_to_float(bits: Array) -> Array:
    return bits.view(np.float16).astype(np.float32)


def float_to_half(x: Array) -> Array:
    return np.where(np.isnan(x), np.uint16(CANONICAL_NAN), np.asarray(x).astype(np.float16).view(np.uint16))


def float_to_tf32(x: Array) -> Array:
    """cvt.rna: 10 bits of mantissa, to the nearest, on a tie away from 0."""
    rounded = (x.view(np.uint32) + np.uint32(0x1000)) & np.uint32(0xFFFFE000)
    return np.where(np.isnan(x), np.uint32(0x7FFFFFFF), rounded)


def _pair(read: Callable[[Array], Array], unsigned: type) -> Callable[[Array], Array]:
    return lambda register: read(np.ascontiguousarray(register).view(unsigned)).reshape(-1, 2)


def _unpair(write: Callable[[Array], Array], unsigned: type) -> Callable[[Array], Array]:
    return lambda value: np.ascontiguousarray(write(value)).reshape(-1).view(unsigned)


READERS: dict[str, Callable[[Array], Array]] = {
    "f16": half_to_float,
    "bf16": bfloat16_to_float,
    "f16x2": _pair(half_to_float, np.uint16),
    "bf16x2": _pair(bfloat16_to_float, np.uint16),
    "u16x2": _pair(lambda x: x, np.uint16),
    "s16x2": _pair(lambda x: x, np.int16),
    "f32x2": _pair(lambda x: x, np.float32),
}
WRITERS: dict[str, Callable[[Array], Array]] = {
    "f16": float_to_half,
    "bf16": float_to_bfloat16,
    "f16x2": _unpair(float_to_half, np.uint32),
    "bf16x2": _unpair(float_to_bfloat16, np.uint32),
    "u16x2": _unpair(lambda x: x, np.uint32),
    "s16x2": _unpair(lambda x: x, np.uint32),
    "f32x2": _unpair(lambda x: np.asarray(x, np.float32), np.uint64),
}


def dtype_of(kind: str) -> type:
    """The numpy type in which an instruction of a plain type computes."""
    types: dict[int, type] = {"f": FLOAT, "s": SIGNED}.get(kind[0], UNSIGNED)
    return types[bits_of(kind)]


def read(register: Array, kind: str) -> Array:
    """The value of type `kind` in a register of at least as many bits."""
    if kind == "pred":
        return register
    bits = bits_of(kind)
    if register.dtype.itemsize * 8 != bits:
        register = register.astype(UNSIGNED[bits])
    return READERS[kind](register) if kind in READERS else register.view(dtype_of(kind))


def write(value: Array, kind: str) -> Array:
    """The register that holds a value of type `kind`."""
    if kind == "pred":
        return value
    if kind in WRITERS:
        return WRITERS[kind](value)
    plain: Array = np.asarray(value, dtype_of(kind))
    return plain.view(UNSIGNED[bits_of(kind)])


def every_thread(register: Array, threads: int) -> Array:
    """A register with one element for each thread."""
    return register if register.shape[0] == threads else np.broadcast_to(register, (threads, *register.shape[1:]))


def merge(active: Array, new: Array, old: Array) -> Array:
    """The new value in the active threads."""
    return new if len(active) == 1 and active[0] else np.where(active, new, old)
