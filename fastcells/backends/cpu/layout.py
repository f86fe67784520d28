"""What the programs of a defined cell compute, in the names and numbers of the places that the kernels offer.

A place's name is its section and its number there: "x 0", "new 1". kernels/cpu/defined.h has the sections in the same
order. Where recurrent weights are diagonal, the whole product is part of the programs: W_hh's gates are then further
parameters.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from fastcells.backends.cpu.assembler import assemble
from fastcells.defined.builder import Builder
from fastcells.defined.graph import Graph, Node
from fastcells.defined.rule import OPERAND, Rule

Values = dict[str, int]  # places of nodes


@dataclass(frozen=True)
class Sizes:
    """The numbers of kernels/cpu/arguments.h, and whether W_hh is diagonal."""

    gates: int
    first_gates: int
    second_gates: int
    states: int
    saved: int
    parameters: int
    diagonal: bool
    apart: bool

    def forward_sections(self, carried: int, bias: bool) -> dict[str, int]:
        gates, states = self.gates, self.states
        given = {"x": gates, "product": gates, "bias": gates * bias, "state": states, "extra": self.parameters}
        return given | {"carried": carried, "new": states, "saved": self.saved, "operand": 1}

    def backward_sections(self) -> dict[str, int]:
        gates, states, extra = self.gates, self.states, self.parameters
        given = {"d_new": states, "state": states, "new": states, "saved": self.saved, "extra": extra, "d_operand": 1}
        return given | {"d_gate": gates, "d_x": gates * self.apart, "d_state": states, "d_extra": extra, "operand": 1}


def sizes_of(rule: Rule, diagonal: bool) -> Sizes:
    G, second = len(rule.gates), len(rule.second)
    first, extra = (0, len(rule.extra) + G) if diagonal else (G - second, len(rule.extra))
    return Sizes(
        G, first, 0 if diagonal else second, len(rule.states), len(rule.saved), extra, diagonal, bool(rule.apart)
    )


class ForwardGraphs:
    """first: up to the operand of the second product, or all of a step. second: the rest, or None.

    carried: how many values the first leaves for the second.
    """

    def __init__(self, rule: Rule, sizes: Sizes, bias: bool, save: bool) -> None:
        self.rule, self.sizes, self.bias = rule, sizes, bias
        b = self.builder = Builder()
        self.known = {name: b.input(f"state {i}") for i, name in enumerate(rule.states)}
        self.known |= {name: b.input(f"extra {i}") for i, name in enumerate(rule.extra)}
        G = len(rule.gates)
        late = G - len(rule.second)
        h = self.known[rule.states[0]]
        for k in range(late):
            self._gate(k, h)
        operand = None if rule.operand is None else b.add(rule.operand, self.known)[OPERAND]
        for k in range(late, G):
            self._gate(k, h if operand is None else operand)
        found = b.add(rule.forward if save else rule.forward_states(), self.known)
        outputs = {f"new {i}": found[f"new_{name}"] for i, name in enumerate(rule.states)}
        if save:
            outputs |= {f"saved {i}": found[name] for i, name in enumerate(rule.saved)}
        self.carried = 0
        self.second: Graph | None = None
        if sizes.second_gates:
            assert operand is not None
            self._split(operand, outputs)
        else:
            self.first = b.graph(outputs.items())

    def _gate(self, k: int, h: int) -> None:
        """The values of a gate whose rows of W_hh multiply h."""
        b, rule, gate = self.builder, self.rule, self.rule.gates[k]
        diagonal = self.sizes.diagonal
        product = b.op("mul", b.input(f"extra {len(rule.extra) + k}"), h) if diagonal else b.input(f"product {k}")
        product = b.op("add", product, b.input(f"bias {k}")) if self.bias else product
        x = b.input(f"x {k}")
        if gate in rule.apart:
            self.known |= {f"x_{gate}": x, f"h_{gate}": product}
        else:
            self.known[gate] = b.op("add", x, product)

    def _split(self, operand: int, outputs: Values) -> None:
        """What depends on the first product alone is computed ahead of the second."""
        nodes, first = self.builder.nodes, self.sizes.first_gates
        early = _above(nodes, {f"product {k}" for k in range(first)})
        late = _above(nodes, {f"product {k}" for k in range(first, self.sizes.gates)})
        rest = Builder()
        carried: Values = {}
        moved: dict[int, int] = {}

        def visit(place: int) -> int:
            if place not in moved:
                node = nodes[place]
                if place in early and place not in late:
                    carried[f"carried {len(carried)}"] = place
                    moved[place] = rest.input(f"carried {len(carried) - 1}")
                elif node.op == "input":
                    moved[place] = rest.input(node.name)
                elif node.op == "constant":
                    moved[place] = rest.constant(node.value)
                else:
                    moved[place] = rest.op(node.op, *[visit(arg) for arg in node.args])
            return moved[place]

        self.second = rest.graph([(name, visit(place)) for name, place in outputs.items()])
        self.carried = len(carried)
        self.first = self.builder.graph([("operand 0", operand), *carried.items()])


class BackwardGraphs:
    """first: up to the gradient of what the second product multiplies, or all of a step. second: the rest, or None."""

    def __init__(self, rule: Rule, sizes: Sizes) -> None:
        self.rule, self.sizes = rule, sizes
        b = self.builder = Builder()
        self.known: Values = {}
        for i, name in enumerate(rule.states):
            self.known |= {name: b.input(f"state {i}"), f"new_{name}": b.input(f"new {i}")}
            self.known[f"d_new_{name}"] = b.input(f"d_new {i}")
        self.known |= {name: b.input(f"saved {i}") for i, name in enumerate(rule.saved)}
        self.known |= {name: b.input(f"extra {i}") for i, name in enumerate(rule.extra)}
        self.known[f"d_{OPERAND}"] = b.input("d_operand 0")
        late = len(rule.gates) - len(rule.second)
        found = b.add(rule.backward, self.known)
        if sizes.diagonal and rule.second:
            self.known[f"d_{OPERAND}"] = self._through(found, range(late, len(rule.gates)))
            found = b.add(rule.backward, self.known)
        made = {} if rule.operand_again is None else b.add(rule.operand_again, self.known)
        gates = [self._gate(found, k) for k in range(len(rule.gates))]
        rest = self._others(found, made, late)
        self.second: Graph | None = None
        if sizes.second_gates:
            self.first = b.graph([output for gate in gates[late:] for output in gate])
            rest["operand 0"] = made[OPERAND]
            self.second = b.graph([*(output for gate in gates[:late] for output in gate), *rest.items()])
        else:
            self.first = b.graph([*(output for gate in gates for output in gate), *rest.items()])

    def _gate(self, found: Values, k: int) -> list[tuple[str, int]]:
        gate = self.rule.gates[k]
        outputs = [(f"d_gate {k}", found[f"d_{self.rule.h_input(gate)}"])]
        if self.sizes.apart:
            outputs.append((f"d_x {k}", found[f"d_{self.rule.x_input(gate)}"]))
        return outputs

    def _others(self, found: Values, made: Values, late: int) -> Values:
        """Gradients of the states and parameters, W_hh among these where it is diagonal."""
        b, rule, zero = self.builder, self.rule, self.builder.constant(0)
        states = {f"d_state {i}": found.get(f"d_{name}", zero) for i, name in enumerate(rule.states)}
        extra = {f"d_extra {i}": found.get(f"d_{name}", zero) for i, name in enumerate(rule.extra)}
        if self.sizes.diagonal:
            states["d_state 0"] = b.op("add", states["d_state 0"], self._through(found, range(late)))
            for k, gate in enumerate(rule.gates):
                h = self.known[rule.states[0]] if k < late else made[OPERAND]
                extra[f"d_extra {len(rule.extra) + k}"] = b.op("mul", found[f"d_{rule.h_input(gate)}"], h)
        return states | extra

    def _through(self, found: Values, gates: Iterable[int]) -> int:
        """The gates' gradients times their diagonal weights."""
        b, total = self.builder, self.builder.constant(0)
        for k in gates:
            weight = b.input(f"extra {len(self.rule.extra) + k}")
            total = b.op("add", total, b.op("mul", weight, found[f"d_{self.rule.h_input(self.rule.gates[k])}"]))
        return total


def _above(nodes: list[Node], names: set[str]) -> set[int]:
    """The places of all that depends on some inputs, these among them."""
    found: set[int] = set()
    for place, node in enumerate(nodes):
        if (node.op == "input" and node.name in names) or any(arg in found for arg in node.args):
            found.add(place)
    return found


def program(graph: Graph, sections: dict[str, int]) -> Tensor:
    """A graph whose inputs and outputs are named as places are."""
    places: dict[str, int] = {}
    count = 0
    for section, size in sections.items():
        places |= {f"{section} {i}": count + i for i in range(size)}
        count += size
    return assemble(graph, places, count)
