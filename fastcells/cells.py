"""The cells `RNNCell`, `GRUCell` and `LSTMCell`: one step, in place of their torch.nn namesakes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import _VF, Tensor
from torch.nn.modules.rnn import RNNCellBase

from fastcells import dispatch
from fastcells.functional import input_projection, own_recurrence
from fastcells.token_ids import check_range, is_token_ids
from fastcells.torch_impl.cell import TorchCell
from fastcells.torch_impl.gru import GRU_RESET_AFTER, GRU_RESET_BEFORE
from fastcells.torch_impl.lstm import LSTM as LSTM_UNIT
from fastcells.torch_impl.rnn import RNN_RELU, RNN_TANH


class Cell(RNNCellBase, ABC):
    """What the three cells share: checking and shaping the input, and the step that ATen has not."""

    impl: str = "auto"
    reset_after: bool = True
    label: ClassVar[str]
    states: ClassVar[int] = 1

    def extra_repr(self) -> str:
        extra = super().extra_repr()
        extra += "" if self.reset_after else ", reset_after=False"
        return extra if self.impl == "auto" else f"{extra}, impl={self.impl!r}"

    def choose(self, input: Tensor) -> dispatch.Choice:
        """Which implementation `forward(input)` runs, and why."""
        if self.impl == "auto":
            return dispatch.automatic(is_token_ids(input), self.reset_after)
        ids = is_token_ids(input)
        batched = input.dim() == (1 if ids else 2)
        return dispatch.choose(
            impl=self.impl,
            token_ids=ids,
            w_hh=self.weight_hh,
            reset_after=self.reset_after,
            batch=len(input) if batched else 1,
        )

    def _step(self, input: Tensor, hx: tuple[Tensor, ...] | None) -> tuple[Tensor, ...]:
        features = 0 if is_token_ids(input) else 1
        dim = input.dim()
        if dim not in (features, features + 1):
            kind = "token ids to be 0D or 1D" if features == 0 else "input to be 1D or 2D"
            raise ValueError(f"{self.label}: Expected {kind}, got {dim}D instead")
        if hx is not None:
            for i, s in enumerate(hx):
                if s.dim() not in (1, 2):
                    name = "hidden" if self.states == 1 else f"hx[{i}]"
                    raise ValueError(f"{self.label}: Expected {name} to be 1D or 2D, got {s.dim()}D instead")
        if features == 0:
            check_range(input, self.input_size)
        batched = dim == features + 1
        x = input if batched else input.unsqueeze(0)
        if hx is None:
            dtype = x.dtype if features else self.weight_hh.dtype
            hx = (x.new_zeros(x.shape[0], self.hidden_size, dtype=dtype),) * self.states
        elif not batched:
            hx = tuple(s.unsqueeze(0) for s in hx)
        choice = self.choose(input)
        new = self._aten(x, hx) if choice.path == "aten" else self._own(choice, x, hx)
        return new if batched else tuple(s.squeeze(0) for s in new)

    def _own(self, choice: dispatch.Choice, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        sizes = (x.shape[0], self.hidden_size)
        for s in state:
            if s.shape != sizes:
                raise RuntimeError(f"hidden must be [B, H] = {list(sizes)}, got {list(s.shape)}")
        w_ih, w_hh, b_ih, b_hh = self._weights()
        cell = self._maths()
        if choice.impl == "torch":
            return cell.step(input_projection(x, w_ih, b_ih), state, w_hh, b_hh)
        return own_recurrence(cell, choice, x.unsqueeze(0), state, (w_ih, w_hh, b_ih, b_hh))[1]

    def _weights(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        return self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh

    @abstractmethod
    def _maths(self) -> TorchCell: ...

    @abstractmethod
    def _aten(self, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]: ...


class RNNCell(Cell):
    """`torch.nn.RNNCell(input_size, hidden_size, bias, nonlinearity)`: `h' = act(W_ih x + b_ih + W_hh h + b_hh)`.

    Input [B, I] or [I], or integer token ids [B] or [], which mean `one_hot(ids, input_size)`; hx [B, H] or [H].
    Returns h' of hx's shape. Keyword-only: impl. Equations: documentation of torch.nn.RNNCell.
    """

    label = "RNNCell"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        impl: str = "auto",
    ) -> None:
        dispatch.check_impl(impl)
        super().__init__(input_size, hidden_size, bias, num_chunks=1, device=device, dtype=dtype)
        self.nonlinearity = nonlinearity
        self.impl = impl

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """As torch's cell: see the class."""
        if self.nonlinearity not in ("tanh", "relu"):
            raise RuntimeError(f"Unknown nonlinearity: {self.nonlinearity}")
        return self._step(input, None if hx is None else (hx,))[0]

    def _maths(self) -> TorchCell:
        return RNN_TANH if self.nonlinearity == "tanh" else RNN_RELU

    def _aten(self, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        op = _VF.rnn_tanh_cell if self.nonlinearity == "tanh" else _VF.rnn_relu_cell
        return (op(x, state[0], *self._weights()),)


class GRUCell(Cell):
    """`torch.nn.GRUCell(input_size, hidden_size, bias)`, or with `reset_after=False` the reset-before GRU.

    Input [B, I] or [I], or integer token ids [B] or [], which mean `one_hot(ids, input_size)`; hx [B, H] or [H].
    Returns h' of hx's shape. Keyword-only: reset_after, impl; see `fastcells.GRU`.
    Equations: documentation of torch.nn.GRUCell; Cho et al. 2014 (arXiv 1406.1078v3), equations 5 to 8.
    """

    label = "GRUCell"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        reset_after: bool = True,
        impl: str = "auto",
    ) -> None:
        dispatch.check_impl(impl)
        if not isinstance(reset_after, bool):
            raise TypeError(f"reset_after should be of type bool, got: {type(reset_after).__name__}")
        super().__init__(input_size, hidden_size, bias, num_chunks=3, device=device, dtype=dtype)
        self.reset_after = reset_after
        self.impl = impl

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """As torch's cell: see the class."""
        return self._step(input, None if hx is None else (hx,))[0]

    def _maths(self) -> TorchCell:
        return GRU_RESET_AFTER if self.reset_after else GRU_RESET_BEFORE

    def _aten(self, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (_VF.gru_cell(x, state[0], *self._weights()),)


class LSTMCell(Cell):
    """`torch.nn.LSTMCell(input_size, hidden_size, bias)`.

    Input [B, I] or [I], or integer token ids [B] or [], which mean `one_hot(ids, input_size)`; hx (h, c), each
    [B, H] or [H]. Returns (h', c'). Keyword-only: impl. Equations: documentation of torch.nn.LSTMCell.
    """

    label = "LSTMCell"
    states = 2

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        impl: str = "auto",
    ) -> None:
        dispatch.check_impl(impl)
        super().__init__(input_size, hidden_size, bias, num_chunks=4, device=device, dtype=dtype)
        self.impl = impl

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """As torch's cell: see the class."""
        h, c = self._step(input, None if hx is None else tuple(hx))
        return h, c

    def _maths(self) -> TorchCell:
        return LSTM_UNIT

    def _aten(self, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        h, c = _VF.lstm_cell(x, state, *self._weights())
        return h, c
