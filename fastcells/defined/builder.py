"""Graphs are built here, operation by operation, and simplified as they grow.

What is simplified gives the same value to the bit, but for the sign of a zero: constants are folded, the same operation
of the same operands is there once, `x * 1`, `x + 0` and the like are x. Nothing is assumed of x: `x * 0` stays, since
x may be infinite.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping

import torch

from fastcells.defined.evaluate import apply
from fastcells.defined.graph import LOGICAL, TRANSCENDENTAL, Graph, Node, reached

_COMMUTATIVE = frozenset({"add", "mul", "minimum", "maximum", "eq", "ne", "and", "or"})


class Builder:
    """A growing list of nodes; every method returns the place of a node."""

    def __init__(self, nodes: Iterable[Node] = ()) -> None:
        self.nodes: list[Node] = list(nodes)
        self._places = {_key(node): place for place, node in enumerate(self.nodes)}

    def input(self, name: str) -> int:
        return self._place(Node("input", name=name))

    def constant(self, value: float) -> int:
        return self._place(Node("constant", value=float(value)))

    def op(self, op: str, *args: int) -> int:
        """One operation, simplified."""
        values = [self._value(arg) for arg in args]
        if args and op not in LOGICAL and all(v is not None for v in values):
            like = torch.zeros((), dtype=torch.float64)
            tensors = [like.new_tensor(v) for v in values]
            return self.constant(float(apply(op, tensors, like)))
        same = self._simplified(op, args, values)
        return self._place(Node(op, args)) if same is None else same

    def add(self, graph: Graph, known: Mapping[str, int]) -> dict[str, int]:
        """A whole graph of the nodes that its inputs are known to be. Returns its outputs' places by their names."""
        places: list[int] = []
        for node in graph.nodes:
            if node.op in ("input", "constant"):
                places.append(known[node.name] if node.op == "input" else self.constant(node.value))
            else:
                places.append(self.op(node.op, *(places[arg] for arg in node.args)))
        return {name: places[place] for name, place in graph.outputs}

    def is_logical(self, place: int) -> bool:
        return self.nodes[place].op in LOGICAL

    def named(self, place: int, name: str) -> None:
        """Give a value the user's name for it, the first one if there are several."""
        node = self.nodes[place]
        if not node.name and node.op != "constant":
            self.nodes[place] = Node(node.op, node.args, name, node.value)

    def graph(self, outputs: Iterable[tuple[str, int]], keep_inputs: Iterable[str] = ()) -> Graph:
        """What the outputs need, in the order in which it was built; names are made unique."""
        outputs, keep = tuple(outputs), set(keep_inputs)
        needed = reached(self.nodes, (place for _, place in outputs))
        needed |= {i for i, node in enumerate(self.nodes) if node.op == "input" and node.name in keep}
        moved = {old: new for new, old in enumerate(sorted(needed))}
        taken = {node.name for node in self.nodes if node.op == "input"}
        nodes = []
        for old in sorted(needed):
            node = self.nodes[old]
            name = node.name
            if node.op not in ("input", "constant"):
                name = _unique(name or self._descriptive(node), taken)
                taken.add(name)
            nodes.append(Node(node.op, tuple(moved[arg] for arg in node.args), name, node.value))
        return Graph(tuple(nodes), tuple((name, moved[place]) for name, place in outputs))

    def _descriptive(self, node: Node) -> str:
        """A name for what the user has not named: "tanh_g" for a function of an input, or nothing."""
        inputs = [self.nodes[arg].name for arg in node.args if self.nodes[arg].op == "input"]
        return f"{node.op}_{inputs[0]}" if node.op in TRANSCENDENTAL and inputs else ""

    def _place(self, node: Node) -> int:
        key = _key(node)
        if key not in self._places:
            self._places[key] = len(self.nodes)
            self.nodes.append(node)
        return self._places[key]

    def _value(self, place: int) -> float | None:
        node = self.nodes[place]
        return node.value if node.op == "constant" else None

    def _simplified(self, op: str, args: tuple[int, ...], values: list[float | None]) -> int | None:
        """A node with the value of `op(*args)` that needs fewer operations, or None."""
        if op == "add":
            return self._sum(args, values)
        if op == "sub":
            if values[1] == 0:
                return args[0]
            if values[0] == 0:
                return self.op("neg", args[1])
            if self.nodes[args[1]].op == "neg":
                return self.op("add", args[0], self.nodes[args[1]].args[0])
        if op == "mul":
            for one, other in ((0, 1), (1, 0)):
                if values[one] == 1:
                    return args[other]
                if values[one] == -1:
                    return self.op("neg", args[other])
        if op == "div" and values[1] in (1, -1):
            return args[0] if values[1] == 1 else self.op("neg", args[0])
        if op in ("neg", "not") and self.nodes[args[0]].op == op:
            return self.nodes[args[0]].args[0]
        if op in ("minimum", "maximum", "and", "or") and args[0] == args[1]:
            return args[0]
        return args[1] if op == "where" and args[1] == args[2] else None

    def _sum(self, args: tuple[int, ...], values: list[float | None]) -> int | None:
        for one, other in ((0, 1), (1, 0)):
            if values[one] == 0:
                return args[other]
            if self.nodes[args[one]].op == "neg":
                return self.op("sub", args[other], self.nodes[args[one]].args[0])
        return None


def _key(node: Node) -> tuple[object, ...]:
    """What two nodes of one value have in common."""
    args = tuple(sorted(node.args)) if node.op in _COMMUTATIVE else node.args
    return node.op, args, node.name if node.op == "input" else "", repr(node.value)  # repr: -0.0 is not 0.0


def _unique(name: str, taken: set[str]) -> str:
    """The name, or with a number where it is taken: v1, v2 for those without a name."""
    if name and name not in taken:
        return name
    stem = f"{name}_" if name else "v"
    return next(f"{stem}{number}" for number in itertools.count(1) if f"{stem}{number}" not in taken)
