"""The layers `LayerNormGRU` and `LayerNormLSTM`: layer normalisation inside the recurrence."""

from __future__ import annotations

import torch
from torch import nn

from fastcells.layers import GRU, LSTM, Device
from fastcells.spec import CellSpec
from fastcells.spec.layer_norm import LAYER_NORM_GRU, LAYER_NORM_LSTM
from fastcells.stack import Layer


def _add_norms(layer: Layer) -> None:
    """A gain, 1, and a bias, 0, for each norm of each layer and direction, behind torch's own parameters."""
    rows = layer.weight_hh_l0.shape[0]
    for group in layer._all_weights:
        suffix = group[0].removeprefix("weight_ih_")
        for name in layer._spec().extra:
            size = layer.hidden_size if name.startswith("norm_c") else rows
            value = torch.ones if name.endswith("weight") else torch.zeros
            p = nn.Parameter(value(size, device=layer.weight_hh_l0.device, dtype=layer.weight_hh_l0.dtype))
            layer.register_parameter(f"{name}_{suffix}", p)
            group.append(f"{name}_{suffix}")
    layer._flat_weights_names = [name for group in layer._all_weights for name in group]
    layer._flat_weights = [getattr(layer, name) for name in layer._flat_weights_names]


class _Normalised(Layer):
    """What both layers share."""

    def reset_parameters(self) -> None:
        """As torch.nn's; gains become 1 and their biases 0."""
        super().reset_parameters()
        for name, p in self.named_parameters(recurse=False):
            if name.startswith("norm_"):
                nn.init.constant_(p, float("_weight_" in name))


class LayerNormGRU(_Normalised, GRU):
    """The gated recurrent unit with layer normalisation (Ba et al. 2016).

    As `fastcells.GRU`, but for its parameters: in place of b_ih and b_hh each layer and direction has a gain and a bias
    for what the input and what the state is multiplied into, `norm_ih_weight_l0`, `norm_ih_bias_l0`,
    `norm_hh_weight_l0` and `norm_hh_bias_l0`, each [3H]. r and z are normalised together, n alone. Runs by
    `impl="torch"`, with a hand-written backward; zoneout, dropout of h and `reset_state` by its steps, one by one.

    Equations: Ba, Kiros and Hinton 2016 (arXiv 1607.06450), supplement, 29 to 31, with z and 1 - z as torch has them.
    """

    label = "LayerNormGRU"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Device = None,
        dtype: torch.dtype | None = None,
        recurrent_dropout: float = 0.0,
        zoneout: float = 0.0,
        weight_dropout: float = 0.0,
        impl: str = "auto",
        learned_state: bool = False,
    ) -> None:
        stack = (input_size, hidden_size, num_layers, False, batch_first, dropout, bidirectional, device, dtype)
        super().__init__(
            *stack,
            recurrent_dropout=recurrent_dropout,
            zoneout=zoneout,
            weight_dropout=weight_dropout,
            impl=impl,
            learned_state=learned_state,
        )
        _add_norms(self)

    def _spec(self) -> CellSpec:
        return LAYER_NORM_GRU


class LayerNormLSTM(_Normalised, LSTM):
    """The long short-term memory with layer normalisation (Ba et al. 2016).

    As `fastcells.LSTM`, but for its parameters: in place of b_ih and b_hh each layer and direction has a gain and a
    bias for what the input and what the state is multiplied into, over all four gates at once, and for c:
    `norm_ih_weight_l0` and `norm_hh_weight_l0`, [4H], `norm_c_weight_l0`, [H], and the same with `bias`. Runs by
    `impl="torch"`, with a hand-written backward; zoneout, dropout of h and `reset_state` by its steps, one by one.

    Equations: Ba, Kiros and Hinton 2016 (arXiv 1607.06450), supplement, 20 to 22.
    """

    label = "LayerNormLSTM"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Device = None,
        dtype: torch.dtype | None = None,
        recurrent_dropout: float = 0.0,
        zoneout: float = 0.0,
        zoneout_cell: float = 0.0,
        weight_dropout: float = 0.0,
        impl: str = "auto",
        learned_state: bool = False,
    ) -> None:
        stack = (input_size, hidden_size, num_layers, False, batch_first, dropout, bidirectional)
        super().__init__(
            *stack,
            device=device,
            dtype=dtype,
            recurrent_dropout=recurrent_dropout,
            zoneout=zoneout,
            zoneout_cell=zoneout_cell,
            weight_dropout=weight_dropout,
            impl=impl,
            learned_state=learned_state,
        )
        _add_norms(self)

    def _spec(self) -> CellSpec:
        return LAYER_NORM_LSTM
