"""What the cell classes that `fastcells.define` makes have in common."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fastcells import dispatch
from fastcells.cells import Cell, Weights
from fastcells.defined.kinds import Kind
from fastcells.spec import CellSpec, RecurrentWeights, State


class DefinedCell(Cell):
    """One step of a defined cell, used as `fastcells.GRUCell` is.

    Input [B, I] or [I], or integer token ids [B] or [], which mean `one_hot(ids, input_size)`; hx [B, H] or [H], of a
    cell with several states a tuple of them. Returns the new state in hx's form. Keyword-only: num_heads, impl.
    """

    kind: ClassVar[Kind]
    num_heads: int = 1
    in_aten = False

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        num_heads: int = 1,
        impl: str = "auto",
    ) -> None:
        dispatch.check_impl(impl)
        super().__init__(
            input_size, hidden_size, bias, num_chunks=len(self.kind.rule.gates), device="meta", dtype=dtype
        )
        self.kind.check_heads(num_heads, hidden_size)
        self.num_heads, self.impl = num_heads, impl
        for name, shape in self.kind.parameters(self._spec(), input_size, hidden_size, bias).items():
            self.register_parameter(name, nn.Parameter(torch.empty(shape, device=device, dtype=dtype)))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As torch.nn's, and what the definition says of some values."""
        super().reset_parameters()
        for name, parameter in self.named_parameters(recurse=False):
            self.kind.begin(name, parameter)

    def _get_name(self) -> str:
        return self.label

    def extra_repr(self) -> str:
        return super().extra_repr() + (f", num_heads={self.num_heads}" if self.num_heads > 1 else "")

    def forward(self, input: Tensor, hx: Any = None) -> Any:
        """As `fastcells.GRUCell`'s: see the class."""
        hx = self.kind.given_states(self.label, "hx", hx)
        new = self._step(input, (hx,) if isinstance(hx, Tensor) else hx)
        return new if len(new) > 1 else new[0]

    def _recurrent(self, weights: Weights) -> RecurrentWeights:
        return RecurrentWeights(weights[1], weights[3], None, tuple(getattr(self, p) for p in self.kind.rule.extra))

    def _spec(self) -> CellSpec:
        return self.kind.spec(self.num_heads)

    def _aten(self, x: Tensor, state: State, weights: Weights) -> State:
        raise AssertionError("ATen has no defined cell")
