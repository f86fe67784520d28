"""A defined cell over the whole sequence in torch's operators, forward and backward made from its rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from fastcells.backends.base import Gradients, Inputs, PreviousStates, Trace
from fastcells.backends.torch.defined_backward import Walk
from fastcells.backends.torch.loop import Loop, buffer_per_step, freeze_finished, own_output
from fastcells.backends.torch.program import CALLS, Call, Register, compile_rule
from fastcells.defined.evaluate import evaluate
from fastcells.defined.linear import linear_backward
from fastcells.defined.rule import OPERAND
from fastcells.spec import CellSpec, State

Step = tuple[Callable[..., Any], tuple[int, ...], int, bool]  # function, places of its operands and result, fresh


class DefinedLoop(Loop):
    """`Trace.saved`: the gates' buffer where it holds what is saved, what else is saved, and the states after h."""

    def __init__(self, spec: CellSpec) -> None:
        assert spec.rule is not None
        self.spec, self.rule = spec, spec.rule
        self.program = compile_rule(spec.rule)
        self.linear = linear_backward(spec.rule)
        self.places: dict[Register, int] = {}
        self.early, self.late = (self._steps(calls) for calls in (self.program.early, self.program.late))

    def _place(self, register: Register) -> int:
        return self.places.setdefault(register, len(self.places))

    def _steps(self, calls: list[Call]) -> list[Step]:
        return [(CALLS[c.op], tuple(map(self._place, c.args)), self._place(c.out), c.fresh) for c in calls]

    def forward(self, inputs: Inputs, save: bool) -> Trace:
        rule, program, product = self.rule, self.program, self.spec.recurrent
        x, w_hh, b_hh = inputs.x.x, inputs.weights.w_hh, inputs.weights.b_hh
        order, mask = inputs.steps.order(len(x)), inputs.steps.mask(len(x))
        state, G = inputs.state, len(rule.gates)
        T, (B, H) = len(x), state[0].shape
        like, early = state[0], (G - len(rule.second)) * H
        after = [like.new_empty(T, B, H) for _ in state]
        gates_all, gates_t = buffer_per_step(save and program.in_gates, T, B, G * H, like=like)
        own = [buffer_per_step(save, T, B, H, like=like) for _ in range(program.own)]
        if b_hh is not None and not rule.apart:
            x, b_hh = x + b_hh, None
        values: list[Any] = [None] * len(self.places)
        each_step: list[tuple[int, tuple[Tensor, ...]]] = []
        for register, place in self.places.items():
            kind, *at = register
            if kind in ("gate", "gates"):
                views = gates_all[..., at[0] * H : (at[0] + 1 if kind == "gate" else at[1]) * H].unbind(0)
                each_step.append((place, views if len(views) == T else views * T))
            elif kind == "x":
                each_step.append((place, x[..., at[0] * H : (at[0] + 1) * H].unbind(0)))
            elif kind == "new":
                each_step.append((place, after[rule.states.index(at[0])].unbind(0)))
            elif kind == "own":
                each_step.append((place, own[at[0]][1]))
            elif kind == "scratch":
                values[place] = like.new_empty(B, H)
            elif kind == "constant":
                values[place] = like.new_full((), program.constants[register])
            elif kind == "input" and at[0] in rule.extra:
                values[place] = inputs.weights.extra[rule.extra.index(at[0])]
        reads = [(i, self.places[r]) for i, s in enumerate(rule.states) if (r := ("input", s)) in self.places]
        after_t, x_t = [s.unbind(0) for s in after], x.unbind(0)
        sums = [(k * H, end * H) for k, end in _spans([gate not in rule.apart for gate in rule.gates])]
        w_early = w_hh if early == G * H else product.gates(w_hh, G, 0, G - len(rule.second))
        w_late = None if early == G * H else product.gates(w_hh, G, G - len(rule.second), G)
        for t in order:
            gates = gates_t[t]
            for place, views in each_step:
                values[place] = views[t]
            for i, place in reads:
                values[place] = state[i]
            first = gates if w_late is None else gates[:, :early]
            if rule.apart:
                product.add_product(b_hh, state[0], w_early, first)
                for start, end in sums:
                    gates[:, start:end].add_(x_t[t][:, start:end])
            else:
                product.add_product(x_t[t] if w_late is None else x_t[t][:, :early], state[0], w_early, first)
            _run(self.early, values)
            if w_late is not None:
                operand = values[self._place(program.operand)]  # type: ignore[arg-type]
                product.add_product(x_t[t][:, early:], operand, w_late, gates[:, early:])
            _run(self.late, values)
            new = tuple([a[t] for a in after_t])
            for s, old in zip(new, state, strict=True):
                freeze_finished(mask, t, s, old)
            state = new
        saved = ([gates_all] if program.in_gates else []) + [buffer for buffer, _ in own] + after[1:]
        last = tuple(s.clone() for s in state)
        return Trace(after[0], last, tuple(saved) if save else (), own_output(after[0], mask, save))

    def backward(
        self, inputs: Inputs, trace: Trace, previous: PreviousStates, d_hidden: Tensor, d_last: State
    ) -> Gradients:
        values = self._values(self.linear.factors.inputs, inputs, trace, previous)
        operand, again = None, self.rule.operand_again
        if again is not None:
            operand = evaluate(again, self._values(again.inputs, inputs, trace, previous))[OPERAND]
        return Walk(self.spec, self.linear, values, inputs, d_hidden).back(d_last, operand)

    def _values(
        self, names: tuple[str, ...], inputs: Inputs, trace: Trace, previous: PreviousStates
    ) -> dict[str, Tensor]:
        """What the backward reads, of all steps: [T, B, H], parameters [H]."""
        rule, program = self.rule, self.program
        H, G = trace.hidden.shape[-1], len(rule.gates)
        saved = list(trace.saved)
        gates = saved.pop(0) if program.in_gates else None
        own, after = saved[: program.own], [trace.hidden, *saved[program.own :]]
        found = {}
        for name in names:
            if name in rule.saved:
                kind, at = program.saved[name]
                whole = own[at] if kind == "own" else inputs.x.x if kind == "x" else gates
                assert whole is not None
                found[name] = whole if kind == "own" else whole.unflatten(-1, (G, H))[..., at, :]
            elif name in rule.extra:
                found[name] = inputs.weights.extra[rule.extra.index(name)]
            elif name in rule.states:
                i = rule.states.index(name)
                before = previous if i == 0 else PreviousStates(after[i], inputs.state[i], inputs.steps)
                found[name] = before.cat
            else:
                found[name] = after[rule.states.index(name.removeprefix("new_"))]
        return found


def _run(steps: list[Step], values: list[Any]) -> None:
    for function, args, out, fresh in steps:
        operands = [values[arg] for arg in args]
        if fresh:
            values[out] = function(*operands)
        else:
            function(*operands, out=values[out])


def _spans(wanted: list[bool]) -> list[tuple[int, int]]:
    """The runs of true: where each begins and ends."""
    edges = [k for k in range(len(wanted) + 1) if (k > 0 and wanted[k - 1]) != (k < len(wanted) and wanted[k])]
    return list(zip(edges[::2], edges[1::2], strict=True))
