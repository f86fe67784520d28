"""Every cell state of an LSTM layer, [T, B, H], with gradients, whatever ran it.

An implementation returns every h and the last c. Given all h, the gates of all steps are one matmul and some
elementwise operators; what is left to walk through time is `c' = f * c + i * g`. The chain rule does the rest: what c
depends on through h flows through the implementation's own backward.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

from fastcells.autograd import zone_out
from fastcells.backends.base import LayerWeights, PreviousStates, Steps
from fastcells.spec import State
from fastcells.token_ids import gather_rows, is_token_ids


def cell_states(x: Tensor, out: Tensor, state: State, weights: LayerWeights, steps: Steps) -> Tensor:
    """c after each step, [T, B, H], zero past a row's length; differentiable.

    x: [T, B, I], or ids [T, B]. out: [T, B, H] as the layer returned it for one direction. state: the initial h and c.
    """
    h0, c = state
    w_ih, b_ih, recurrent = weights
    T, mask = len(x), steps.mask(len(x))
    if mask is not None:
        x = torch.where(mask.squeeze(-1) if is_token_ids(x) else mask, x, 0)
        out = torch.where(mask, out, h0)  # in reverse, a row stands at its initial state until it begins
    resets = steps.restarts(T)
    h = PreviousStates(out, h0, steps._replace(resets=None)).cat
    if resets is not None:
        h = torch.where(resets, 0 if steps.reset_state is None else steps.reset_state[0], h)
    if steps.recurrent_dropout is not None:
        h = h * steps.recurrent_dropout
    x_proj = gather_rows(x, w_ih, b_ih) if is_token_ids(x) else F.linear(x, w_ih, b_ih)
    i, f, g, _ = (x_proj + F.linear(h, recurrent.w_hh, recurrent.b_hh)).chunk(4, -1)
    added, kept = torch.sigmoid(i) * torch.tanh(g), torch.sigmoid(f)
    zoneout = None if steps.zoneout is None else steps.zoneout[1]
    fresh = 0 if steps.reset_state is None else steps.reset_state[1]
    found: list[Tensor] = [c] * T
    for t in steps.order(T):
        before = c if resets is None else torch.where(resets[t], fresh, c)
        c = torch.addcmul(added[t], kept[t], before)
        if zoneout is not None:
            c = zone_out(zoneout[t], before, c)
        if mask is not None:
            c = torch.where(mask[t], c, before)
        found[t] = c
    return steps.zero_past_length(torch.stack(found))


def split_states(out: Any, last: State, width: int) -> tuple[Any, State, Any]:
    """The output and the states of a walk that has put them side by side, the last `width` columns being c's."""
    data = out.data if isinstance(out, PackedSequence) else out
    # Contiguous, so that each is a tensor of its own, which its owner may change in place.
    h, c = (part.clone() for part in data.split([data.shape[-1] - width, width], -1))
    return (out._replace(data=h), last, out._replace(data=c)) if isinstance(out, PackedSequence) else (h, last, c)
