"""`layer.step`: the sequence one step at a time, by C where it may, and the same to rounding everywhere."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import fastcells
from fastcells.backends.cpu.step_in_place import StepInPlace

T, B, I, H = 7, 3, 5, 6  # noqa: E741
LAYERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "RNN": (fastcells.RNN, {}),
    "RNN-relu": (fastcells.RNN, {"nonlinearity": "relu"}),
    "GRU": (fastcells.GRU, {}),
    "GRU-reset-before": (fastcells.GRU, {"reset_after": False}),
    "LSTM": (fastcells.LSTM, {}),
    "LSTM-proj": (fastcells.LSTM, {"proj_size": 4}),
}
EACH_LAYER = pytest.mark.parametrize("name", LAYERS)


def layer(name: str, **options: Any) -> Any:
    made, own = LAYERS[name]
    return made(I, H, **{"num_layers": 2, **own, **options})


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The cells that C stepped."""
    calls: list[str] = []
    original = StepInPlace.__call__
    monkeypatch.setattr(StepInPlace, "__call__", lambda self, x: calls.append(self.cell) or original(self, x))
    return calls


def walked(built: Any, x: Tensor, hx: Any, steps: int = T) -> tuple[Tensor, Any]:
    outs, time = [], 1 if built.batch_first and x.dim() + (not x.is_floating_point()) > 2 else 0
    for t in range(steps):
        before = None if hx is None else [s.clone() for s in (hx if isinstance(hx, tuple) else (hx,))]
        given = hx
        out, hx = built.step(x.select(time, t), hx)
        if before is not None:  # what was given is not changed
            now = given if isinstance(given, tuple) else (given,)
            assert all(torch.equal(b, s) for b, s in zip(before, now, strict=True))
        outs.append(out)
    return torch.stack(outs, time), hx


@pytest.mark.parametrize("batch", [None, 1, B], ids=("unbatched", "one row", "rows"))
@pytest.mark.parametrize("ids", [False, True], ids=("dense", "ids"))
@pytest.mark.parametrize("batch_first", [False, True])
@EACH_LAYER
def test_steps_are_the_sequence(name: str, batch_first: bool, ids: bool, batch: int | None, counted: list[str]) -> None:
    built = layer(name, batch_first=batch_first)
    shape = (T,) if batch is None else (batch, T) if batch_first else (T, batch)
    x = torch.randint(I, shape) if ids else torch.randn(*shape, I)
    with torch.no_grad():
        expected, last = built(x)
        out, hx = walked(built, x, None)
    assert len(counted) == (2 * T if batch in (None, 1) and "proj" not in name else 0)
    torch.testing.assert_close(out, expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(hx, last, atol=1e-6, rtol=1e-5)


@EACH_LAYER
def test_a_given_state_goes_on_and_gradients_flow_where_they_are_wanted(name: str, counted: list[str]) -> None:
    built = layer(name, dtype=torch.float64)
    x = torch.randn(T, 1, I, dtype=torch.float64, requires_grad=True)
    _, hx = built(x[:3])
    expected, _ = built(x[3:], hx)
    outs = []
    for t in range(3, T):
        out, hx = built.step(x[t], hx)
        outs.append(out)
    leaves, d = [x, *built.parameters()], torch.randn_like(expected)
    found = (torch.autograd.grad(o, leaves, d, retain_graph=True) for o in (torch.stack(outs), expected))
    for a, e in zip(*found, strict=True):
        torch.testing.assert_close(a, e)
    assert counted == []


@pytest.mark.parametrize("why", ["gradients", "float64", "impl", "dropout", "autocast", "two rows"])
def test_c_leaves_alone_what_is_not_its_own(why: str, counted: list[str]) -> None:
    options: dict[str, Any] = {
        "float64": {"dtype": torch.float64},
        "impl": {"impl": "torch"},
        "dropout": {"zoneout": 0.5},
    }.get(why, {})
    built = layer("GRU", **options)
    x = torch.randn(2 if why == "two rows" else 1, I, dtype=options.get("dtype"))
    with torch.set_grad_enabled(why == "gradients"), torch.autocast("cpu", enabled=why == "autocast"):
        built.step(x)
    assert counted == []
    with torch.no_grad():
        layer("GRU").step(torch.randn(1, I))
    assert counted == ["gru", "gru"]


def test_dropout_between_layers_is_that_of_the_layer(counted: list[str]) -> None:
    built, x = layer("GRU", dropout=0.5).requires_grad_(False), torch.randn(1, I)
    outs = []
    for call in (lambda: built(x[None])[0][0], lambda: built.step(x)[0]):
        torch.manual_seed(1)
        outs.append(call())
    assert torch.equal(*outs) and counted == []
    built.eval().step(x)
    assert counted == ["gru", "gru"]


def test_a_state_that_wants_a_gradient_gets_it_from_frozen_weights() -> None:
    built, x = layer("GRU").requires_grad_(False), torch.randn(1, I)
    given = built.step(x)[1].requires_grad_()
    own = fastcells.GRU(I, given.shape[-1], learned_state=True).requires_grad_(False)
    own.h_0.requires_grad_()
    for out, leaf in ((built.step(x, given)[0], given), (own.step(x)[0], own.h_0)):
        assert torch.autograd.grad(out.sum(), leaf)[0].abs().sum() > 0


def test_what_is_returned_is_the_callers() -> None:
    built = layer("LSTM")
    with torch.no_grad():
        out, (h, c) = built.step(torch.randn(1, I))
        kept = h.clone()
        out.zero_()
        assert torch.equal(h, kept)
        h.detach_().zero_()
        c.zero_()


def test_errors_are_those_of_the_layer() -> None:
    with pytest.raises(ValueError, match="GRU: a bidirectional layer reads the whole sequence"):
        layer("GRU", bidirectional=True).step(torch.randn(1, I))
    for grad in (False, True):
        built = layer("GRU").requires_grad_(grad)
        with pytest.raises(RuntimeError, match=r"input.size\(-1\) must be equal to input_size. Expected 5, got 4"):
            built.step(torch.randn(1, 4))
        with pytest.raises(ValueError, match="RNN input dtype"):
            built.step(torch.randn(1, I).double())
        with pytest.raises(RuntimeError, match=r"Expected hidden size \(2, 1, 6\), got \[2, 2, 6\]"):
            built.step(torch.randn(1, I), torch.zeros(2, 2, H))
        with pytest.raises(RuntimeError, match="hx should also be 3-D but got 2-D"):
            built.step(torch.randn(1, I), torch.zeros(2, H))
        with pytest.raises(IndexError, match="token id 5"):
            built.step(torch.tensor([5]))
