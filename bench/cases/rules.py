"""Rules of kernels by the names that cases have: the hand-written ones, fastcells.zoo's, and the tests' twins."""

from __future__ import annotations

from fastcells import zoo
from fastcells.kernels.triton.rule import UpdateRule
from fastcells.kernels.triton.rules import RULES, rule_of
from tests.defined import cells

TWINS = {"gru": "TwinGRU", "gru_reset_before": "TwinResetBefore", "lstm": "TwinLSTM", "rnn_tanh": "TwinRNN"}


def rule_named(name: str) -> UpdateRule:
    """A hand-written rule, or one that is generated of a layer class."""
    if name in RULES:
        return RULES[name]
    layer = getattr(zoo if name in zoo.CELLS else cells, name)
    return rule_of(layer.kind.spec().key)
