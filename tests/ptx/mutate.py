"""Changes to a kernel's text, one at a time, each of which a proof should notice: what orders accesses is taken out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from tests.ptx.parse import Instruction, Text


@dataclass(frozen=True)
class Mutation:
    """One instruction, and what it becomes. Another text of the same kernel stays as it is."""

    kind: str
    position: int
    original: Instruction
    changed: Instruction

    def __call__(self, text: Text) -> Text:
        instructions = list(text.instructions)
        if self.original not in instructions[self.position : self.position + 1]:
            return text
        instructions[self.position] = self.changed
        return replace(text, instructions=tuple(instructions))


Change = Callable[[Instruction], Instruction | None]


def _nothing(instruction: Instruction) -> Instruction:
    return replace(instruction, opcode="nop", operands=(), guard=None)


def _dropped(*opcodes: str) -> Change:
    return lambda instruction: _nothing(instruction) if instruction.opcode.startswith(opcodes) else None


def _replaced(old: str, new: str, access: str) -> Change:
    def change(instruction: Instruction) -> Instruction | None:
        parts = instruction.parts
        if parts[0] not in access.split() or old not in parts:
            return None
        parts = [new if part == old else part for part in parts]
        return replace(instruction, opcode=".".join(part for part in parts if part))

    return change


CHANGES: dict[str, Change] = {
    "barrier": _dropped("bar.sync", "barrier"),
    "warp barrier": _dropped("bar.warp"),
    "wait for copies": _dropped("cp.async.wait"),
    "release": _replaced("release", "relaxed", "atom red st"),
    "acquire": _replaced("acquire", "relaxed", "atom red ld"),
    "volatile": _replaced("volatile", "", "ld"),
    "relaxed": _replaced("relaxed", "", "ld"),
}


def mutations(text: Text) -> Iterator[Mutation]:
    """Every ordering, and every loop of loads, once."""
    for position, instruction in enumerate(text.instructions):
        for kind, change in CHANGES.items():
            changed = change(instruction)
            if changed is not None:
                yield Mutation(kind, position, instruction, changed)
        if _is_retry(text, position):
            yield Mutation("retry", position, instruction, _nothing(instruction))


def _is_retry(text: Text, position: int) -> bool:
    """Whether this is the branch back of a loop that loads from global memory and computes no matrix product."""
    instruction = text.instructions[position]
    if instruction.opcode not in ("bra", "bra.uni") or instruction.guard is None:
        return False
    start = text.labels[str(instruction.operands[0])]
    body = [i.opcode for i in text.instructions[start:position]]
    loads = any(o.startswith("ld") and "global" in o for o in body) or any(o.startswith("atom") for o in body)
    return start <= position and loads and not any(o.startswith(("mma", "st.global")) for o in body)


def superfluous(text: Text, mutation: Mutation) -> str | None:
    """Why nothing can show that this barrier or wait is missing; None if something should.

    It orders what warps do to shared memory from the barriers before it up to it, and from it up to the next ones.
    """
    if mutation.kind not in ("barrier", "wait for copies"):
        return None
    before, after = _accesses(text, mutation.position, back=True), _accesses(text, mutation.position, back=False)
    if mutation.kind == "wait for copies":
        return None if after else "no access to shared memory follows before the next barrier"
    if not before or not after:
        return f"no access to shared memory {'follows' if before else 'precedes'} it"
    if "write" not in before | after:
        return "shared memory is only read on both sides of it"
    return None


def _accesses(text: Text, position: int, *, back: bool) -> set[str]:
    """What is done to shared memory between here and the next barriers, along every path: "read", "write"."""
    found, seen, todo = set[str](), set[int](), _neighbours(text, position, back=back)
    while todo:
        at = todo.pop()
        if at in seen:
            continue
        seen.add(at)
        opcode = text.instructions[at].opcode
        if opcode.startswith(("bar.sync", "barrier")):
            continue
        if ".shared" in opcode:
            found.add("read" if opcode.startswith(("ld", "ldmatrix")) else "write")
        todo += _neighbours(text, at, back=back)
    return found


def _neighbours(text: Text, position: int, *, back: bool) -> list[int]:
    """The instructions that may be executed right before or after one."""
    if back:
        return [i for i in _jumps_to(text, position) if position in _neighbours(text, i, back=False)]
    instruction = text.instructions[position]
    following = [position + 1] if position + 1 < len(text.instructions) else []
    if instruction.opcode in ("ret", "exit") and instruction.guard is None:
        return []
    if instruction.opcode.startswith("bra"):
        target = text.labels[str(instruction.operands[0])]
        return [target] if instruction.guard is None else [target, *following]
    return following


def _jumps_to(text: Text, position: int) -> list[int]:
    labels = {label for label, at in text.labels.items() if at == position}
    jumps = [i for i, x in enumerate(text.instructions) if x.opcode.startswith("bra") and x.operands[0] in labels]
    return [*jumps, position - 1] if position else jumps
