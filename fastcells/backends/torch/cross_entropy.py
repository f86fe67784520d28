"""Cross-entropy behind a linear layer, in torch's operators: some rows at a time, without a wait for the device."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from fastcells.backends.base import LossGradients

LOGITS = {"cpu": 1 << 20}  # elements at a time, if these are enough rows
LOGITS_ELSEWHERE = 1 << 25  # 128 MB in float32
FEWEST_ROWS = 256  # that are worth going through the weights once more
MOST_ROWS_OF_16_BITS = 4096  # whose products with a few units of hidden add up below float16's largest


# Of scores [N, V], a row each, in float32 or better; with `gradient`, it takes the scores' place.
#     (scores, targets, counts, smoothing, gradient, d_losses) -> losses [N]
OfScores = Callable[[Tensor, Tensor, Tensor, float, bool, Tensor | None], Tensor]


def of_scores(
    scores: Tensor, targets: Tensor, counts: Tensor, smoothing: float, gradient: bool, d_losses: Tensor | None
) -> Tensor:
    """Cross-entropy, in torch's operators."""
    rows, scale = torch.arange(len(targets), device=targets.device), counts.to(scores.dtype)
    scores -= scores.amax(1, keepdim=True)
    expected = (1 - smoothing) * scores[rows, targets]
    if smoothing:
        expected += smoothing * scores.mean(1)
    total = scores.exp_().sum(1)
    found = torch.where(counts, total.log() - expected, 0)
    if gradient:  # softmax less the smoothed target
        scale = scale if d_losses is None else scale * d_losses
        scores *= (scale / total).unsqueeze(1)
        if smoothing:
            scores -= (scale * (smoothing / scores.shape[1])).unsqueeze(1)
        scores[rows, targets] -= scale * (1 - smoothing)
    return found


def losses(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    counts: Tensor,
    smoothing: float,
    wanted: tuple[bool, bool, bool] = (False, False, False),
    d_losses: Tensor | None = None,
    of_scores: OfScores = of_scores,
) -> LossGradients:
    """Cross-entropy of `F.linear(hidden, weight, bias)` for each row, and the gradients of its sum.

    hidden: [N, H]. weight: [V, H]. bias: [V] or None. targets: int64 [N] in [0, V). counts: bool [N]; the loss of the
    other rows is 0. smoothing: label smoothing. wanted: which gradients of hidden, weight and bias. d_losses: [N], what
    each loss is multiplied by in the sum, or None for 1. of_scores: what computes them. Losses, and the gradients of
    weight and bias, are in float32 where the others have 16 bits.
    """
    (N, H), V = hidden.shape, len(weight)
    exact = torch.promote_types(hidden.dtype, torch.float32)
    found = hidden.new_empty(N, dtype=exact)
    d_hidden = torch.empty_like(hidden, memory_format=torch.contiguous_format) if wanted[0] else None
    d_weight = weight.new_zeros(V, H, dtype=exact) if wanted[1] else None
    d_bias = weight.new_zeros(V, dtype=exact) if wanted[2] else None
    rows = _rows_at_a_time(hidden, V)
    buffer = hidden.new_empty(0 if hidden.dtype == exact else rows, V, dtype=exact)
    for first in range(0, N, rows):
        chunk = slice(first, first + rows)
        x = hidden[chunk]
        d = F.linear(x, weight, bias)
        scores = d if d.dtype == exact else buffer[: len(x)].copy_(d)
        scale = None if d_losses is None else d_losses[chunk]
        found[chunk] = of_scores(scores, targets[chunk], counts[chunk], smoothing, any(wanted), scale)
        if not any(wanted):
            continue
        d.copy_(scores)  # rounded, where they differ
        if d_hidden is not None:
            torch.mm(d, weight, out=d_hidden[chunk])
        if d_weight is not None:
            if weight.dtype == exact:
                d_weight.addmm_(d.t(), x)
            else:
                d_weight += d.t() @ x
        if d_bias is not None:
            d_bias += scores.sum(0)
    return LossGradients(found, d_hidden, d_weight, d_bias)


def _rows_at_a_time(hidden: Tensor, V: int) -> int:
    """In chunks of nearly the same size."""
    N = max(1, len(hidden))
    most = max(FEWEST_ROWS, LOGITS.get(hidden.device.type, LOGITS_ELSEWHERE) // V)
    if hidden.element_size() == 2:
        most = min(most, MOST_ROWS_OF_16_BITS)
    return -(-N // -(-N // most))
