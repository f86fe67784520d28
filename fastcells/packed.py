"""A packed batch in groups of similar lengths, each of which runs padded: the padding never decides.

A batch of 1,000 and 499 times 1 tokens would pad to 500,000. Rows of a packed batch lie in the order of their lengths,
so that a group is a range of rows.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

State = tuple[Tensor, ...]
Run = Callable[[Tensor, Tensor, State, list[Tensor]], tuple[Tensor, State]]

FEW = 4096  # tokens of padding that are not worth a further group
MOST_PADDED = 0.5  # of padding a token, from which a batch is divided


def groups(batch_sizes: list[int]) -> list[tuple[int, int]]:
    """Ranges of rows, `[first, end)`, whose lengths differ by less than a factor of 2; all rows if little is padded.

    batch_sizes: how many rows go on at each step, as in a PackedSequence. With n groups the steps taken are at most
    twice those of the longest row, and the padded tokens at most twice the tokens.
    """
    T, B = len(batch_sizes), batch_sizes[0]
    padding = T * B - sum(batch_sizes)
    if padding <= FEW or padding <= MOST_PADDED * sum(batch_sizes):
        return [(0, B)]
    found, first, longest = [], 0, T
    while first < B:
        # Step `half` is taken by the rows longer than half of the longest.
        half = longest // 2
        end = batch_sizes[half]
        found.append((first, end))
        first = end
        longest = half
        while longest > 0 and batch_sizes[longest - 1] <= first:
            longest -= 1
    return found


def by_length(run: Run, data: Tensor, batch_sizes: Tensor, state: State, weights: list[Tensor]) -> tuple[Tensor, State]:
    """`run(data, batch_sizes, state, weights)`, group by group.

    data: [N, ...] of a PackedSequence. state: each [rows, B, ...], in the order of the packed rows. Returns the outputs
    [N, ...] and the final state, as `run` does for each group.
    """
    sizes = batch_sizes.tolist()
    parts = groups(sizes)
    if len(parts) == 1:
        return run(data, batch_sizes, state, weights)
    starts = batch_sizes.cumsum(0) - batch_sizes  # where each step's tokens begin
    positions, outs, lasts = [], [], []
    for first, end in parts:
        steps = sum(size > first for size in sizes)
        own = (batch_sizes[:steps].clamp(max=end) - first).contiguous()
        begin = torch.repeat_interleave(starts[:steps] + first - (own.cumsum(0) - own), own)
        where = (begin + torch.arange(len(begin), device=begin.device, dtype=begin.dtype)).to(data.device)
        out, last = run(data.index_select(0, where), own, tuple(s[:, first:end] for s in state), weights)
        positions.append(where)
        outs.append(out)
        lasts.append(last)
    out = torch.cat(outs).index_select(0, torch.cat(positions).argsort())
    return out, tuple(torch.cat(s, 1) for s in zip(*lasts, strict=True))


def pad(data: Tensor, batch_sizes: Tensor) -> tuple[Tensor, Tensor]:
    """`pad_packed_sequence`, through which torch.func and forward-mode derivatives go: [T, B, ...] and lengths [B].

    The padding repeats tokens: it means nothing, and whoever reads it has the lengths.
    """
    known = _known(batch_sizes)
    positions = (known.flatten().cumsum(0) - 1).to(data.device)
    return data.index_select(0, positions).unflatten(0, known.shape), known.sum(0)


def unpad(x: Tensor, batch_sizes: Tensor) -> Tensor:
    """The data of `pack_padded_sequence` for x [T, B, ...], as `pad`."""
    return x.flatten(0, 1).index_select(0, _known(batch_sizes).flatten().nonzero().squeeze(1).to(x.device))


def _known(batch_sizes: Tensor) -> Tensor:
    """bool [T, B]: whether there is a token."""
    rows = torch.arange(int(batch_sizes[0]), device=batch_sizes.device)
    return rows < batch_sizes.unsqueeze(1)
