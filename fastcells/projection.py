"""An LSTM's projection (`proj_size=P`) around a recurrence that has none, for backends without a kernel for it.

With m' = o * tanh(c') and h' = W_hr m' the recurrent product is `W_hh h = (W_hh W_hr) m`: that of an LSTM whose state
is m, with a weight [4H, H]. It starts from zeros; the initial h, which is no W_hr m, goes into the first step's input
as `W_hh h0`. Afterwards h is W_hr m, for all steps in one matmul. All of it in differentiable operators.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from fastcells.backends.base import Steps
from fastcells.spec import RecurrentWeights, State


def fold(
    x_proj: Tensor, state: State, weights: RecurrentWeights, steps: Steps
) -> tuple[Tensor, State, RecurrentWeights]:
    """What the recurrence without a projection is given; x_proj, [T, B, 4H], is changed in place."""
    (h0, c0), (w_hh, b_hh, w_hr, *_) = state, weights
    assert w_hr is not None
    first = linear(h0, w_hh)
    at = _first_step(len(x_proj), steps)
    if steps.resets is not None:
        first = torch.where(steps.resets[at].unsqueeze(-1), 0, first)
    return _AddAt.apply(x_proj, first, at), (torch.zeros_like(c0), c0), RecurrentWeights(w_hh @ w_hr, b_hh)


def unfold(out: Tensor, last: State, h0: Tensor, weights: RecurrentWeights, steps: Steps) -> tuple[Tensor, State]:
    """The outputs [T, B, P] and the final state from those without a projection."""
    w_hr = weights.w_hr
    assert w_hr is not None
    h_n = linear(last[0], w_hr)
    if steps.lengths is not None:  # no step has projected the state of an empty sequence
        h_n = torch.where((steps.lengths > 0).unsqueeze(-1), h_n, h0)
    return linear(out, w_hr), (h_n, last[1])


def price(H: int, P: int) -> str:
    """What it costs, for `explain`."""
    return f"W_hh W_hr as one matrix has {(4 * H + P) / (5 * P):.1f} times the multiplications of a projected step"


Index = int | tuple[Tensor, Tensor]


def _first_step(T: int, steps: Steps) -> Index:
    """The step that is taken first, of all rows or of each: an index into [T, B, ...]."""
    if not steps.reverse:
        return 0
    if steps.lengths is None:
        return T - 1
    lengths = steps.lengths.long()
    return (lengths - 1).clamp(min=0), torch.arange(len(lengths), device=lengths.device)


class _AddAt(torch.autograd.Function):
    """`x[at] += first`; autograd's own way back through it would copy the whole gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, first: Tensor, at: Index) -> Tensor:
        ctx.at = at
        ctx.mark_dirty(x)
        x[at] += first
        return x

    @staticmethod
    def backward(ctx: Any, d_x: Tensor) -> tuple[Tensor, Tensor, None]:
        return d_x, d_x[ctx.at], None
