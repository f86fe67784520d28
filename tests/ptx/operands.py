"""What the operands of an instruction are, and which threads it may be executed by."""

from __future__ import annotations

import re

from tests.ptx.parse import Instruction, Operand, Unsupported

WIDTHS = {"rs": 16, "r": 32, "f": 32, "rd": 64, "fd": 64}  # of registers, by their names
WHOLE_WARP = ("-1", "0xffffffff", "0xFFFFFFFF", "4294967295")  # a mask of threads


def width(register: str) -> int:
    """Bits of a register."""
    found = re.match(r"%([a-z]+)\d+$", register)
    if found is None or found[1] not in WIDTHS:
        raise Unsupported(f"the register {register}")
    return WIDTHS[found[1]]


def many(operand: Operand) -> tuple[str, ...]:
    """The registers of an operand that may be one or several."""
    return operand if isinstance(operand, tuple) else (operand,)


def unguarded(i: Instruction) -> None:
    """Refuse an instruction that only some threads would execute."""
    if i.guard:
        raise Unsupported("under a predicate")


def by_whole_warps(mask: Operand) -> None:
    """Refuse one that only some threads of a warp take part in."""
    if mask not in WHOLE_WARP:
        raise Unsupported(f"by the threads {mask} of a warp")
