"""The layers `RNN`, `GRU` and `LSTM`: stacks of layers and directions in place of their torch.nn namesakes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, overload

from torch import _VF, Tensor
from torch.nn.utils.rnn import PackedSequence

from fastcells import functional
from fastcells.backends.torch.cell import TorchCell
from fastcells.backends.torch.gru import GRU_RESET_AFTER, GRU_RESET_BEFORE
from fastcells.backends.torch.lstm import LSTM as LSTM_UNIT
from fastcells.backends.torch.rnn import RNN_RELU, RNN_TANH
from fastcells.stack import Layer, State


class _HiddenStateLayer(Layer):
    """A layer whose state is h alone."""

    @overload
    def forward(self, input: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]: ...
    @overload
    def forward(self, input: PackedSequence, hx: Tensor | None = None) -> tuple[PackedSequence, Tensor]: ...
    def forward(
        self, input: Tensor | PackedSequence, hx: Tensor | None = None
    ) -> tuple[Tensor | PackedSequence, Tensor]:
        """As torch's layer: see the class."""
        return self._forward(input, hx)


class RNN(_HiddenStateLayer):
    """`torch.nn.RNN(input_size, hidden_size, num_layers, nonlinearity, bias, batch_first, dropout, bidirectional)`.

    `h' = act(W_ih x + b_ih + W_hh h + b_hh)`, act being tanh or relu.

    Constructor, attributes, state_dict, shapes, return values and errors are those of torch.nn.RNN.

    Input also: an integer tensor [T, B] ([B, T] with batch_first, [T] unbatched, or packed), which means
    `one_hot(ids, input_size)` and costs a row gather. Ids outside [0, input_size) raise IndexError on the CPU.

    Keyword-only:
        impl: "auto", "torch", "cpu", "triton" or "triton-step"; see `fastcells.explain`.

    Returns: output [T, B, D*H] and h_n [num_layers*D, B, H], D being 2 if bidirectional and 1 if not.
    Equations: documentation of torch.nn.RNN.
    """

    label = "RNN"
    nonlinearity: str

    def __init__(self, *args: Any, impl: str = "auto", **kwargs: Any) -> None:
        _refuse_proj_size(kwargs)
        if len(args) > 3:
            self.nonlinearity = args[3]
            args = args[:3] + args[4:]
        else:
            self.nonlinearity = kwargs.pop("nonlinearity", "tanh")
        if self.nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"Unknown nonlinearity '{self.nonlinearity}'. Select from 'tanh' or 'relu'.")
        super().__init__(f"RNN_{self.nonlinearity.upper()}", *args, impl=impl, **kwargs)

    def _direction(
        self, x: Tensor, state: State, w: dict[str, Tensor], *, lengths: Tensor | None, reverse: bool
    ) -> tuple[Tensor, State]:
        nonlinearity = self.mode.removeprefix("RNN_").lower()
        out, h_n = functional.rnn(
            x,
            state[0],
            w["weight_ih"],
            w["weight_hh"],
            w.get("bias_ih"),
            w.get("bias_hh"),
            nonlinearity=nonlinearity,
            lengths=lengths,
            reverse=reverse,
            impl=self.impl,
        )
        return out, (h_n,)

    def maths(self) -> TorchCell:
        return RNN_TANH if self.mode == "RNN_TANH" else RNN_RELU

    def _aten_op(self) -> Callable[..., Any]:
        return _VF.rnn_tanh if self.mode == "RNN_TANH" else _VF.rnn_relu


