"""The `CellSpec` of a defined cell: its step is the rule's graph, computed with torch's operators."""

from __future__ import annotations

import hashlib

from torch import Tensor

from fastcells.defined.evaluate import evaluate
from fastcells.defined.rule import OPERAND, Rule
from fastcells.spec import CellSpec, RecurrentWeights, State
from fastcells.spec.recurrent import RecurrentProduct

DEFINED: dict[str, CellSpec] = {}  # by `CellSpec.key`: operators of torch.library name a cell with a text


def spec_of(name: str, rule: Rule, recurrent: RecurrentProduct) -> CellSpec:
    """Whose `step` can be differentiated any number of times; loops and kernels are made of `rule`."""
    G = len(rule.gates)
    early = G - len(rule.second)
    only_states = rule.forward_states()

    def step(x: Tensor, state: State, weights: RecurrentWeights) -> State:
        w_hh, b_hh, H = weights.w_hh, weights.b_hh, state[0].shape[-1]
        x_gates = x.chunk(G, -1)
        known = dict(zip((*rule.states, *rule.extra), (*state, *weights.extra), strict=True))

        def gates(h: Tensor, first: int, last: int) -> dict[str, Tensor]:
            """Pre-activations, of which h is what W_hh multiplies."""
            w = w_hh if last - first == G else recurrent.gates(w_hh, G, first, last)
            product = recurrent.product(h, w, None if b_hh is None else b_hh[..., first * H : last * H])
            return rule.gate_inputs(first, x_gates[first:last], product.chunk(last - first, -1))

        kept = weights.masked(state[0])
        values = known | gates(kept, 0, early)
        if rule.operand is not None:
            operand = evaluate(rule.operand, values | {rule.states[0]: kept})[OPERAND]
            values |= gates(operand, early, G)
        return tuple(evaluate(only_states, values).values())

    spec = CellSpec(
        name,
        rule.gates,
        rule.states,
        step,
        saved=rule.saved,
        same_gradient=rule.same_gradient,
        extra=rule.extra,
        recurrent=recurrent,
        two_products=bool(rule.second),
        rule=rule,
        digest=_digest(rule, recurrent),
    )
    return DEFINED.setdefault(spec.key, spec)


def _digest(rule: Rule, recurrent: RecurrentProduct) -> str:
    """The same in every process."""
    names = rule.gates, rule.states, rule.extra, rule.saved, rule.second, sorted(rule.apart)
    graphs = rule.forward, rule.backward, rule.operand, type(recurrent).__name__, vars(recurrent)
    return hashlib.sha256("\n".join(map(str, (*names, *graphs))).encode()).hexdigest()[:12]
