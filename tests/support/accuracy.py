"""How close is close enough, stated once."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

# Two float64 computations of one small formula, summed in another order, differ by a few roundings; a wrong term
# differs by its size. 256 roundings lie far from both.
ROUNDINGS = 256
EPS = torch.finfo(torch.float32).eps


def error(actual: Tensor, expected: Tensor) -> float:
    """Largest absolute difference. NaN or a wrong shape is an infinite error."""
    if actual.shape != expected.shape:
        return float("inf")
    if actual.numel() == 0:
        return 0.0
    return (actual.double() - expected.double()).abs().nan_to_num(nan=float("inf")).max().item()


def rms_error(actual: Tensor, exact: Tensor) -> float:
    """Root mean square of the difference, relative to that of `exact` where this is above 1.

    For comparing how two computations round: the largest of many rounding errors is a matter of luck, their mean is
    not, and one wrong element among thousands still stands out by orders of magnitude.
    """
    if actual.shape != exact.shape:
        return float("inf")
    difference = (actual.double() - exact).square().mean().sqrt().nan_to_num(nan=float("inf")).item()
    return difference / max(1.0, exact.square().mean().sqrt().item())


def assert_equal_to_rounding(actual: Iterable[Tensor], expected: Iterable[Tensor]) -> None:
    """Both compute the same numbers in the same dtype, up to the order of the operations."""
    for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
        scale = max(1.0, e.abs().max().item()) if e.numel() else 1.0
        limit = ROUNDINGS * torch.finfo(e.dtype).eps * scale
        assert error(a, e) <= limit, f"tensor {i} of shape {list(e.shape)}: error {error(a, e):.2e} > {limit:.2e}"


def cotangents(outputs: Iterable[Tensor]) -> list[Tensor]:
    """A random gradient for each output."""
    return [torch.randn_like(o) for o in outputs]
