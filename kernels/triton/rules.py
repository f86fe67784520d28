"""Every cell that the kernels know: those with a rule written by hand by name, defined ones by `CellSpec.key`."""

from functools import cache

from fastcells.defined.spec import DEFINED
from fastcells.kernels.triton.cell_file import load
from fastcells.kernels.triton.generate import source
from fastcells.kernels.triton.gru import GRU_RESET_AFTER, GRU_RESET_BEFORE
from fastcells.kernels.triton.lstm import LSTM
from fastcells.kernels.triton.rnn import RNN_RELU, RNN_TANH
from fastcells.kernels.triton.rule import UpdateRule

RULES: dict[str, UpdateRule] = {
    rule.spec.name: rule for rule in (RNN_TANH, RNN_RELU, GRU_RESET_AFTER, GRU_RESET_BEFORE, LSTM)
}


def rule_of(key: str) -> UpdateRule:
    """A cell's, by `CellSpec.key`. A defined one's is generated when it is first asked for."""
    return RULES.get(key) or _generated(key)


@cache
def _generated(key: str) -> UpdateRule:
    spec = DEFINED[key]
    assert spec.rule is not None
    module = load(spec.name, source(spec.name, spec.rule))
    names = ("forward", "backward", "reset_hidden", "backward_last_gate")
    return UpdateRule(spec, *(getattr(module, name, None) for name in names))
