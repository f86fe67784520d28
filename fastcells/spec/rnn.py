"""The simple (Elman) RNN: `h' = act(W_ih x + b_ih + W_hh h + b_hh)`, act being tanh or relu.

Equations: documentation of torch.nn.RNN.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear

from fastcells.spec.cell import CellSpec, RecurrentWeights, State


def _step_tanh(x: Tensor, state: State, weights: RecurrentWeights) -> State:
    return (torch.tanh(x + linear(weights.masked(state[0]), weights.w_hh, weights.b_hh)),)


def _step_relu(x: Tensor, state: State, weights: RecurrentWeights) -> State:
    return (torch.relu(x + linear(weights.masked(state[0]), weights.w_hh, weights.b_hh)),)


RNN_TANH = CellSpec("rnn_tanh", gates=("h",), states=("h",), step=_step_tanh)
RNN_RELU = CellSpec("rnn_relu", gates=("h",), states=("h",), step=_step_relu)
