"""`layer.pack()`: the calls that do without, the layers that refuse, and copies."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

import fastcells
from tests.cpu.test_layer_call import exact, made
from tests.support.accuracy import EPS, ROUNDINGS, error
from tests.support.packing import KEPT, PACKED, PACKED_TO_KEEP, Watched, fresh, same

pytestmark = pytest.mark.usefixtures("poisoned_memory")


def test_what_else_does_without(watched: Watched) -> None:
    gru: Any = made("GRU", 6, 20).pack()
    x = torch.randn(3, 2, 6)
    expected = gru(x)[0]
    watched.taken()
    with torch.autocast("cpu", torch.bfloat16):
        gru(x)
    gru(x, lengths=[3, 1]), copy.deepcopy(gru).pack().double()(x.double())
    torch.func.vmap(gru, in_dims=1, out_dims=1)(x)
    assert watched.taken() == []
    torch._dynamo.reset()
    compiled = torch.compile(gru, fullgraph=True, backend="eager")
    exported = torch.export.export(gru, (x,)).module()
    for other in (compiled, exported):
        assert error(other(x)[0], expected) <= ROUNDINGS * EPS
    assert watched.taken() == []
    normed = copy.deepcopy(gru).pack()
    normed(x)
    parametrizations.weight_norm(normed, "weight_hh_l0")
    watched.taken()
    assert error(normed(x)[0], expected) <= ROUNDINGS * EPS and KEPT not in watched.taken()
    assert "packed" not in str(fastcells.explain(normed, x))
    with torch.inference_mode():  # whose tensors have no count of changes
        assert same(gru(x)[0], expected) and watched.taken() == [KEPT]
        gru.weight_hh_l0 = nn.Parameter(gru.weight_hh_l0 * 1.1, requires_grad=False)
        for _ in range(2):
            assert same(gru(x), fresh(gru)(x)) and watched.taken() == [PACKED, PACKED]


def test_explain(watched: Watched) -> None:
    gru: Any = made("GRU", 6, 20, impl="cpu", bidirectional=True)
    few, many = torch.randn(3, 2, 6), torch.randn(3, 90, 6)
    assert "packed" not in fastcells.explain(gru, few).reason
    gru.pack()
    assert fastcells.explain(gru, few).reason.endswith("; weights kept packed")
    assert fastcells.explain(gru, many).reason.endswith("; weights kept packed")
    assert "packed" not in fastcells.explain(gru.unpack(), few).reason


class Derived(fastcells.GRU):
    pass


def pruned() -> nn.Module:
    return prune.l1_unstructured(made("GRU", 6, 20), "weight_hh_l0", 0.5)


def of_inference_tensors() -> nn.Module:
    with torch.inference_mode():
        return made("GRU", 6, 20)


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "weight_norm": (
        lambda: parametrizations.weight_norm(made("GRU", 6, 20), "weight_hh_l0"),
        "weight_hh_l0 is computed anew at each call, by a parametrization",
    ),
    "pruning": (pruned, "weight_hh_l0 is computed anew at each call"),
    "weight_dropout": (lambda: made("LSTM", 6, 20, weight_dropout=0.5).train(), "weight_dropout=0.5 draws .* eval"),
    "derived": (lambda: Derived(6, 20), "Derived is not RNN, GRU or LSTM of fastcells itself"),
    "proj_size": (lambda: made("LSTM", 6, 20, proj_size=4), "with proj_size=4"),
    "learned_state": (lambda: made("GRU", 6, 20, learned_state=True), "with learned_state=True"),
    "return_states": (lambda: made("LSTM", 6, 20, return_states=True), "with return_states=True"),
    "impl": (lambda: made("GRU", 6, 20, impl="torch"), "impl='torch' runs no C"),
    "inference_mode": (of_inference_tensors, "counts no changes of weight_ih_l0, an inference tensor"),
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(make: Callable[[], Any], message: str) -> None:
    layer = make()
    with pytest.raises(fastcells.CannotRun, match=rf"{layer.label}.pack\(\) cannot run: .*{message}"):
        layer.pack()
    assert not layer.packed


def test_weight_dropout_in_evaluation(watched: Watched) -> None:
    layer: Any = made("LSTM", 6, 20, weight_dropout=0.5, impl="cpu").pack()
    x = torch.randn(3, 2, 6)
    assert error(layer(x)[0], exact(layer, x)[0]) <= ROUNDINGS * EPS and watched.taken() == [PACKED_TO_KEEP]
    layer.train()(x)
    assert KEPT not in watched.taken() and "packed" not in str(fastcells.explain(made("LSTM", 6, 20), x))


def test_copies_are_not_packed(watched: Watched) -> None:
    gru: Any = made("GRU", 6, 20, impl="cpu")
    x, state = torch.randn(3, 2, 6), set(gru.__getstate__())
    expected = gru.pack()(x)
    assert list(gru.state_dict()) == list(made("GRU", 6, 20).state_dict()) and len(list(gru.buffers())) == 0
    assert set(gru.__getstate__()) == state
    for other in (copy.deepcopy(gru), copy.copy(gru), pickle.loads(pickle.dumps(gru))):
        assert not other.packed and same(other(x), expected)
    assert gru.packed
    watched.taken()
    gru(x)
    assert watched.taken() == [KEPT]
