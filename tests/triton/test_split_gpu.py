"""The split kernels on the hardware that they are for: what an interpreter cannot show."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

import fastcells
from fastcells.accuracy import allowed_error
from fastcells.backends.triton import backend
from fastcells.kernels.triton import plan
from fastcells.kernels.triton.exchange import EXCHANGES
from tests.support.accuracy import rms_error
from tests.support.shapes import EACH_CELL, Case, Shape

pytestmark = [
    pytest.mark.gpu,  # programs wait for each other: a GPU runs them at once
    pytest.mark.usefixtures("poisoned_memory", "strict_float32"),
]
EACH_EXCHANGE = pytest.mark.parametrize("exchange", EXCHANGES)
DEVICE = torch.device("cuda")


@contextmanager
def split(exchange: str, multiprocessors: int = 0) -> Iterator[None]:
    """impl="triton" splits every shape, with this exchange, as if there were so many multiprocessors."""

    def sequence_plan(H: int, B: int, gates: int, size: int, gpu: plan.Device, **options: Any) -> plan.Split:
        gpu = plan.Device(gpu.capability, multiprocessors or gpu.multiprocessors)
        found = plan.split_plan(H, B, gates, size, gpu, exchange=exchange, **options)
        if not isinstance(found, plan.Split):
            pytest.skip(found)  # float32 that counts arrivals, some of it: no row without spills
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "sequence_plan", sequence_plan)
        yield


def run(case: Case, args: list[Tensor], dtype: torch.dtype, d: list[Tensor], **options: Any) -> list[Tensor]:
    leaves = [a.detach().to(DEVICE, dtype).requires_grad_() for a in args]
    outs = case.ours(*leaves, **options)
    return [*outs, *torch.autograd.grad(outs, leaves, [c.to(DEVICE, dtype) for c in d])]


@EACH_EXCHANGE
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["f32", "bf16", "f16"])
@pytest.mark.parametrize("shape", [Shape(9, 33, 128, 3), Shape(65, 20, 100, 3)], ids=str)
@EACH_CELL
def test_accuracy(case: Case, shape: Shape, dtype: torch.dtype, exchange: str) -> None:
    T, B, H, _ = shape
    options: dict[str, Any] = {"lengths": torch.randint(T + 1, (B,), device=DEVICE), "reverse": T == 9}
    if T != 9:
        options["resets"] = torch.rand(T, B, device=DEVICE) < 0.1
    args = [a.detach().to(dtype).double() / 2 for a in case.arguments(shape)]
    d = [torch.randn(size).to(dtype).double() for size in ((T, B, H), *[(B, H)] * case.states)]
    truth, theirs = (run(case, args, to, d, impl="torch", **options) for to in (torch.float64, dtype))
    with split(exchange, 4 if T == 9 else 0):  # 3 batch tiles, for two groups of two programs
        ours = run(case, args, dtype, d, impl="triton", **options)
    for exact, base, mine in zip(truth, theirs, ours, strict=True):
        assert rms_error(mine, exact) <= allowed_error(rms_error(base, exact), case.spec.name, dtype, DEVICE)


@EACH_EXCHANGE
@pytest.mark.parametrize("multiprocessors", [0, 4], ids=["at once", "in turn"])
def test_many_steps_many_times(multiprocessors: int, exchange: str) -> None:
    """The same to the bit, however the programs are timed; a race would show."""
    gru = fastcells.GRU(64, 128, impl="triton", device=DEVICE, dtype=torch.bfloat16)
    x = torch.randn(1000, 64, 64, device=DEVICE, dtype=torch.bfloat16)
    with split(exchange, multiprocessors), torch.no_grad():
        first = gru(x)[0]
        assert all(torch.equal(first, gru(x)[0]) for _ in range(20))


@EACH_EXCHANGE
def test_in_a_cuda_graph(exchange: str) -> None:
    """Each replay prepares the mailbox anew."""
    gru = fastcells.GRU(64, 128, impl="triton", device=DEVICE)
    x = torch.randn(20, 32, 64, device=DEVICE)
    with split(exchange), torch.no_grad():
        expected = gru(x)[0]
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = gru(x)[0]
        for scale in (1.0, -1.0, -1.0):
            x.mul_(scale)
            graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(out, expected)


@EACH_EXCHANGE
def test_too_many_programs_raise_instead_of_waiting(exchange: str) -> None:
    """The plan prevents it; were it wrong, the driver refuses the launch."""
    found = backend.gpu(DEVICE)
    assert found is not None
    many = 64 * found.multiprocessors  # no multiprocessor runs 64 programs of 128 threads
    gru = fastcells.GRU(8, 256, impl="triton", device=DEVICE, dtype=torch.bfloat16)
    x = torch.zeros(2, 16 * (many // 8), 8, device=DEVICE, dtype=torch.bfloat16)  # 8 programs a batch tile
    with split(exchange, many), pytest.raises(RuntimeError, match=r"(?i)cooperative"):
        gru(x)
