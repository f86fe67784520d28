"""PTX text as a list of instructions."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import count

Operand = str | tuple[str, ...]  # "%r1", "16", "[%rd2 + 4]", or the registers of "{%r1, %r2}"

# Registers of a scope of its own (inline assembly) are renamed after what the rest of the text calls such registers.
REGISTERS = {"pred": "%p", "16": "%rs", "32": "%r", "64": "%rd"}


class Unsupported(Exception):
    """PTX that the machine does not know; the text says what."""


@dataclass(frozen=True)
class Instruction:
    """One instruction, and where it stands."""

    opcode: str
    operands: tuple[Operand, ...]
    guard: str | None  # "%p1" or "!%p1": the predicate under which it is executed
    line: int  # of the PTX
    source: str  # file and line of the kernel's source, where the PTX says it

    @property
    def parts(self) -> list[str]:
        return self.opcode.split(".")

    def __str__(self) -> str:
        guard = f"@{self.guard} " if self.guard else ""
        operands = (x if isinstance(x, str) else "{" + ", ".join(x) + "}" for x in self.operands)
        return f"{guard}{self.opcode} {', '.join(operands)} (line {self.line}, {self.source})"


@dataclass(frozen=True)
class Text:
    """A kernel: parameters as (name, bytes), threads of a program, and its instructions.

    labels: the number of the instruction that each label stands before.
    """

    name: str
    parameters: tuple[tuple[str, int], ...]
    threads: int
    instructions: tuple[Instruction, ...]
    labels: dict[str, int]


def parse(text: str) -> Text:
    """Parse the one kernel of a PTX text."""
    head = re.search(r"\.entry\s+(\w+)\s*\((.*?)\)(.*?)\{", text, re.S)
    if head is None:
        raise Unsupported("no .entry")
    parameters = re.findall(r"\.param\s+\.[usb](\d+)[^,]*?(\w+)\s*(?:,|$)", head[2].strip())
    threads = re.search(r"\.(?:reqntid|maxntid)\s+(\d+)", head[3])
    if threads is None:
        raise Unsupported("a kernel that does not say how many threads it has")
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    statement, source = "", "?"
    for number, line in _body(text, head.end()):
        location = re.match(r"\s*\.loc\s.*?//\s*(\S+)", line)
        source = location[1] if location else source
        line = line.split("//")[0].strip()
        if not line or line.startswith((".loc", ".reg", ".pragma")):
            continue
        label = re.match(r"([$\w]+):(.*)$", line)
        if label:
            labels[label[1]] = len(instructions)
            line = label[2]
        *complete, statement = f"{statement} {line}".split(";")
        for one in complete:
            found = re.match(r"\s*(?:@(!?[%\w]+)\s+)?(\S+)\s*(.*)$", one, re.S)
            if found:
                instructions.append(Instruction(found[2], _operands(found[3]), found[1], number, source))
    return Text(
        head[1],
        tuple((name, int(bits) // 8) for bits, name in parameters),
        int(threads[1]),
        tuple(instructions),
        labels,
    )


def _body(text: str, start: int) -> list[tuple[int, str]]:
    """The numbered lines between the kernel's braces, with the names of inner scopes made unique."""
    first = text[:start].count("\n") + 1
    lines: list[tuple[int, str]] = []
    scopes: list[dict[str, str]] = []
    unique = count()
    for number, line in enumerate(text[start:].split("\n"), first):
        bare = line.split("//")[0].strip() if ".loc" not in line else line
        bare = bare.strip()
        if bare == "{":
            scopes.append({})
        elif bare == "}":
            if not scopes:
                return lines
            scopes.pop()
        elif bare:
            lines.append((number, _renamed(bare, scopes, unique) if scopes else bare))
    raise Unsupported("a kernel without its last brace")


def _renamed(line: str, scopes: list[dict[str, str]], unique: count[int]) -> str:
    """A line of an inner scope: what it declares gets a name that no other scope has."""
    for kind, names in re.findall(r"\.reg\s+\.(\w+)\s+([^;]+);", line):
        prefix = REGISTERS[re.sub(r"^[a-z]+(?=\d)", "", kind)]
        scopes[-1] |= {name.strip(): f"{prefix}{100_000 + next(unique)}" for name in names.split(",")}
    line = re.sub(r"\.reg\s+\.\w+\s+[^;]+;", "", line)
    label = re.match(r"([A-Za-z_]\w*):", line)
    if label:
        scopes[-1][label[1]] = f"$scope_{next(unique)}"
    for scope in reversed(scopes):
        for name, new in scope.items():
            line = re.sub(rf"(?<![\w%.$]){re.escape(name)}(?!\w)", new, line)
    return line


def _operands(text: str) -> tuple[Operand, ...]:
    """Split at the commas that stand outside of brackets."""
    found = re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,\s][^,]*", text)
    return tuple(tuple(part.strip() for part in x[1:-1].split(",")) if x.startswith("{") else x.strip() for x in found)
