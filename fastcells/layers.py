"""The layers `RNN`, `GRU` and `LSTM`: stacks of layers and directions in place of their torch.nn namesakes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from fastcells import inference
from fastcells.call_options import Given, Masks, lengths_of
from fastcells.cell_states import split_states
from fastcells.layer_shapes import pair_of
from fastcells.regularised import rates
from fastcells.spec import GRU_RESET_AFTER, GRU_RESET_BEFORE, RNN_RELU, RNN_TANH, CellSpec, State
from fastcells.spec import LSTM as LSTM_SPEC
from fastcells.stack import Layer

Device = torch.device | str | int | None
Lengths = Tensor | Sequence[int] | int | None


class _HiddenStateLayer(Layer):
    """A layer whose state is h alone."""

    @overload
    def forward(
        self,
        input: Tensor,
        hx: Tensor | None = None,
        *,
        lengths: Lengths = None,
        resets: Tensor | None = None,
        reset_state: Tensor | None = None,
        mask: Tensor | None = None,
        masks: Masks | None = None,
    ) -> tuple[Tensor, Tensor]: ...
    @overload
    def forward(
        self, input: PackedSequence, hx: Tensor | None = None, *, masks: Masks | None = None
    ) -> tuple[PackedSequence, Tensor]: ...
    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | None = None,
        *,
        lengths: Lengths = None,
        resets: Tensor | None = None,
        reset_state: Tensor | None = None,
        mask: Tensor | None = None,
        masks: Masks | None = None,
    ) -> tuple[Tensor | PackedSequence, Tensor]:
        """As torch's layer: see the class."""
        if lengths is None and resets is None and reset_state is None and mask is None and masks is None:
            return inference.layer(self, input, hx) or self._forward(input, hx)
        lengths = lengths if mask is None else lengths_of(mask, self.batch_first, lengths)
        start = None if reset_state is None else (reset_state,)
        return self._forward(input, hx, Given(lengths, resets, start, masks))


class RNN(_HiddenStateLayer):
    """The simple (Elman) RNN, in place of `torch.nn.RNN`.

    `h' = act(W_ih x + b_ih + W_hh h + b_hh)`, act being tanh or relu.

    Constructor, attributes, state_dict, shapes, return values and errors are those of torch.nn.RNN.

    Input also: an integer tensor [T, B] ([B, T] with batch_first, [T] unbatched, or packed), which means
    `one_hot(ids, input_size)` and costs a row gather. Ids outside [0, input_size) raise IndexError on the CPU.

    Keyword-only:
        recurrent_dropout, zoneout, weight_dropout: probabilities, in training only: of units of h ahead of W_hh, the
            same at each step (Gal and Ghahramani 2016); of units that keep their state (Krueger et al. 2017); of
            weights of W_hh, for a whole call (DropConnect, Merity et al. 2018).
        impl: "auto", "torch", "cpu", "triton", "triton-step" or "gluon"; see `fastcells.explain`.
        learned_state: sequences and episodes begin from the Parameter `h_0` [num_layers*D, H], at first zeros, where
            neither hx nor reset_state is given.

    Call, keyword-only:
        lengths: int [B], or a list; steps past a row's length leave its state alone and give zero outputs.
        mask: the same as bool [T, B] ([B, T] with batch_first), true for the steps that there are.
        resets: bool [T, B] ([B, T] with batch_first); true where a step starts from zeros, or from `reset_state`
            (as hx, or without its batch), instead of the step before: an episode, of which no direction sees another.
        masks: fixed `fastcells.Masks` in place of drawn ones; see `draw_masks`.

    Returns: output [T, B, D*H] and h_n [num_layers*D, B, H], D being 2 if bidirectional and 1 if not.
    Equations: documentation of torch.nn.RNN.
    """

    label = "RNN"
    nonlinearity: str

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        recurrent_dropout: float = 0.0,
        zoneout: float = 0.0,
        weight_dropout: float = 0.0,
        impl: str = "auto",
        learned_state: bool = False,
        **unknown: Any,
    ) -> None:
        _refuse_proj_size(unknown)
        given = rates(recurrent_dropout=recurrent_dropout, zoneout=zoneout, weight_dropout=weight_dropout)
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'.")
        self.nonlinearity = nonlinearity
        stack = (input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional)
        mode = f"RNN_{nonlinearity.upper()}"
        super().__init__(
            mode, *stack, rates=given, impl=impl, learned_state=learned_state, device=device, dtype=dtype, **unknown
        )

    def _spec(self) -> CellSpec:
        return RNN_TANH if self.mode == "RNN_TANH" else RNN_RELU


