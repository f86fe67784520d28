"""A cell's elementwise rule: the graph of one step, and the one of its backward, with what passes between the two."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from fastcells.defined.builder import Builder
from fastcells.defined.graph import Graph, Node, reached
from fastcells.defined.reverse import gradients
from fastcells.defined.saving import TRANSCENDENTAL_AGAIN, to_keep

OPERAND = "operand"
KINKED = frozenset({"relu", "abs", "minimum", "maximum", "where"})
_NUMBERED = re.compile(r"v\d+")  # what a graph calls a value for which nobody has a name


@dataclass(frozen=True)
class Rule:
    """What an implementation of a defined cell computes in each step, beside the product with W_hh.

    Inputs of `forward` have these names: a gate's own, for the sum of its input projection and its recurrent product
    (biases included); of a gate in `apart` `x_<gate>` and `h_<gate>`, the two by themselves; a state's name, for its
    value before the step; an extra parameter's. What the rule does not read is not among them.

    forward: outputs `new_<state>` for each state, then what is saved, by the names in `saved`.
    backward: inputs `d_new_<state>`, `<state>` and `new_<state>`, the states before and after the step, what is
        saved, and extra parameters; outputs `d_<input>` for each input of `forward`, a constant 0 where there is none.

    Where a cell's last gates multiply W_hh with something else than h, `second` names them, `operand` is that
    something's graph (of the other gates, the states and parameters; one output, "operand"), `backward` has an input
    `d_operand` more, which its outputs for the gates in `second` do not depend on. operand_again: the same value of
    what `backward` reads. In any cell `d_<state>` is what flows there beside W_hh.
    """

    gates: tuple[str, ...]
    states: tuple[str, ...]
    extra: tuple[str, ...]
    apart: frozenset[str]
    forward: Graph
    backward: Graph
    saved: tuple[str, ...]
    second: tuple[str, ...] = ()
    operand: Graph | None = None
    operand_again: Graph | None = None

    @property
    def same_gradient(self) -> bool:
        """Whether the gradient of a gate's input projection is that of its recurrent product, for all gates."""
        return not self.apart

    @property
    def kinked(self) -> bool:
        """Whether an operation has a slope that jumps."""
        return any(node.op in KINKED for node in self.forward.nodes)

    def forward_states(self) -> Graph:
        """`forward` without what is saved."""
        return Builder(self.forward.nodes).graph(self.forward.outputs[: len(self.states)])

    def joined(self) -> Graph:
        """`forward` and then `operand`, if there is one, in one graph."""
        if self.operand is None:
            return self.forward
        builder = Builder(self.operand.nodes)
        ends = builder.add(self.forward, {name: builder.input(name) for name in self.forward.inputs})
        return builder.graph([*ends.items(), *self.operand.outputs])

    def with_saving(self, again: float) -> Rule:
        """The same cell with another choice of what is saved. again: as of `to_keep`."""
        graph = self.joined()
        ends = dict(graph.outputs)
        new = tuple(ends[f"new_{state}"] for state in self.states)
        builder, operand = Builder(graph.nodes), ends.get(OPERAND)
        return make_rule(builder, self.gates, self.states, self.extra, self.apart, new, self.second, operand, again)

    def gate_inputs(self, first: int, x: Sequence[Tensor], h: Sequence[Tensor]) -> dict[str, Tensor]:
        """Inputs of `forward` for the gates from `first` on. x, h: their input projections and recurrent products."""
        values: dict[str, Tensor] = {}
        for gate, x_gate, h_gate in zip(self.gates[first : first + len(x)], x, h, strict=True):
            if gate in self.apart:
                values |= {f"x_{gate}": x_gate, f"h_{gate}": h_gate}
            else:
                values[gate] = x_gate + h_gate
        return values

    def x_input(self, gate: str) -> str:
        """The input of `forward` whose gradient is that of a gate's input projection."""
        return f"x_{gate}" if gate in self.apart else gate

    def h_input(self, gate: str) -> str:
        """The input of `forward` whose gradient is that of a gate's recurrent product."""
        return f"h_{gate}" if gate in self.apart else gate


def make_rule(
    builder: Builder,
    gates: tuple[str, ...],
    states: tuple[str, ...],
    extra: tuple[str, ...],
    apart: frozenset[str],
    new: tuple[int, ...],
    second: tuple[str, ...] = (),
    operand: int | None = None,
    again: float = TRANSCENDENTAL_AGAIN,
) -> Rule:
    """From the traced step. builder: holds it. new, operand: the places of the new states, and of W_hh's operand.

    again: as of `to_keep`.
    """
    inputs = [part for gate in gates for part in ([f"x_{gate}", f"h_{gate}"] if gate in apart else [gate])]
    inputs += [*states, *extra]
    results = [(f"new_{state}", place) for state, place in zip(states, new, strict=True)]
    whole = builder.graph([*results, *([] if operand is None else [(OPERAND, operand)])])
    wanted = {node.name: place for place, node in enumerate(whole.nodes) if node.op == "input"}
    ends = dict(whole.outputs)

    joint = Builder(whole.nodes)
    given = [(ends[name], joint.input(f"d_{name}")) for name, _ in whole.outputs]
    found = gradients(joint, given, wanted.values())

    d_all = _depending_on(joint.nodes, [d for _, d in given])
    live = reached(joint.nodes, found.values())
    needed = {ends[OPERAND]} if operand is not None else set()
    needed |= {arg for place in live & d_all for arg in joint.nodes[place].args} | (live & set(found.values()))
    free = {ends[name]: name for name, _ in results}
    free |= {wanted[name]: name for name in (*states, *extra) if name in wanted}
    kept = to_keep(joint.nodes, needed - d_all, free, len(whole.nodes), again)
    saved = tuple(whole.nodes[place].name for place in kept)

    replaced = {**free, **{place: whole.nodes[place].name for place in kept}}
    backward = _rebuilt(joint.nodes, [(f"d_{name}", found[place]) for name, place in wanted.items()], replaced)
    forward = Builder(whole.nodes).graph([*((n, ends[n]) for n, _ in results), *zip(saved, kept, strict=True)])
    if operand is None:
        return Rule(gates, states, extra, apart, forward, backward, saved)
    end = [(OPERAND, ends[OPERAND])]
    operand_again = _rebuilt(joint.nodes, end, replaced)
    return Rule(
        gates, states, extra, apart, forward, backward, saved, second, Builder(whole.nodes).graph(end), operand_again
    )


def _depending_on(nodes: list[Node], roots: Iterable[int]) -> set[int]:
    found = set(roots)
    for place, node in enumerate(nodes):
        if any(arg in found for arg in node.args):
            found.add(place)
    return found


def _rebuilt(nodes: list[Node], outputs: list[tuple[str, int]], replaced: dict[int, str]) -> Graph:
    """The outputs' graph, where some nodes have become inputs of these names."""
    builder = Builder()
    places: dict[int, int] = {}

    def visit(place: int) -> int:
        if place not in places:
            node = nodes[place]
            if place in replaced:
                places[place] = builder.input(replaced[place])
            elif node.op == "input":
                places[place] = builder.input(node.name)
            elif node.op == "constant":
                places[place] = builder.constant(node.value)
            else:
                places[place] = builder.op(node.op, *(visit(arg) for arg in node.args))
                if not _NUMBERED.fullmatch(node.name):
                    builder.named(places[place], node.name)
        return places[place]

    return builder.graph([(name, visit(place)) for name, place in outputs])
