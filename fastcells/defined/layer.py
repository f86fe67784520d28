"""What the layer classes that `fastcells.define` makes have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from fastcells import initial_state
from fastcells.backends.base import Steps
from fastcells.call_options import Given, Masks, lengths_of
from fastcells.defined.cell import DefinedCell
from fastcells.defined.kinds import Kind
from fastcells.defined.without_projection import without_projection
from fastcells.regularised import rates
from fastcells.spec import CellSpec
from fastcells.stack import Layer


class DefinedLayer(Layer):
    """A stack of layers and directions of a defined cell, used as `fastcells.GRU` is.

    Input, packed batches, token ids, lengths, resets, masks, dropout, results and state_dict are those of
    `fastcells.GRU`; a cell with several states takes and returns a tuple of them, as an LSTM does. Each layer and
    direction has weight_ih_l0 [G*H, I], weight_hh_l0, bias_ih_l0 and bias_hh_l0 [G*H], and its extra parameters [H],
    as `p_l0`. weight_hh_l0 is [G*H, H]; of a cell with diagonal recurrent weights [G*H]; with heads
    [num_heads, G*D, D], D = H / num_heads.

    Keyword-only: num_heads, of a cell with heads; recurrent_dropout, zoneout (of the first state), weight_dropout,
    impl and learned_state as `fastcells.GRU`.
    """

    kind: ClassVar[Kind]
    Cell: ClassVar[type[DefinedCell]]
    num_heads: int = 1

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        num_heads: int = 1,
        recurrent_dropout: float = 0.0,
        zoneout: float = 0.0,
        weight_dropout: float = 0.0,
        impl: str = "auto",
        learned_state: bool = False,
    ) -> None:
        given = rates(recurrent_dropout=recurrent_dropout, zoneout=zoneout, weight_dropout=weight_dropout)
        stack = (input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional)
        # Checked by torch, and made without memory: the parameters follow.
        super().__init__("RNN_TANH", *stack, rates=given, impl=impl, device="meta", dtype=dtype)
        self.kind.check_heads(num_heads, hidden_size)
        self.mode, self.num_heads = self.kind.name, num_heads
        for index, names in enumerate(self._all_weights):
            suffix = names[0].removeprefix("weight_ih_")
            inputs = input_size if index < self._directions else hidden_size * self._directions
            shapes = self.kind.parameters(self._spec(), inputs, hidden_size, bias)
            for name, shape in shapes.items():
                value = torch.empty(shape, device=device, dtype=dtype)
                self.register_parameter(f"{name}_{suffix}", nn.Parameter(value))
            names[:] = [f"{name}_{suffix}" for name in shapes]
        self._flat_weights_names = [name for names in self._all_weights for name in names]
        self._init_flat_weights()
        if learned_state:
            initial_state.register(self)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As torch.nn's, and what the definition says of some values."""
        super().reset_parameters()
        if self.mode != self.kind.name:  # torch's constructor, ahead of the parameters
            return
        for names in self._all_weights:
            suffix = names[0].removeprefix("weight_ih")
            for name in names:
                self.kind.begin(name.removesuffix(suffix), getattr(self, name))

    def extra_repr(self) -> str:
        return super().extra_repr() + (f", num_heads={self.num_heads}" if self.num_heads > 1 else "")

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Any = None,
        *,
        lengths: Any = None,
        resets: Tensor | None = None,
        reset_state: Any = None,
        mask: Tensor | None = None,
        masks: Masks | None = None,
    ) -> tuple[Any, Any]:
        """As `fastcells.GRU`'s, hx and reset_state being tuples where the cell has several states."""
        hx = self._states("hx", hx)
        if lengths is None and resets is None and reset_state is None and mask is None and masks is None:
            return self._forward(input, hx)
        lengths = lengths if mask is None else lengths_of(mask, self.batch_first, lengths)
        start = self._states("reset_state", reset_state)
        start = (start,) if isinstance(start, Tensor) else start
        return self._forward(input, hx, Given(lengths, resets, start, masks))

    @classmethod
    def recurrence(
        cls,
        x: Tensor,
        hx: Any = None,
        *,
        weight_hh: Tensor,
        bias_hh: Tensor | None = None,
        extra: Mapping[str, Tensor] | None = None,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
        reverse: bool = False,
        impl: str = "auto",
    ) -> tuple[Tensor, Any]:
        """The cell over time without an input projection, as a function: x is what the gates read beside h.

        Args:
            x: [T, B, G*H]. hx: each state [B, H], or None for zeros.
            weight_hh, bias_hh, extra: as the layer's of one layer and direction; the heads are those of weight_hh.
            lengths: int [B]. resets: bool [T, B]. reverse: walk time from the last step to the first.

        Returns: out [T, B, H] and the final state in hx's form.
        """
        states = cls.kind.given_states(cls.label, "hx", hx)
        single = len(cls.kind.rule.states) == 1
        states = (states,) if single else states or (None,) * len(cls.kind.rule.states)
        steps = Steps(reverse, lengths, resets)
        out, last = without_projection(cls.kind, x, states, weight_hh, bias_hh, dict(extra or {}), steps, impl)
        return out, last[0] if single else last

    def _states(self, name: str, given: Any) -> Any:
        return self.kind.given_states(self.label, name, given)

    def _spec(self) -> CellSpec:
        return self.kind.spec(self.num_heads)

    def check_forward_args(self, input: Tensor, hidden: Any, batch_sizes: Tensor | None) -> None:
        """As torch.nn.GRU's: `check_input`, and the size of each state."""
        self.check_input(input, batch_sizes)
        expected = self.get_expected_hidden_size(input, batch_sizes)
        for name, each in zip(self._spec().states, _tuple(hidden), strict=True):
            self.check_hidden_size(each, expected, f"Expected {name} size {{}}, got {{}}")

    def permute_hidden(self, hx: Any, permutation: Tensor | None) -> Any:
        """As torch.nn.GRU's: the rows of each state in another order."""
        if permutation is None:
            return hx
        moved = tuple(s.index_select(1, permutation) for s in _tuple(hx))
        return moved if isinstance(hx, tuple) else moved[0]

    def _zeros(self, data: Tensor, ids: bool, batch: Any, weight: Tensor) -> Any:
        zeros = super()._zeros(data, ids, batch, weight)
        count = self._spec().num_states
        return (zeros,) * count if count > 1 else zeros

    def _check_state_dim(self, hx: Any, dim: int) -> None:
        for each in _tuple(hx):
            super()._check_state_dim(each, dim)


def _tuple(hx: Any) -> tuple[Tensor, ...]:
    return hx if isinstance(hx, tuple) else (hx,)