class GRU(_HiddenStateLayer):
    """The gated recurrent unit, in place of `torch.nn.GRU`.

    Constructor, attributes, state_dict, shapes, return values and errors are those of torch.nn.GRU.

    Input also: an integer tensor [T, B] ([B, T] with batch_first, [T] unbatched, or packed), which means
    `one_hot(ids, input_size)` and costs a row gather. Ids outside [0, input_size) raise IndexError on the CPU.

    Keyword-only:
        reset_after: True for torch's and cuDNN's `n = tanh(x_n + r * (W_hn h + b_hn))`; False for
            `n = tanh(x_n + W_hn (r * h) + b_hn)` (Cho et al. 2014, ONNX's default and the textbooks').
        recurrent_dropout, zoneout, weight_dropout: probabilities, in training only: of units of h ahead of W_hh, the
            same at each step (Gal and Ghahramani 2016); of units that keep their state (Krueger et al. 2017); of
            weights of W_hh, for a whole call (DropConnect, Merity et al. 2018).
        impl: "auto", "torch", "cpu", "triton", "triton-step" or "gluon"; see `fastcells.explain`.
        learned_state: sequences and episodes begin from the Parameter `h_0` [num_layers*D, H], at first zeros, where
            neither hx nor reset_state is given.

    Call, keyword-only:
        lengths: int [B], or a list; steps past a row's length leave its state alone and give zero outputs.
        mask: the same as bool [T, B] ([B, T] with batch_first), true for the steps that there are.
        resets: bool [T, B] ([B, T] with batch_first); true where a step starts from zeros, or from `reset_state`
            (as hx, or without its batch), instead of the step before: an episode, of which no direction sees another.
        masks: fixed `fastcells.Masks` in place of drawn ones; see `draw_masks`.

    Returns: output [T, B, D*H] and h_n [num_layers*D, B, H], D being 2 if bidirectional and 1 if not.
    Equations: documentation of torch.nn.GRU; Cho et al. 2014 (arXiv 1406.1078v3), equations 5 to 8.
    """

    label = "GRU"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        reset_after: bool = True,
        recurrent_dropout: float = 0.0,
        zoneout: float = 0.0,
        weight_dropout: float = 0.0,
        impl: str = "auto",
        learned_state: bool = False,
        **unknown: Any,
    ) -> None:
        _refuse_proj_size(unknown)
        given = rates(recurrent_dropout=recurrent_dropout, zoneout=zoneout, weight_dropout=weight_dropout)
        if not isinstance(reset_after, bool):
            raise TypeError(f"reset_after should be of type bool, got: {type(reset_after).__name__}")
        stack = (input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional)
        super().__init__(
            "GRU", *stack, rates=given, impl=impl, learned_state=learned_state, device=device, dtype=dtype, **unknown
        )
        self.reset_after = reset_after

    def _spec(self) -> CellSpec:
        return GRU_RESET_AFTER if self.reset_after else GRU_RESET_BEFORE


