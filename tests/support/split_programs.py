"""The split sequence kernels with every program in a process of its own, beside torch's operators."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fastcells.kernels.triton import exchange, plan
from tests.support.accuracy import rms_error
from tests.support.concurrent_programs import Concurrent, concurrent_programs
from tests.support.shapes import Case, Shape

EACH_EXCHANGE = pytest.mark.parametrize("name", exchange.EXCHANGES)
BLOCKS = plan.Blocks(batch=16, hidden=16, inner=32, warps=4, stages=1, reason="small, for small H")


@contextmanager
def split(name: str, groups: int = 2, columns: int = 32, **options: Any) -> Iterator[tuple[Concurrent, Concurrent]]:
    """Have impl="triton" split every shape, and run its programs concurrently."""
    blocks = replace(BLOCKS, hidden=columns)
    with pytest.MonkeyPatch.context() as patch, concurrent_programs(**options) as kernels:
        patch.setattr(plan, "sequence_plan", lambda *_, **__: plan.Split(blocks, groups, name))
        yield kernels


def arguments(
    case: Case, T: int, B: int, H: int, dtype: torch.dtype = torch.float32, ids: bool = False
) -> list[Tensor]:
    """x, states, w_ih, w_hh, b_ih, b_hh, of the size that torch's init gives."""
    args = case.arguments(Shape(T, B, H, 3), dtype, grad=False)
    args[2 + case.states :] = [a / 2 for a in args[2 + case.states :]]
    return [torch.randint(3, (T, B)), *args[1:]] if ids else args


def run(case: Case, args: list[Tensor], dtype: torch.dtype, cotangents: list[Tensor], **options: Any) -> list[Tensor]:
    """Outputs and all gradients in one dtype."""
    cast = [a.to(dtype).clone().requires_grad_() if a.is_floating_point() else a for a in args]
    outs, leaves = case.ours(*cast, **options), [a for a in cast if a.requires_grad]
    return [*outs, *torch.autograd.grad(outs, leaves, [c.to(dtype) for c in cotangents])]


def largest_excess(
    case: Case, args: list[Tensor], ours: list[Tensor], d: list[Tensor], *, times: float = 2.0, **options: Any
) -> float:
    """By how much the error of outputs and gradients exceeds what torch's operators in the same dtype may be off by."""
    dtype = args[-1].dtype
    truth, theirs = (run(case, args, to, d, impl="torch", **options) for to in (torch.float64, dtype))
    eps = torch.finfo(dtype).eps
    pairs = zip(truth, theirs, ours, strict=True)
    return max(rms_error(mine, exact) - times * rms_error(base, exact) - eps for exact, base, mine in pairs)


def excess(
    case: Case, T: int, B: int, H: int, dtype: torch.dtype = torch.float32, ids: bool = False, **options: Any
) -> float:
    """`largest_excess` of a random problem, within `split`."""
    args = arguments(case, T, B, H, dtype, ids)
    d = [torch.randn(size).to(dtype) for size in ((T, B, H), *[(B, H)] * case.states)]
    return largest_excess(case, args, run(case, args, dtype, d, impl="triton", **options), d, **options)
