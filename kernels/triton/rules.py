"""Every cell that the kernels know, by name."""

from fastcells.kernels.triton.gru import GRU_RESET_AFTER, GRU_RESET_BEFORE
from fastcells.kernels.triton.lstm import LSTM
from fastcells.kernels.triton.rnn import RNN_RELU, RNN_TANH
from fastcells.kernels.triton.rule import UpdateRule

RULES: dict[str, UpdateRule] = {
    rule.spec.name: rule for rule in (RNN_TANH, RNN_RELU, GRU_RESET_AFTER, GRU_RESET_BEFORE, LSTM)
}
