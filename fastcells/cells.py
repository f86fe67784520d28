"""The cells `RNNCell`, `GRUCell` and `LSTMCell`: one step, in place of their torch.nn namesakes."""

from __future__ import annotations

from typing import ClassVar, NoReturn

import torch
from torch import _VF, Tensor
from torch.nn.modules.rnn import RNNCellBase

from fastcells import dispatch, inference, one_direction
from fastcells.backends.base import IN_ONE_CALL, Call, Choice, LayerWeights, Steps
from fastcells.modes import mapped
from fastcells.spec import GRU_RESET_AFTER, GRU_RESET_BEFORE, RNN_RELU, RNN_TANH, CellSpec, RecurrentWeights, State
from fastcells.spec import LSTM as LSTM_SPEC
from fastcells.token_ids import ID_DTYPES, check_range, is_token_ids, one_hot

Weights = tuple[Tensor, Tensor, Tensor | None, Tensor | None]  # w_ih, w_hh, b_ih, b_hh
ONE_STEP = Steps()


class Cell(RNNCellBase):
    """What the three cells share: checking and shaping the input, and the step that ATen has not."""

    impl: str = "auto"
    reset_after: bool = True
    in_aten: ClassVar[bool] = True  # whether ATen has such a cell
    label: ClassVar[str]
    states: ClassVar[int] = 1

    def extra_repr(self) -> str:
        extra = super().extra_repr()
        extra += "" if self.reset_after else ", reset_after=False"
        return extra if self.impl == "auto" else f"{extra}, impl={self.impl!r}"

    def __prepare_scriptable__(self) -> NoReturn:
        """What torch.jit.script asks for first. A twin returned here would replace this cell in the user's model."""
        dispatch.refuse_script(self)

    def _explain(self, input: Tensor) -> dispatch.Explanation:
        """Which implementation `forward(input)` runs, and why."""
        ids = is_token_ids(input)
        x = input if input.dim() + ids == 2 else input.unsqueeze(0)
        return dispatch.Explanation(cell=self._choose(x, ids, self._weights()))

    def _choose(self, x: Tensor, ids: bool, weights: Weights) -> Choice:
        return dispatch.choose(
            Call(self.impl, self._spec(), ids, 1, x.size(0), weights[0], weights[1], input_type=type(x))
        )

    def _step(self, input: Tensor, hx: State | None) -> State:
        """`forward`, the state being a tuple."""
        try:
            return inference.cell(self, input, hx) or self._step_unchecked(input, hx)
        except IndexError:
            if is_token_ids(input):
                check_range(input, self.input_size)  # raises, with the position in the caller's own tensor
            raise

    def _step_unchecked(self, input: Tensor, hx: State | None) -> State:
        ids = input.dtype in ID_DTYPES
        dim = input.dim() + ids
        if dim not in (1, 2):
            kind = "token ids to be 0D or 1D" if ids else "input to be 1D or 2D"
            raise ValueError(f"{self.label}: Expected {kind}, got {input.dim()}D instead")
        x = input if dim == 2 else input.unsqueeze(0)
        weights = self._weights()
        if hx is None:
            zeros = x.new_zeros(x.size(0), self.hidden_size, dtype=weights[1].dtype if ids else x.dtype)
            state: State = (zeros,) * self.states
        else:
            self._check_state(hx, input, dim)
            state = hx if dim == 2 else tuple(s.unsqueeze(0) for s in hx)
        watched = mapped()
        if self.impl in ("auto", "torch") and self.in_aten and not ids and self.reset_after and not watched:
            new = self._aten(x, state, weights)  # the shortest way
        else:
            choice = self._choose(x, ids, weights)
            if choice.path in IN_ONE_CALL:
                new = self._aten(one_hot(x, self.input_size, weights[0]) if ids else x, state, weights)
            else:
                new = self._own(choice, x, state, weights)
        return new if dim == 2 else tuple(s.squeeze(0) for s in new)

    def _check_state(self, hx: State, input: Tensor, dim: int) -> None:
        """Raise what torch's cell raises on a number of dimensions, and where ATen would end the process instead."""
        for i, s in enumerate(hx):
            if s.dim() == dim:
                continue
            name = "hidden" if self.states == 1 else f"hx[{i}]"
            if s.dim() not in (1, 2):
                raise ValueError(f"{self.label}: Expected {name} to be 1D or 2D, got {s.dim()}D instead")
            if dim == 1 and s.size(0) == self.hidden_size:  # which looks to ATen like a batch of one
                raise RuntimeError(
                    f"{self.label}: Expected {name} to be 1D for unbatched input of shape {list(input.shape)}, "
                    f"got {list(s.shape)}"
                )

    def _own(self, choice: Choice, x: Tensor, state: State, weights: Weights) -> State:
        sizes = (x.size(0), self.hidden_size)
        for s in state:
            if s.shape != sizes:
                raise RuntimeError(f"hidden must be [B, H] = {list(sizes)}, got {list(s.shape)}")
            if s.device != x.device:
                raise RuntimeError(f"hidden is on {s.device} and the input on {x.device}")
        w_ih, _, b_ih, _ = weights
        recurrent = self._recurrent(weights)
        if choice.impl == "torch":
            return self._spec().step(choice.backend.project(choice, x, w_ih, b_ih), state, recurrent)
        layer = LayerWeights(w_ih, b_ih, recurrent)
        return one_direction.run(choice, self._spec(), x.unsqueeze(0), state, layer, ONE_STEP)[1]

    def _weights(self) -> Weights:
        own = self._parameters
        try:  # Module.__getattr__ costs more than a small step
            return own["weight_ih"], own["weight_hh"], own["bias_ih"], own["bias_hh"]  # type: ignore[return-value]
        except KeyError:  # a parametrization, weight norm or pruning has put something else in a parameter's place
            return self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh

    def _recurrent(self, weights: Weights) -> RecurrentWeights:
        return RecurrentWeights(weights[1], weights[3])

    def _spec(self) -> CellSpec:
        raise NotImplementedError

    def _aten(self, x: Tensor, state: State, weights: Weights) -> State:
        raise NotImplementedError


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

    def _spec(self) -> CellSpec:
        return RNN_TANH if self.nonlinearity == "tanh" else RNN_RELU

    def _aten(self, x: Tensor, state: State, weights: Weights) -> State:
        op = _VF.rnn_tanh_cell if self.nonlinearity == "tanh" else _VF.rnn_relu_cell
        return (op(x, state[0], *weights),)


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

    def _spec(self) -> CellSpec:
        return GRU_RESET_AFTER if self.reset_after else GRU_RESET_BEFORE

    def _aten(self, x: Tensor, state: State, weights: Weights) -> State:
        return (_VF.gru_cell(x, state[0], *weights),)


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
        if hx is not None:
            if isinstance(hx, Tensor):
                raise TypeError(f"LSTMCell: hx must be a tuple (h, c), got a tensor of shape {list(hx.shape)}")
            if len(hx) != 2:
                raise RuntimeError(f"lstm_cell expects two hidden states, got {len(hx)}")
            hx = (hx[0], hx[1])
        h, c = self._step(input, hx)
        return h, c

    def _spec(self) -> CellSpec:
        return LSTM_SPEC

    def _aten(self, x: Tensor, state: State, weights: Weights) -> State:
        h, c = _VF.lstm_cell(x, state, *weights)
        return h, c


inference.SHORT.update((RNNCell, GRUCell, LSTMCell))
