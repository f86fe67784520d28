"""The initial state that a layer learns: Parameters `h_0`, and one for each further state, for `learned_state=True`.

They come after the weights in the state_dict, and are read at each call, as the weights are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.modules.rnn import RNNBase

from fastcells.spec import CellSpec, State


def register(layer: RNNBase) -> None:
    """Give a layer its Parameters, [num_layers*D, H_out] and for an LSTM [num_layers*D, H], of zeros."""
    rows = layer.num_layers * (2 if layer.bidirectional else 1)
    like = layer._flat_weights[0]
    assert like is not None
    for i, name in enumerate(_names(layer)):
        width = (i == 0 and layer.proj_size) or layer.hidden_size
        value = torch.zeros(rows, width, device=like.device, dtype=like.dtype)
        layer.register_parameter(name, nn.Parameter(value))
    layer.learned_state = True


def reset(layer: RNNBase) -> None:
    """Zeros again; a layer that learns no initial state has none to reset."""
    for name in _names(layer):
        if name in layer._parameters:
            nn.init.zeros_(getattr(layer, name))


def learned(layer: RNNBase) -> State:
    """[num_layers*D, H_out], and of an LSTM [num_layers*D, H]."""
    return tuple(getattr(layer, name) for name in _names(layer))


def of_rows(layer: RNNBase, batch: Any, dtype: torch.dtype) -> Any:
    """The same for each row of a batch, [num_layers*D, B, ...]; a tuple if the cell has several states."""
    # cuDNN takes no expanded tensor.
    state = tuple(s.to(dtype).unsqueeze(1).expand(-1, batch, -1).contiguous() for s in learned(layer))
    return state if len(state) > 1 else state[0]


def _names(layer: RNNBase) -> tuple[str, ...]:
    spec: CellSpec = layer._spec()  # type: ignore[operator]
    return tuple(f"{state}_0" for state in spec.states)
