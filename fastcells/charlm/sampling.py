"""Minibatches `(X, Y)` of token ids, each int64 [B, T], Y being X one character later.

Random sampling shuffles the corpus's stretches of T characters; neighbouring batches have nothing to do with each
other, so the state starts anew for each. Consecutive sampling cuts the corpus into B rows and reads them left to
right, so the state can be carried on from batch to batch (truncated backpropagation through time).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from fastcells.charlm.errors import InputError

SAMPLING = ("random", "consecutive")
Ids = Tensor | np.ndarray  # [N], of integers; an array may be mapped from a file
Batches = Iterator[tuple[Tensor, Tensor]]


def batches(ids: Ids, sampling: str, batch: int, steps: int, generator: torch.Generator, *, first: int = 0) -> Batches:
    """One epoch over ids [N], from batch number `first` on. What does not fill a batch is left out.

    generator: shuffles random sampling, in the same way whatever `first` is.

    Raises:
        InputError: fewer characters than one batch needs.
    """
    check_length(len(ids), sampling, batch, steps)
    if sampling == "random":
        return _random(ids, batch, steps, generator, first)
    return _consecutive(ids, batch, steps, first)


def batches_per_epoch(length: int, sampling: str, batch: int, steps: int) -> int:
    """How many batches `batches` yields for a corpus of `length` characters."""
    if sampling == "random":
        return (length - 1) // steps // batch
    return (length // batch - 1) // steps


def check_length(length: int, sampling: str, batch: int, steps: int) -> None:
    """Raise InputError unless a corpus of `length` characters fills one batch."""
    if sampling not in SAMPLING:
        raise InputError(f"sampling must be one of {', '.join(SAMPLING)}, got {sampling!r}")
    needed = batch * steps + 1 if sampling == "random" else batch * (steps + 1)
    if length < needed:
        raise InputError(
            f"the corpus has {length} characters, and one batch of {batch} x {steps} needs {needed} with {sampling} "
            "sampling: give a longer corpus, or make --batch or --steps smaller"
        )


def _random(ids: Ids, batch: int, steps: int, generator: torch.Generator, first: int) -> Batches:
    # int32 draws the same numbers as int64, in half of the memory.
    order = torch.randperm((len(ids) - 1) // steps, generator=generator, dtype=torch.int32)
    order = order.to(ids.device) if isinstance(ids, Tensor) else order
    offsets = torch.arange(steps + 1, device=order.device)
    for i in range(first, len(order) // batch):
        index = order[i * batch : (i + 1) * batch, None].long() * steps + offsets
        yield _pair(ids[index] if isinstance(ids, Tensor) else ids[index.numpy()])


def _consecutive(ids: Ids, batch: int, steps: int, first: int) -> Batches:
    rows = ids[: len(ids) // batch * batch].reshape(batch, -1)
    for start in range(first * steps, (rows.shape[1] - 1) // steps * steps, steps):
        yield _pair(rows[:, start : start + steps + 1])


def _pair(window: Ids) -> tuple[Tensor, Tensor]:
    """X and Y of [B, T + 1] ids."""
    window = as_tensor(window)
    return window[:, :-1], window[:, 1:]


def as_tensor(ids: Ids) -> Tensor:
    """int64, as layers and losses take them."""
    return ids.long() if isinstance(ids, Tensor) else torch.from_numpy(ids.astype(np.int64))
