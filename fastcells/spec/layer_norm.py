"""The LSTM and the GRU with layer normalisation. x is the input projection W_ih x, normalised ahead of all steps.

LN(a; g, b) = (a - mean(a)) / sqrt(var(a) + 1e-5) * g + b, over the last dimension.

    i, f, g, o = LN(W_ih x; g_ih, b_ih) + LN(W_hh h; g_hh, b_hh)      over all gates' units at once
    c' = sigmoid(f) * c + sigmoid(i) * tanh(g)
    h' = sigmoid(o) * tanh(LN(c'; g_c, b_c))

    r, z = sigmoid(LN(W_ih x; ...) + LN(W_hh h; ...))                  over the units of r and z at once
    n  = tanh(LN(W_in x; ...) + r * LN(W_hn h; ...))
    h' = n + z * (h - n)

Equations: Ba, Kiros and Hinton 2016 (arXiv 1607.06450), supplement, 20 to 22 and 29 to 31; the order of the gates and
z and 1 - z as torch has them.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import layer_norm, linear

from fastcells.spec.cell import CellSpec, RecurrentWeights, State


def _norm(a: Tensor, weights: RecurrentWeights, which: int, part: slice = slice(None)) -> Tensor:
    """LN of a by the gains and biases of one norm, or by a part of them."""
    gains, biases = weights.extra[: len(weights.extra) // 2], weights.extra[len(weights.extra) // 2 :]
    return layer_norm(a, a.shape[-1:], gains[which][part], biases[which][part])


def _norm_gru(a: Tensor, weights: RecurrentWeights, which: int) -> Tensor:
    """r and z are normalised together, n alone."""
    both = 2 * (a.shape[-1] // 3)
    rz, n = (_norm(a[..., part], weights, which, part) for part in (slice(both), slice(both, None)))
    return torch.cat([rz, n], -1)


def _lstm_step(x: Tensor, state: State, weights: RecurrentWeights) -> State:
    h, c = state
    i, f, g, o = (x + _norm(linear(weights.masked(h), weights.w_hh), weights, 1)).chunk(4, -1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(_norm(c, weights, 2)), c


def _gru_step(x: Tensor, state: State, weights: RecurrentWeights) -> State:
    (h,) = state
    x_r, x_z, x_n = x.chunk(3, -1)
    h_r, h_z, h_n = _norm_gru(linear(weights.masked(h), weights.w_hh), weights, 1).chunk(3, -1)
    r, z = torch.sigmoid(x_r + h_r), torch.sigmoid(x_z + h_z)
    n = torch.tanh(x_n + r * h_n)
    return (n + z * (h - n),)


LAYER_NORM_LSTM = CellSpec(
    "layer_norm_lstm",
    gates=("i", "f", "g", "o"),
    states=("h", "c"),
    step=_lstm_step,
    project=lambda x, weights: _norm(x, weights, 0),
    extra=("norm_ih_weight", "norm_hh_weight", "norm_c_weight", "norm_ih_bias", "norm_hh_bias", "norm_c_bias"),
)
LAYER_NORM_GRU = CellSpec(
    "layer_norm_gru",
    gates=("r", "z", "n"),
    states=("h",),
    step=_gru_step,
    project=lambda x, weights: _norm_gru(x, weights, 0),
    extra=("norm_ih_weight", "norm_hh_weight", "norm_ih_bias", "norm_hh_bias"),
)
