"""Derived twins of the built-in cells, against these: layers in each of their modes, and cells."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fastcells
from fastcells import GRU, LSTM, RNN
from fastcells.defined.layer import DefinedLayer
from tests.defined.cells import TwinGRU, TwinLSTM, TwinRelu, TwinResetBefore, TwinRNN
from tests.support.devices import OF_A_CPU

Ours = type[DefinedLayer]
TWINS: list[tuple[Ours, type[nn.Module], dict[str, Any]]] = [
    (TwinGRU, GRU, {}),
    (TwinResetBefore, GRU, {"reset_after": False}),
    (TwinLSTM, LSTM, {}),
    (TwinRNN, RNN, {}),
    (TwinRelu, RNN, {"nonlinearity": "relu"}),
]
EACH_TWIN = pytest.mark.parametrize(("ours", "theirs", "more"), TWINS, ids=lambda v: getattr(v, "__name__", ""))
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "stack": {"num_layers": 2, "bidirectional": True, "batch_first": True, "dropout": 0.3},
    "no bias": {"bias": False, "learned_state": True},
    "regularised": {"recurrent_dropout": 0.3, "zoneout": 0.2, "weight_dropout": 0.1},
}
T, B, I, H = 6, 3, 5, 7  # noqa: E741 the project's letter for the input size


def pair(ours: Ours, theirs: type[nn.Module], options: dict[str, Any], more: dict[str, Any]) -> tuple[Any, Any]:
    """Two layers that begin with the same weights."""
    torch.manual_seed(0)
    one = ours(I, H, dtype=torch.float64, **options)
    torch.manual_seed(0)
    other = theirs(I, H, dtype=torch.float64, **options, **more)
    return one, other


@pytest.fixture
def no_cudnn() -> Iterator[None]:
    """On a GPU: it draws other numbers for dropout, and has no second derivatives."""
    with torch.backends.cudnn.flags(enabled=False):
        yield


def same(ours: Any, theirs: Any) -> None:
    torch.testing.assert_close(ours, theirs)


def inputs(one: Any, other: Any) -> dict[str, tuple[Any, dict[str, Tensor]]]:
    """What a layer may be called with; all that it takes beside it."""
    x = torch.randn(T, B, I, dtype=torch.float64)
    packed = pack_padded_sequence(x, torch.tensor([6, 2, 4]), enforce_sorted=False)
    if one.batch_first:
        x, packed = x.transpose(0, 1), pack_padded_sequence(x.transpose(0, 1), [6, 4, 2], batch_first=True)
    ids = torch.randint(0, I, x.shape[:2])
    return {
        "dense": (x, {}),
        "ids": (ids, {}),
        "packed": (packed, {}),
        "lengths": (x, {"lengths": torch.tensor([4, 0, 6])}),
        "resets": (x, {"resets": torch.rand(x.shape[:2]) < 0.3}),
        "unbatched": (x[0], {}),
    }


@pytest.mark.usefixtures("no_cudnn")
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@EACH_TWIN
def test_layer(ours: Ours, theirs: type[nn.Module], more: dict[str, Any], options: dict[str, Any]) -> None:
    one, other = pair(ours, theirs, options, more)
    assert list(one.state_dict()) == list(other.state_dict())
    for given, named in inputs(one, other).values():
        if isinstance(given, PackedSequence) and one.dropout:
            continue  # ATen draws for the tokens that there are
        results = []
        for layer in (one, other):
            torch.manual_seed(1)  # of dropout
            out, last = layer(given, **named)
            results.append(
                (out.data if isinstance(out, tuple) else out, *(last if isinstance(last, tuple) else (last,)))
            )
        same(*results)
        torch.manual_seed(2)
        d = [torch.randn_like(t) for t in results[0]]
        grads = [
            torch.autograd.grad(r, list(m.parameters()), d, materialize_grads=True)
            for r, m in zip(results, (one, other), strict=True)
        ]
        same(*grads)


@OF_A_CPU
@EACH_TWIN
def test_layer_is_a_module_like_others(ours: Ours, theirs: type[nn.Module], more: dict[str, Any]) -> None:
    one, other = pair(ours, theirs, {"num_layers": 2}, more)
    x = torch.randn(T, B, I, dtype=torch.float64)
    expected = one(x)
    for again in (pickle.loads(pickle.dumps(one)), copy.deepcopy(one)):
        same(again(x), expected)
        assert repr(again) == repr(one) == f"{ours.__name__}(5, 7, num_layers=2)"
    fresh = ours(I, H, 2, dtype=torch.float64)
    fresh.load_state_dict(other.state_dict())
    same(fresh(x), expected)
    torch._dynamo.reset()  # of what other tests have compiled
    same(torch.compile(one, fullgraph=True, backend="aot_eager")(x), expected)
    assert fastcells.explain(one, x).path == "recurrence"
    with pytest.raises(fastcells.CannotRun, match=r"there is no kernel for torch\.float64"):
        ours(I, H, impl="cpu", dtype=torch.float64)(x)


@pytest.mark.usefixtures("no_cudnn")
@EACH_TWIN
def test_second_derivatives(ours: Ours, theirs: type[nn.Module], more: dict[str, Any]) -> None:
    one, other = pair(ours, theirs, {}, more)
    x = torch.randn(3, 2, I, dtype=torch.float64, requires_grad=True)
    found = []
    for layer in (one, other):
        (d_x,) = torch.autograd.grad(layer(x)[0].pow(2).sum(), x, create_graph=True)
        found.append(torch.autograd.grad(d_x.pow(2).sum(), (x, layer.weight_hh_l0, layer.weight_ih_l0)))
    same(*found)


@EACH_TWIN
def test_cell(ours: Ours, theirs: type[nn.Module], more: dict[str, Any]) -> None:
    cells = []
    for make, given in ((ours.Cell, {}), (getattr(fastcells, f"{theirs.__name__}Cell"), more)):
        torch.manual_seed(0)
        cells.append(make(I, H, dtype=torch.float64, **given))
    one, other = cells
    for x in (torch.randn(B, I, dtype=torch.float64), torch.randn(I, dtype=torch.float64), torch.tensor([0, 4, 2])):
        state = one(x)
        same(state, other(x))
        same(one(x, state), other(x, state))
    same(pickle.loads(pickle.dumps(one))(x), one(x))
    assert repr(one) == f"{ours.__name__}.Cell(5, 7)"
