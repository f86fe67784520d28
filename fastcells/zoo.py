"""Cells of the literature, each defined by its equations: `from fastcells.zoo import SLSTM`.

All are layer classes like `fastcells.GRU`, with `.Cell`. A gate's name stands for its pre-activation,
`W x + b + U h`, biases included.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from fastcells.defined.define import define

sigmoid, tanh = torch.sigmoid, torch.tanh


def _peephole(i: Tensor, f: Tensor, g: Tensor, o: Tensor, c: Tensor, p_i: Tensor, p_f: Tensor, p_o: Tensor):  # type: ignore[no-untyped-def]
    i, f = sigmoid(i + p_i * c), sigmoid(f + p_f * c)
    c = f * c + i * tanh(g)
    o = sigmoid(o + p_o * c)
    return o * tanh(c), c


PeepholeLSTM = define(
    "PeepholeLSTM",
    gates=("i", "f", "g", "o"),
    states=("h", "c"),
    extra=("p_i", "p_f", "p_o"),
    step=_peephole,
    doc="The LSTM whose gates also read the cell state: Graves 2013 (arXiv 1308.0850), equations 7 to 11.",
)


def _coupled(f: Tensor, g: Tensor, o: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    f = sigmoid(f)
    c = f * c + (1 - f) * tanh(g)
    return sigmoid(o) * tanh(c), c


CoupledGateLSTM = define(
    "CoupledGateLSTM",
    gates=("f", "g", "o"),
    states=("h", "c"),
    step=_coupled,
    doc="The LSTM whose input gate is 1 - f, without peepholes: Greff et al. 2015 (arXiv 1503.04069), variant CIFG.",
)


def _janet(f: Tensor, g: Tensor, h: Tensor) -> Tensor:
    return sigmoid(f) * h + (1 - sigmoid(f - 1)) * tanh(g)


JANET = define(
    "JANET",
    gates=("f", "g"),
    step=_janet,
    initial={"f": 1.0},
    doc="The LSTM with its forget gate alone, beta = 1: van der Westhuizen and Lasenby 2018 (arXiv 1804.04849).",
)


def _minimal(f: Tensor, n: Tensor, h: Tensor) -> Tensor:
    f = sigmoid(f)
    return (1 - f) * h + f * tanh(n)


MinimalGatedUnit = define(
    "MinimalGatedUnit",
    gates=("f", "n"),
    operand={"n": lambda f, h: sigmoid(f) * h},
    step=_minimal,
    doc="The GRU with one gate, which also resets: Zhou et al. 2016 (arXiv 1603.09420).",
)


def _update_gate(g: Tensor, n: Tensor, h: Tensor) -> Tensor:
    g = sigmoid(g)
    return g * h + (1 - g) * tanh(n)


UGRNN = define(
    "UGRNN",
    gates=("g", "n"),
    step=_update_gate,
    initial={"g": 1.0},
    doc="The update gate RNN, a GRU that never resets: Collins et al. 2016 (arXiv 1611.09913).",
)
UpdateGateRNN = UGRNN  # what the letters stand for

IndRNN = define(
    "IndRNN",
    gates=("a",),
    step=lambda a: torch.relu(a),
    recurrent="diagonal",
    initial={"weight_hh": (0.0, 1.0)},
    doc="The RNN whose units read themselves alone, with relu: Li et al. 2018 (arXiv 1803.04831).",
)


def _slstm(i: Tensor, f: Tensor, z: Tensor, o: Tensor, c: Tensor, n: Tensor, m: Tensor):  # type: ignore[no-untyped-def]
    log_f = logsigmoid(f)
    m_new = torch.where(n == 0, i, torch.maximum(log_f + m, i))  # n is 0 where nothing has been read yet
    i, f = torch.exp(i - m_new), torch.exp(torch.clamp(log_f + m - m_new, max=0))
    c = f * c + i * tanh(z)
    n = f * n + i
    return sigmoid(o) * c / n, c, n, m_new


SLSTM = define(
    "SLSTM",
    gates=("i", "f", "z", "o"),
    states=("h", "c", "n", "m"),
    step=_slstm,
    recurrent="heads",
    doc="xLSTM's scalar cell with exponential input gate, normaliser n and stabiliser m, the forget gate being a\n"
    "sigmoid: Beck et al. 2024 (arXiv 2405.04517), equations 8 to 17.",
)


def _light(z: Tensor, n: Tensor, h: Tensor) -> Tensor:
    z = sigmoid(z)
    return z * h + (1 - z) * torch.relu(n)


LiGRU = define(
    "LiGRU",
    gates=("z", "n"),
    step=_light,
    doc="The light GRU, without reset gate and with relu: Ravanelli et al. 2018 (arXiv 1803.10225); without the batch\n"
    "normalisation that the paper has in the input projection.",
)

CELLS = (
    "PeepholeLSTM",
    "CoupledGateLSTM",
    "JANET",
    "MinimalGatedUnit",
    "UGRNN",
    "UpdateGateRNN",
    "IndRNN",
    "SLSTM",
    "LiGRU",
)
__all__ = [*CELLS]
