"""Minibatches `(X, Y)` of token ids, each int64 [B, T], Y being X one character later.

Random sampling shuffles the corpus's stretches of T characters; neighbouring batches have nothing to do with each
other, so the state starts anew for each. Consecutive sampling cuts the corpus into B rows and reads them left to
right, so the state can be carried on from batch to batch (truncated backpropagation through time).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fastcells.charlm.errors import InputError

SAMPLING = ("random", "consecutive")
Batches = Iterator[tuple[Tensor, Tensor]]


def batches(ids: Tensor, sampling: str, batch: int, steps: int, generator: torch.Generator) -> Batches:
    """One epoch over ids [N]. `generator` shuffles random sampling; what does not fill a batch is left out.

    Raises:
        InputError: fewer characters than one batch needs.
    """
    check_length(len(ids), sampling, batch, steps)
    if sampling == "random":
        return _random(ids, batch, steps, generator)
    return _consecutive(ids, batch, steps)


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


def _random(ids: Tensor, batch: int, steps: int, generator: torch.Generator) -> Batches:
    starts = torch.randperm((len(ids) - 1) // steps, generator=generator).to(ids.device) * steps
    offsets = torch.arange(steps, device=ids.device)
    for i in range(len(starts) // batch):
        index = starts[i * batch : (i + 1) * batch, None] + offsets
        yield ids[index], ids[index + 1]


def _consecutive(ids: Tensor, batch: int, steps: int) -> Batches:
    rows = ids[: len(ids) // batch * batch].view(batch, -1)
    for start in range(0, (rows.shape[1] - 1) // steps * steps, steps):
        yield rows[:, start : start + steps], rows[:, start + 1 : start + steps + 1]
