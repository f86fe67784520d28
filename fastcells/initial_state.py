"""The initial state that a layer learns: Parameters `h_0`, of an LSTM also `c_0`, for `learned_state=True`.

They come after the weights in the state_dict, and are read at each call, as the weights are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.rnn import RNNBase

NAMES = ("h_0", "c_0")


def register(layer: RNNBase) -> None:
    """Give a layer its Parameters, [num_layers*D, H_out] and for an LSTM [num_layers*D, H], of zeros."""
    rows = layer.num_layers * (2 if layer.bidirectional else 1)
    widths = (layer.proj_size or layer.hidden_size, layer.hidden_size)
    like = layer.weight_ih_l0
    assert isinstance(like, Tensor)
    for name, width in zip(NAMES[: 2 if layer.mode == "LSTM" else 1], widths, strict=False):
        layer.register_parameter(name, nn.Parameter(torch.zeros_like(like[:1, :1]).repeat(rows, width)))


def reset(layer: RNNBase) -> None:
    """Zeros again; a layer that learns no initial state has none to reset."""
    for name in NAMES:
        if name in layer._parameters:
            nn.init.zeros_(getattr(layer, name))


def rows(layer: RNNBase, batch: Any, dtype: torch.dtype) -> Any:
    """The state of each of a batch: [num_layers*D, B, ...], of an LSTM two."""
    names = NAMES[: 2 if layer.mode == "LSTM" else 1]
    # cuDNN takes no expanded tensor.
    state = tuple(getattr(layer, name).to(dtype).unsqueeze(1).expand(-1, batch, -1).contiguous() for name in names)
    return state if len(state) == 2 else state[0]
