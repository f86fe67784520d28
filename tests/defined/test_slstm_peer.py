"""zoo.SLSTM beside FlashRNN's vanilla torch implementation of sLSTM, where that package is installed.

Its normaliser is max(f n + i, 1), which from zeros on is f n + i: one of f and i is 1 by the stabiliser.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fastcells import zoo
from tests.support.accuracy import cotangents, error

T, B, D = 7, 3, 4
LIMIT = 1e-12  # of a few dozen roundings in float64


def theirs(layer: Any, x: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """All outputs, and the final states: their step, in the layer's weights, from zeros."""
    vanilla = pytest.importorskip("flashrnn.flashrnn.vanilla", exc_type=ImportError)
    H = heads * D
    w_hh = layer.weight_hh_l0.view(heads, 4, D, D)
    b = (layer.bias_ih_l0 + layer.bias_hh_l0).view(1, 4, H)
    states, out = x.new_zeros(B, 4, H), []
    for x_t in x:
        from_x = (x_t @ layer.weight_ih_l0.t()).view(B, 4, H)
        h = states[:, 0].view(B, heads, D)
        from_h = torch.einsum("bkd,kged->bgke", h, w_hh).flatten(2)
        states, _ = vanilla.flashrnn_forward_pointwise_slstm(from_x, from_h, b, states, {})
        out.append(states[:, 0])
    return torch.stack(out), states


@pytest.mark.parametrize("heads", [1, 2])
def test_the_same_values(heads: int) -> None:
    """And the same gradients."""
    torch.manual_seed(heads)
    layer = zoo.SLSTM(5, heads * D, num_heads=heads, dtype=torch.float64)
    x = torch.randn(T, B, 5, dtype=torch.float64, requires_grad=True)
    given = [x, *layer.parameters()]
    out, last = layer(x)
    out_there, states = theirs(layer, x, heads)
    ours, expected = [out, *(s.squeeze(0) for s in last)], [out_there, *states.unbind(1)]
    d = cotangents([out])
    gradients = (torch.autograd.grad(results[:1], given, d) for results in (ours, expected))
    for mine, exact in zip((*ours, *next(gradients)), (*expected, *next(gradients)), strict=True):
        assert error(mine.detach(), exact.detach()) <= LIMIT * max(1.0, exact.detach().abs().max().item())
