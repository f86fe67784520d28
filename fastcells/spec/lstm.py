"""The long short-term memory, without peepholes. x is the input projection, gates in torch's order i, f, g, o.

    i = sigmoid(x_i + h W_hi^T + b_hi)      f, o alike
    g = tanh(x_g + h W_hg^T + b_hg)
    c' = f * c + i * g
    h' = o * tanh(c')                      with a projection (o * tanh(c')) W_hr^T (Sak et al. 2014)

Equations: documentation of torch.nn.LSTM (Hochreiter and Schmidhuber 1997).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear

from fastcells.spec.cell import CellSpec, RecurrentWeights, State


def _step(x: Tensor, state: State, weights: RecurrentWeights) -> State:
    h, c = state
    i, f, g, o = (x + linear(weights.masked(h), weights.w_hh, weights.b_hh)).chunk(4, -1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    h = torch.sigmoid(o) * torch.tanh(c)
    return h if weights.w_hr is None else h @ weights.w_hr.t(), c


LSTM = CellSpec("lstm", gates=("i", "f", "g", "o"), states=("h", "c"), step=_step, saved=("i", "f", "g", "o"))
