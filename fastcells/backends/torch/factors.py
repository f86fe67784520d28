"""What the gradients of a defined cell are multiplied with on the way back, of all steps at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from fastcells.defined.evaluate import FUNCTIONS, apply, zero_or_one
from fastcells.defined.graph import LEAVES, Graph
from fastcells.defined.linear import LinearBackward, Sum
from fastcells.defined.rule import Rule

CHUNK = 65536  # elements of a value, of which a few fit into a core's cache
INTO = frozenset({"add", "sub", "mul", "div", "neg", "abs", "minimum", "maximum", "sigmoid", "tanh", "exp", "sqrt"})
Factor = tuple[str, int]  # its name, and what it is past a row's length: 0, or 1 of what a state hands on


class Factors:
    """A cell's. `in_gates`: those that stand where the gate's gradient will, which is they times one other gradient."""

    def __init__(self, linear: LinearBackward, rule: Rule) -> None:
        self.graph = linear.factors
        self.place = dict(self.graph.outputs)
        self.carried = {f"d_{state}": f"d_new_{state}" for state in rule.states}
        terms = [(each.name, source, name) for each in linear.sums for source, name in each.terms if name is not None]
        self.wanted = [(name, self._past(of, source)) for of, source, name in terms]
        uses = Counter(name for _, _, name in terms)
        sums = {each.name: each for each in linear.sums}
        each_gate = [_factor_alone(sums[f"d_{rule.h_input(gate)}"]) for gate in rule.gates]
        self.in_gates = {name: k for k, name in enumerate(each_gate) if name is not None and uses[name] == 1}

    def key(self, of: str, source: str, name: str, masked: bool) -> Factor:
        """Of a term of the sum `of`."""
        return name, self._past(of, source) if masked else 0

    def evaluate(self, values: Mapping[str, Tensor], d_gates: Tensor, mask: Tensor | None) -> dict[Factor, Tensor]:
        """[T, B, H] each. values: [T, B, H] each, of a parameter [H]; d_gates: [T, B, G, H], where some are put."""
        T, B, _, H = d_gates.shape
        found: dict[Factor, Tensor] = {}
        written: list[Factor] = []
        for name, past in self.wanted:
            key = name, past if mask is not None else 0
            node = self.graph.nodes[self.place[name]]
            if key in found:
                continue
            if name in self.in_gates:
                found[key] = d_gates[:, :, self.in_gates[name]]
            elif mask is None and node.op in LEAVES:
                value = values[node.name] if node.op == "input" else d_gates.new_full((), node.value)
                found[key] = value.expand(T, B, H)
                continue
            else:
                found[key] = d_gates.new_empty(T, B, H)
            written.append(key)
        for steps in chunks(d_gates) if written else ():
            at = {name: value[steps] if value.dim() == 3 else value for name, value in values.items()}
            out = {key[0]: found[key][steps] for key in written}
            results = evaluate_over(self.graph, at, out)
            for key in written:
                value, to = results[key[0]], found[key][steps]
                if mask is not None:
                    # Not a product with the mask: past a row's length there may be a quotient by zero.
                    value = torch.as_tensor(value, dtype=to.dtype, device=to.device).expand(to.shape)
                    torch.where(mask[steps], value, to.new_full((), key[1]), out=to)
                elif value is not out[key[0]]:
                    to.copy_(torch.as_tensor(value))
        return found

    def _past(self, of: str, source: str) -> int:
        return int(self.carried.get(of) == source)


def _factor_alone(each: Sum) -> str | None:
    return each.terms[0][1] if len(each.terms) == 1 else None


def chunks(like: Tensor) -> Iterator[slice]:
    """So many steps at a time as a CPU's cache holds. like: [T, B, ..., H]."""
    T = len(like)
    count = round(T * like.shape[1] * like.shape[-1] / CHUNK) if like.is_cpu else 1
    each = -(-T // max(1, count)) or 1
    return (slice(t, min(t + each, T)) for t in range(0, T, each))


def evaluate_over(graph: Graph, inputs: Mapping[str, Tensor], out: Mapping[str, Tensor]) -> dict[str, Any]:
    """As `evaluate`, without autograd: values that nobody reads any more are written over.

    out: where outputs of the same shape as it may be put; which were put there `is` tells.
    """
    like = next(iter(inputs.values()))
    values: list[Any] = []
    left = graph.uses()
    place_out = {place: out[name] for name, place in reversed(graph.outputs) if name in out}
    full = next(iter(out.values())).shape
    constants: dict[float, Tensor] = {}
    passing: set[int] = set()  # values in memory of this function's own
    for place, node in enumerate(graph.nodes):
        if node.op == "input":
            values.append(inputs[node.name])
            continue
        if node.op == "constant":
            values.append(node.value)
            continue
        args = [values[arg] for arg in node.args]
        whole = any(isinstance(a, Tensor) and a.shape == full for a in args)
        for arg in node.args:
            left[arg] -= 1
        to = place_out.get(place)
        if to is None and whole:
            over = [a for a in node.args if a in passing and left[a] == 0 and values[a].shape == full]
            to = values[over[0]] if over else None
        truth = None if to is None or not whole else zero_or_one(node.op, args)
        if truth is not None and to is not None:
            values.append(to.copy_(truth))
            continue
        if to is None or not whole or node.op not in INTO or to.dtype != like.dtype:
            values.append(apply(node.op, args, like))
            if isinstance(values[-1], Tensor) and values[-1].dtype == like.dtype:
                passing.add(place)
            continue
        if not isinstance(args[0], Tensor):
            args[0] = constants.setdefault(args[0], like.new_full((), args[0]))
        if node.op in ("minimum", "maximum") and not isinstance(args[1], Tensor):
            args[1] = like.new_full((), args[1])
        values.append(FUNCTIONS[node.op](*args, out=to))
        if place not in place_out:
            passing.add(place)
    return {name: values[place] for name, place in graph.outputs}
