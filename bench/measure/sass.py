"""Machine code of an NVIDIA GPU as cuobjdump prints it: instructions with the compiler's own control fields, loops.

Since Volta an instruction is 128 bits, and ptxas plans in its upper word what older processors worked out themselves:
bits 41 to 44 how many cycles the warp stalls after it, 46 to 48 the scoreboard that its result releases, 49 to 51 the
scoreboard that is released once it has read its operands (7: none), 52 to 57 the scoreboards that it waits for.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

NO_SCOREBOARD = 7
MATMULS = ("HMMA", "IMMA", "HGMMA", "QGMMA", "UTCHMMA", "UTCQMMA")
CLASSES = {  # what a count of instructions tells apart; the rest is "other"
    "mma": MATMULS,
    "ldmatrix": ("LDSM",),
    "shared": ("LDS", "STS", "STSM", "ATOMS"),
    "global": ("LDG", "STG", "LD", "ST", "LDGSTS", "ATOMG", "ATOM", "REDG", "RED", "LDL", "STL"),  # and spills
    "barrier": ("BAR",),
    "shuffle": ("SHFL", "REDUX", "CREDUX", "VOTE"),
    "conversion": ("F2FP", "F2F", "F2I", "I2F", "I2FP"),
}
STORES = ("STG", "ST", "REDG", "RED", "ATOMG", "ATOM")  # to memory that other programs read
CLASS_OF = {base: name for name, bases in CLASSES.items() for base in bases}
LINE = re.compile(
    r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;?\s+/\* 0x[0-9a-f]{16} \*/\s*\n\s+/\* 0x([0-9a-f]{16}) \*/", re.M
)
LONGEST = 500_000  # instructions of one walk; more are a loop that never ends


@dataclass(frozen=True)
class Instruction:
    """One instruction: its text with the predicate, and the fields of its control word."""

    address: int
    text: str
    stall: int = 1  # cycles before the warp may issue its next one
    result: int = NO_SCOREBOARD  # released when the result is there
    read: int = NO_SCOREBOARD  # released when the operands have been read
    waits: tuple[int, ...] = ()  # scoreboards that have to be free before it is issued

    @cached_property
    def opcode(self) -> str:
        return re.sub(r"^@!?\w+\s+", "", self.text).split()[0]

    @cached_property
    def base(self) -> str:
        """The opcode without its modifiers."""
        return self.opcode.split(".")[0]

    @cached_property
    def operands(self) -> list[str]:
        rest = re.sub(r"^@!?\w+\s+", "", self.text).split(None, 1)
        return [operand.strip() for operand in rest[1].split(",")] if len(rest) == 2 else []

    @property
    def kind(self) -> str:
        """Its class in a count of instructions."""
        return CLASS_OF.get(self.base, "other")

    @cached_property
    def conditional(self) -> bool:
        """Whether a branch or an exit has a predicate, before it or among its operands."""
        return self.text.startswith("@") or any(re.search(r"\bU?P\d", operand) for operand in self.operands)

    @cached_property
    def target(self) -> int | None:
        """The address that a branch leads to."""
        found = re.search(r"\b0x([0-9a-f]+)", self.text) if self.base == "BRA" else None
        return int(found[1], 16) if found else None

    @cached_property
    def element_bytes(self) -> int:
        """What one thread reads or writes in memory."""
        for pattern, size in ((r"\.128\b", 16), (r"\.64\b", 8), (r"\.[US]?16\b", 2), (r"\.[US]8\b", 1)):
            if re.search(pattern, self.opcode):
                return size
        return 4


def decode(text: str) -> list[Instruction]:
    """The instructions of `cuobjdump -sass`.

    Raises:
        ValueError: there is none.
    """
    code = []
    for address, instruction, high in LINE.findall(text):
        word = int(high, 16)
        waits = tuple(board for board in range(6) if word >> 52 >> board & 1)
        fields = word >> 41 & 15, word >> 46 & 7, word >> 49 & 7
        code.append(Instruction(int(address, 16), instruction, *fields, waits))
    if not code:
        raise ValueError("no instruction in what cuobjdump printed")
    return code


def jumps(code: Sequence[Instruction]) -> dict[int, int]:
    """Which instruction each branch leads to."""
    position = {instruction.address: i for i, instruction in enumerate(code)}
    found = {}
    for i, instruction in enumerate(code):
        if instruction.target in position:
            found[i] = position[instruction.target]
    return found


def loops(code: Sequence[Instruction]) -> list[tuple[int, int]]:
    """(first, last) instruction of each jump back, in the order of their ends."""
    return [(to, i) for i, to in jumps(code).items() if to < i]


def matmuls(code: Sequence[Instruction]) -> int:
    """Matrix instructions."""
    return sum(instruction.base in MATMULS for instruction in code)


def main_loop(code: Sequence[Instruction]) -> tuple[int, int] | None:
    """The loop with the most matrix instructions, and of several the one that ends first; None if there is no loop.

    The loop over time ends before the one over batch tiles around it, and before what was moved out of the way, from
    where a jump back leads into it. Were there matrix instructions outside of it, the outer loop's would be more.
    """
    return max(loops(code), key=lambda loop: matmuls(code[loop[0] : loop[1] + 1]), default=None)


def body(code: Sequence[Instruction], span: tuple[int, int]) -> set[int]:
    """The instructions of a loop, wherever they lie: from which its jump back is reached without a new turn."""
    before: list[list[int]] = [[] for _ in code]
    for i, to in jumps(code).items():
        before[to].append(i)
    for i, instruction in enumerate(code[:-1]):
        if instruction.conditional or instruction.base not in ("BRA", "EXIT"):
            before[i + 1].append(i)
    found, todo = {*span}, [span[1]]
    while todo:
        new = [i for i in before[todo.pop()] if i not in found]
        found.update(new)
        todo += new
    return found


def given_up(code: Sequence[Instruction], waits: Sequence[int]) -> set[int]:
    """The branches around what is done only after a wait in vain: a store, behind a poll, that no thread alone does.

    waits: the jumps back of the polls. What single threads do ends at a BSYNC, where the others wait for them.
    """
    leads, found = jumps(code), set()
    for end in waits:
        for i in range(end + 1, len(code)):
            if code[i].base in (*STORES, *MATMULS, "EXIT"):
                break
            if code[i].conditional and leads.get(i, 0) > i:
                to = leads[i]
                if code[to].base != "BSYNC" and any(one.base in STORES for one in code[i + 1 : to]):
                    found.add(i)
                break
    return found


def walk(code: Sequence[Instruction], span: tuple[int, int] | None = None, trips: tuple[int, ...] = ()) -> list[int]:
    """Which instructions a warp issues, in order: in one turn of the loop `span`, or from the start to the end.

    Conditional branches forward are not taken, so that what only some threads or steps do is counted, unless what
    follows leaves the loop or is done only after a wait in vain. Other loops run once, as a poll does that succeeds at
    once.

    trips: how often loops with matrix instructions run, an innermost one first, then the one around it.

    Raises:
        ValueError: the walk leaves the loop for good, or does not end.
    """
    leads = jumps(code)
    inner = {last: (first, last) for first, last in loops(code) if (first, last) != span}
    turns = dict.fromkeys(inner, 1)
    multiplying = [loop for loop in inner.values() if matmuls(code[loop[0] : loop[1] + 1])]
    wanted = dict.fromkeys(inner, 1)
    for first, last in multiplying:
        depth = sum(first <= start and end < last for start, end in multiplying)
        wanted[last] = trips[depth] if depth < len(trips) else 1

    def leaves(i: int, to: int) -> bool:
        """Whether a branch forward ends a loop that only it ends, and which has run often enough."""
        around = [end for start, end in inner.values() if start <= i <= end < to and not code[end].conditional]
        return any(turns[end] >= wanted[end] for end in around)

    inside = body(code, span) if span else set(range(len(code)))
    in_vain = given_up(code, [end for end in inner if inner[end] not in multiplying])
    at, path = (span or (0, 0))[0], []
    while True:
        path.append(at)
        instruction = code[at]
        if span is not None and at == span[1]:
            return path
        if len(path) > LONGEST:
            raise ValueError("a walk through the machine code that does not end")
        if at not in inside:
            raise ValueError("a walk that leaves the loop for good")
        if instruction.base == "EXIT" and not instruction.conditional:
            return path
        to = leads.get(at, at + 1)
        if at not in leads:
            at = to
        elif at in inner:  # backwards
            again = turns[at] < wanted[at]
            turns[at] = turns[at] + 1 if again else 1
            at = to if again or not instruction.conditional else at + 1
        elif not instruction.conditional or leaves(at, to) or at + 1 not in inside or at in in_vain:
            at = to
        else:
            at += 1
