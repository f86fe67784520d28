"""The cells: what each computes, stated once in torch. Nothing here knows how a cell is run."""

from fastcells.spec.cell import CellSpec, RecurrentWeights, State
from fastcells.spec.gru import GRU_RESET_AFTER, GRU_RESET_BEFORE
from fastcells.spec.lstm import LSTM
from fastcells.spec.rnn import RNN_RELU, RNN_TANH

SPECS: dict[str, CellSpec] = {spec.name: spec for spec in (RNN_TANH, RNN_RELU, GRU_RESET_AFTER, GRU_RESET_BEFORE, LSTM)}

__all__ = [
    "GRU_RESET_AFTER",
    "GRU_RESET_BEFORE",
    "LSTM",
    "RNN_RELU",
    "RNN_TANH",
    "SPECS",
    "CellSpec",
    "RecurrentWeights",
    "State",
]
