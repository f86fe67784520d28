"""One layer of a stack: its directions one after the other, or both at once where that is what was chosen."""

from __future__ import annotations

import torch
from torch import Tensor

from fastcells import both_directions, one_direction
from fastcells.backends.base import Choice, LayerWeights, Steps
from fastcells.spec import CellSpec, State


def run(
    choices: list[Choice],
    spec: CellSpec,
    x: Tensor,
    state: State,
    first: int,
    weights: list[LayerWeights],
    steps: Steps,
) -> tuple[Tensor, list[State]]:
    """Each direction by the implementation that was chosen for it.

    x: [T, B, I], or ids [T, B]. state: of the whole stack, each [rows, B, H]; first: the layer's first row in it.
    Returns the outputs [T, B, H], of two directions side by side, and each direction's final state.
    """
    if choices[0].directions == 2:
        start = tuple(s[first : first + 2] for s in state)
        out, last = both_directions.run(choices[0], spec, x, start, weights, steps)
        return out, list(zip(*(s.unbind() for s in last), strict=True))
    outs, ends = [], []
    for i, (choice, w) in enumerate(zip(choices, weights, strict=True)):
        start = tuple(s[first + i] for s in state)
        out, end = one_direction.run(choice, spec, x, start, w, steps._replace(reverse=i == 1))
        outs.append(out)
        ends.append(end)
    return torch.cat(outs, -1) if len(outs) > 1 else outs[0], ends


def together(choices: list[Choice]) -> list[Choice]:
    """Of a layer's directions; where its backend runs both at once, that choice in the place of either."""
    if len(choices) == 2 and choices[0].backend is choices[1].backend:
        both = choices[0].backend.both(*choices)
        if both is not None:
            return [both, both]
    return choices
