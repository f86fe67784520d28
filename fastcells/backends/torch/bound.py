"""Calls of a loop over time whose tensors are looked up once, ahead of the loop."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence

from torch import Tensor

Views = Sequence[Tensor]  # a tensor for each step


class Bound:
    """`function(*args, out=out)` with the tensors of each step."""

    def __init__(self, function: Callable[..., object], args: Iterable[Views], out: Views) -> None:
        self.function, self.out = function, out
        self.args = list(zip(*args, strict=True)) or [()] * len(out)


def run(calls: list[Bound], t: int) -> None:
    """Those of step t, one after the other."""
    for call in calls:
        call.function(*call.args[t], out=call.out[t])


def each_step(tensor: Tensor, T: int) -> Views:
    """A tensor [T, ...] step by step; one that has no steps of its own, [1, ...], T times."""
    views = tensor.unbind(0)
    return views if len(views) == T else views * T


def before(after: Views, first: Tensor, reverse: bool) -> Views:
    """What stands there before each step, given what does after it, and before the first one that is walked."""
    return list(itertools.chain(after[1:], (first,)) if reverse else itertools.chain((first,), after[:-1]))
