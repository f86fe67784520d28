"""What `_cpu.small_layer` does once a call is prepared: the second call sees what has changed since the first one."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastcells
from fastcells import inference
from fastcells.backends.cpu import native
from tests.cpu.test_layer_call import CELLS, Counted, close, counted, exact, made, state_of
from tests.support.packing import flat, same

__all__ = ["counted"]
pytestmark = pytest.mark.usefixtures("poisoned_memory")
EACH = pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])


def ready(cell: str, packed: bool, x: Tensor, hx: Any = None, **options: Any) -> Any:
    """A layer whose next call of this kind is prepared."""
    layer: Any = made(cell, 6, 20, impl="cpu", **options)
    if packed:
        layer.pack()
    layer(x, hx), layer(x, hx)
    return layer


@EACH
@pytest.mark.parametrize("cell", CELLS)
def test_it_is_taken(cell: str, packed: bool, counted: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    for bias in (True, False):
        for batch_first in (True, False):
            for shape in ((2, 3, 6), (3, 6), (1, 1, 6), (4, 1, 6)):
                rows = () if len(shape) == 2 else (shape[1 - batch_first],)
                x, hx = torch.randn(shape), state_of(made(cell, 6, 20), 1, *rows, 20)
                layer = ready(cell, packed, x, bias=bias, batch_first=batch_first)
                with monkeypatch.context() as patch:
                    patch.setattr(inference.Plans, "addresses", lambda *args: pytest.fail("the way before was taken"))
                    found = [layer(x), layer(x, hx), layer(x.transpose(0, 1).contiguous().transpose(0, 1))]
                assert close([t for each in found for t in flat(each)], exact_of(layer, x, hx))
                assert found[0][0].shape == (*shape[:-1], 20)


@EACH
@pytest.mark.parametrize("cell", CELLS)
def test_it_is_taken_by_a_team(
    cell: str, packed: bool, threads: int, counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And for a projection that buffers.py would keep memory for; by fewer threads where others have the cores."""
    layer: Any = made(cell, 6, 130, impl="cpu")
    if packed:
        layer.pack()
    given = list[int]()
    small_layer = counted.real.small_layer

    def watched(*args: Any) -> Any:
        given.append(args[5])
        return small_layer(*args)

    monkeypatch.setattr(counted, "small_layer", watched, raising=False)
    for B in (1, 2, 3):
        x = torch.randn(150, B, 6)
        layer(x), layer(x)
        with monkeypatch.context() as patch:
            patch.setattr(inference.Plans, "addresses", lambda *args: pytest.fail("the way before was taken"))
            found = layer(x)
            most = given[-1]
            patch.setattr(native, "no_more_than", lambda most: 1)
            assert same(layer(x), found) and given[-1] == 1
        assert close(flat(found), exact(layer, x))
        assert most == threads


def exact_of(layer: Any, x: Tensor, hx: Any) -> list[Tensor]:
    return [*exact(layer, x), *exact(layer, x, hx), *exact(layer, x)]


UNUSUAL: dict[str, Callable[[Any, Tensor], Any]] = {
    "negative": lambda gru, x: (torch._neg_view(-x),),
    "apart": lambda gru, x: (x[:, :, [0] * 6].copy_(x).transpose(1, 2).contiguous().transpose(1, 2),),
    "transposed-state": lambda gru, x: (x, torch.randn(1, 20, 2).transpose(1, 2)),
    "list-of-a-state": lambda gru, x: (x, [torch.zeros(1, 2, 20)]),
    "no-state-in-a-tuple": lambda gru, x: (x, ()),
    "two-states": lambda gru, x: (x, (torch.zeros(1, 2, 20), torch.zeros(1, 2, 20))),
    "state-of-other-rows": lambda gru, x: (x, torch.zeros(1, 3, 20)),
    "unbatched-state": lambda gru, x: (x, torch.zeros(1, 20)),
    "double-state": lambda gru, x: (x, torch.zeros(1, 2, 20, dtype=torch.float64)),
    "meta-state": lambda gru, x: (x, torch.zeros(1, 2, 20, device="meta")),
    "input_size": lambda gru, x: setattr(gru, "input_size", 7) or (x,),
    "hidden_size": lambda gru, x: setattr(gru, "hidden_size", 21) or (x,),
    "num_layers": lambda gru, x: setattr(gru, "num_layers", 2) or (x,),
    "batch_first": lambda gru, x: setattr(gru, "batch_first", True) or (x,),
    "impl": lambda gru, x: setattr(gru, "impl", "torch") or (x,),
    "reset_after": lambda gru, x: setattr(gru, "reset_after", False) or (x,),
    "double-weights": lambda gru, x: gru.double() and (x,),
    "meta-weights": lambda gru, x: gru.to("meta") and (x,),
    "wider-weight": lambda gru, x: setattr(gru.weight_ih_l0, "data", torch.randn(60, 7)) or (x,),
    "negative-weight": lambda gru, x: setattr(gru.weight_ih_l0, "data", torch._neg_view(torch.randn(60, 6))) or (x,),
    "no-weight": lambda gru, x: setattr(gru, "bias_hh_l0", None) or (x,),
}


