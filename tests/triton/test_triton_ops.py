"""The Triton recurrence as operators: what torch.library asks of them, and torch.compile through them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import fastcells
from fastcells import functional
from fastcells.backends.triton.operators import recurrence_backward, recurrence_forward
from fastcells.kernels.triton.rules import RULES
from tests.support.accuracy import assert_equal_to_rounding, cotangents

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("strict_float32")]
T, B, H = 3, 5, 16
EACH_RULE = pytest.mark.parametrize("rule", RULES)
EACH_PATH = pytest.mark.parametrize("path", ["sequence", "step"])


def forward_arguments(rule: str, path: str, device: torch.device, ragged: bool) -> tuple[object, ...]:
    rows = RULES[rule].spec.num_gates * H
    c0 = torch.randn(B, H, device=device) if RULES[rule].spec.num_states == 2 else None
    lengths = torch.tensor([3, 0, 1, 2, 3], dtype=torch.int32, device=device) if ragged else None
    x, h0, w, b = (torch.randn(size, device=device) for size in ((T, B, rows), (B, H), (rows, H), (rows,)))
    return x, h0, c0, w, None if ragged else b, lengths, rule, path, ragged, True


@EACH_PATH
@EACH_RULE
@pytest.mark.parametrize("ragged", [False, True], ids=["even", "ragged"])
def test_opcheck(rule: str, path: str, ragged: bool, device: torch.device) -> None:
    """Schema, fake implementation and AOT dispatch, forward and backward."""
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    arguments = forward_arguments(rule, path, device, ragged)
    resets = torch.rand(T, B, device=device) < 0.3 if ragged else None
    arguments += (None, None, resets)
    torch.library.opcheck(recurrence_forward, arguments, test_utils=tests)
    hidden, cells, saved, h_n, c_n = recurrence_forward(*arguments)
    _, h0, c0, w, _, lengths, *_ = arguments
    has_c = c0 is not None
    d_hidden, d_h_n, d_c_n = cotangents((hidden, h_n, c_n))
    back = (d_hidden, d_h_n, d_c_n if has_c else None, h0, c0, w, hidden, cells if has_c else None)
    back += (saved if RULES[rule].spec.saved else None, lengths, rule, path, ragged, resets)
    torch.library.opcheck(recurrence_backward, back, test_utils=tests)


# One operator stands for the recurrence, whatever the cell: inductor says the same of all of them.
@pytest.mark.parametrize(
    ("name", "impl", "backend"),
    [
        *((name, impl, "aot_eager") for name in ("RNN", "GRU", "LSTM") for impl in ("triton", "triton-step")),
        ("LSTM", "triton", "inductor"),
        ("GRU", "triton-step", "inductor"),
    ],
)
def test_compile_fullgraph(name: str, impl: str, backend: str, device: torch.device) -> None:
    """A model with our layers in one graph, forward and all gradients, dense and on ids."""
    torch.compiler.reset()  # or the graphs of the other tests count against the limit of this one
    model = torch.nn.Sequential(getattr(fastcells, name)(6, H, impl=impl)).to(device)
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    for x in (torch.randn(T, B, 6, device=device), torch.randint(6, (T, B), device=device)):
        results: list[list[Tensor]] = []
        for run in (model, compiled):
            model.zero_grad()
            out, _ = run(x)
            torch.manual_seed(0)
            out.backward(torch.randn_like(out))
            results.append([out, *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
        for eager, graph in zip(*results, strict=True):
            # The recurrence is the same operator; what is around it may be fused and rounded differently.
            assert torch.allclose(eager, graph, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("impl", ["triton", "triton-step"])
def test_compile_with_resets(impl: str, device: torch.device) -> None:
    """The functional form in one graph: outputs and gradients, as without."""
    torch.compiler.reset()
    sizes = ((T, B, 6), (B, H), (3 * H, 6), (3 * H, H), (3 * H,), (3 * H,))
    leaves = [torch.randn(size, device=device).mul(0.3).requires_grad_() for size in sizes]
    resets = torch.rand(T, B, device=device) < 0.4
    results: list[tuple[Tensor, ...]] = []
    for run in (functional.gru, torch.compile(functional.gru, fullgraph=True, backend="aot_eager")):
        out = run(*leaves, resets=resets, impl=impl)
        torch.manual_seed(0)
        results.append((*out, *torch.autograd.grad(out, leaves, cotangents(out))))
    assert_equal_to_rounding(*results)
    assert not torch.equal(results[0][0], functional.gru(*leaves, impl=impl)[0])