class LSTM(Layer):
    """The long short-term memory, in place of `torch.nn.LSTM`.

    Constructor, attributes, state_dict, shapes, return values and errors are those of torch.nn.LSTM.

    Input also: an integer tensor [T, B] ([B, T] with batch_first, [T] unbatched, or packed), which means
    `one_hot(ids, input_size)` and costs a row gather. Ids outside [0, input_size) raise IndexError on the CPU.

    Keyword-only:
        recurrent_dropout, zoneout, weight_dropout: probabilities, in training only: of units of h ahead of W_hh, the
            same at each step (Gal and Ghahramani 2016); of units that keep their state (Krueger et al. 2017); of
            weights of W_hh, for a whole call (DropConnect, Merity et al. 2018).
        zoneout_cell: as zoneout, of c. return_states: also return every c of the last layer, [T, B, D*H], as a third
            result, with gradients.
        impl: "auto", "torch", "cpu", "triton", "triton-step" or "gluon"; see `fastcells.explain`.
        learned_state: sequences and episodes begin from the Parameters `h_0` [num_layers*D, H_out] and `c_0`
            [num_layers*D, H], at first zeros, where neither hx nor reset_state is given.

    Call, keyword-only:
        lengths: int [B], or a list; steps past a row's length leave its state alone and give zero outputs.
        mask: the same as bool [T, B] ([B, T] with batch_first), true for the steps that there are.
        resets: bool [T, B] ([B, T] with batch_first); true where a step starts from zeros, or from `reset_state`
            (as hx, or without its batch), instead of the step before: an episode, of which no direction sees another.
        masks: fixed `fastcells.Masks` in place of drawn ones; see `draw_masks`.

    Returns: output [T, B, D*H_out] and (h_n [num_layers*D, B, H_out], c_n [num_layers*D, B, H]), D being 2 if
    bidirectional and 1 if not, H_out proj_size if that is positive and H if not.
    Equations: documentation of torch.nn.LSTM.
    """

    label = "LSTM"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        recurrent_dropout: float = 0.0,
        zoneout: float = 0.0,
        zoneout_cell: float = 0.0,
        weight_dropout: float = 0.0,
        return_states: bool = False,
        impl: str = "auto",
        learned_state: bool = False,
        **unknown: Any,
    ) -> None:
        stack = (input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size)
        given = rates(
            recurrent_dropout=recurrent_dropout,
            zoneout=zoneout,
            zoneout_cell=zoneout_cell,
            weight_dropout=weight_dropout,
        )
        super().__init__(
            "LSTM", *stack, rates=given, impl=impl, learned_state=learned_state, device=device, dtype=dtype, **unknown
        )
        if return_states:
            self.return_states = True

    @overload
    def forward(
        self,
        input: Tensor,
        hx: tuple[Tensor, Tensor] | None = None,
        *,
        lengths: Lengths = None,
        resets: Tensor | None = None,
        reset_state: tuple[Tensor, Tensor] | None = None,
        mask: Tensor | None = None,
        masks: Masks | None = None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]: ...
    @overload
    def forward(
        self, input: PackedSequence, hx: tuple[Tensor, Tensor] | None = None, *, masks: Masks | None = None
    ) -> tuple[PackedSequence, tuple[Tensor, Tensor]]: ...
    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: tuple[Tensor, Tensor] | None = None,
        *,
        lengths: Lengths = None,
        resets: Tensor | None = None,
        reset_state: tuple[Tensor, Tensor] | None = None,
        mask: Tensor | None = None,
        masks: Masks | None = None,
    ) -> Any:
        """As torch's layer: see the class."""
        hx = hx if hx is None else pair_of("hx", hx)
        if lengths is None and resets is None and reset_state is None and mask is None and masks is None:
            out, last = inference.layer(self, input, hx) or self._forward(input, hx)
        else:
            lengths = lengths if mask is None else lengths_of(mask, self.batch_first, lengths)
            out, last = self._forward(input, hx, Given(lengths, resets, pair_of("reset_state", reset_state), masks))
        if not self.return_states:
            return out, last
        return split_states(out, last, self.hidden_size * (2 if self.bidirectional else 1))

    def _spec(self) -> CellSpec:
        return LSTM_SPEC

    def check_forward_args(
        self,
        input: Tensor,
        hidden: tuple[Tensor, Tensor],  # type: ignore[override]
        batch_sizes: Tensor | None,
    ) -> None:
        """As torch.nn.LSTM's: `check_input`, and the sizes of h and c."""
        self.check_input(input, batch_sizes)
        expected = self.get_expected_hidden_size(input, batch_sizes)
        self.check_hidden_size(hidden[0], expected, "Expected hidden[0] size {}, got {}")
        expected = self.get_expected_cell_size(input, batch_sizes)
        self.check_hidden_size(hidden[1], expected, "Expected hidden[1] size {}, got {}")

    def get_expected_cell_size(self, input: Tensor, batch_sizes: Tensor | None) -> tuple[int, int, int]:
        """As torch.nn.LSTM's: the shape of c, [num_layers*D, B, H]."""
        batch = input.size(0 if self.batch_first else 1) if batch_sizes is None else int(batch_sizes[0])
        return self.num_layers * (2 if self.bidirectional else 1), batch, self.hidden_size

    def permute_hidden(  # type: ignore[override]
        self, hx: tuple[Tensor, Tensor], permutation: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """As torch.nn.LSTM's: the rows of h and c in another order."""
        if permutation is None:
            return hx
        return hx[0].index_select(1, permutation), hx[1].index_select(1, permutation)

    def _zeros(self, data: Tensor, ids: bool, batch: Any, weight: Tensor) -> tuple[Tensor, Tensor]:
        c = super()._zeros(data, ids, batch, weight)
        return (c.new_zeros(len(c), batch, self.proj_size) if self.proj_size else c), c

    def _check_state_dim(self, hx: State, dim: int) -> None:
        if hx[0].dim() != dim or hx[1].dim() != dim:
            kind = "batched" if dim == 3 else "unbatched"
            raise RuntimeError(
                f"For {kind} {dim}-D input, hx and cx should also be {dim}-D but got ({hx[0].dim()}-D, "
                f"{hx[1].dim()}-D) tensors"
            )


inference.SHORT.update((RNN, GRU, LSTM))


def _refuse_proj_size(unknown: dict[str, Any]) -> None:
    if "proj_size" in unknown:
        raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
