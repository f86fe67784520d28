"""The walk back through time of a defined cell, whose factors are those of all steps at once."""

from __future__ import annotations

import torch
from torch import Tensor

from fastcells.backends.base import Gradients, Inputs
from fastcells.backends.torch.bound import Bound, Views, bound, each_step, run
from fastcells.backends.torch.factors import Factors, chunks
from fastcells.defined.linear import LinearBackward, Sum
from fastcells.defined.rule import OPERAND, Rule
from fastcells.spec import CellSpec, State

D_OPERAND = f"d_{OPERAND}"


class Walk:
    """T time, B batch, G gates, H hidden. Past a row's length its state's gradient stands still and no other arises.

    Every gradient that is a sum has a buffer by its name, of all steps where it is read once more after the walk. That
    of a state ahead of a step is written to where the step before reads `d_new_<state>`, with that step's d_hidden.
    """

    def __init__(
        self,
        spec: CellSpec,
        rule: Rule,
        linear: LinearBackward,
        factors: Factors,
        values: dict[str, Tensor],
        inputs: Inputs,
        d_hidden: Tensor,
    ) -> None:
        self.spec, self.rule, self.inputs, self.d_hidden = spec, rule, inputs, d_hidden
        states = rule.states
        self.sums = {each.name: each for each in linear.sums}
        for state in states:  # which hands on at least what a row past its length has
            self.sums.setdefault(f"d_{state}", Sum(f"d_{state}", ()))
        self.T, self.B, self.H = d_hidden.shape
        self.order = inputs.steps.order(self.T)
        self.mask = mask = inputs.steps.mask(self.T)
        self.live = None if mask is None else mask.to(d_hidden.dtype).expand(d_hidden.shape)
        # Zeros: oneDNN's products of some gates in bfloat16, with AMX, read others' beside them.
        self.d_gates = d_hidden.new_zeros(self.T, self.B, len(rule.gates), self.H)
        self.plan, self.factors = factors, factors.evaluate(values, self.d_gates, mask)
        self.after = [f"d_x_{gate}" for gate in rule.gates if gate in rule.apart] + [f"d_{p}" for p in rule.extra]
        self.stored = {source: d_hidden.new_empty(d_hidden.shape) for source in linear.sources(set(self.after))}
        self.views = {f"d_new_{state}": self._of_state(f"d_new_{state}") for state in states}
        self.ends = [d_hidden.new_empty(self.B, self.H) for _ in states]
        self.calls: dict[bool, list[Bound]] = {False: [], True: []}  # by `Sum.late`
        self._bind()

    def back(self, d_last: State, operand: Tensor | None = None) -> Gradients:
        """All gradients. operand: [T, B, H] what the last gates' rows of W_hh were multiplied with, if not h."""
        last = self.order[-1]
        for i, d in enumerate(d_last):
            d_new = self.views[f"d_new_{self.rule.states[i]}"][last]
            torch.add(d, self.d_hidden[last], out=d_new) if i == 0 else d_new.copy_(d)
        run([*self.calls[False], *self.calls[True]], reversed(self.order))
        return self._gradients(tuple(self.ends), operand)

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

    def _before(self, i: int) -> Views:
        """Where the gradient of a state ahead of each step goes."""
        d_new = self.views[f"d_new_{self.rule.states[i]}"]
        out = list(d_new)
        for t, earlier in zip(self.order[1:], self.order, strict=False):
            out[t] = d_new[earlier]
        out[self.order[0]] = self.ends[i]
        return out

    def _bind(self) -> None:
        """The calls of each step."""
        rule, product, w_hh, G = self.rule, self.spec.recurrent, self.inputs.weights.w_hh, len(self.rule.gates)
        early, states = G - len(rule.second), {f"d_{state}": i for i, state in enumerate(rule.states)}
        gates = {f"d_{rule.h_input(gate)}": k for k, gate in enumerate(rule.gates)}
        w_early = product.gates(w_hh, G, 0, early) if rule.second else w_hh
        done = set(self.after)
        for name, each in self.sums.items():
            if name in done:
                continue
            calls = self.calls[each.late]
            if name in gates:
                k = gates[name]
                last = self._last_alike(k)
                done |= {f"d_{rule.h_input(gate)}" for gate in rule.gates[k:last]}
                if last > k + 1:
                    source, out = self._views(each.terms[0][0]), self.d_gates[:, :, k:last].unbind(0)
                    rows = {id(d): d.unsqueeze(1) for d in dict.fromkeys(source)}  # many steps share a buffer
                    calls.append(bound(torch.mul, (out, [rows[id(d)] for d in source]), out))
                elif last > k:
                    out = self.d_gates[:, :, k].unbind(0)
                    calls.append(bound(torch.mul, (out, self._views(each.terms[0][0])), out))
                else:
                    self._bind_sum(each, self.d_gates[:, :, k].unbind(0))
            elif name in states:
                self._bind_state(each, states[name])
            elif each.terms:
                self._bind_sum(each, self._views(name))
        if rule.second:
            late, w_late = product.flat(self.d_gates[:, :, early:]), product.gates(w_hh, G, early, G)
            args = [None] * self.T, late.unbind(0), [w_late] * self.T
            self.calls[False].append(bound(product.add_adjoint, args, self._views(D_OPERAND)))
        d_h = self._before(0)
        base = d_h if self._terms(self.sums[f"d_{rule.states[0]}"]) else self._d_hidden_before()
        args_h = base, product.flat(self.d_gates[:, :, :early]).unbind(0), [w_early] * self.T
        self.calls[bool(rule.second)].append(bound(product.add_adjoint, args_h, d_h))

    def _last_alike(self, k: int) -> int:
        """The gates from k to before this one are the product of factors that stand there and one source; k if none."""
        first, last = self._gate(k), k
        while last < len(self.rule.gates):
            each = self._gate(last)
            alone = len(each.terms) == 1 and each.terms[0][1] in self.plan.in_gates
            if not alone or (each.terms[0][0], each.late) != (first.terms[0][0], first.late):
                break
            last += 1
        return last

    def _gate(self, k: int) -> Sum:
        return self.sums[f"d_{self.rule.h_input(self.rule.gates[k])}"]

    def _d_hidden_before(self) -> Views:
        """d_hidden of the step before each."""
        d_hidden = self.d_hidden.unbind(0)
        views = list(d_hidden)
        for t, earlier in zip(self.order[1:], self.order, strict=False):
            views[t] = d_hidden[earlier]
        views[self.order[0]] = self.d_hidden.new_zeros(self.B, self.H)
        return views

    def _bind_state(self, each: Sum, i: int) -> None:
        if i > 0 or self._terms(each):
            self._bind_sum(each, self._before(i), None if i > 0 else self._d_hidden_before())

    def _terms(self, each: Sum) -> list[tuple[str, Tensor | None]]:
        """(source, factor [T, B, H] or None for 1), those without a factor first."""
        live, own = self.live, self.plan.carried.get(each.name)
        found: list[tuple[str, Tensor | None]] = []
        for source, name in each.terms:
            if name is not None:
                found.append((source, self.factors[self.plan.key(each.name, source, name, live is not None)]))
            else:
                found.append((source, None if source == own or each.name not in self._ends() else live))
        if live is not None and own is not None and own not in {source for source, _ in each.terms}:
            found.append((own, 1 - live))
        return sorted(found, key=lambda term: term[1] is not None)

    def _ends(self) -> set[str]:
        """The sums that are results, and so have to be 0 past a row's length."""
        return {*self.after, *self.plan.carried, *(f"d_{self.rule.h_input(gate)}" for gate in self.rule.gates)}

    def _bind_sum(self, each: Sum, out: Views, found: Views | None = None) -> None:
        """found: what the sum begins with."""
        calls, terms = self.calls[each.late], self._terms(each)
        for source, factor in terms:
            d = self._views(source)
            if factor is None:
                if found is None and len(terms) > 1:
                    found = d
                    continue
                calls.append(bound(_copy, (d,), out) if found is None else bound(torch.add, (found, d), out))
            elif found is None:
                calls.append(bound(torch.mul, (d, factor.unbind(0)), out))
            else:
                calls.append(bound(torch.addcmul, (found, d, factor.unbind(0)), out))
            found = out
        if not terms:
            calls.append(bound(_zero, (), out))

    def _gradients(self, d_state: State, operand: Tensor | None) -> Gradients:
        rule, d_gates = self.rule, self.d_gates.flatten(2)
        d_x, d_extra = d_gates, [p.new_zeros(p.shape) for p in self.inputs.weights.extra]
        if rule.apart:
            whole = torch.empty_like(self.d_gates)
            for k, gate in enumerate(rule.gates):
                if gate in rule.apart:
                    for steps in chunks(self.d_hidden):
                        self._of_steps(f"d_x_{gate}", steps, whole[steps, :, k])
                else:
                    whole[:, :, k].copy_(self.d_gates[:, :, k])
            d_x = whole.flatten(2)
        for name, d in zip(rule.extra, d_extra, strict=True):
            for steps in chunks(self.d_hidden):
                d += self._of_steps(f"d_{name}", steps, self.d_hidden.new_empty(self.d_hidden[steps].shape)).sum((0, 1))
        return Gradients(d_x, d_gates, d_state, tuple(d_extra), operand)

    def _of_steps(self, name: str, steps: slice, out: Tensor) -> Tensor:
        """[T', B, H] of a sum that no step waits for."""
        found = None
        for source, factor in self._terms(self.sums[name]):
            d = self.stored[source][steps]
            if found is None:
                out.copy_(d) if factor is None else torch.mul(d, factor[steps], out=out)
            else:
                out.add_(d) if factor is None else out.addcmul_(d, factor[steps])
            found = out
        return out.zero_() if found is None else out


def _copy(value: Tensor, out: Tensor) -> None:
    out.copy_(value)


def _zero(out: Tensor) -> None:
    out.zero_()
