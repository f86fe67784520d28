"""The source of a defined cell's `UpdateRule`, in the form in which the rules of the built-in cells are written.

A value that the user has named, that is read twice or that is long is assigned, the others stand where they are read.
"""

from __future__ import annotations

import builtins
import keyword
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from fastcells.defined.builder import Builder
from fastcells.defined.graph import Graph, Node
from fastcells.defined.rule import OPERAND, Rule

LONGEST = 60  # characters of an expression within another one
INFIX = {  # sign, and how strongly it binds
    **{
        op: (sign, 1) for op, sign in (("lt", "<"), ("le", "<="), ("gt", ">"), ("ge", ">="), ("eq", "=="), ("ne", "!="))
    },
    "or": ("|", 2),
    "and": ("&", 3),
    "add": ("+", 4),
    "sub": ("-", 4),
    "mul": ("*", 5),
    "div": ("/", 5),
}
COMPARISON, PREFIX, ATOM = 1, 6, 7
SIGNS = {"neg": "-", "not": "~"}
OF_TRITON = {"where": "tl.where", "abs": "tl.abs"}  # all others are of activations.py
_RESERVED = {
    *(["x", "product", "state", "d_state", "saved", "prev", "new", "d_operand", "d", "zero", "tl", "triton"]),
    *(["forward", "backward", "reset_hidden", "backward_last_gate"]),
    *(["sigmoid", "tanh", "relu", "exp", "log", "log1p", "softplus", "sqrt", "minimum", "maximum"]),
    *keyword.kwlist,
    *dir(builtins),
}
_UNNAMED = re.compile(r"v\d+")
LARGEST, SMALLEST = 2.0**128 - 2.0**104, 2.0**-126  # that are normal in float32: of others Triton makes float64


@dataclass
class Writer:
    """A graph's operations as statements; `functions`: what they call."""

    graph: Graph
    given: Mapping[str, str]  # the inputs, as expressions
    functions: set[str]
    free: frozenset[str]  # names of inputs that are never written
    saved: tuple[str, ...] = ()  # those inputs that stand in `saved`
    lines: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._taken = set(_RESERVED)
        read = {name: self._new(name) for name in self.saved if name in self.graph.inputs}
        self.given = {**self.given, **read}
        if len(self.saved) == 1 and read:
            self.lines.append(f"{read[self.saved[0]]} = saved[0]")
        elif read:
            self.lines.append(f"{', '.join(read.get(name, '_') for name in self.saved)} = saved")
        self._found: dict[int, tuple[str, int]] = {}  # of each node its expression, and how strongly it binds
        self._uses, self._outputs = self.graph.uses(), {place: name for name, place in reversed(self.graph.outputs)}
        for place, node in enumerate(self.graph.nodes):
            self._found[place] = self._written(place, node)

    def result(self, name: str) -> str:
        """An output as an expression; nothing for a gradient that is 0."""
        place = dict(self.graph.outputs).get(name)
        if place is None or self.graph.nodes[place].op == "constant":
            return ""
        return self._found[place][0]

    def _written(self, place: int, node: Node) -> tuple[str, int]:
        if node.op == "constant":
            return literal(node.value)
        if node.op == "input":
            text, binds, name = self.given[node.name], ATOM, node.name
            if re.fullmatch(r"\w+(\[\d+\])?", text):
                return text, binds
            keep, binds = self._uses[place] > 1, INFIX["add"][1]
        else:
            text, binds = self._expression(node)
            name = self._outputs.get(place, "v") if _UNNAMED.fullmatch(node.name) else node.name
            keep = not _UNNAMED.fullmatch(node.name) or self._uses[place] > 1 or place in self._outputs
        if not keep and len(text) <= LONGEST:
            return text, binds
        name = self._new(name)
        self.lines.append(f"{name} = {text}")
        return name, ATOM

    def _expression(self, node: Node) -> tuple[str, int]:
        if node.op in INFIX:
            sign, binds = INFIX[node.op]
            left, right = node.args
            return (
                f"{self._operand(left, binds + (binds == COMPARISON))} {sign} {self._operand(right, binds + 1)}",
                binds,
            )
        if node.op in SIGNS:
            return f"{SIGNS[node.op]}{self._operand(node.args[0], PREFIX)}", PREFIX
        if node.op not in OF_TRITON:
            self.functions.add(node.op)
        args = ", ".join(self._operand(arg, 0) for arg in node.args)
        return f"{OF_TRITON.get(node.op, node.op)}({args})", ATOM

    def _operand(self, place: int, binds: int) -> str:
        text, own = self._found[place]
        return text if own >= binds else f"({text})"

    def _new(self, name: str) -> str:
        """A name in ASCII that is not taken; "r" for what a graph calls "r_1" where a gate r is not in the way."""
        if name.endswith("_1") and name[:-2] in self.free - self._taken:
            name = name[:-2]
        name = re.sub(r"[^A-Za-z0-9_]", lambda match: f"u{ord(match[0]):x}", name)
        number, free = 1, name if name != "v" else "v1"
        while free in self._taken:
            number += 1
            free = f"{name}{number}" if name == "v" else f"{name}_{number}"
        self._taken.add(free)
        return free


