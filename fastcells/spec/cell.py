"""What a cell is: its name, its gates and states, and one step of it in torch operators."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from fastcells.defined.rule import Rule
from fastcells.spec.recurrent import DENSE, RecurrentProduct

State = tuple[Tensor, ...]  # one tensor for each of a cell's states, [B, H] each


class RecurrentWeights(NamedTuple):
    """What a step multiplies its state by, and adds to that."""

    w_hh: Tensor  # [G*H, H], G being the number of gates; another shape where `CellSpec.recurrent` says so
    b_hh: Tensor | None = None  # [G*H]
    w_hr: Tensor | None = None  # [P, H], an LSTM's projection (`proj_size=P`): h and W_hh's columns are then P wide
    extra: tuple[Tensor, ...] = ()  # further parameters, in the order of `CellSpec.extra`
    mask: Tensor | None = None  # [B, H] variational dropout: what h is multiplied with ahead of W_hh, at each step

    def masked(self, h: Tensor) -> Tensor:
        """h [B, H] as W_hh multiplies it."""
        return h if self.mask is None else h * self.mask


@dataclass(frozen=True)
class CellSpec:
    """The definition of a cell. It names no implementation; each of them states the same equations in its own language.

    `step(x, state, weights)` is one step in differentiable operators. x: [B, G*H], the input projection
    `W_ih x + b_ih`. Returns the new state; its first tensor is the step's output.
    """

    name: str
    gates: tuple[str, ...]  # in the order of their rows in the weights
    states: tuple[str, ...]  # the first is the output
    step: Callable[[Tensor, State, RecurrentWeights], State]
    # What a kernel keeps of each step for the backward, [B, H] each, besides the states.
    saved: tuple[str, ...] = ()
    # Whether the gradient with respect to the input projection is also the one with respect to `W_hh h + b_hh`.
    same_gradient: bool = True
    extra: tuple[str, ...] = ()  # names of further parameters, beside W_ih, W_hh, b_ih and b_hh
    # What becomes of the input projection of all steps before the first of them: [T, B, G*H] to the same; or None.
    project: Callable[[Tensor, RecurrentWeights], Tensor] | None = None
    recurrent: RecurrentProduct = DENSE
    two_products: bool = False  # whether the last gate's rows of W_hh are multiplied with something else than h
    rule: Rule | None = None  # of a cell that a user has defined: what its step was derived from
    digest: str = ""  # of that cell's equations, since another one may have its name

    @property
    def key(self) -> str:
        """What kernels and measurements know the cell by: its name; of a defined one also its digest."""
        return f"{self.name}-{self.digest}" if self.digest else self.name

    @property
    def kinked(self) -> bool:
        """Whether a slope jumps somewhere, so that rounding decides on which side of it a unit is."""
        return self.name == "rnn_relu" if self.rule is None else self.rule.kinked

    @property
    def num_gates(self) -> int:
        return len(self.gates)

    @property
    def num_states(self) -> int:
        return len(self.states)

    @property
    def num_extra(self) -> int:
        return len(self.extra)

    @property
    def num_saved(self) -> int:
        return len(self.saved)
