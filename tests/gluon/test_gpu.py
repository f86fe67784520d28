"""The Gluon kernels on the hardware that they are for."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

import fastcells
from fastcells.accuracy import allowed_error
from fastcells.backends.gluon import backend
from fastcells.kernels.triton import fault
from fastcells.kernels.triton.plan import Device
from tests.support.accuracy import rms_error
from tests.support.shapes import EACH_CELL, Case, Shape

pytestmark = [
    pytest.mark.gpu,  # programs wait for each other: a GPU runs them at once
    pytest.mark.usefixtures("poisoned_memory", "strict_float32"),
]
DEVICE = torch.device("cuda")


@pytest.fixture(autouse=True)
def recent_card() -> None:
    if torch.cuda.get_device_capability()[0] < 9:
        pytest.skip("compute capability 9.0 is needed")


@pytest.fixture(params=[0, 8], ids=["at once", "in turn"])
def multiprocessors(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """0, or as if there were so few that groups of programs do one batch tile after another."""
    if request.param:
        monkeypatch.setattr(backend, "gpu", lambda device: Device(90, request.param))
    return int(request.param)


def run(case: Case, args: list[Tensor], dtype: torch.dtype, d: list[Tensor], **options: Any) -> list[Tensor]:
    leaves = [a.detach().to(DEVICE, dtype).requires_grad_() for a in args]
    outs = case.ours(*leaves, **options)
    return [*outs, *torch.autograd.grad(outs, leaves, [c.to(DEVICE, dtype) for c in d])]


@pytest.mark.usefixtures("multiprocessors")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["f32", "bf16", "f16"])
@pytest.mark.parametrize("shape", [Shape(9, 33, 128, 3), Shape(65, 20, 107, 3)], ids=str)
@EACH_CELL
def test_accuracy(case: Case, shape: Shape, dtype: torch.dtype) -> None:
    T, B, H, _ = shape
    options: dict[str, Any] = {"lengths": torch.randint(T + 1, (B,), device=DEVICE), "reverse": T == 9}
    if T != 9:
        options["resets"] = torch.rand(T, B, device=DEVICE) < 0.1
    args = [a.detach().to(dtype).double() / 2 for a in case.arguments(shape)]
    d = [torch.randn(size).to(dtype).double() for size in ((T, B, H), *[(B, H)] * case.states)]
    truth, theirs = (run(case, args, to, d, impl="torch", **options) for to in (torch.float64, dtype))
    ours = run(case, args, dtype, d, impl="gluon", **options)
    for exact, base, mine in zip(truth, theirs, ours, strict=True):
        assert rms_error(mine, exact) <= allowed_error(rms_error(base, exact), case.spec.name, dtype, DEVICE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("kind", [fastcells.GRU, fastcells.LSTM])
def test_both_directions_in_one_launch(kind: Any, dtype: torch.dtype) -> None:
    """As accurate as torch's operators in the same dtype, forward and backward; and the same to the bit each time."""
    layer = kind(64, 256, 2, bidirectional=True, impl="gluon", device=DEVICE, dtype=dtype)
    x = torch.randn(50, 32, 64, device=DEVICE, dtype=dtype)
    d = torch.randn(50, 32, 512, device=DEVICE, dtype=dtype)

    def run_as(impl: str, to: torch.dtype) -> list[Tensor]:
        ours = copy.deepcopy(layer).to(to)
        ours.impl = impl
        given = x.to(to).requires_grad_()
        out, last = ours(given)
        return [out, *tree_leaves(last), *torch.autograd.grad(out, [given, *ours.parameters()], d.to(to))]

    assert fastcells.explain(layer, x).path == "both directions"
    truth, theirs, ours = run_as("torch", torch.float64), run_as("torch", dtype), run_as("gluon", dtype)
    for exact, base, mine in zip(truth, theirs, ours, strict=True):
        assert rms_error(mine, exact) <= 2 * rms_error(base, exact) + torch.finfo(dtype).eps
    assert all(map(torch.equal, run_as("gluon", dtype), ours))


@pytest.mark.parametrize("H", [256, 512, 1024])
def test_many_steps_many_times(H: int) -> None:
    """The same to the bit, however the programs are timed; a race would show."""
    gru = fastcells.GRU(64, H, impl="gluon", device=DEVICE, dtype=torch.bfloat16)
    x = torch.randn(1000, 32, 64, device=DEVICE, dtype=torch.bfloat16)
    with torch.no_grad():
        first = gru(x)[0]
        assert not first.isnan().any()
        assert all(torch.equal(first, gru(x)[0]) for _ in range(20))


def test_in_a_cuda_graph() -> None:
    """Each replay prepares the mailbox anew."""
    gru = fastcells.GRU(64, 256, impl="gluon", device=DEVICE)
    x = torch.randn(20, 32, 64, device=DEVICE)
    with torch.no_grad():
        gru(x)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = gru(x)[0]
        for _ in range(3):
            x.normal_()
            graph.replay()
            assert torch.equal(out, gru(x)[0])


def test_a_wait_in_vain_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without patience the programs give up where others are a little late; a later launch says so, and only one."""
    gru = fastcells.GRU(64, 256, impl="gluon", device=DEVICE)
    x = torch.randn(200, 32, 64, device=DEVICE)
    monkeypatch.setattr(fault, "PATIENCE", 1)
    with torch.no_grad():
        gru(x)
        torch.cuda.synchronize()
        monkeypatch.undo()
        with pytest.raises(fastcells.KernelFault, match="gave up"):
            gru(x)
        assert not gru(x)[0].isnan().any()