def literal(value: float) -> tuple[str, int]:
    """A number as Triton takes it for a float32, and how strongly its text binds."""
    if abs(value) > LARGEST:
        value = float("inf") if value > 0 else -float("inf")
    if abs(value) < SMALLEST:
        value = 0.0
    text = repr(abs(value)) if abs(value) <= LARGEST else f'float("{abs(value)}")'
    return (f"-{text}", PREFIX) if value < 0 else (text, ATOM)


def source(name: str, rule: Rule) -> str:
    """A module with the functions of an `UpdateRule`: forward, backward; with a second product two more."""
    text = _Source(rule)
    parts = [text.forward()]
    if rule.second:
        parts += [text.reset_hidden(), text.backward_last_gate()]
    parts.append(text.backward())
    second = f" {rule.second[0]} multiplies W_hh with what reset_hidden gives." if rule.second else ""
    extra = f", then the parameters {_ascii(rule.extra)}" if rule.extra else ""
    activations = f"\nfrom fastcells.kernels.triton.activations import {', '.join(sorted(text.functions))}\n"
    return (
        f'"""{name}: written by fastcells from what `fastcells.define` was given. A change here has no effect.\n\n'
        f"Gates {_ascii(rule.gates)}: x is W_ih x + b_ih of each, product W_hh h + b_hh.{_ascii([second])}\n"
        f'States {_ascii(rule.states)}{extra}. Saved: {_ascii(rule.saved) or "nothing"}.\n"""\n\n'
        f"import triton\nimport triton.language as tl\n{activations if text.functions else ''}\n\n" + "\n\n".join(parts)
    )


class _Source:
    """Each function of a rule."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.functions: set[str] = set()
        forward = [graph for graph in (rule.forward, rule.operand) if graph is not None]
        often = {n.name for g in forward for n, uses in zip(g.nodes, g.uses(), strict=True) if uses > 1}
        self.free = frozenset({*rule.gates} - often - {*rule.saved} | {*rule.states})

    def forward(self) -> str:
        writer = self._of_forward(self.rule.forward)
        new = _tuple(writer.result(f"new_{state}") for state in self.rule.states)
        saved = _tuple(map(writer.result, self.rule.saved))
        return _function("forward(x, product, state)", writer.lines, f"{new}, {saved}")

    def reset_hidden(self) -> str:
        assert self.rule.operand is not None
        writer = self._of_forward(self.rule.operand)
        return _function("reset_hidden(x, product, state)", writer.lines, writer.result(OPERAND))

    def backward_last_gate(self) -> str:
        backward, wanted = self.rule.backward, f"d_{self.rule.h_input(self.rule.gates[-1])}"
        writer = self._of_backward(Builder(backward.nodes).graph([(n, p) for n, p in backward.outputs if n == wanted]))
        result = writer.result(wanted) or "tl.zeros_like(d_state[0])"
        return _function("backward_last_gate(d_state, saved, prev, new)", writer.lines, result)

    def backward(self) -> str:
        rule, writer = self.rule, self._of_backward(self.rule.backward)

        def gradients(inputs: Iterable[str]) -> list[str]:
            return [writer.result(f"d_{name}") or "zero" for name in inputs]

        inputs = map(rule.x_input, rule.gates), map(rule.h_input, rule.gates), (*rule.states, *rule.extra)
        d_x, d_h, d_prev = (gradients(names) for names in inputs)
        if "zero" in d_x + d_h + d_prev:
            writer.lines.append("zero = tl.zeros_like(d_state[0])")
        if rule.same_gradient:
            writer.lines.append(f"d = {_tuple(d_x)}")
        gates = "d, d" if rule.same_gradient else f"{_tuple(d_x)}, {_tuple(d_h)}"
        operand = ", d_operand" if rule.second else ""
        return _function(f"backward(d_state, saved, prev, new{operand})", writer.lines, f"{gates}, {_tuple(d_prev)}")

    def _of_forward(self, graph: Graph) -> Writer:
        given = {name: f"state[{i}]" for i, name in enumerate((*self.rule.states, *self.rule.extra))}
        for i, gate in enumerate(self.rule.gates):
            x, product = f"x[{i}]", f"product[{i}]"
            given |= {f"x_{gate}": x, f"h_{gate}": product} if gate in self.rule.apart else {gate: f"{x} + {product}"}
        return Writer(graph, given, self.functions, self.free)

    def _of_backward(self, graph: Graph) -> Writer:
        given = {f"d_{OPERAND}": "d_operand"}
        for i, state in enumerate(self.rule.states):
            given |= {f"d_new_{state}": f"d_state[{i}]", f"new_{state}": f"new[{i}]"}
        given |= {name: f"prev[{i}]" for i, name in enumerate((*self.rule.states, *self.rule.extra))}
        return Writer(graph, given, self.functions, self.free, self.rule.saved)


def _ascii(names: Iterable[str]) -> str:
    return ", ".join(names).encode("ascii", "backslashreplace").decode()


def _function(signature: str, lines: list[str], result: str) -> str:
    body = "\n".join(f"    {line}" for line in [*lines, f"return {result}"])
    return f"@triton.jit\ndef {signature}:\n{body}\n"


def _tuple(values: Iterable[str]) -> str:
    values = list(values)
    return f"({values[0]},)" if len(values) == 1 else f"({', '.join(values)})"
