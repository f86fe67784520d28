"""The gated recurrent unit, in both variants. x is the input projection, gates in torch's order r, z, n.

r  = sigmoid(x_r + h W_hr^T + b_hr)
z  = sigmoid(x_z + h W_hz^T + b_hz)
n  = tanh(x_n + r * (h W_hn^T + b_hn))     reset-after: torch.nn.GRU, cuDNN
n  = tanh(x_n + (r * h) W_hn^T + b_hn)     reset-before: Cho et al. 2014 (arXiv 1406.1078v3), equation 8
h' = n + z * (h - n)
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear

from fastcells.spec.cell import CellSpec, RecurrentWeights, State


def _step_reset_after(x: Tensor, state: State, weights: RecurrentWeights) -> State:
    (h,) = state
    x_r, x_z, x_n = x.chunk(3, -1)
    h_r, h_z, h_n = linear(weights.masked(h), weights.w_hh, weights.b_hh).chunk(3, -1)
    r = torch.sigmoid(x_r + h_r)
    z = torch.sigmoid(x_z + h_z)
    n = torch.tanh(x_n + r * h_n)
    return (n + z * (h - n),)


def _step_reset_before(x: Tensor, state: State, weights: RecurrentWeights) -> State:
    (h,) = state
    w_hh, b_hh = weights.w_hh, weights.b_hh
    H = h.shape[-1]
    b_rz, b_n = (None, None) if b_hh is None else (b_hh[: 2 * H], b_hh[2 * H :])
    kept = weights.masked(h)
    r, z = torch.sigmoid(x[..., : 2 * H] + linear(kept, w_hh[: 2 * H], b_rz)).chunk(2, -1)
    n = torch.tanh(x[..., 2 * H :] + linear(r * kept, w_hh[2 * H :], b_n))
    return (n + z * (h - n),)


GRU_RESET_AFTER = CellSpec(
    "gru",
    gates=("r", "z", "n"),
    states=("h",),
    step=_step_reset_after,
    saved=("r", "z", "n", "h_n"),  # h_n: h W_hn^T + b_hn
    same_gradient=False,
)
GRU_RESET_BEFORE = CellSpec(
    "gru_reset_before",
    gates=("r", "z", "n"),
    states=("h",),
    step=_step_reset_before,
    saved=("r", "z", "n"),
    two_products=True,
)
