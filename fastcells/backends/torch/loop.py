"""A cell over the whole sequence in torch's operators, with a backward written by hand."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from fastcells.backends.base import Gradients, Inputs, PreviousStates, Trace
from fastcells.spec import State


class Loop(ABC):
    """Forward and backward of one cell over time, without autograd.

    Dimensions: T time, B batch, H hidden, G gates. Past a row's length its state stands still and no gradient arises.
    """

    options: frozenset[str] = frozenset({"lengths"})  # of `Steps.options`, those that it knows

    @abstractmethod
    def forward(self, inputs: Inputs, save: bool) -> Trace:
        """All steps of a dense input projection."""

    @abstractmethod
    def backward(
        self, inputs: Inputs, trace: Trace, previous: PreviousStates, d_hidden: Tensor, d_last: State
    ) -> Gradients:
        """The adjoint of `forward`.

        The gates' gradients are linear in the state's, with factors known from the forward pass. The factors are
        computed for all steps at once; the loop is left with one product and one matmul a step.
        """

    def operands(self, gates: int, trace: Trace, previous: PreviousStates) -> list[tuple[int, Tensor]]:
        """As `Backend.operands`."""
        h = previous.cat
        return [(gates * h.shape[-1], h)]


def freeze_finished(mask: Tensor | None, t: int, new: Tensor, old: Tensor) -> None:
    """Put `old` back, in place, into the rows of `new` whose sequence has ended at step t. mask: bool [T, B, 1]."""
    if mask is not None:
        torch.where(mask[t], new, old, out=new)


def restart(resets: Tensor | None, t: int, state: Tensor) -> Tensor:
    """A state ahead of step t, or its gradient: zeros where an episode starts. resets: bool [T, B, 1]."""
    return state if resets is None else torch.where(resets[t], 0, state)


def own_output(hidden: Tensor, mask: Tensor | None, save: bool) -> Tensor:
    """The outputs for the caller; apart from `hidden` if that is saved for the backward."""
    if mask is not None:
        return torch.where(mask, hidden, 0)  # not a product: what stands in the padding may be NaN
    return hidden.clone() if save else hidden


def buffer_per_step(save: bool, T: int, *shape: int, like: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """A tensor, and its part for each step: its own part where it is saved, one that all steps share where not."""
    whole = like.new_empty(T if save else 1, *shape)
    return whole, whole.unbind(0) * (1 if save else T)
