"""The form that a cell's equations take: a list of elementwise operations, each of earlier ones.

A `Graph` is what the torch loops are made of, and what generators of other languages walk: in the order of `nodes`
each operand is there before it is used. `str(graph)` reads as assignments.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

ARITHMETIC = frozenset({"add", "sub", "mul", "div", "neg", "abs", "minimum", "maximum", "relu", "where"})
TRANSCENDENTAL = frozenset({"sigmoid", "tanh", "exp", "log", "log1p", "softplus", "sqrt"})
# Of truth values: what compares, and what combines those.
LOGICAL = frozenset({"lt", "le", "gt", "ge", "eq", "ne", "and", "or", "not"})
LEAVES = frozenset({"input", "constant"})
OPS = ARITHMETIC | TRANSCENDENTAL | LOGICAL | LEAVES

_INFIX = {
    "add": "+",
    "sub": "-",
    "mul": "*",
    "div": "/",
    "lt": "<",
    "le": "<=",
    "gt": ">",
    "ge": ">=",
    "eq": "==",
    "ne": "!=",
    "and": "&",
    "or": "|",
}
_PREFIX = {"neg": "-", "not": "~"}


@dataclass(frozen=True)
class Node:
    """One operation.

    op: one of OPS; all are elementwise. minimum and maximum are of two operands; `where` has (condition, a, b).
    args: the operands, as places in the graph's nodes. name: of an input, its name; of another node, what the user
    calls its value, or "". value: of a constant.
    """

    op: str
    args: tuple[int, ...] = ()
    name: str = ""
    value: float = 0.0


@dataclass(frozen=True)
class Graph:
    """Operations in an order in which they can be computed, and which of them are results.

    outputs: (name, place of the node); two outputs may be the same node, and an output may be an input.
    Names of nodes are unique. Every node but an input serves an output.
    """

    nodes: tuple[Node, ...]
    outputs: tuple[tuple[str, int], ...]

    @property
    def inputs(self) -> tuple[str, ...]:
        return tuple(node.name for node in self.nodes if node.op == "input")

    @property
    def output_names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.outputs)

    def operations(self) -> list[tuple[int, Node]]:
        """All nodes that compute something, with their places."""
        return [(i, node) for i, node in enumerate(self.nodes) if node.op not in LEAVES]

    def uses(self) -> list[int]:
        """How often each node is an operand or an output."""
        counts = [0] * len(self.nodes)
        for node in self.nodes:
            for arg in node.args:
                counts[arg] += 1
        for _, place in self.outputs:
            counts[place] += 1
        return counts

    def text(self, place: int) -> str:
        """A node as an operand: its name, or its value."""
        node = self.nodes[place]
        return repr(node.value) if node.op == "constant" else node.name

    def __str__(self) -> str:
        lines = [f"{node.name} = {self._expression(node)}" for _, node in self.operations()]
        results = ", ".join(f"{name}={self.text(place)}" for name, place in self.outputs)
        return "\n".join([f"inputs {', '.join(self.inputs)}", *lines, f"return {results}"])

    def _expression(self, node: Node) -> str:
        args = [self.text(arg) for arg in node.args]
        if node.op in _INFIX:
            return f"{args[0]} {_INFIX[node.op]} {args[1]}"
        if node.op in _PREFIX:
            return f"{_PREFIX[node.op]}{args[0]}"
        return f"{node.op}({', '.join(args)})"


def reached(nodes: Iterable[Node], roots: Iterable[int]) -> set[int]:
    """The places of all nodes that the roots are computed from, the roots among them."""
    nodes, found, open_ = list(nodes), set(), list(roots)
    while open_:
        place = open_.pop()
        if place not in found:
            found.add(place)
            open_ += nodes[place].args
    return found
