"""Rules of kernels by the names that cases have: the hand-written ones, fastcells.zoo's, and the tests' twins."""

from __future__ import annotations

from fastcells import zoo
from fastcells.kernels.triton.rule import UpdateRule
from fastcells.kernels.triton.rules import RULES, rule_of
from tests.defined import cells

TWINS = {"gru": "TwinGRU", "gru_reset_before": "TwinResetBefore", "lstm": "TwinLSTM", "rnn_tanh": "TwinRNN"}


def rule_named(name: str) -> UpdateRule:
    """A hand-written rule, or one that is generated of a layer class: "SLSTM", or "SLSTM/4" with so many heads."""
    if name in RULES:
        return RULES[name]
    name, _, heads = name.partition("/")
    layer = getattr(zoo if name in zoo.CELLS else cells, name)
    return rule_of(layer.kind.spec(int(heads or 1)).key)


def weight_shape(rule: UpdateRule, H: int) -> tuple[int, ...]:
    """Of the recurrent weights as launchers take them."""
    shape = rule.spec.recurrent.shape(rule.spec.num_gates, H)
    return (shape[0] * shape[1], shape[2]) if len(shape) == 3 else shape
