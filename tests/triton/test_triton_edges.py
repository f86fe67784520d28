"""Where the Triton implementations were once wrong or vague: precision switches, autocast, dtypes, infinities."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastcells
from fastcells import dispatch, functional
from fastcells.backends.triton import backend
from fastcells.backends.triton.backend import matmul_precision
from fastcells.kernels.triton import plan
from tests.support.accuracy import error

INPUT, H = 6, 10
pytestmark = pytest.mark.usefixtures("strict_float32")
EACH_IMPL = pytest.mark.parametrize("impl", ["triton", "triton-step"])


def test_float32_precision_follows_torchs_switch() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    for allowed, precision in ((True, "tf32"), (False, "tf32x3")):
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=allowed):
            assert matmul_precision(torch.float32, cuda) == precision
            assert matmul_precision(torch.bfloat16, cuda) == matmul_precision(torch.float32, cpu) == "ieee"


@EACH_IMPL
@pytest.mark.parametrize("name", ["RNNCell", "GRUCell", "LSTMCell", "RNN", "GRU", "LSTM"])
@pytest.mark.slow
def test_autocast(name: str, impl: str, device: torch.device) -> None:
    """Cells and layers run in the lower precision, as a module in that precision does."""
    module = getattr(fastcells, name)(INPUT, H, impl=impl).to(device)
    low = getattr(fastcells, name)(INPUT, H, impl=impl).to(device, torch.bfloat16)
    low.load_state_dict(module.state_dict())
    x = torch.randn((3, INPUT) if "Cell" in name else (4, 3, INPUT), device=device)
    with torch.autocast(device.type, torch.bfloat16):
        out = module(x)
    expected = low(x.bfloat16())
    while isinstance(out, tuple):
        out, expected = out[0], expected[0]
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, expected)


def test_autocast_counts_for_what_fits(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """LSTM, H=128, on an H100: too large for one program in float32, not in bfloat16."""
    monkeypatch.setattr(backend, "gpu", lambda _: plan.Device(90, 132))
    lstm, x = fastcells.LSTM(INPUT, 128, impl="triton").to(device), torch.zeros(1, 1, INPUT, device=device)
    assert fastcells.explain(lstm, x).path == "split"
    with torch.autocast(device.type, torch.bfloat16):
        assert fastcells.explain(lstm, x).path == "sequence"


class StopAt(Exception):
    """A choice was made, which the message is."""


def stop_at(choose: Callable[..., fastcells.Choice], *call: Any) -> None:
    raise StopAt(choose(*call))


@pytest.mark.parametrize("kind", ["layer", "batch first", "packed", "single", "cell", "function"])
def test_the_batch_counts_for_the_split(kind: str, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """GRU, H=256, on an H100: 4 groups of 32 programs run at once, 16 groups of 8, or 33 of 4; any batch runs."""
    monkeypatch.setattr(backend, "gpu", lambda _: plan.Device(90, 132))
    monkeypatch.setattr(backend, "matmul_precision", lambda *_: "tf32")

    def run(B: int) -> str:
        x = torch.zeros(1, B, INPUT, device=device)
        if kind == "function":
            w_ih, w_hh = torch.zeros(768, INPUT, device=device), torch.zeros(768, 256, device=device)
            with monkeypatch.context() as patch:
                patch.setattr(dispatch, "choose", partial(stop_at, dispatch.choose))
                with pytest.raises(StopAt) as stopped:
                    functional.gru(x, None, w_ih, w_hh, impl="triton")
            return str(stopped.value)
        if kind == "cell":
            return str(fastcells.explain(fastcells.GRUCell(INPUT, 256, impl="triton").to(device), x[0]))
        layer = fastcells.GRU(INPUT, 256, impl="triton", batch_first=kind == "batch first").to(device)
        if kind == "batch first":
            x = x.transpose(0, 1)
        elif kind == "single":
            x = x[0]  # B steps of one row
        sequence = nn.utils.rnn.pack_sequence(list(x.unbind(1))) if kind == "packed" else x
        return str(fastcells.explain(layer, sequence))

    for B, programs in ((256, 8), (272, 4), (5000, 4)):
        n = 32 if kind == "single" else programs
        assert run(B).startswith(f"triton (split): asked for; {n} programs hold {256 // n} columns' weights each")


@EACH_IMPL
def test_backward_inside_autocast(impl: str, device: torch.device) -> None:
    """Of a forward outside: in float32 all the same."""
    gru, x = fastcells.GRU(INPUT, H, impl=impl).to(device), torch.randn(4, 3, INPUT, device=device)
    d = torch.randn(4, 3, H, device=device)
    gradients = []
    for inside in (False, True):
        gru.zero_grad()
        out = gru(x)[0]
        with torch.autocast(device.type, torch.bfloat16, enabled=inside):
            out.backward(d)
        gradients.append(gru.weight_hh_l0.grad.clone())
    assert torch.equal(*gradients)


@EACH_IMPL
def test_mixed_dtypes_raise(impl: str, device: torch.device) -> None:
    cell = fastcells.GRUCell(INPUT, H, impl=impl).to(device)
    with pytest.raises(RuntimeError, match=r"h0 has dtype torch\.bfloat16 and the weights have torch\.float32"):
        cell(torch.randn(3, INPUT, device=device), torch.zeros(3, H, dtype=torch.bfloat16, device=device))
    layer = fastcells.GRU(INPUT, H, impl=impl).to(device)
    layer.bias_hh_l0 = nn.Parameter(layer.bias_hh_l0.double())
    with pytest.raises(RuntimeError, match=r"b_hh torch\.float64 on"):
        layer(torch.randn(2, 3, INPUT, device=device))


@EACH_IMPL
@pytest.mark.parametrize("form", ["rnn", "lstm"])
def test_an_infinity_spoils_only_what_it_reaches(form: str, impl: str, device: torch.device) -> None:
    """H is no power of two: the padding columns must not turn an infinite h into NaN."""
    gates, states = {"rnn": (1, 1), "lstm": (4, 2)}[form]
    h0 = torch.zeros(2, 7, device=device)
    h0[0, 0] = float("inf")
    weights = [torch.randn(gates * 7, 2, device=device), torch.randn(gates * 7, 7, device=device)]
    start = [h0, torch.zeros_like(h0)][:states]
    x = torch.zeros(3, 2, 2, device=device)
    ours, theirs = (getattr(functional, form)(x, *start, *weights, impl=i)[0] for i in (impl, "torch"))
    assert torch.equal(ours.isnan(), theirs.isnan())
    assert error(ours[:, 1], theirs[:, 1]) <= 16 * torch.finfo(torch.float32).eps  # values below 1, a dozen roundings


@pytest.mark.parametrize("impl", ["torch", "triton", "triton-step"])
def test_relus_gradient_at_nan_is_torchs(impl: str, device: torch.device) -> None:
    def gradient(rnn: nn.RNNBase, x: Tensor) -> Tensor:
        out = rnn(x)[0]
        return torch.autograd.grad(out, rnn.bias_hh_l0, torch.ones_like(out))[0]

    theirs = nn.RNN(INPUT, H, nonlinearity="relu").to(device)
    ours = fastcells.RNN(INPUT, H, nonlinearity="relu", impl=impl).to(device)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 3, INPUT, device=device)
    x[0, 1] = float("nan")
    a, b = gradient(ours, x), gradient(theirs, x)
    assert torch.equal(a.isnan(), b.isnan())
    assert error(a.nan_to_num(), b.nan_to_num()) <= 16 * torch.finfo(torch.float32).eps * b.abs().max().item()


@pytest.mark.parametrize("impl", ["triton", "triton-step"])
def test_an_empty_hidden_state_raises(impl: str, device: torch.device) -> None:
    x, h0, w_ih, w_hh = (torch.zeros(size, device=device) for size in ((2, 3, 4), (3, 0), (0, 4), (0, 0)))
    with pytest.raises(RuntimeError, match=r"cannot run: w_hh of shape \[0, 0\] is empty"):
        functional.gru(x, h0, w_ih, w_hh, impl=impl)


LAZY = {
    "negative": lambda t: torch._neg_view(-t),
    "zeros": lambda t: torch._efficientzerotensor(t.shape, device=t.device),
}


@EACH_IMPL
@pytest.mark.parametrize("cell", ["GRU", "LSTM", "RNN"])
@pytest.mark.parametrize("kind", LAZY)
@pytest.mark.parametrize("where", ["state", "weight", "gradient"])
def test_tensors_whose_values_are_not_in_memory(
    cell: str, impl: str, kind: str, where: str, device: torch.device
) -> None:
    """As `complex.conj().imag` is, and the zeros that autograd makes: kernels read what lies at an address."""
    layer = getattr(fastcells, cell)(INPUT, H, impl=impl).to(device).requires_grad_(False)
    x, state, gradient = (torch.randn(s, device=device) for s in ((3, 2, INPUT), (1, 2, H), (3, 2, H)))
    found = []
    for change in (LAZY[kind], lambda t: LAZY[kind](t).clone()):
        h = (change(state) if where == "state" else state).requires_grad_(where != "state")
        if where == "weight":
            layer.weight_hh_l0 = nn.Parameter(change(layer.weight_hh_l0), requires_grad=False)
        given = x.clone().requires_grad_()
        out, _ = layer(given, (h, h) if cell == "LSTM" else h)
        found.append([out, *torch.autograd.grad(out, given, change(gradient) if where == "gradient" else gradient)])
    for actual, expected in zip(*found, strict=True):
        assert torch.equal(actual, expected)
