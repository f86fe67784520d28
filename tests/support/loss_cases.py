"""torch's own cross-entropy behind a linear layer, and cases to compare with it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fastcells import cross_entropy, linear
from fastcells.backends.cpu import cross_entropy as in_c
from fastcells.backends.torch import cross_entropy as in_torch

WAYS = pytest.mark.parametrize("impl", ["auto", "torch"])


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several of them, in C as well, for the smallest shapes too."""
    monkeypatch.setattr(linear, "LARGE_PRODUCT", 1)
    monkeypatch.setattr(cross_entropy, "MANY_ROWS", 2)
    for module in (in_c, in_torch):
        monkeypatch.setattr(module, "FEWEST_ROWS", 7)
    monkeypatch.setattr(in_c, "LOGITS", 200)
    monkeypatch.setattr(in_c, "WEIGHTS", 300)
    monkeypatch.setattr(in_torch, "LOGITS", {"cpu": 200})


def theirs(hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, **options: Any) -> Tensor:
    """torch's."""
    scores = F.linear(hidden, weight, bias)
    loss = F.cross_entropy(scores.reshape(-1, len(weight)), target.reshape(-1), **options)
    return loss.view(target.shape) if options.get("reduction") == "none" else loss


def given(
    shape: tuple[int, int, int], dtype: torch.dtype = torch.float32, grad: bool = True
) -> tuple[list[Tensor], Tensor]:
    """hidden, weight and bias, and targets of which some are ignored, and some are class 0."""
    N, H, V = shape
    leaves = [torch.randn(N, H, dtype=dtype), torch.randn(V, H, dtype=dtype), torch.randn(V, dtype=dtype)]
    target = torch.randint(V, (N,))
    if N > 4:
        target[1::4], target[0] = -100, V - 1
    return [leaf.requires_grad_(grad) for leaf in leaves], target


def allowed(target: Tensor, options: dict[str, Any]) -> Tensor:
    """What -100 means is another class to ignore."""
    return torch.where(target == -100, options["ignore_index"], target)


def everything(function: Any, leaves: list[Tensor], target: Tensor, d: Tensor, **options: Any) -> list[Tensor]:
    """The loss and the gradients, by a random cotangent."""
    loss = function(*leaves, target, **options)
    return [loss.detach(), *torch.autograd.grad(loss, leaves, d.to(loss.dtype).view_as(loss))]
