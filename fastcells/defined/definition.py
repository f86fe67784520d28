"""What a user says of a cell, checked: names, and a function for each of the rules."""

from __future__ import annotations

import inspect
import keyword
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from fastcells.defined.builder import Builder
from fastcells.defined.graph import reached
from fastcells.defined.rule import Rule, make_rule
from fastcells.defined.trace import trace
from fastcells.errors import DefinitionError

Function = Callable[..., Tensor | tuple[Tensor, ...]]
_RESERVED = ("x_", "h_", "d_", "new_", "weight_", "bias_")


def derive(
    name: str,
    gates: Sequence[str],
    states: Sequence[str],
    extra: Sequence[str],
    step: Function,
    operand: Mapping[str, Function] | None = None,
) -> Rule:
    """The rule of a cell; see `fastcells.define`.

    Raises:
        DefinitionError: names that are taken or unknown, a gate or a parameter that is not used, a state that is not
        returned; and what `trace` refuses.
    """
    gates, states, extra = (tuple(names) for names in (gates, states, extra))
    _check_names(name, gates, states, extra)
    builder = Builder()
    second: tuple[str, ...] = tuple(operand or {})
    second_place = None
    apart = frozenset(gate for gate in gates if any(f"{side}_{gate}" in _parameters(step) for side in "xh"))
    if operand:
        if second != gates[-1:]:
            raise DefinitionError(
                f"{name}: operand is what the last gate's rows of W_hh multiply, which is {gates[-1]}, "
                f"not {', '.join(second)}"
            )
        known = (*(g for g in gates if g not in second), *states, *extra)
        (second_place,) = _traced(name, builder, operand[second[0]], known, apart - {*second}, ("operand",))
    new = _traced(name, builder, step, (*gates, *states, *extra), apart, states)
    ends = [*new, *([] if second_place is None else [second_place])]
    _check_use(name, builder, gates, states, extra, apart, ends)
    return make_rule(builder, gates, states, extra, apart, new, second, second_place)


def _check_names(name: str, gates: tuple[str, ...], states: tuple[str, ...], extra: tuple[str, ...]) -> None:
    seen: dict[str, str] = {}
    for kind, names in (("gate", gates), ("state", states), ("extra parameter", extra)):
        for each in names:
            if not isinstance(each, str) or not each.isidentifier() or keyword.iskeyword(each):
                raise DefinitionError(f"{name}: a {kind}'s name must be a Python name, got {each!r}")
            if each.startswith(_RESERVED):
                raise DefinitionError(f"{name}: no name may begin with {', '.join(_RESERVED)}: {each!r} does")
            if each in seen:
                raise DefinitionError(f"{name}: {each!r} is twice a name, of a {seen[each]} and of a {kind}")
            seen[each] = kind
    if not gates or not states:
        raise DefinitionError(f"{name}: a cell has at least one gate and one state")


def _parameters(function: Function) -> tuple[str, ...]:
    if not hasattr(function, "__code__"):
        raise DefinitionError(f"a rule must be a Python function, which can be traced, got {function!r}")
    return tuple(inspect.signature(function).parameters)


def _traced(
    name: str,
    builder: Builder,
    function: Function,
    known: tuple[str, ...],
    apart: frozenset[str],
    results: tuple[str, ...],
) -> tuple[int, ...]:
    """Trace a function whose parameters have known names. results: what it has to return."""
    allowed = {*known, *(f"{side}_{gate}" for gate in apart for side in "xh")} - apart
    parameters = _parameters(function)
    for each in parameters:
        if each in apart:
            raise DefinitionError(
                f"{name}: {each} is the sum of x_{each} and h_{each}: take the sum or the parts, not both"
            )
        if each not in allowed:
            raise DefinitionError(
                f"{name}: the function has a parameter {each!r}, which is no gate, state or extra parameter: "
                f"{', '.join(known)}"
            )
    found = trace(function, builder, {each: builder.input(each) for each in parameters})
    if len(found) != len(results):
        left_out = f": {', '.join(results[len(found) :])} not returned" if len(found) < len(results) else ""
        raise DefinitionError(
            f"{name}: the function returns {len(found)} of {len(results)} values, {', '.join(results)}{left_out}"
        )
    return found


def _check_use(
    name: str,
    builder: Builder,
    gates: tuple[str, ...],
    states: tuple[str, ...],
    extra: tuple[str, ...],
    apart: frozenset[str],
    ends: list[int],
) -> None:
    """Raise unless everything has a part in the result, and each result is a value for each unit and row."""
    used = {builder.nodes[place].name for place in reached(builder.nodes, ends) if builder.nodes[place].op == "input"}
    parts = [part for gate in gates for part in ([f"x_{gate}", f"h_{gate}"] if gate in apart else [gate])]
    for kind, names in (("gate", parts), ("state", states[1:]), ("extra parameter", extra)):
        for each in names:
            if each not in used:
                raise DefinitionError(f"{name}: the {kind} {each} is not used: no new state depends on it")
    for state, place in zip(states, ends, strict=False):
        below = {builder.nodes[p].name for p in reached(builder.nodes, [place])}
        if not below & {*parts, *states}:
            raise DefinitionError(
                f"{name}: the new state {state} has no shape [B, H]: it depends on no gate and on no state"
            )
