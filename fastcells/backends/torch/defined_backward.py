"""The walk back through time of a defined cell, whose factors are those of all steps at once."""

from __future__ import annotations

import torch
from torch import Tensor

from fastcells.backends.base import Gradients, Inputs
from fastcells.defined.evaluate import evaluate
from fastcells.defined.linear import LinearBackward, Sum
from fastcells.defined.rule import OPERAND
from fastcells.spec import CellSpec, State

D_OPERAND = f"d_{OPERAND}"


Terms = list[tuple[str, tuple[Tensor, ...] | None]]  # (source, its factor at each step), None for 1


class Walk:
    """T time, B batch, G gates, H hidden. Past a row's length its state's gradient stands still and no other arises."""

    def __init__(
        self, spec: CellSpec, linear: LinearBackward, values: dict[str, Tensor], inputs: Inputs, d_hidden: Tensor
    ) -> None:
        assert spec.rule is not None
        self.spec, self.rule, self.inputs, self.d_hidden = spec, spec.rule, inputs, d_hidden
        self.sums = {each.name: each for each in linear.sums}
        self.T, self.B, self.H = d_hidden.shape
        self.mask = inputs.steps.mask(self.T)
        found = evaluate(linear.factors, values) if linear.factors.outputs else {}
        self.factors = {name: self._masked(value) for name, value in found.items()}
        rule = self.rule
        self.after = [f"d_x_{gate}" for gate in rule.gates if gate in rule.apart] + [f"d_{p}" for p in rule.extra]
        self.stored = {source: d_hidden.new_empty(d_hidden.shape) for source in linear.sources(set(self.after))}
        self.d_gates = d_hidden.new_empty(self.T, self.B, len(rule.gates), self.H)
        self.stacks: dict[bool, list[tuple[str, tuple[Tensor, ...], tuple[Tensor, ...]]]] = {False: [], True: []}
        self.own: dict[bool, list[tuple[str, Terms, tuple[Tensor, ...] | None]]] = {False: [], True: []}
        self._plan()

    def back(self, d_last: State, operand: Tensor | None = None) -> Gradients:
        """All gradients. operand: [T, B, H] what the last gates' rows of W_hh were multiplied with, if not h."""
        product, w_hh, G = self.spec.recurrent, self.inputs.weights.w_hh, len(self.rule.gates)
        early, order, states = G - len(self.rule.second), self.inputs.steps.order(self.T), self.rule.states
        w_early, w_late = w_hh, None
        if early < G:
            w_early, w_late = product.gates(w_hh, G, 0, early), product.gates(w_hh, G, early, G)
        d_gates_t, d_hidden_t = self.d_gates.unbind(0), self.d_hidden.unbind(0)
        stored = {name: buffer.unbind(0) for name, buffer in self.stored.items()}
        d_state = list(d_last)
        for i in range(self.T - 1, -1, -1):
            t = order[i]
            at_t = {name: buffer[t] for name, buffer in stored.items()}
            values = {f"d_new_{states[0]}": torch.add(d_state[0], d_hidden_t[t], out=at_t.get(f"d_new_{states[0]}"))}
            for name, d in zip(states[1:], d_state[1:], strict=True):
                values[f"d_new_{name}"] = _put(d, at_t.get(f"d_new_{name}"))
            before = list(values.values())
            self._sums(False, t, values, at_t)
            if w_late is not None:
                d_operand = product.add_adjoint(None, d_gates_t[t][:, early:], w_late)
                values[D_OPERAND] = _put(d_operand, at_t.get(D_OPERAND))
                self._sums(True, t, values, at_t)
            d_h = product.add_adjoint(values.get(f"d_{states[0]}"), d_gates_t[t][:, :early], w_early)
            d_state = [d_h, *(values.get(f"d_{name}", zero) for name, zero in zip(states[1:], before[1:], strict=True))]
            if self.mask is not None:
                d_state = [torch.where(self.mask[t], d, b) for d, b in zip(d_state, before, strict=True)]
        return self._gradients(tuple(d_state), operand)

    def _masked(self, value: Tensor | float) -> Tensor:
        whole = torch.as_tensor(value, dtype=self.d_hidden.dtype, device=self.d_hidden.device)
        # Not a product with the mask: past a row's length there may be a quotient by zero.
        whole = whole if self.mask is None else torch.where(self.mask, whole, 0)
        return whole.expand(self.T, self.B, self.H)

    def _plan(self) -> None:
        """The sums of each step, those of gates side by side with one source as one product."""
        gates = {f"d_{self.rule.h_input(gate)}": k for k, gate in enumerate(self.rule.gates)}
        done = set(self.after)
        for name, each in self.sums.items():
            if name in done or (name not in gates and not each.terms):
                continue
            if name not in gates:
                self.own[each.late].append((name, self._terms(each, ones=False), None))
                continue
            first = last = gates[name]
            while self._alike(each, last + 1):
                last += 1
            done |= {f"d_{self.rule.h_input(gate)}" for gate in self.rule.gates[first : last + 1]}
            if last > first:
                factors = [self.factors[self._gate(k).terms[0][1] or ""] for k in range(first, last + 1)]
                out = self.d_gates[:, :, first : last + 1].unbind(0)
                self.stacks[each.late].append((each.terms[0][0], torch.stack(factors, 2).unbind(0), out))
            else:
                self.own[each.late].append((name, self._terms(each, ones=True), self.d_gates[:, :, first].unbind(0)))

    def _gate(self, k: int) -> Sum:
        return self.sums[f"d_{self.rule.h_input(self.rule.gates[k])}"]

    def _alike(self, each: Sum, k: int) -> bool:
        """Whether the gate k has one term, with a factor, of the same source."""
        if k == len(self.rule.gates) or len(each.terms) != 1 or each.terms[0][1] is None:
            return False
        other = self._gate(k)
        one = len(other.terms) == 1 and other.terms[0][1] is not None
        return one and other.terms[0][0] == each.terms[0][0] and other.late == each.late

    def _terms(self, each: Sum, ones: bool) -> Terms:
        """ones: whether a factor of 1 has to be 0 past a row's length."""
        terms: Terms = []
        for source, factor in sorted(each.terms, key=lambda term: term[1] is not None):
            whole = self._factor(factor, ones)
            terms.append((source, None if whole is None else whole.unbind(0)))
        return terms

    def _factor(self, name: str | None, ones: bool) -> Tensor | None:
        if name is not None:
            return self.factors[name]
        return self._masked(1.0) if ones and self.mask is not None else None

    def _sums(self, late: bool, t: int, values: dict[str, Tensor], at_t: dict[str, Tensor]) -> None:
        for name, terms, out in self.own[late]:
            found = _sum(terms, t, values, out[t] if out is not None else at_t.get(name))
            if out is None:
                values[name] = found
        for source, factors, out in self.stacks[late]:
            torch.mul(factors[t], values[source].unsqueeze(1), out=out[t])

    def _gradients(self, d_state: State, operand: Tensor | None) -> Gradients:
        rule, d_gates = self.rule, self.d_gates.flatten(2)
        after = {name: self._of_all_steps(self.sums[name]) for name in self.after}
        d_x = d_gates
        if rule.apart:
            parts = [after.get(f"d_x_{gate}", self.d_gates[:, :, k]) for k, gate in enumerate(rule.gates)]
            d_x = torch.cat(parts, -1)
        d_extra = tuple(
            after[f"d_{name}"].sum_to_size(p.shape)
            for name, p in zip(rule.extra, self.inputs.weights.extra, strict=True)
        )
        return Gradients(d_x, d_gates, d_state, d_extra, operand)

    def _of_all_steps(self, each: Sum) -> Tensor:
        """[T, B, H] of a sum that no step waits for."""
        found = self.d_hidden.new_zeros(())
        for source, factor in each.terms:
            whole = self._factor(factor, ones=True)
            found = found + (self.stored[source] if whole is None else self.stored[source] * whole)
        return found.expand(self.T, self.B, self.H)


def _put(value: Tensor, out: Tensor | None) -> Tensor:
    return value if out is None else out.copy_(value)


def _sum(terms: Terms, t: int, values: dict[str, Tensor], out: Tensor | None) -> Tensor:
    """Of one step; where `out` is given, in it."""
    if not terms:
        assert out is not None
        return out.zero_()
    (source, factor), *rest = terms
    if not rest:
        return _put(values[source], out) if factor is None else torch.mul(values[source], factor[t], out=out)
    found = values[source] if factor is None else torch.mul(values[source], factor[t], out=out)
    for source, factor in rest:
        if factor is None:
            found = torch.add(found, values[source], out=out)
        else:
            found = torch.addcmul(found, values[source], factor[t], out=out)
    return found
