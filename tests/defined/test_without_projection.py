"""A defined cell as a function of its gates' input, against its layer."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from fastcells import zoo
from tests.defined.cells import TwinGRU

T, B, H = 5, 3, 4


@pytest.mark.parametrize("name", sorted(set(zoo.CELLS) - {"UpdateGateRNN"}))
def test_is_the_layer(name: str) -> None:
    torch.manual_seed(0)
    heads = {"num_heads": 2} if name == "SLSTM" else {}
    layer = getattr(zoo, name)(6, H, dtype=torch.float64, **heads)
    x = torch.randn(T, B, 6, dtype=torch.float64)
    x_proj = (x @ layer.weight_ih_l0.t() + layer.bias_ih_l0).detach().requires_grad_()
    extra = {p: getattr(layer, f"{p}_l0") for p in layer.kind.rule.extra}
    for given in ({}, {"lengths": torch.tensor([5, 0, 2])}, {"resets": torch.rand(T, B) < 0.3}):
        weights = {"weight_hh": layer.weight_hh_l0, "bias_hh": layer.bias_hh_l0, "extra": extra}
        out, last = type(layer).recurrence(x_proj, **weights, **given)
        expected, ends = layer(x, **given)
        torch.testing.assert_close(out, expected)
        many = isinstance(last, tuple)
        for ours, theirs in zip(last if many else (last,), ends if many else (ends,), strict=True):
            torch.testing.assert_close(ours, theirs[0])
        assert type(layer).recurrence(x_proj, last, **weights)[0].shape == out.shape
    d = torch.randn_like(out)
    wanted = [layer.weight_hh_l0, layer.bias_hh_l0, *extra.values()]
    torch.testing.assert_close(torch.autograd.grad(out, wanted, d), torch.autograd.grad(expected, wanted, d))
    assert torch.autograd.grad(type(layer).recurrence(x_proj, **weights)[0].sum(), x_proj)[0].shape == x_proj.shape


ERRORS: dict[str, tuple[dict[str, Any], str]] = {
    "weight": ({"weight_hh": torch.randn(12, 5)}, "w_hh must be [12, 4], got [12, 5]"),
    "bias": ({"bias_hh": torch.randn(4)}, "bias_hh must be [12], got [4]"),
    "extra": ({"extra": {"p": torch.randn(4)}}, "extra must have [], got ['p']"),
    "x": ({"x": torch.randn(T, B, 13)}, "x must be [T, B, 3*H]"),
    "lengths": ({"lengths": torch.ones(2, dtype=torch.int64)}, "lengths must be an integer tensor of shape [3]"),
    "state": ({"hx": torch.randn(B, 5)}, "h0 must be [B, H] = [3, 4], got [3, 5]"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors(case: str) -> None:
    more, message = ERRORS[case]
    with pytest.raises(RuntimeError, match=re.escape(message)):
        TwinGRU.recurrence(**({"x": torch.randn(T, B, 12), "weight_hh": torch.randn(12, 4)} | more))
