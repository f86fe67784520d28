"""The Triton kernels: on a GPU where there is one, else in Triton's interpreter.

Three-way: err(ours) <= 2 * err(torch's layer in the same dtype) + eps, both against the reference in float64.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import triton
from torch import Tensor, nn

import fastcells
from fastcells import functional
from fastcells.backends.triton import backend
from fastcells.kernels.triton import plan
from tests.support.accuracy import error, rms_error
from tests.support.shapes import CELLS, EACH_CELL, Case, in_turn, name_of

pytestmark = pytest.mark.usefixtures("poisoned_memory", "strict_float32")

SHAPES = [(1, 1, 1), (2, 5, 24), (9, 16, 7), (2, 33, 64), (9, 5, 64), (1, 16, 24)]  # T, B, H
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
INPUT = 6
GRU = CELLS[2]
EACH_IMPL = pytest.mark.parametrize("impl", ["triton", "triton-step"])
EACH_DTYPE = pytest.mark.parametrize("dtype", DTYPES)
EACH_SHAPE = pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "T{}-B{}-H{}".format(*s))


def arguments(case: Case, shape: tuple[int, int, int], device: torch.device, ids: bool) -> list[Tensor]:
    """x, states, w_ih, w_hh, b_ih, b_hh in float64, of the size that torch's init gives."""
    T, B, H = shape
    k, G = H**-0.5, case.spec.num_gates

    def uniform(*size: int) -> Tensor:
        return torch.empty(size, dtype=torch.float64, device=device).uniform_(-k, k)

    x = torch.randint(INPUT, (T, B), device=device) if ids else torch.randn(T, B, INPUT, device=device).double()
    states = [torch.randn(B, H, device=device).double() for _ in range(case.states)]
    return [x, *states, uniform(G * H, INPUT), uniform(G * H, H), uniform(G * H), uniform(G * H)]


def run(case: Case, args: list[Tensor], dtype: torch.dtype, cotangents: list[Tensor], **options: Any) -> list[Tensor]:
    """Outputs and all gradients in one dtype."""
    cast = [a.to(dtype).requires_grad_() if a.is_floating_point() else a for a in args]
    outs = case.ours(*cast, **options)
    leaves = [a for a in cast if a.requires_grad]
    gradients = torch.autograd.grad(outs, leaves, [c.to(dtype) for c in cotangents])
    return [*outs, *gradients]


@pytest.mark.parametrize(
    ("case", "impl", "shape", "dtype"), in_turn(CELLS, ["triton", "triton-step"], SHAPES, [*DTYPES]), ids=name_of
)
@pytest.mark.slow
def test_accuracy(case: Case, shape: tuple[int, int, int], dtype: str, impl: str, device: torch.device) -> None:
    """Dense and ids, even and ragged, both directions in turn: forward and every gradient."""
    T, B, H = shape
    index = SHAPES.index(shape) + list(DTYPES).index(dtype)
    options: dict[str, Any] = {"reverse": index % 2 == 1}
    if index % 3 == 0:
        options["lengths"] = torch.randint(T + 1, (B,), device=device)
    args = arguments(case, shape, device, ids=index % 4 == 1)
    d = [torch.randn(T, B, H, device=device), *(torch.randn(B, H, device=device) for _ in range(case.states))]
    d = [t.to(DTYPES[dtype]).double() for t in d]
    rounded = [a.to(DTYPES[dtype]).double() if a.is_floating_point() else a for a in args]
    truth = run(case, rounded, torch.float64, d, impl="torch", **options)
    theirs = run(case, rounded, DTYPES[dtype], d, impl="torch", **options)
    ours = run(case, rounded, DTYPES[dtype], d, impl=impl, **options)
    for i, (exact, base, mine) in enumerate(zip(truth, theirs, ours, strict=True)):
        assert mine.dtype == base.dtype
        eps = torch.finfo(DTYPES[dtype]).eps
        assert rms_error(mine, exact) <= 2 * rms_error(base, exact) + eps, f"tensor {i} of {case}"


@pytest.mark.gpu  # TF32 is a GPU's
@EACH_IMPL
@EACH_CELL
def test_tf32_against_torchs(case: Case, impl: str, device: torch.device) -> None:
    """With TF32 on, as it is by default: no further from float64 than cuDNN, on dense input, which is cuDNN's."""
    args = arguments(case, (9, 5, 64), device, ids=False)
    d = [torch.randn(9, 5, 64, device=device), *(torch.randn(5, 64, device=device) for _ in range(case.states))]
    truth = run(case, args, torch.float64, d, impl="torch")
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=True):
        theirs, ours = (run(case, args, torch.float32, d, impl=i) for i in ("torch", impl))
    eps = 2.0**-10  # TF32 keeps 10 bits behind the leading one; of small RNNs cuDNN computes float32
    for exact, base, mine in zip(truth, theirs, ours, strict=True):
        assert rms_error(mine, exact) <= 2 * rms_error(base, exact) + eps


@EACH_IMPL
@EACH_CELL
def test_large_inputs_give_no_nan(case: Case, impl: str, device: torch.device) -> None:
    args = [a * 100 if a.is_floating_point() else a for a in arguments(case, (3, 5, 24), device, ids=False)]
    args[1 + case.states :] = [a / 100 for a in args[1 + case.states :]]  # inputs and states, not the weights
    d = [torch.randn(3, 5, 24, device=device), *(torch.randn(5, 24, device=device) for _ in range(case.states))]
    assert all(t.isfinite().all() for t in run(case, args, torch.float32, d, impl=impl))


