"""Layers, cells and compiled calls that run in C, and calls that cannot."""

from __future__ import annotations

import os

import pytest
import torch
from torch import nn

import fastcells
from fastcells.backends.cpu import library, native
from tests.support.accuracy import EPS, error
from tests.support.runs import INPUT, arguments, cotangents_of
from tests.support.shapes import EACH_CELL, Case

if native.obstacle() is not None and os.environ.get("CI") != "true":
    pytest.skip(native.obstacle() or "", allow_module_level=True)

pytestmark = pytest.mark.usefixtures("poisoned_memory")


@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_layers(name: str) -> None:
    """A stack of two bidirectional layers on ids, packed, against torch's on one-hots."""
    ours = getattr(fastcells, name)(INPUT, 16, 2, bidirectional=True, impl="cpu")
    theirs = getattr(nn, name)(INPUT, 16, 2, bidirectional=True)
    theirs.load_state_dict(ours.state_dict())
    sequences = [torch.randint(INPUT, (n,)) for n in (3, 5, 1)]
    ids = nn.utils.rnn.pack_sequence(sequences, enforce_sorted=False)
    one_hots = nn.utils.rnn.pack_sequence([nn.functional.one_hot(s, INPUT).float() for s in sequences], False)
    assert fastcells.explain(ours, ids).impl == "cpu"
    assert error(ours(ids)[0].data, theirs(one_hots)[0].data) <= 16 * EPS  # values below 1, a dozen roundings


@pytest.mark.parametrize("name", ["RNNCell", "GRUCell", "LSTMCell"])
def test_cells(name: str) -> None:
    ours, theirs = getattr(fastcells, name)(INPUT, 16, impl="cpu"), getattr(nn, name)(INPUT, 16)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(4, INPUT)
    for a, b in zip(*(t if isinstance(t, tuple) else (t,) for t in (ours(x), theirs(x))), strict=True):
        assert error(a, b) <= 16 * EPS


def test_outputs_are_tensors_of_their_own() -> None:
    """In-place changes are allowed, and reach neither the state nor the next call."""
    gru = fastcells.GRU(INPUT, 16, impl="cpu")
    x = torch.randn(5, 3, INPUT)
    out, h_n = gru(x)
    expected = out.clone(), h_n.clone()
    out.mul_(2.0)
    assert torch.equal(h_n, expected[1])
    assert all(torch.equal(a, b) for a, b in zip(gru(x), expected, strict=True))


@EACH_CELL
@pytest.mark.slow
def test_compile_and_opcheck(case: Case) -> None:
    args = arguments(case, (3, 4, 9))
    leaves = [a.requires_grad_() for a in args]
    d = cotangents_of(case, (3, 4, 9))
    eager = case.ours(*leaves, impl="cpu")
    compiled = torch.compile(lambda *a: case.ours(*a, impl="cpu"), fullgraph=True, backend="aot_eager")(*leaves)
    for outs in zip(eager, compiled, strict=True):
        assert error(*outs) <= 16 * EPS
    for a, b in zip(*(torch.autograd.grad(outs, leaves, d) for outs in (eager, compiled)), strict=True):
        assert error(a, b) <= 64 * EPS * max(1.0, b.abs().max().item())
    spec = case.spec
    G = spec.num_gates
    x, h, w, b = torch.randn(3, 4, G * 9), torch.randn(4, 9), torch.randn(G * 9, 9), torch.randn(G * 9)
    second = torch.randn(4, 9) if spec.num_states == 2 else None
    lengths, resets = torch.tensor([3, 0, 7, 2]), torch.ones(3, 4, dtype=torch.bool)
    for save in (False, True):
        torch.library.opcheck(library.cpu_forward, (x, h, second, w, b, lengths, resets, spec.name, False, save))
    _, hidden, cells, saved, *_ = library.cpu_forward(x, h, second, w, None, None, None, spec.name, True, True)
    kept = (hidden, cells if spec.num_states == 2 else None, saved if spec.num_saved else None)
    torch.library.opcheck(
        library.cpu_backward,
        (torch.randn(3, 4, 9), h, second, h, second, w, None, None, *kept, case.spec.name, True),
    )


def test_what_cannot_run_raises() -> None:
    def gru(dtype: torch.dtype = torch.float32, device: str = "cpu") -> object:
        x = torch.zeros(2, 3, INPUT, dtype=dtype, device=device)
        return fastcells.GRU(INPUT, 7, impl="cpu", dtype=dtype, device=device)(x)

    with pytest.raises(RuntimeError, match=r"impl='cpu' cannot run: there is no kernel for torch.float64"):
        gru(torch.float64)
    with pytest.raises(RuntimeError, match="impl='cpu' cannot run: the weights are on meta"):
        gru(device="meta")
    with torch.autocast("cpu", torch.float16), pytest.raises(RuntimeError, match=r"no kernel for torch\.float16"):
        gru()
    ours = fastcells.GRU(INPUT, 7, impl="cpu")
    with pytest.raises(RuntimeError, match=r"do not run under torch\.jit\.trace, torch\.func transforms"):
        torch.func.vmap(lambda x: ours(x)[0])(torch.zeros(4, 2, 3, INPUT))
    with pytest.raises(IndexError, match=r"token id 6 at position \[0, 1\] of ids of shape \[1, 2\]"):
        ours(torch.tensor([[0, 6]]))
