"""Cross-entropy behind a linear layer, in C: some rows at a time, and of the weights some columns."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from fastcells.backends.base import LossGradients
from fastcells.backends.cpu import buffers, checks, native

LOGITS = 1 << 20  # floats at a time, if these are enough rows: 4 MB, of a third-level cache
FEWEST_ROWS = 256  # that are worth going through the weights once more
WEIGHTS = 1 << 20  # floats at a time


def of_scores(
    scores: Tensor, targets: Tensor, counts: Tensor, smoothing: float, gradient: bool, d_losses: Tensor | None
) -> Tensor:
    """Cross-entropy, as fastcells.backends.torch.cross_entropy.of_scores, for contiguous float32 on a CPU."""
    found = scores.new_empty(len(scores))
    targets = torch.where(counts, targets, -1)
    in_place(scores, targets, _shares(smoothing, scores.shape[1]), found, gradient=gradient, d_losses=d_losses)
    return found


def in_place(
    x: Tensor, targets: Tensor, smoothing: Tensor, losses: Tensor, *, gradient: bool, d_losses: Tensor | None = None
) -> None:
    """Cross-entropy of scores x [N, V], row by row, to `losses` [N]; with `gradient`, its gradient takes x's place.

    targets: integers [N] below V; -1 where a row does not count. smoothing: [2], what the target's probability is
    to be, and what is added to that of each column. d_losses: [N], of the losses, or None for 1. All else float32.

    Raises:
        RuntimeError: a tensor has another shape, dtype or device. IndexError: a target that is no column.
    """
    N, V = checks.matrix("x", x)
    targets = checks.ids(targets)
    if len(targets) != N or (N and (int(targets.max()) >= V or int(targets.min()) < -1)):
        raise IndexError(f"there must be {N} targets below {V}, got {len(targets)}: {targets}")
    smoothing = checks.float32("smoothing", smoothing, (2,))
    d_losses = None if d_losses is None else checks.float32("d_losses", d_losses, (N,))
    sizes = {"rows": N, "columns": V, "x_stride": V, "ignored": _unsigned(-1), "gradient": gradient}
    read = native._addresses(targets=targets, smoothing=smoothing, d_loss=d_losses)
    written = checks.written(("x", x, (N, V)), ("loss", losses, (N,)))
    native._cpu.cross_entropy(native._instructions, native._few_threads(x), **sizes, **read, **written)


def packs_all(weight: Tensor) -> bool:
    """Whether weights are few enough to be packed at once: then `reduced` computes all in one call."""
    return weight.numel() <= WEIGHTS


def reduced(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    ignore_index: int,
    smoothing: float,
    reduction: str,
    wanted: tuple[bool, bool, bool],
    d_losses: Tensor | None,
) -> LossGradients:
    """Cross-entropy of `F.linear(hidden, weight, bias)`, reduced as `F.cross_entropy` does, in one call.

    targets: int64 [N], in [0, V) or `ignore_index`. d_losses: as in `losses`; None with a mean.

    Raises:
        IndexError: a target that is no class.
    """
    (N, H), V = hidden.shape, len(weight)
    read = {
        "x": checks.float32("hidden", hidden, (N, H)),
        "w": checks.float32("weight", weight, (V, H)),
        "b": None if bias is None else checks.float32("bias", bias, (V,)),
        "targets": checks.ids(targets),
        "smoothing": _shares(smoothing, V),
        "d_loss": None if d_losses is None else checks.float32("d_losses", d_losses, (N,)),
    }
    found, total = hidden.new_empty(N), hidden.new_empty(())
    d_x = hidden.new_empty(N, H) if wanted[0] else None
    d_w, d_b = (weight.new_empty(V, H), weight.new_empty(V)) if wanted[1] or wanted[2] else (None, None)
    sizes = {"rows": N, "K": H, "columns": V, "ignored": _unsigned(ignore_index), "mean": reduction == "mean"}
    written = checks.written(
        ("loss", found, (N,)), ("sum", total, ()), ("d_x", d_x, (N, H)), ("d_w", d_w, (V, H)), ("d_b", d_b, (V,))
    )
    outside = native._cpu.linear_cross_entropy(
        native._instructions, native._threads(N * H * V), **sizes, **native._addresses(**read), **written
    )
    if outside < N:
        raise IndexError(f"target {int(targets[outside])} at {outside} is outside [0, {V})")
    loss = found if reduction == "none" else total
    return LossGradients(loss, d_x, d_w if wanted[1] else None, d_b if wanted[2] else None)


def _unsigned(number: int) -> int:
    """The same 64 bits."""
    return number & ((1 << 64) - 1)


@lru_cache(maxsize=16)
def _shares(smoothing: float, V: int) -> Tensor:
    """What the target's probability is to be, and what is added to that of each column."""
    return torch.tensor([1 - smoothing, smoothing / V], dtype=torch.float32, device="cpu")


def losses(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    counts: Tensor,
    smoothing: float,
    wanted: tuple[bool, bool, bool] = (False, False, False),
    d_losses: Tensor | None = None,
) -> LossGradients:
    """As fastcells.backends.torch.cross_entropy.losses, for float32 on a CPU."""
    (N, H), V = hidden.shape, len(weight)
    hidden, weight = hidden.contiguous(), weight.contiguous()
    found = hidden.new_empty(N)
    d_hidden = hidden.new_empty(N, H) if wanted[0] else None
    d_weight = (weight.new_empty(V, H), weight.new_empty(V)) if wanted[1] or wanted[2] else None
    rows, columns = rows_at_a_time(N, V), max(1, WEIGHTS // max(1, H))
    parts = [slice(first, first + columns) for first in range(0, V, columns)]
    logits = buffers.empty(rows, V)
    for first in range(0, N, rows):
        chunk = slice(first, first + rows)
        x = hidden[chunk]
        d = logits[: len(x)]
        for part in parts:
            native.linear(x, weight[part], None if bias is None else bias[part], out=d[:, part])
        scale = None if d_losses is None else d_losses[chunk]
        found[chunk] = of_scores(d, targets[chunk], counts[chunk], smoothing, any(wanted), scale)
        for part in parts:
            if d_hidden is not None:
                out, later = d_hidden[chunk], part.start > 0
                native.linear(d[:, part], weight[part], transposed=True, out=out, accumulate=later)
            if d_weight is not None:
                sums = d_weight[0][part], d_weight[1][part]
                native.weight_gradients(d[:, part], x, out=sums, accumulate=first > 0)
    d_w, d_b = d_weight or (None, None)
    return LossGradients(found, d_hidden, d_w if wanted[1] else None, d_b if wanted[2] else None)


def rows_at_a_time(N: int, V: int) -> int:
    """In chunks of nearly the same size."""
    most = max(FEWEST_ROWS, LOGITS // V)
    return -(-N // -(-N // most)) if N else 1
