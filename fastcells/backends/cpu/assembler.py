"""A graph as a program for kernels/cpu/block.h: instructions are chosen, and values have registers while they live.

The words of a program, and what stands for what, are explained in kernels/cpu/program.h.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fastcells.backends.cpu.arguments import c_module
from fastcells.defined.graph import LEAVES, Graph, Node

OPERATIONS: dict[str, int] = {} if c_module is None else {name: i for i, (name, _) in enumerate(c_module.operations())}


Operand = int | float


@dataclass(frozen=True)
class Instruction:
    """args: nodes of the graph, by their places, or numbers."""

    op: str
    args: tuple[Operand, ...]


def assemble(graph: Graph, places: Mapping[str, int], count: int) -> Tensor:
    """int32 [words]. places: of the graph's inputs and outputs, by their names; the kernel offers `count` of them."""
    chosen = _Selection(graph).chosen
    at: dict[int, tuple[str, int]] = {}  # of each node: ("place", number), ("register", number)
    constants: list[float] = []
    homes: dict[int, list[int]] = {}
    for name, place in graph.outputs:
        homes.setdefault(place, []).append(places[name])
    reads = _last_reads(graph, chosen)
    code: list[tuple[int, tuple[str, int], list[tuple[str, int]]]] = []
    free: list[int] = []
    registers = 0

    def constant(value: float) -> tuple[str, int]:
        found = next((i for i, other in enumerate(constants) if repr(other) == repr(value)), None)
        if found is None:
            found = len(constants)
            constants.append(value)
        return "constant", found

    def operand(node: Operand) -> tuple[str, int]:
        if isinstance(node, float):
            return constant(node)
        if graph.nodes[node].op == "constant":
            return constant(graph.nodes[node].value)
        return at[node]

    for place, node in enumerate(graph.nodes):
        if node.op == "input":
            at[place] = "place", places[node.name]
        if place in chosen:
            instruction = chosen[place]
            args = [operand(arg) for arg in instruction.args]
            for arg in dict.fromkeys(instruction.args):
                if isinstance(arg, int) and reads[arg] == place and at.get(arg, ("", 0))[0] == "register":
                    free.append(at[arg][1])
            if place in homes:
                at[place] = "place", homes[place].pop(0)
            elif free:
                at[place] = "register", free.pop()
            else:
                at[place] = "register", registers
                registers += 1
            code.append((OPERATIONS[instruction.op], at[place], args))
    for place, rest in homes.items():
        for home in rest:
            code.append((OPERATIONS["copy"], ("place", home), [operand(place)]))

    first = {"place": 0, "register": count, "constant": count + registers}
    words = [registers, len(constants), len(code)]
    words += torch.tensor(constants, dtype=torch.float32).view(torch.int32).tolist()
    for op, to, args in code:
        words += [op, *(first[kind] + number for kind, number in (to, *args, *([args[-1]] * (3 - len(args)))))]
    return torch.tensor(words, dtype=torch.int32, device="cpu")


def _last_reads(graph: Graph, chosen: Mapping[int, Instruction]) -> dict[int, int]:
    """For each node the instruction that is the last to read it."""
    return {arg: place for place in sorted(chosen) for arg in chosen[place].args if isinstance(arg, int)}


class _Selection:
    """Instructions that stand for several operations, where nobody else needs what is between."""

    def __init__(self, graph: Graph) -> None:
        self.nodes, self.uses = graph.nodes, graph.uses()
        self.chosen: dict[int, Instruction] = {}
        inside: set[int] = set()
        for place in range(len(self.nodes) - 1, -1, -1):
            if self.nodes[place].op in LEAVES or place in inside:
                continue
            self.taken: list[int] = []
            self.chosen[place] = self._instruction(self.nodes[place])
            inside |= set(self.taken)

    def _instruction(self, node: Node) -> Instruction:
        if node.op in ("sigmoid", "tanh"):
            added = self._inner(node.args[0], "add")
            if added is not None:
                return Instruction(f"{node.op}_sum", self._summands(added))
        if node.op == "add":
            for one, other in (node.args, node.args[::-1]):
                product = self._inner(other, "mul")
                if product is not None:
                    return Instruction("mul_add", (*product, one))
            summands = self._summands(node.args)
            if isinstance(summands[2], int):
                return Instruction("sum", summands)
        if node.op == "sub":
            for arg, form in ((node.args[1], "sub_mul"), (node.args[0], "mul_sub")):
                product = self._inner(arg, "mul")
                if product is not None:
                    return Instruction(
                        form, (node.args[0], *product) if form == "sub_mul" else (*product, node.args[1])
                    )
        if node.op == "mul":
            return self._product(node)
        return Instruction(node.op, node.args)

    def _product(self, node: Node) -> Instruction:
        """Of what is left of 1, as in the derivatives of sigmoid and tanh, with two other factors."""
        for one, other in (node.args, node.args[::-1]):
            rest = self._rest(other)
            if rest is not None:
                square = self._inner(rest, "mul")
                return Instruction("mul_rest", (one, *square)) if square else Instruction("mul_less", (one, 1.0, rest))
            factors = self._peek(other, "mul")
            for a, b in () if factors is None else (factors, factors[::-1]):
                if self._peek(b, "sub") is not None and (rest := self._rest(b)) is not None:
                    self.taken.append(other)
                    return Instruction("mul_less", (one, a, rest))
        return Instruction("mul", node.args)

    def _rest(self, place: int) -> int | None:
        """a of `1 - a`."""
        args = self._peek(place, "sub")
        if args is None or self.nodes[args[0]].op != "constant" or self.nodes[args[0]].value != 1:
            return None
        self.taken.append(place)
        return args[1]

    def _summands(self, args: tuple[int, ...]) -> tuple[Operand, ...]:
        for one, other in (args, args[::-1]):
            inner = self._inner(other, "add")
            if inner is not None:
                return one, *inner
        return *args, 0.0

    def _inner(self, place: int, op: str) -> tuple[int, ...] | None:
        """The operands of a node that becomes part of its only reader's instruction."""
        args = self._peek(place, op)
        if args is not None:
            self.taken.append(place)
        return args

    def _peek(self, place: int, op: str) -> tuple[int, ...] | None:
        node = self.nodes[place]
        return node.args if node.op == op and self.uses[place] == 1 else None