@EACH
@pytest.mark.parametrize("change", UNUSUAL.values(), ids=UNUSUAL)
def test_anything_unusual(
    change: Callable[[Any, Tensor], Any], packed: bool, counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does and raises what it does and raises without anything prepared."""
    x = torch.randn(3, 2, 6)
    gru = ready("GRU", packed, x, torch.zeros(1, 2, 20))
    args, found = change(gru, x), list[Any]()
    for prepared in (True, False):
        if not prepared:
            monkeypatch.setattr(counted, "small_layer", lambda *args: None, raising=False)
            gru.unpack()
        try:
            found.append(gru(*args))
        except Exception as error:
            found.append((type(error), str(error)))
    first, second = found
    assert type(first) is type(second)
    if isinstance(first[0], type):
        assert first == second
    else:
        assert all(a.shape == b.shape and a.dtype == b.dtype for a, b in zip(flat(first), flat(second), strict=True))
        if not first[0].is_meta:
            assert close(flat(first), [t.double() for t in flat(second)])


@EACH
def test_gradients(packed: bool, counted: Counted) -> None:
    x = torch.randn(3, 2, 6)
    gru = ready("GRU", packed, x)
    with torch.enable_grad():
        assert gru(x)[0].requires_grad
        gru.requires_grad_(False)
        gru(x), gru(x)
        assert not gru(x)[0].requires_grad and gru(x.clone().requires_grad_())[0].requires_grad
        gru.bias_hh_l0.requires_grad_()
        assert gru(x)[0].requires_grad


@EACH
def test_results(packed: bool, counted: Counted) -> None:
    """New tensors each time, and the module has nothing more to copy than before."""
    x = torch.randn(1, 1, 6)
    gru = ready("GRU", packed, x)
    (out, last), (again, _) = gru(x), gru(x)
    assert len({t.data_ptr() for t in (out, last, again)}) == 3 and same(out, again)
    for other in (pickle.loads(pickle.dumps(gru)), copy.deepcopy(gru)):
        assert close(flat(other(x)), [out.double(), last.double()])
    with torch.inference_mode():
        assert gru(x)[0].is_inference()
    parameter = nn.Parameter(x, requires_grad=False)
    assert same(gru(parameter), (out, last)) and same(gru(x[0])[0], out[0])


CELL_CHANGES: dict[str, Callable[[Any, Tensor], Any]] = {
    "nothing": lambda cell, x: (x,),
    "rows-apart": lambda cell, x: (torch.cat([x, x], 1)[:, :6],),
    "negative": lambda cell, x: (torch._neg_view(-x),),
    "one-row": lambda cell, x: (x[0],),
    "three-dimensions": lambda cell, x: (x[None],),
    "state-of-other-rows": lambda cell, x: (x, state_of(cell, 3, 20)),
    "unbatched-state": lambda cell, x: (x, state_of(cell, 20)),
    "transposed-state": lambda cell, x: (x, t.t() if isinstance(t := state_of(cell, 20, 2), Tensor) else t),
    "input_size": lambda cell, x: setattr(cell, "input_size", 7) or (x,),
    "hidden_size": lambda cell, x: setattr(cell, "hidden_size", 21) or (x,),
    "impl": lambda cell, x: setattr(cell, "impl", "torch") or (x,),
    "weight": lambda cell, x: cell.weight_hh.data.mul_(2) is not None and (x,),
    "data": lambda cell, x: setattr(cell.weight_ih, "data", torch.randn_like(cell.weight_ih)) or (x,),
    "double-weights": lambda cell, x: cell.double() and (x,),
    "gradients": lambda cell, x: (x.clone().requires_grad_(),),
}


@pytest.mark.parametrize("change", CELL_CHANGES.values(), ids=CELL_CHANGES)
@pytest.mark.parametrize("name", ["RNNCell", "GRUCell", "LSTMCell"])
def test_cells(
    name: str, change: Callable[[Any, Tensor], Any], counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.randn(2, 6)
    cell: Any = getattr(fastcells, name)(6, 20, impl="cpu").requires_grad_(False)
    cell(x), cell(x[0])
    with monkeypatch.context() as patch:
        patch.setattr(inference.Plans, "addresses", lambda *args: pytest.fail("the way before was taken"))
        for args in ((x,), (x[0],), (x, state_of(cell, 2, 20)), (x[0], state_of(cell, 20))):
            assert close(flat(cell(*args)), exact(cell, *args))
    args, found = change(cell, x), list[Any]()
    for prepared in (True, False):
        if not prepared:
            monkeypatch.setattr(counted, "small_layer", lambda *args: None, raising=False)
        try:
            with torch.enable_grad():
                found.append(flat(cell(*args)))
        except Exception as error:
            found.append((type(error), str(error)))
    first, second = found
    assert type(first) is type(second)
    if isinstance(first, tuple):
        assert first == second
    else:
        assert [t.requires_grad for t in first] == [t.requires_grad for t in second]
        assert close([t.detach() for t in first], [t.detach().double() for t in second])
