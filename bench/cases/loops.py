"""A cell called once a step from Python, as everybody writes it, and what a layer or such a loop is timed doing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

State = Tensor | tuple[Tensor, ...]


def over_cell(cell: nn.Module, x: Tensor) -> Tensor:
    """[T, B, H], from a zero state."""
    state, outs = None, []
    for step in x:
        state = cell(step, state)
        outs.append(first(state))
    return torch.stack(outs)


def first(state: State) -> Tensor:
    """A cell's output among its states, and a layer's among its results."""
    return state if isinstance(state, Tensor) else state[0]


def cell_of(layer: Any) -> nn.Module:
    """The cell of a defined layer, with the same numbers in it."""
    cell: nn.Module = type(layer).Cell(layer.input_size, layer.hidden_size)
    cell.load_state_dict({key.removesuffix("_l0"): value for key, value in layer.state_dict().items()})
    return cell


def both_ways(model: Callable[[Tensor], Any], parameters: Iterable[nn.Parameter], x: Tensor, d: Tensor) -> list[Tensor]:
    """The output and the gradients of the parameters."""
    out = first(model(x))
    return [out.detach(), *torch.autograd.grad(out, list(parameters), d)]
