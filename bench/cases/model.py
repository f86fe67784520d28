"""What a contender makes of a task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from bench.cases.task import Input, Task
from fastcells.backends.base import Choice

Gradients = Sequence[Tensor]


class Skipped(Exception):
    """A contender cannot run this case here; the message says why."""


@dataclass(frozen=True)
class Model:
    """A contender's layer (or cell) for one task.

    forward: the output for the task's input, without the final state. parameters: the leaves it trains.
    to_torch: their gradients in torch.nn's order and layout. choice: which implementation of ours runs.
    """

    forward: Callable[[Input], Tensor]
    parameters: Sequence[Tensor]
    module: nn.Module | None = None
    to_torch: Callable[[Gradients], Gradients] = list
    choice: Choice | None = None


Build = Callable[[Task], Model]


def whole_layer(task: Task) -> None:
    """Raise Skipped unless the case is one layer, one direction, over whole sequences."""
    case = task.case
    if case.layers > 1 or case.bidirectional or case.packed or case.mode in ("cell step", "generate"):
        raise Skipped("one layer, one direction and whole sequences only")