class GRU(_HiddenStateLayer):
    """`torch.nn.GRU(input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional)`.

    Constructor, attributes, state_dict, shapes, return values and errors are those of torch.nn.GRU.

    Input also: an integer tensor [T, B] ([B, T] with batch_first, [T] unbatched, or packed), which means
    `one_hot(ids, input_size)` and costs a row gather. Ids outside [0, input_size) raise IndexError on the CPU.

    Keyword-only:
        reset_after: True for torch's and cuDNN's `n = tanh(x_n + r * (W_hn h + b_hn))`; False for
            `n = tanh(x_n + W_hn (r * h) + b_hn)` (Cho et al. 2014, Keras's and the textbooks' default).
        impl: "auto", "torch", "cpu", "triton" or "triton-step"; see `fastcells.explain`.

    Returns: output [T, B, D*H] and h_n [num_layers*D, B, H], D being 2 if bidirectional and 1 if not.
    Equations: documentation of torch.nn.GRU; Cho et al. 2014 (arXiv 1406.1078v3), equations 5 to 8.
    """

    label = "GRU"

    def __init__(self, *args: Any, reset_after: bool = True, impl: str = "auto", **kwargs: Any) -> None:
        _refuse_proj_size(kwargs)
        if not isinstance(reset_after, bool):
            raise TypeError(f"reset_after should be of type bool, got: {type(reset_after).__name__}")
        super().__init__("GRU", *args, impl=impl, **kwargs)
        self.reset_after = reset_after

    def _direction(
        self, x: Tensor, state: State, w: dict[str, Tensor], *, lengths: Tensor | None, reverse: bool
    ) -> tuple[Tensor, State]:
        out, h_n = functional.gru(
            x,
            state[0],
            w["weight_ih"],
            w["weight_hh"],
            w.get("bias_ih"),
            w.get("bias_hh"),
            reset_after=self.reset_after,
            lengths=lengths,
            reverse=reverse,
            impl=self.impl,
        )
        return out, (h_n,)

    def maths(self) -> TorchCell:
        return GRU_RESET_AFTER if self.reset_after else GRU_RESET_BEFORE

    def _aten_op(self) -> Callable[..., Any]:
        return _VF.gru


class LSTM(Layer):
    """`torch.nn.LSTM(input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size)`.

    Constructor, attributes, state_dict, shapes, return values and errors are those of torch.nn.LSTM.

    Input also: an integer tensor [T, B] ([B, T] with batch_first, [T] unbatched, or packed), which means
    `one_hot(ids, input_size)` and costs a row gather. Ids outside [0, input_size) raise IndexError on the CPU.

    Keyword-only:
        impl: "auto", "torch", "cpu", "triton" or "triton-step"; see `fastcells.explain`.

    Returns: output [T, B, D*H_out] and (h_n [num_layers*D, B, H_out], c_n [num_layers*D, B, H]), D being 2 if
    bidirectional and 1 if not, H_out proj_size if that is positive and H if not.
    Equations: documentation of torch.nn.LSTM.
    """

    label = "LSTM"

    def __init__(self, *args: Any, impl: str = "auto", **kwargs: Any) -> None:
        super().__init__("LSTM", *args, impl=impl, **kwargs)

    @overload
    def forward(
        self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]: ...
    @overload
    def forward(
        self, input: PackedSequence, hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[PackedSequence, tuple[Tensor, Tensor]]: ...
    def forward(
        self, input: Tensor | PackedSequence, hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor | PackedSequence, tuple[Tensor, Tensor]]:
        """As torch's layer: see the class."""
        if hx is not None:
            if isinstance(hx, Tensor):
                raise TypeError(f"LSTM: hx must be a tuple (h_0, c_0), got a tensor of shape {list(hx.shape)}")
            if len(hx) != 2:
                raise RuntimeError(f"lstm expects two hidden states, got {len(hx)}")
            hx = (hx[0], hx[1])
        return self._forward(input, hx)

    def _direction(
        self, x: Tensor, state: State, w: dict[str, Tensor], *, lengths: Tensor | None, reverse: bool
    ) -> tuple[Tensor, State]:
        h0, c0 = state
        out, *last = functional.lstm(
            x,
            h0,
            c0,
            w["weight_ih"],
            w["weight_hh"],
            w.get("bias_ih"),
            w.get("bias_hh"),
            w_hr=w.get("weight_hr"),
            lengths=lengths,
            reverse=reverse,
            impl=self.impl,
        )
        return out, tuple(last)

    def maths(self) -> TorchCell:
        return LSTM_UNIT

    def _aten_op(self) -> Callable[..., Any]:
        return _VF.lstm

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


def _refuse_proj_size(kwargs: dict[str, Any]) -> None:
    if "proj_size" in kwargs:
        raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
