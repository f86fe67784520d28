"""A rule's backward, split in two: factors that are known from the forward pass, and sums of products with those.

All gradients of a step are linear in those of the new states. So the factors of all steps can be computed at once, and
the walk back through time is left with the sums.
"""

from __future__ import annotations

from dataclasses import dataclass

from fastcells.defined.builder import Builder
from fastcells.defined.graph import Graph
from fastcells.defined.rule import OPERAND, Rule

Terms = dict[str, int]  # for each source the place of what it is multiplied with


@dataclass(frozen=True)
class Sum:
    """`name = sum of source * factor`. A source is a given gradient, or another sum; factor: an output of `factors`.

    late: whether it waits for the gradient of the second product's operand.
    """

    name: str
    terms: tuple[tuple[str, str | None], ...]  # (source, factor), None for a factor of 1
    late: bool = False


@dataclass(frozen=True)
class LinearBackward:
    """`Rule.backward` as factors and sums.

    factors: a graph of the values that `backward` reads. sums: in an order in which they can be computed; those that
    `backward` returns have its names, `d_<input>`, and no terms where the gradient is 0.
    """

    factors: Graph
    sums: tuple[Sum, ...]

    def sources(self, names: set[str]) -> set[str]:
        """What some of the sums are made of."""
        return {source for each in self.sums if each.name in names for source, _ in each.terms}


def linear_backward(rule: Rule) -> LinearBackward:
    """Collapse chains of products; a sum of several terms that several others need is kept as one."""
    nodes, uses = rule.backward.nodes, rule.backward.uses()
    given = {f"d_new_{state}" for state in rule.states} | {f"d_{OPERAND}"}
    values = Builder()
    terms: dict[int, Terms] = {}  # of each node that is linear in what is given
    places: dict[int, int] = {}  # of each other node
    kept: dict[str, Terms] = {}

    for place, node in enumerate(nodes):
        if node.op == "input" and node.name in given:
            terms[place] = {node.name: values.constant(1)}
        elif not any(arg in terms for arg in node.args):
            again = {"input": lambda: values.input(node.name), "constant": lambda: values.constant(node.value)}  # noqa: B023
            places[place] = (
                again[node.op]() if node.op in again else values.op(node.op, *(places[a] for a in node.args))
            )
        else:
            found = _terms(values, node.op, node.args, terms, places)
            if len(found) > 1 and uses[place] > 1:
                kept[node.name] = found
                found = {node.name: values.constant(1)}
            terms[place] = found

    results = {name: terms.get(place, {}) for name, place in rule.backward.outputs}
    late = {f"d_{OPERAND}"}
    names: dict[int, str] = {}
    sums = []
    for name, found in (kept | results).items():
        pairs = [(source, _factor(values, place, names)) for source, place in found.items()]
        if late & set(found):
            late.add(name)
        sums.append(Sum(name, tuple(pairs), name in late))
    return LinearBackward(values.graph([(name, place) for place, name in names.items()]), tuple(sums))


def _factor(values: Builder, place: int, names: dict[int, str]) -> str | None:
    node = values.nodes[place]
    return None if node.op == "constant" and node.value == 1 else names.setdefault(place, f"factor{len(names)}")


def _terms(values: Builder, op: str, args: tuple[int, ...], terms: dict[int, Terms], places: dict[int, int]) -> Terms:
    """One operation on what is linear: a sum, a product with a value, or a choice by a value."""
    if op == "neg":
        return _scaled(values, terms[args[0]], values.constant(-1))
    if op in ("add", "sub"):
        second = terms[args[1]] if op == "add" else _scaled(values, terms[args[1]], values.constant(-1))
        return _added(values, terms[args[0]], second)
    if op == "mul":
        one, other = args if args[0] in terms else args[::-1]
        return _scaled(values, terms[one], places[other])
    assert op == "where", op
    one_, zero, condition = values.constant(1), values.constant(0), places[args[0]]
    found: Terms = {}
    for arg, chosen in ((args[1], (one_, zero)), (args[2], (zero, one_))):
        if arg in terms:
            found = _added(values, found, _scaled(values, terms[arg], values.op("where", condition, *chosen)))
    return found


def _scaled(values: Builder, terms: Terms, factor: int) -> Terms:
    return {source: values.op("mul", place, factor) for source, place in terms.items()}


def _added(values: Builder, a: Terms, b: Terms) -> Terms:
    return a | {source: values.op("add", a[source], place) if source in a else place for source, place in b.items()}
