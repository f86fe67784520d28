"""What kind of instruction an opcode is, for counting."""

from __future__ import annotations

import re

CLASSES = (
    ("matrix", r"mma"),
    ("ldmatrix", r"ldmatrix|stmatrix"),
    ("copy", r"cp\.async"),
    ("barrier", r"bar"),
    ("load shared", r"ld\.shared"),
    ("store shared", r"st\.shared"),
    ("load global", r"ld\.\S*global"),
    ("store global", r"st\.\S*global"),
    ("atomic", r"atom|red\.|fence|membar"),
    ("shuffle", r"shfl|redux|vote"),
    ("convert", r"cvt"),
    ("special function", r"ex2|div|rcp|tanh|sqrt"),
    ("float", r"\S+\.(b?f16|f32)(x2)?$"),
    ("branch", r"bra|ret"),
    ("other", r""),
)


def class_of(opcode: str) -> str:
    return next(name for name, pattern in CLASSES if re.match(pattern, opcode))
