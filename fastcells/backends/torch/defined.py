"""A defined cell over the whole sequence in torch's operators, forward and backward made from its rule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastcells.backends.base import Gradients, Inputs, PreviousStates, Trace
from fastcells.backends.torch.bound import Bound, Views, before, bound, each_step, run
from fastcells.backends.torch.defined_backward import Walk
from fastcells.backends.torch.factors import Factors
from fastcells.backends.torch.loop import Loop, own_output
from fastcells.backends.torch.program import CALLS, Call, Register, compile_rule
from fastcells.defined.evaluate import evaluate
from fastcells.defined.linear import linear_backward
from fastcells.defined.rule import OPERAND
from fastcells.spec import CellSpec, State

# A pass over memory and dozens of instructions an element, where to keep a value that was computed costs but memory.
TRANSCENDENTAL_AGAIN = 4.0


class DefinedLoop(Loop):
    """`Trace.saved`: the gates' buffer where it holds what is saved, what else is saved, and the states after h."""

    def __init__(self, spec: CellSpec) -> None:
        assert spec.rule is not None
        self.spec, self.rule = spec, spec.rule.with_saving(TRANSCENDENTAL_AGAIN)
        self.program = compile_rule(self.rule)
        self.linear = linear_backward(self.rule)
        self.factors = Factors(self.linear, self.rule)
        self.sums = _spans([g not in self.rule.apart for g in self.rule.gates if g not in self.rule.second])

    def forward(self, inputs: Inputs, save: bool) -> Trace:
        rule, program, product = self.rule, self.program, self.spec.recurrent
        x, w_hh, b_hh = inputs.x.x, inputs.weights.w_hh, inputs.weights.b_hh
        steps, state, G = inputs.steps, inputs.state, len(rule.gates)
        T, (B, H) = len(x), state[0].shape
        mask, early = steps.mask(T), G - len(rule.second)
        if b_hh is not None and not rule.apart:
            x, b_hh = x + b_hh, None
        after = [s.new_empty(T, B, H) for s in state]
        gates = x.new_empty(T if save and program.in_gates else 1, B, G * H)
        own = [x.new_empty(T if save else 1, B, H) for _ in range(program.own)]
        tensors = self._registers(inputs, x, gates, after, own)

        def product_of(first: int, last: int, h: Views, apart: bool) -> Bound:
            """Of some gates; with their input projections, or with b_hh where these are to stay apart."""
            whole = (first, last) == (0, G)
            columns = slice(first * H, last * H)
            factor = product.factor(w_hh if whole else product.gates(w_hh, G, first, last))
            bias = None if b_hh is None else b_hh[columns]
            added: Sequence[Any] = [bias] * T
            if not apart:
                x_part = x if whole else x[..., columns]
                added = (x_part if bias is None else x_part + bias).unbind(0)
            return bound(product.add_product, (added, h, [factor] * T), _columns(gates, T, first, last, G))

        calls = [product_of(0, early, tensors["input", rule.states[0]], bool(rule.apart))]
        for a, b in self.sums if rule.apart else []:
            out = _columns(gates, T, a, b, G)
            calls.append(bound(torch.add, (out, x[..., a * H : b * H].unbind(0)), out))
        calls += [_bound(call, tensors) for call in program.early]
        if program.operand is not None:
            calls.append(product_of(early, G, tensors[program.operand], bool(rule.apart.intersection(rule.second))))
        calls += [_bound(call, tensors) for call in program.late]
        if mask is not None:  # a row past its length stands still
            for name in rule.states:
                new = tensors["new", name]
                calls.append(bound(torch.where, (mask.unbind(0), new, tensors["input", name]), new))
        run(calls, steps.order(T))
        saved = (*([gates] if program.in_gates else []), *own, *after[1:])
        ends = tuple(s[steps.order(T)[-1]].clone() for s in after)
        return Trace(after[0], ends, saved if save else (), own_output(after[0], mask, save))

    def _registers(
        self, inputs: Inputs, x: Tensor, gates: Tensor, after: list[Tensor], own: list[Tensor]
    ) -> dict[Register, Views]:
        """The tensors of each step that the program names. x: [T, B, G*H], with b_hh where no gate is in two parts."""
        rule, program = self.rule, self.program
        T, B, H = after[0].shape
        like = after[0]
        tensors: dict[Register, Views] = {}
        for register in program.registers():
            if register[0] == "x":
                tensors[register] = x[..., register[1] * H : (register[1] + 1) * H].unbind(0)
            elif register[0] in ("gate", "gates"):
                tensors[register] = _columns(
                    gates, T, register[1], register[-1] + (register[0] == "gate"), len(rule.gates)
                )
        for state, new, start in zip(rule.states, after, inputs.state, strict=True):
            tensors["new", state] = new.unbind(0)
            tensors["input", state] = before(tensors["new", state], start, inputs.steps.reverse)
        for i, whole in enumerate(own):
            tensors["own", i] = each_step(whole, T)
        for i in range(program.scratch):
            tensors["scratch", i] = [like.new_empty(B, H)] * T
        for i in range(program.truths):
            tensors["truth", i] = [like.new_empty(B, H, dtype=torch.bool)] * T
        tensors |= {register: [value] * T for register, value in self._of_all_steps(inputs).items()}
        return tensors

    def backward(
        self, inputs: Inputs, trace: Trace, previous: PreviousStates, d_hidden: Tensor, d_last: State
    ) -> Gradients:
        values = self._values(self.linear.factors.inputs, inputs, trace, previous)
        operand, again = None, self.rule.operand_again
        if again is not None:
            operand = evaluate(again, self._values(again.inputs, inputs, trace, previous))[OPERAND]
        return Walk(self.spec, self.rule, self.linear, self.factors, values, inputs, d_hidden).back(d_last, operand)

    def _values(
        self, names: tuple[str, ...], inputs: Inputs, trace: Trace, previous: PreviousStates
    ) -> dict[str, Tensor]:
        """What the backward reads, of all steps: [T, B, H], parameters [H]."""
        rule, program = self.rule, self.program
        H, G = trace.hidden.shape[-1], len(rule.gates)
        saved = list(trace.saved)
        gates = saved.pop(0) if program.in_gates else None
        own, after = saved[: program.own], [trace.hidden, *saved[program.own :]]
        found, once = {}, self._of_all_steps(inputs) if program.once else {}
        for name in names:
            if name in rule.saved and program.saved[name] in once:
                found[name] = once[program.saved[name]]
            elif name in rule.saved:
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

    def _of_all_steps(self, inputs: Inputs) -> dict[Register, Tensor]:
        """Parameters, constants, and what is made of these alone."""
        found: dict[Register, Tensor] = {}
        for name, parameter in zip(self.rule.extra, inputs.weights.extra, strict=True):
            found["input", name] = parameter
        for register, value in self.program.constants.items():
            found[register] = inputs.state[0].new_full((), value)
        for call in self.program.once:
            found[call.out] = CALLS[call.op](*(found[a] for a in call.args))
        return found


def _columns(gates: Tensor, T: int, first: int, last: int, G: int) -> Views:
    """Some of the gates [T or 1, B, G*H], of each step."""
    H = gates.shape[-1] // G
    return each_step(gates if last - first == G else gates[..., first * H : last * H], T)


def _bound(call: Call, tensors: dict[Register, Views]) -> Bound:
    return bound(CALLS[call.op], [tensors[a] for a in call.args], tensors[call.out])


def _spans(wanted: list[bool]) -> list[tuple[int, int]]:
    """The runs of true: where each begins and ends."""
    edges = [k for k in range(len(wanted) + 1) if (k > 0 and wanted[k - 1]) != (k < len(wanted) and wanted[k])]
    return list(zip(edges[::2], edges[1::2], strict=True))
