"""The walk back through time of a defined cell, whose factors are those of all steps at once."""

from __future__ import annotations

import torch
from torch import Tensor

from fastcells.backends.base import Gradients, Inputs
from fastcells.backends.torch.bound import Bound, Views, each_step, run
from fastcells.defined.evaluate import evaluate
from fastcells.defined.linear import LinearBackward, Sum
from fastcells.defined.rule import OPERAND
from fastcells.spec import CellSpec, State

D_OPERAND = f"d_{OPERAND}"


class Walk:
    """T time, B batch, G gates, H hidden. Past a row's length its state's gradient stands still and no other arises.

    Every gradient that is a sum has a buffer by its name, of all steps where it is read once more after the walk.
    """

    def __init__(
        self, spec: CellSpec, linear: LinearBackward, values: dict[str, Tensor], inputs: Inputs, d_hidden: Tensor
    ) -> None:
        assert spec.rule is not None
        self.spec, self.rule, self.inputs, self.d_hidden = spec, spec.rule, inputs, d_hidden
        self.sums = {each.name: each for each in linear.sums}
        self.T, self.B, self.H = d_hidden.shape
        self.mask, self.order = inputs.steps.mask(self.T), inputs.steps.order(self.T)
        found = evaluate(linear.factors, values) if linear.factors.outputs else {}
        self.factors = {name: self._masked(value) for name, value in found.items()}
        rule = self.rule
        self.after = [f"d_x_{gate}" for gate in rule.gates if gate in rule.apart] + [f"d_{p}" for p in rule.extra]
        self.stored = {source: d_hidden.new_empty(d_hidden.shape) for source in linear.sources(set(self.after))}
        self.d_gates = d_hidden.new_empty(self.T, self.B, len(rule.gates), self.H)
        self.views = {f"d_new_{state}": self._of_state(f"d_new_{state}") for state in rule.states}
        self.ends = [d_hidden.new_empty(self.B, self.H) for _ in rule.states]
        self.calls: dict[bool, list[Bound]] = {False: [], True: []}  # by `Sum.late`
        self._bind()

    def back(self, d_last: State, operand: Tensor | None = None) -> Gradients:
        """All gradients. operand: [T, B, H] what the last gates' rows of W_hh were multiplied with, if not h."""
        product, w_hh, G = self.spec.recurrent, self.inputs.weights.w_hh, len(self.rule.gates)
        early, states = G - len(self.rule.second), self.rule.states
        w_early = w_hh if early == G else product.gates(w_hh, G, 0, early)
        w_late = product.gates(w_hh, G, early, G)
        early_t, late_t = (part.unbind(0) for part in self.d_gates.split([early, G - early], 2))
        d_hidden_t, (d_new_h, *others) = self.d_hidden.unbind(0), (self.views[f"d_new_{state}"] for state in states)
        h_term = self.views.get(f"d_{states[0]}")
        last, d_h = self.order[-1], d_last[0]
        for views, d in zip(others, d_last[1:], strict=True):
            views[last].copy_(d)
        for t in reversed(self.order):
            torch.add(d_h, d_hidden_t[t], out=d_new_h[t])
            run(self.calls[False], t)
            if early < G:
                self.views[D_OPERAND][t].copy_(product.add_adjoint(None, late_t[t], w_late))
                run(self.calls[True], t)
            d_h = product.add_adjoint(None if h_term is None else h_term[t], early_t[t], w_early)
            if self.mask is not None:
                d_h = torch.where(self.mask[t], d_h, d_new_h[t])
        return self._gradients((d_h, *self.ends[1:]), operand)

    def _masked(self, value: Tensor | float) -> Tensor:
        whole = torch.as_tensor(value, dtype=self.d_hidden.dtype, device=self.d_hidden.device)
        # Not a product with the mask: past a row's length there may be a quotient by zero.
        whole = whole if self.mask is None else torch.where(self.mask, whole, 0)
        return whole.expand(self.T, self.B, self.H)

    def _of_state(self, name: str) -> Views:
        """Of a state after each step: two buffers in turn, since each step writes what the next one reads."""
        if name in self.stored:
            return self.stored[name].unbind(0)
        two = self.d_hidden.new_empty(2, self.B, self.H).unbind(0)
        views = [two[0]] * self.T
        for i, t in enumerate(self.order):
            views[t] = two[i % 2]
        return views

    def _views(self, name: str) -> Views:
        if name not in self.views:
            whole = self.stored.get(name)
            whole = self.d_hidden.new_empty(1, self.B, self.H) if whole is None else whole
            self.views[name] = each_step(whole, self.T)
        return self.views[name]

    def _bind(self) -> None:
        """The calls of each step; gates side by side with one source are one product."""
        gates = {f"d_{self.rule.h_input(gate)}": k for k, gate in enumerate(self.rule.gates)}
        others = {f"d_{state}": i for i, state in enumerate(self.rule.states) if i > 0}
        done = set(self.after)
        if self.rule.second:
            self._views(D_OPERAND)
        for name, each in self.sums.items():
            if name in done:
                continue
            calls = self.calls[each.late]
            if name in gates:
                first = last = gates[name]
                while self._alike(each, last + 1):
                    last += 1
                done |= {f"d_{self.rule.h_input(gate)}" for gate in self.rule.gates[first : last + 1]}
                if last > first:
                    calls.append(self._side_by_side(each.terms[0][0], first, last + 1))
                else:
                    self._bind_sum(each, self.d_gates[:, :, first].unbind(0), ones=True)
            elif name in others:
                self._bind_state(each, others[name])
            elif each.terms:
                self._bind_sum(each, self._views(name), ones=False)
        for i, state in enumerate(self.rule.states):
            if i > 0 and f"d_{state}" not in self.sums:
                self._bind_state(Sum(f"d_{state}", (), bool(self.rule.second)), i)

    def _bind_state(self, each: Sum, i: int) -> None:
        """d_new of the step before; of the first step, of the initial state."""
        d_new = self.views[f"d_new_{self.rule.states[i]}"]
        out = list(d_new)
        for t, earlier in zip(self.order[1:], self.order, strict=False):
            out[t] = d_new[earlier]
        out[self.order[0]] = self.ends[i]
        self._bind_sum(each, out, ones=False)
        if self.mask is not None:
            self.calls[each.late].append(Bound(torch.where, (self.mask.unbind(0), out, d_new), out))

    def _side_by_side(self, source: str, first: int, last: int) -> Bound:
        factors = torch.stack([self.factors[self._gate(k).terms[0][1] or ""] for k in range(first, last)], 2)
        sources = [d.unsqueeze(1) for d in self._views(source)]
        return Bound(torch.mul, (factors.unbind(0), sources), self.d_gates[:, :, first:last].unbind(0))

    def _gate(self, k: int) -> Sum:
        return self.sums[f"d_{self.rule.h_input(self.rule.gates[k])}"]

    def _alike(self, each: Sum, k: int) -> bool:
        """Whether the gate k has one term, with a factor, of the same source."""
        if k == len(self.rule.gates) or len(each.terms) != 1 or each.terms[0][1] is None:
            return False
        other = self._gate(k)
        one = len(other.terms) == 1 and other.terms[0][1] is not None
        return one and other.terms[0][0] == each.terms[0][0] and other.late == each.late

    def _bind_sum(self, each: Sum, out: Views, ones: bool) -> None:
        """ones: whether a factor of 1 has to be 0 past a row's length."""
        calls, found = self.calls[each.late], None
        for source, name in sorted(each.terms, key=lambda term: term[1] is not None):
            d, factor = self._views(source), self._factor(name, ones)
            if factor is None:
                if found is None and len(each.terms) > 1:
                    found = d
                    continue
                calls.append(Bound(_copy, (d,), out) if found is None else Bound(torch.add, (found, d), out))
            elif found is None:
                calls.append(Bound(torch.mul, (d, factor.unbind(0)), out))
            else:
                calls.append(Bound(torch.addcmul, (found, d, factor.unbind(0)), out))
            found = out
        if not each.terms:
            calls.append(Bound(_zero, (), out))

    def _factor(self, name: str | None, ones: bool) -> Tensor | None:
        if name is not None:
            return self.factors[name]
        return self._masked(1.0) if ones and self.mask is not None else None

    def _gradients(self, d_state: State, operand: Tensor | None) -> Gradients:
        rule, d_gates = self.rule, self.d_gates.flatten(2)
        after = {name: self._of_all_steps(self.sums[name]) for name in self.after}
        d_x = d_gates
        if rule.apart:
            parts = [after.get(f"d_x_{gate}", self.d_gates[:, :, k]) for k, gate in enumerate(rule.gates)]
            d_x = torch.cat(parts, -1)
        extra = zip(rule.extra, self.inputs.weights.extra, strict=True)
        d_extra = tuple(after[f"d_{name}"].sum_to_size(p.shape) for name, p in extra)
        return Gradients(d_x, d_gates, d_state, d_extra, operand)

    def _of_all_steps(self, each: Sum) -> Tensor:
        """[T, B, H] of a sum that no step waits for."""
        found = self.d_hidden.new_zeros(())
        for source, factor in each.terms:
            whole = self._factor(factor, ones=True)
            found = found + (self.stored[source] if whole is None else self.stored[source] * whole)
        return found.expand(self.T, self.B, self.H)


def _copy(value: Tensor, out: Tensor) -> None:
    out.copy_(value)


def _zero(out: Tensor) -> None:
    out.zero_()
