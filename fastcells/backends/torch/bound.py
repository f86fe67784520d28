"""Calls of a loop over time whose tensors are looked up once, ahead of the loop."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from torch import Tensor

Views = Sequence[Tensor]  # a tensor for each step


class Bound(NamedTuple):
    """`function(*args, out=out)` with the tensors of each step."""

    function: Callable[..., object]
    args: Sequence[Sequence[Any]]
    out: Views


def bound(function: Callable[..., object], args: Iterable[Sequence[Any]], out: Views) -> Bound:
    """args: each argument's values, step by step."""
    return Bound(function, list(zip(*args, strict=True)) or [()] * len(out), out)


def run(calls: list[Bound], steps: Iterable[int]) -> None:
    """Those of each step, one after the other."""
    for t in steps:
        for function, args, out in calls:
            function(*args[t], out=out[t])


def each_step(tensor: Tensor, T: int) -> Views:
    """A tensor [T, ...] step by step; one that has no steps of its own, [1, ...], T times."""
    views = tensor.unbind(0)
    return views if len(views) == T else views * T


def before(after: Views, first: Tensor, reverse: bool) -> Views:
    """What stands there before each step, given what does after it, and before the first one that is walked."""
    return list(itertools.chain(after[1:], (first,)) if reverse else itertools.chain((first,), after[:-1]))
