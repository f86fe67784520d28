"""The walk back through time of a defined cell, whose factors are those of all steps at once."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fastcells.backends.base import Gradients, Inputs
from fastcells.backends.torch.bound import Bound, Views, each_step, run
from fastcells.defined.evaluate import evaluate
from fastcells.defined.linear import LinearBackward, Sum
from fastcells.defined.rule import OPERAND
from fastcells.spec import CellSpec, State

D_OPERAND = f"d_{OPERAND}"
CHUNK = 65536  # elements of a value, of which a few fit into a core's cache


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
        rule = self.rule
        self.stacks = self._side_by_side()
        self.factors = {
            self._gate(k).terms[0][1] or "": stack[:, :, k - first]
            for first, last, stack in reversed(self.stacks)
            for k in range(last - 1, first - 1, -1)
        }
        self._evaluate(linear, values)
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
        parts = self.d_gates.split([early, G - early], 2)
        early_t, late_t = (product.flat(part).unbind(0) for part in parts)
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

    def _side_by_side(self) -> list[tuple[int, int, Tensor]]:
        """The gates, from one to before another, that are products with one source; their factors [T, B, gates, H]."""
        G, found, first = len(self.rule.gates), [], 0
        while first < G:
            last = first + 1
            while last < G and self._alike(self._gate(first), self._gate(last)):
                last += 1
            if last > first + 1:
                found.append((first, last, self.d_hidden.new_empty(self.T, self.B, last - first, self.H)))
            first = last
        return found

    def _evaluate(self, linear: LinearBackward, values: dict[str, Tensor]) -> None:
        """All factors, for so many steps at a time as a CPU's cache holds; 0 past a row's length."""
        for steps in self._chunks():
            at = {name: value[steps] if value.dim() == 3 else value for name, value in values.items()}
            for name, value in evaluate(linear.factors, at).items() if linear.factors.outputs else ():
                shape = self.d_hidden[steps].shape
                value = torch.as_tensor(value, dtype=self.d_hidden.dtype, device=self.d_hidden.device).expand(shape)
                # Not a product with the mask: past a row's length there may be a quotient by zero.
                value = value if self.mask is None else torch.where(self.mask[steps], value, 0)
                if name not in self.factors and len(value) == self.T:
                    self.factors[name] = value
                    continue
                if name not in self.factors:
                    self.factors[name] = self.d_hidden.new_empty(self.d_hidden.shape)
                self.factors[name][steps] = value
        for first, last, stack in self.stacks:
            for k in range(first, last):
                factor = self.factors[self._gate(k).terms[0][1] or ""]
                if factor.data_ptr() != stack[:, :, k - first].data_ptr():
                    stack[:, :, k - first].copy_(factor)

    def _chunks(self) -> Iterator[slice]:
        each = self.T if not self.d_hidden.is_cpu else max(1, CHUNK // max(1, self.B * self.H))
        return (slice(t, min(t + each, self.T)) for t in range(0, self.T, each))

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
                k = gates[name]
                for first, last, stack in self.stacks:
                    if first <= k < last:
                        done |= {f"d_{self.rule.h_input(gate)}" for gate in self.rule.gates[first:last]}
                        sources = [d.unsqueeze(1) for d in self._views(each.terms[0][0])]
                        out = self.d_gates[:, :, first:last].unbind(0)
                        calls.append(Bound(torch.mul, (stack.unbind(0), sources), out))
                if name not in done:
                    self._bind_sum(each, self.d_gates[:, :, k].unbind(0), ones=True)
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

    def _gate(self, k: int) -> Sum:
        return self.sums[f"d_{self.rule.h_input(self.rule.gates[k])}"]

    def _alike(self, one: Sum, other: Sum) -> bool:
        """Whether both have one term, with a factor, of the same source."""
        single = all(len(each.terms) == 1 and each.terms[0][1] is not None for each in (one, other))
        return single and one.terms[0][0] == other.terms[0][0] and one.late == other.late

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
        if not ones or self.mask is None:
            return None
        return self.mask.to(self.d_hidden.dtype).expand(self.T, self.B, self.H)

    def _gradients(self, d_state: State, operand: Tensor | None) -> Gradients:
        rule, d_gates = self.rule, self.d_gates.flatten(2)
        d_x, d_extra = d_gates, [p.new_zeros(p.shape) for p in self.inputs.weights.extra]
        if rule.apart:
            d_x = self.d_gates.clone()
            for k, gate in enumerate(rule.gates):
                if gate in rule.apart:
                    for steps in self._chunks():
                        d_x[steps, :, k] = self._of_steps(f"d_x_{gate}", steps)
            d_x = d_x.flatten(2)
        for name, d in zip(rule.extra, d_extra, strict=True):
            for steps in self._chunks():
                d += self._of_steps(f"d_{name}", steps).sum((0, 1))
        return Gradients(d_x, d_gates, d_state, tuple(d_extra), operand)

    def _of_steps(self, name: str, steps: slice) -> Tensor:
        """[T', B, H] of a sum that no step waits for."""
        found = self.d_hidden.new_zeros(()).expand(self.d_hidden[steps].shape)
        for i, (source, factor) in enumerate(self.sums[name].terms):
            d, whole = self.stored[source][steps], self._factor(factor, ones=True)
            term = d if whole is None else d * whole[steps]
            found = term if i == 0 else found + term
        return found


def _copy(value: Tensor, out: Tensor) -> None:
    out.copy_(value)


def _zero(out: Tensor) -> None:
    out.zero_()
