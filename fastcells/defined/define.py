"""`fastcells.define`: a layer class from a cell's equations."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from fastcells.defined.cell import DefinedCell
from fastcells.defined.definition import Function, derive
from fastcells.defined.kinds import RECURRENT, Initial, Kind, Recurrent
from fastcells.defined.layer import DefinedLayer
from fastcells.defined.own_code import own_code
from fastcells.errors import DefinitionError
from fastcells.spec import SPECS


def define(
    name: str,
    *,
    gates: Sequence[str],
    states: Sequence[str] = ("h",),
    extra: Sequence[str] = (),
    step: Function,
    operand: Mapping[str, Function] | None = None,
    recurrent: Recurrent = "dense",
    initial: Mapping[str, Initial] | None = None,
    doc: str = "",
) -> type[DefinedLayer]:
    """A layer class like `fastcells.GRU`, and its cell class as `.Cell`, from one step of a cell in torch's operators.

        def step(z, n, h):
            z = torch.sigmoid(z)
            return z * h + (1 - z) * torch.tanh(n)

        Minimal = fastcells.define("Minimal", gates=("z", "n"), step=step)
        layer, cell = Minimal(28, 256, num_layers=2), Minimal.Cell(28, 256)

    Args:
        name: of the class; the variable that it is assigned to, so that its layers can be pickled.
        gates: their names, in the order of their rows in the weights.
        states: the names of the states. The first is the output, and what W_hh multiplies.
        extra: the names of further parameters, [H] each.
        step: a function of some of these by their names. A gate's name stands for its pre-activation
            `W_ih x + b_ih + W_hh h + b_hh`; `x_n` and `h_n` for the two halves of a gate n; a state's name for its
            value before the step. It returns the new states, in their order. All of it is elementwise, in torch's
            functions or Python's operators: + - * /, pow by a number, neg, abs, sigmoid, tanh, relu, exp, log, log1p,
            softplus, logsigmoid, sqrt, minimum, maximum, where, clamp, comparisons, numbers.
        operand: for the last gate, what its rows of W_hh multiply in place of h: a function of the other gates and the
            states, as `{"n": lambda r, h: torch.sigmoid(r) * h}`.
        recurrent: "dense"; "diagonal", each unit reads itself alone (weight_hh_l0 is then [G*H]); "heads", the units
            of a head read one another (the layer's `num_heads`; weight_hh_l0 is [num_heads, G*D, D], D = H/num_heads).
        initial: what values begin with, a number or the bounds of a uniform distribution: by a gate's name its bias,
            by an extra parameter's name or "weight_hh" that. Else U(-1/sqrt(H), 1/sqrt(H)).
        doc: what the class says of itself; its first line names the source of the equations.

    Raises:
        DefinitionError (a ValueError): an operator that is none of these, with its line; control flow that depends on
        a tensor; a state that is not returned; a name that is taken twice or unknown; a gate without a use.
    """
    if not isinstance(name, str) or not name.isidentifier():
        raise DefinitionError(f"a cell's name must be a Python name, got {name!r}")
    if name in SPECS:
        raise DefinitionError(f"{name!r} is a name of a built-in cell")
    if recurrent not in RECURRENT:
        raise DefinitionError(f"{name}: recurrent must be one of {', '.join(map(repr, RECURRENT))}, got {recurrent!r}")
    rule = derive(name, gates, states, extra, step, operand)
    unknown = set(initial or {}) - {*rule.gates, *rule.extra, "weight_hh"}
    if unknown:
        raise DefinitionError(f"{name}: initial names {sorted(unknown)}, which are no gates and no parameters")
    kind = Kind(name, rule, recurrent, dict(initial or {}))
    facts = _facts(kind)
    # As if the class had been written where `define` was called: pickle looks for it there.
    home: dict[str, Any] = {"__module__": sys._getframe(1).f_globals.get("__name__", "__main__"), "kind": kind}
    cell: dict[str, Any] = {"__doc__": f"One step of {name}.\n\n{facts}\n{_text(DefinedCell)}", "states": len(states)}
    cell |= {"__qualname__": f"{name}.Cell", "label": f"{name}.Cell"}
    layer: dict[str, Any] = {"__doc__": f"{doc or name}\n\n{facts}\n{_text(DefinedLayer)}", "label": name}
    layer["__qualname__"] = name
    cell["forward"] = own_code(DefinedCell.forward, f"{name}.Cell")
    layer["forward"] = own_code(DefinedLayer.forward, name)
    layer["recurrence"] = classmethod(own_code(DefinedLayer.recurrence.__func__, name))  # type: ignore[attr-defined]
    layer["Cell"] = type("Cell", (DefinedCell,), home | cell)
    return type(name, (DefinedLayer,), home | layer)


def _text(base: type) -> str:
    return inspect.cleandoc(base.__doc__ or "")


def _facts(kind: Kind) -> str:
    rule = kind.rule
    extra = f"; extra parameters {', '.join(rule.extra)}" if rule.extra else ""
    return (
        f"Gates {', '.join(rule.gates)}; states {', '.join(rule.states)}{extra}; {kind.recurrent} recurrent weights.\n"
        f"Made by `fastcells.define`.\n"
    )
