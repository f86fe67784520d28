"""Shapes and cells that several test files run over, as data."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from fastcells import functional, reference
from fastcells.spec import GRU_RESET_AFTER, GRU_RESET_BEFORE, LSTM, RNN_RELU, RNN_TANH, CellSpec


class Shape(NamedTuple):
    T: int
    B: int
    H: int
    I: int  # noqa: E741 the project's letter for the input size

    def __str__(self) -> str:
        return f"T{self.T}-B{self.B}-H{self.H}-I{self.I}"


SHAPES = [
    Shape(9, 16, 24, 5),  # aligned
    Shape(9, 5, 7, 5),  # ragged
    Shape(2, 33, 7, 1),
    Shape(2, 5, 24, 5),
    Shape(1, 16, 7, 5),  # size 1, in every place
    Shape(9, 1, 24, 1),
    Shape(9, 5, 1, 5),
    Shape(1, 1, 1, 1),
]
SMALL = Shape(4, 3, 2, 2)  # for whole Jacobians


@dataclass(frozen=True)
class Case:
    """One of the five cells, by its functional form and its option."""

    name: str
    form: str
    spec: CellSpec
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def states(self) -> int:
        return self.spec.num_states

    def ours(self, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        out: tuple[Tensor, ...] = getattr(functional, self.form)(*args, **self.options, **kwargs)
        return out

    def textbook(self, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        out: tuple[Tensor, ...] = getattr(reference, self.form)(*args, **self.options, **kwargs)
        return out

    def arguments(self, shape: Shape, dtype: torch.dtype = torch.float64, grad: bool = True) -> list[Tensor]:
        """x, the initial states, w_ih, w_hh, b_ih and b_hh; leaves that require a gradient if `grad`."""
        T, B, H, I = shape  # noqa: E741
        rows = self.spec.num_gates * H
        sizes = [(T, B, I), *[(B, H)] * self.states, (rows, I), (rows, H), (rows,), (rows,)]
        scales = [1.0] * (1 + self.states) + [I**-0.5, H**-0.5, 1.0, 1.0]
        values = (torch.randn(s, dtype=torch.float64) * scale for s, scale in zip(sizes, scales, strict=True))
        return [v.to(dtype).requires_grad_(grad) for v in values]


CELLS = [
    Case("rnn_tanh", "rnn", RNN_TANH, {"nonlinearity": "tanh"}),
    Case("rnn_relu", "rnn", RNN_RELU, {"nonlinearity": "relu"}),
    Case("gru_reset_after", "gru", GRU_RESET_AFTER),
    Case("gru_reset_before", "gru", GRU_RESET_BEFORE, {"reset_after": False}),
    Case("lstm", "lstm", LSTM),
]
EACH_CELL = pytest.mark.parametrize("case", CELLS, ids=lambda case: case.name)


def in_turn(*axes: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Each combination of the axes but the last, whose values take turns: every two values of two axes meet.

    One of the other axes has to be as long as the last.
    """
    *others, last = axes
    numbered = itertools.product(*map(enumerate, others))
    return [(*(value for _, value in each), last[sum(n for n, _ in each) % len(last)]) for each in numbered]


def name_of(value: Any) -> str | None:
    """What a test's name says of a value; None: pytest's own way."""
    if isinstance(value, tuple):
        return "-".join(f"{letter}{size}" for letter, size in zip("TBHI", value, strict=False))
    return getattr(value, "name", None)


def gradients(outputs: tuple[Tensor, ...], inputs: list[Tensor], d_outputs: list[Tensor]) -> list[Tensor]:
    """Of all inputs; zeros where an input plays no part."""
    return list(torch.autograd.grad(outputs, inputs, d_outputs, materialize_grads=True))
