"""The split sequence kernels: programs that exchange the state each step, each in a process of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from accuracy import rms_error
from shapes import CELLS, EACH_CELL, Case
from torch import Tensor

triton = pytest.importorskip("triton", reason="the kernels are written in Triton")

import triton.language as tl
from concurrent_programs import Concurrent, Deadlock, concurrent_programs

from fastcells import dispatch, functional
from fastcells.kernels import exchange, plan

pytestmark = [
    pytest.mark.usefixtures("poisoned_memory"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="no interpreter with a GPU; tests/test_triton.py runs there"),
]

RNN_TANH, RNN_RELU, GRU, RESET_BEFORE, LSTM = CELLS
EACH_EXCHANGE = pytest.mark.parametrize("name", exchange.EXCHANGES)
BLOCKS = plan.Blocks(batch=16, hidden=16, inner=32, warps=4, stages=1, reason="a split that the interpreter can run")


@contextmanager
def split(name: str, tiles: int = 2, **options: Any) -> Iterator[tuple[Concurrent, Concurrent]]:
    """Have impl="triton" split every shape, and run its programs concurrently."""
    with pytest.MonkeyPatch.context() as patch, concurrent_programs(**options) as kernels:
        patch.setattr(plan, "sequence_plan", lambda *_, **__: plan.Split(BLOCKS, tiles, name))
        yield kernels


def arguments(case: Case, T: int, B: int, H: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """x, states, w_ih, w_hh, b_ih, b_hh, of the size that torch's init gives, as leaves."""
    args = case.arguments((T, B, H, 3), dtype, grad=False)
    args[2 + case.states :] = [a / 2 for a in args[2 + case.states :]]
    return [a.requires_grad_() for a in args]


def run(case: Case, args: list[Tensor], dtype: torch.dtype, cotangents: list[Tensor], **options: Any) -> list[Tensor]:
    """Outputs and all gradients in one dtype."""
    leaves = [a.detach().to(dtype).requires_grad_() for a in args]
    outs = case.ours(*leaves, **options)
    return [*outs, *torch.autograd.grad(outs, leaves, [c.to(dtype) for c in cotangents])]


def largest_excess(case: Case, args: list[Tensor], ours: list[Tensor], d: list[Tensor], **options: Any) -> float:
    """By how much the error of outputs and gradients exceeds what torch's operators in the same dtype may be off by."""
    dtype = args[0].dtype
    truth, theirs = (run(case, args, to, d, impl="torch", **options) for to in (torch.float64, dtype))
    eps = torch.finfo(dtype).eps
    pairs = zip(truth, theirs, ours, strict=True)
    return max(rms_error(mine, exact) - 2 * rms_error(base, exact) - eps for exact, base, mine in pairs)


def excess(case: Case, T: int, B: int, H: int, dtype: torch.dtype = torch.float32, **options: Any) -> float:
    """`largest_excess` of a random problem, within `split`."""
    args = arguments(case, T, B, H, dtype)
    d = [torch.randn(size).to(dtype) for size in ((T, B, H), *[(B, H)] * case.states)]
    return largest_excess(case, args, run(case, args, dtype, d, impl="triton", **options), d, **options)


@pytest.mark.parametrize("seed", [0, 1])
@EACH_EXCHANGE
@EACH_CELL
def test_every_cell(case: Case, name: str, seed: int) -> None:
    """Two batch tiles, three column tiles, two parts of the columns; B and H fill none of them."""
    options: dict[str, Any] = {"reverse": seed == 1}
    if seed == 1:
        options["lengths"] = torch.randint(5, (20,))
    with split(name, seed=seed) as (forward, backward):
        assert excess(case, 4, 20, 40, **options) <= 0
        assert forward.programs == backward.programs == [3 * 2]


@EACH_EXCHANGE
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "f16"])
def test_16_bit(dtype: torch.dtype, name: str) -> None:
    with split(name, seed=2):
        assert excess(LSTM, 4, 5, 40, dtype) <= 0
