"""The initial state that a layer learns: Parameters `h_0`, of an LSTM also `c_0`, for `learned_state=True`.

They come after the weights in the state_dict, and are read at each call, as the weights are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.modules.rnn import RNNBase

from fastcells.spec import State

NAMES = ("h_0", "c_0")


def register(layer: RNNBase) -> None:
    """Give a layer its Parameters, [num_layers*D, H_out] and for an LSTM [num_layers*D, H], of zeros."""
    rows = layer.num_layers * (2 if layer.bidirectional else 1)
    widths = (layer.proj_size or layer.hidden_size, layer.hidden_size)
    like = layer._flat_weights[0]
    assert like is not None
    for name, width in zip(_names(layer), widths, strict=False):
        value = torch.zeros(rows, width, device=like.device, dtype=like.dtype)
        layer.register_parameter(name, nn.Parameter(value))
    layer.learned_state = True


def reset(layer: RNNBase) -> None:
    """Zeros again; a layer that learns no initial state has none to reset."""
    for name in NAMES:
        if name in layer._parameters:
            nn.init.zeros_(getattr(layer, name))


def learned(layer: RNNBase) -> State:
    """[num_layers*D, H_out], and of an LSTM [num_layers*D, H]."""
    return tuple(getattr(layer, name) for name in _names(layer))


def of_rows(layer: RNNBase, batch: Any, dtype: torch.dtype) -> Any:
    """The same for each row of a batch, [num_layers*D, B, ...]; of an LSTM two."""
    # cuDNN takes no expanded tensor.
    state = tuple(s.to(dtype).unsqueeze(1).expand(-1, batch, -1).contiguous() for s in learned(layer))
    return state if len(state) == 2 else state[0]


def _names(layer: RNNBase) -> tuple[str, ...]:
    return NAMES if layer.mode == "LSTM" else NAMES[:1]