@EACH_IMPL
@EACH_CELL
@pytest.mark.slow
def test_padding_may_hold_nan(case: Case, impl: str, device: torch.device) -> None:
    args = arguments(case, (4, 3, 24), device, ids=False)
    lengths = torch.tensor([4, 0, 2], device=device)
    d = [torch.randn(4, 3, 24, device=device), *(torch.randn(3, 24, device=device) for _ in range(case.states))]
    clean = run(case, args, torch.float32, d, impl=impl, lengths=lengths)
    args[0] = args[0].clone()
    args[0][2:, 2] = args[0][:, 1] = float("nan")
    for a, b in zip(clean, run(case, args, torch.float32, d, impl=impl, lengths=lengths), strict=True):
        assert a.isfinite().all() and torch.equal(a, b)


@EACH_IMPL
@EACH_CELL
def test_second_derivatives(case: Case, impl: str, device: torch.device) -> None:
    """The gradient of a gradient's norm, against torch's operators in the same dtype; it runs through them."""
    args = [a.float() for a in arguments(case, (3, 2, 7), device, ids=False)]
    d = torch.randn(3, 2, 7, device=device)

    def second(impl: str) -> tuple[Tensor, ...]:
        leaves = [a.clone().requires_grad_() for a in args]
        out = case.ours(*leaves, impl=impl)[0]
        first = torch.autograd.grad(out, leaves, d, create_graph=True)
        return torch.autograd.grad(sum((g**2).sum() for g in first), leaves)

    with torch.backends.cudnn.flags(enabled=False):  # cuDNN has no second derivative
        expected = second("torch")
    for a, b in zip(second(impl), expected, strict=True):
        # The first pass differs by float32 rounding only; 1e-4 is far from the 39% of a missing second order.
        assert error(a, b) <= 1e-4 * max(1.0, b.abs().max().item())


@EACH_IMPL
@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
@pytest.mark.slow
def test_layers(name: str, impl: str, device: torch.device) -> None:
    """A stack of two bidirectional layers on ids, packed: the layers reach the kernels."""
    ours = getattr(fastcells, name)(INPUT, 16, 2, bidirectional=True, impl=impl).to(device)
    theirs = getattr(nn, name)(INPUT, 16, 2, bidirectional=True).to(device)
    theirs.load_state_dict(ours.state_dict())
    sequences = [torch.randint(INPUT, (n,), device=device) for n in (3, 5, 1)]
    ids = nn.utils.rnn.pack_sequence(sequences, enforce_sorted=False)
    one_hots = nn.utils.rnn.pack_sequence([nn.functional.one_hot(s, INPUT).float() for s in sequences], False)
    assert fastcells.explain(ours, ids).impl == impl
    a, b = ours(ids)[0].data, theirs(one_hots)[0].data
    assert error(a, b) <= 16 * torch.finfo(torch.float32).eps  # values below 1, a dozen roundings


@EACH_IMPL
@pytest.mark.parametrize("name", ["RNNCell", "GRUCell", "LSTMCell"])
def test_cells(name: str, impl: str, device: torch.device) -> None:
    ours = getattr(fastcells, name)(INPUT, 16, impl=impl).to(device)
    theirs = getattr(nn, name)(INPUT, 16).to(device)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(4, INPUT, device=device)
    for a, b in zip(*(t if isinstance(t, tuple) else (t,) for t in (ours(x), theirs(x))), strict=True):
        assert error(a, b) <= 16 * torch.finfo(torch.float32).eps


def test_the_kernels_are_what_runs(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> None:
    """A fault planted in the launchers shows: nothing falls back silently."""
    from fastcells.kernels.triton import launch_sequence, launch_step

    x, h0, *weights = (a.float() for a in arguments(GRU, (3, 2, 7), device, ids=False))
    for impl, module, name in (
        ("triton", launch_sequence, "sequence_forward"),
        ("triton-step", launch_step, "step_forward"),
    ):
        monkeypatch.setattr(module, name, lambda *_, **__: (_ for _ in ()).throw(ZeroDivisionError))
        with pytest.raises(ZeroDivisionError):
            functional.gru(x, h0, *weights, impl=impl)


@EACH_IMPL
def test_what_cannot_run_raises(impl: str, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    def gru(dtype: torch.dtype = torch.float32, H: int = 7, **options: Any) -> object:
        return fastcells.GRU(INPUT, H, impl=impl, dtype=dtype, device=device)(
            torch.zeros(2, 3, INPUT, dtype=dtype, device=device)
        )

    with pytest.raises(RuntimeError, match=rf"impl='{impl}' cannot run: there is no kernel for torch.float64"):
        gru(torch.float64)
    if impl == "triton":
        monkeypatch.setattr(backend, "gpu", lambda _: plan.Device(90, 132))
        monkeypatch.setattr(backend, "matmul_precision", lambda *_: "tf32")
        with pytest.raises(
            RuntimeError, match=r"cannot run: H=1024: .* weights need 400 KB of shared memory .* 227 KB"
        ):
            gru(H=1024)
        monkeypatch.undo()
    ours = fastcells.GRU(INPUT, 7, impl=impl, device=device)
    with pytest.raises(RuntimeError, match=r"do not run under torch\.jit\.trace, torch\.func transforms"):
        torch.func.vmap(lambda x: ours(x)[0])(torch.zeros(4, 2, 3, INPUT, device=device))


def test_the_supported_version_is_tested() -> None:
    """CI runs this file with the oldest and the newest; anything else would prove nothing about them."""
    assert (3, 6) <= tuple(int(n) for n in triton.__version__.split(".")[:2]) <= (3, 8)


def test_without_gpu_or_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(RuntimeError, match="the weights are on cpu: a GPU is needed, or TRITON_INTERPRET=1"):
        fastcells.GRU(INPUT, 7, impl="triton")(torch.zeros(2, 3, INPUT))
