"""Layer classes that tests define, at a module's top level, where pickle finds them: twins of the built-in cells."""

from __future__ import annotations

import torch

import fastcells
from tests.defined.rules import every_operator, four_states, gru, gru_reset_before, lstm

TwinGRU = fastcells.define("TwinGRU", gates=("r", "z", "n"), step=gru, doc="A twin.")
TwinResetBefore = fastcells.define(
    "TwinResetBefore",
    gates=("r", "z", "n"),
    step=gru_reset_before,
    operand={"n": lambda r, h: torch.sigmoid(r) * h},
)
TwinLSTM = fastcells.define("TwinLSTM", gates=("i", "f", "g", "o"), states=("h", "c"), step=lstm)
TwinRNN = fastcells.define("TwinRNN", gates=("a",), step=lambda a: torch.tanh(a))
TwinRelu = fastcells.define("TwinRelu", gates=("a",), step=lambda a: torch.relu(a))
HeadsLSTM = fastcells.define("HeadsLSTM", gates="ifgo", states="hc", step=lstm, recurrent="heads")
EveryOperator = fastcells.define("EveryOperator", gates="ab", states="hs", step=every_operator)
FourStates = fastcells.define("FourStates", gates="ab", states="hcmk", extra="pq", step=four_states)
DiagonalFour = fastcells.define(
    "DiagonalFour", gates="ab", states="hcmk", extra="pq", step=four_states, recurrent="diagonal"
)
OperandOfParts = fastcells.define(  # the two halves of either gate apart, and another operand
    "OperandOfParts",
    gates=("r", "n"),
    operand={"n": lambda x_r, h_r, h: torch.sigmoid(x_r - h_r) * h},
    step=lambda x_r, h_r, x_n, h_n, h: torch.tanh(x_n) * torch.sigmoid(h_n) + torch.tanh(x_r) * torch.tanh(h_r) * h,
)
