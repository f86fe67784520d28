"""A layer's function run once on random arguments: outputs and all gradients, in a dtype."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from tests.support.shapes import Case

INPUT = 6


def arguments(case: Case, shape: tuple[int, int, int], *, ids: bool = False) -> list[Tensor]:
    """x, states, w_ih, w_hh, b_ih, b_hh in float32, of the size that torch's init gives."""
    T, B, H = shape
    k, G = H**-0.5, case.spec.num_gates
    x = torch.randint(INPUT, (T, B)) if ids else torch.randn(T, B, INPUT)
    states = [torch.randn(B, H) for _ in range(case.states)]
    weights = [torch.empty(size).uniform_(-k, k) for size in ((G * H, INPUT), (G * H, H), (G * H,), (G * H,))]
    return [x, *states, *weights]


def run(case: Case, args: list[Tensor], dtype: torch.dtype, d: list[Tensor], **options: Any) -> list[Tensor]:
    """Outputs and all gradients in one dtype."""
    leaves = [a.to(dtype, copy=True).requires_grad_() if a.is_floating_point() else a for a in args]
    outs = case.ours(*leaves, **options)
    wanted = [a for a in leaves if a.requires_grad]
    return [*outs, *torch.autograd.grad(outs, wanted, [c.to(dtype) for c in d])]


def cotangents_of(case: Case, shape: tuple[int, int, int]) -> list[Tensor]:
    T, B, H = shape
    return [torch.randn(T, B, H), *(torch.randn(B, H) for _ in range(case.states))]


@contextmanager
def one_thread() -> Iterator[None]:
    """For torch's operators, which the number of threads is not about: theirs spin on the cores that others need."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
