"""What a cell has to state so that `recurrence.py` can run it over time in torch operators."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

State = tuple[Tensor, ...]  # (h,) or (h, c), each [B, H]


class Trace(NamedTuple):
    """What a forward pass over the sequence leaves behind."""

    hidden: Tensor  # [T, B, H] h after each step; a row whose sequence has ended holds its last h
    last: State  # the state after the last step, in memory of its own
    saved: tuple[Tensor, ...]  # what `TorchCell.backward` needs; empty unless asked for
    # [T, B, H] what the caller gets, zero where the mask is false, in memory that nobody else reads: he may change it
    # in place. None where `hidden` has to serve.
    out: Tensor | None = None


class Before:
    """A state before each step: those after the steps moved by one, with the initial one ahead.

    pieces: what makes it up along the time in which x is stored, [T', B, H] each. Who reads it piece by piece saves
    the copy that `whole`, [T, B, H], is.
    """

    def __init__(self, after: Tensor, first: Tensor, steps: range, resets: Tensor | None = None) -> None:
        """after: [T, B, H] state after each step. first: [B, H]. resets: bool [T, B, 1], true where zeros stand."""
        ahead = steps[0] == 0
        self.pieces: tuple[Tensor, ...] = (first.unsqueeze(0), after[:-1]) if ahead else (after[1:], first.unsqueeze(0))
        if resets is not None:
            self.pieces = (torch.where(resets, 0, self.whole),)

    @property
    def whole(self) -> Tensor:
        if len(self.pieces) > 1:
            self.pieces = (torch.cat(self.pieces),)
        return self.pieces[0]


class Gradients(NamedTuple):
    d_x: Tensor  # [T, B, G*H] with respect to the input projection
    d_gates: Tensor  # [T, B, G*H] with respect to h W_hh^T + b_hh, which gives dW_hh and db_hh
    d_state: State  # with respect to the initial state


class TorchCell(ABC):
    """One cell's maths: a differentiable step, and the same over the whole sequence with a backward written by hand.

    Dimensions: T time, B batch, H hidden, G gates. `steps` is the order in which time is walked; `mask` is None
    or bool [T, B, 1], false where a sequence has ended: there the state stands still and no gradient arises.
    """

    name: str
    gates: int
    states: int = 1
    knows_resets = False  # whether forward and backward take `resets`, bool [T, B, 1]
    plain_operators = True  # whether a caller who asked for this cell may get `step` in a plain loop instead

    @abstractmethod
    def step(self, x: Tensor, state: State, w_hh: Tensor, b_hh: Tensor | None) -> State:
        """One step in differentiable operators. x: [B, G*H], the input projection with its bias."""

    @abstractmethod
    def forward(
        self, x: Tensor, state: State, w_hh: Tensor, b_hh: Tensor | None, steps: range, mask: Tensor | None, save: bool
    ) -> Trace:
        """All steps, without autograd. x: [T, B, G*H]."""

    @abstractmethod
    def backward(
        self,
        d_hidden: Tensor,  # [T, B, H]
        d_last: State,
        saved: tuple[Tensor, ...],
        hidden: Tensor,  # [T, B, H] h after each step
        before: Before,
        state: State,  # the initial state
        w_hh: Tensor,
        steps: range,
        mask: Tensor | None,
    ) -> Gradients:
        """The adjoint of `forward`, without autograd. before: of h.

        The gates' gradients are linear in the state's, with factors known from the forward pass. The factors are
        computed for all steps at once; the loop is left with one product and one matmul a step.
        """

    def weight_gradient(self, d_gates: Tensor, before: Before, saved: tuple[Tensor, ...]) -> Tensor:
        """dW_hh [G*H, H], by one matmul over all steps."""
        return d_gates.flatten(0, 1).t() @ before.whole.flatten(0, 1)

    def weight_gradients(
        self, d_gates: Tensor, before: Before, saved: tuple[Tensor, ...], needs_w: bool, needs_b: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """dW_hh and db_hh [G*H], those that are needed."""
        d_w = self.weight_gradient(d_gates, before, saved) if needs_w else None
        return d_w, d_gates.sum((0, 1)) if needs_b else None


def hold(mask: Tensor | None, t: int, new: Tensor, old: Tensor) -> None:
    """Put `old` back, in place, into the rows of `new` whose sequence has ended at step t."""
    if mask is not None:
        torch.where(mask[t], new, old, out=new)


def own_output(hidden: Tensor, mask: Tensor | None, save: bool) -> Tensor:
    """The outputs for the caller; apart from `hidden` if that is saved for the backward."""
    if mask is not None:
        return torch.where(mask, hidden, 0)  # not a product: what stands in the padding may be NaN
    return hidden.clone() if save else hidden


def scratch(save: bool, steps: int, *shape: int, like: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """A tensor, and its part for each step: its own part where it is saved, one that all steps share where not."""
    whole = like.new_empty(steps if save else 1, *shape)
    return whole, whole.unbind(0) * (1 if save else steps)
