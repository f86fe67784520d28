"""Layers and cells without gradients: one call of C for each layer and direction."""

from __future__ import annotations

import copy
import os
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import fastcells
from fastcells import inference
from fastcells.backends.cpu import native
from tests.support.accuracy import EPS, ROUNDINGS, error
from tests.support.packing import flat

if native.obstacle() is not None and os.environ.get("CI") != "true":
    pytest.skip(native.obstacle() or "", allow_module_level=True)

pytestmark = pytest.mark.usefixtures("poisoned_memory")

CELLS = {"RNN": {}, "relu": {"nonlinearity": "relu"}, "GRU": {}, "before": {"reset_after": False}, "LSTM": {}}
NAMES = {"relu": "RNN", "before": "GRU"}
FEW = [(1, 1, 3, 5), (1, 8, 17, 16), (6, 1, 33, 20), (3, 3, 48, 1), (40, 2, 5, 7), (2, 5, 65, 40)]  # T, B, H, I
MANY = [(1, 33, 20, 7), (5, 9, 33, 40), (3, 130, 17, 3), (2, 70, 64, 9)]
SHAPES = FEW + MANY


class Counted:
    """The C module, with the calls of `layer` counted."""

    def __init__(self, real: Any) -> None:
        self.real, self.calls = real, 0

    def __getattr__(self, name: str) -> Any:
        if name == "layer":
            self.calls += 1
        return getattr(self.real, name)

    def small_layer(self, *arguments: Any) -> Any:
        found = self.real.small_layer(*arguments)
        self.calls += found is not None
        return found


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counted]:
    module = Counted(native._cpu)
    monkeypatch.setattr(native, "_cpu", module)
    with torch.no_grad():
        yield module


def made(cell: str, *args: Any, **kwargs: Any) -> nn.Module:
    module: nn.Module = getattr(fastcells, NAMES.get(cell, cell))(*args, **CELLS[cell], **kwargs)
    return module.eval()


def exact(module: nn.Module, *args: Any) -> list[Tensor]:
    """In float64, which C declines."""

    def double(t: Any) -> Any:
        return tuple(map(double, t)) if isinstance(t, tuple) else None if t is None else t.double()

    twin: Any = copy.deepcopy(module).double()
    twin.impl = "torch"
    return flat(twin(*map(double, args)))


def state_of(module: Any, *shape: int) -> Any:
    h = torch.randn(*shape)
    return (h, torch.randn(*shape)) if "LSTM" in type(module).__name__ else h


def close(actual: list[Tensor], expected: list[Tensor]) -> bool:
    assert [a.shape for a in actual] == [e.shape for e in expected]
    return all(
        error(a, e) <= ROUNDINGS * EPS * max(1.0, float(e.abs().max())) for a, e in zip(actual, expected, strict=True)
    )


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("options", [{}, {"bias": False}, {"bidirectional": True, "num_layers": 2}, {"num_layers": 3}])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("impl", ["auto", "cpu"])
def test_layers(
    cell: str, options: dict[str, Any], batch_first: bool, impl: str, counted: Counted, instructions: str
) -> None:
    if impl == "auto" and instructions == "portable":
        pytest.skip("auto leaves it to ATen: it was not timed")
    for T, B, H, I in SHAPES:  # noqa: E741
        layer: Any = made(cell, I, H, batch_first=batch_first, impl=impl, **options)
        rows = layer.num_layers * (2 if layer.bidirectional else 1)
        counted.calls = 0
        x = torch.randn(B, T, I) if batch_first else torch.randn(T, B, I)
        assert fastcells.explain(layer, x).path == "layer"
        for hx in (None, state_of(layer, rows, B, H)):
            assert close(flat(layer(x, hx)), exact(layer, x, hx)), (T, B, H, I)
        one = torch.randn(T, I)
        for hx in (None, state_of(layer, rows, H)):
            assert close(flat(layer(one, hx)), exact(layer, one, hx)), (T, H, I)
        apart = torch.randn(*x.shape[:2], I + 3)[..., 1 : I + 1].transpose(0, 1).contiguous().transpose(0, 1)
        assert close(flat(layer(apart)), exact(layer, apart))
        assert counted.calls == 5 * rows


@pytest.mark.parametrize("cell", CELLS)
def test_threads_and_packing_do_not_show(
    cell: str, counted: Counted, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same bits from any number of threads; packed or not, the same numbers."""
    from fastcells.backends.cpu import layer_call

    layer, x = made(cell, 30, 70, impl="cpu"), torch.randn(5, 3, 30)
    found = []
    for packed in (False, True):
        monkeypatch.setattr(layer_call, "packs", lambda *sizes, packed=packed: packed)
        monkeypatch.setattr(native, "WORK_OF_A_STEP", 1)
        inference._plans.clear()
        found.append(flat(layer(x)))
        torch.set_num_threads(1)
        inference._plans.clear()
        assert all(torch.equal(a, b) for a, b in zip(found[-1], flat(layer(x)), strict=True))
        torch.set_num_threads(threads)
    assert close(found[0], found[1]) and counted.calls == 4
    inference._plans.clear()


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("bias", [True, False])
def test_cells(cell: str, bias: bool, counted: Counted) -> None:
    for _, B, H, I in SHAPES:  # noqa: E741
        name = NAMES.get(cell, cell)
        module: Any = getattr(fastcells, f"{name}Cell")(I, H, bias, **CELLS[cell])
        counted.calls = 0
        assert fastcells.explain(module, torch.randn(B, I)).path == "layer"
        for shape in ((B,), ()):
            x = torch.randn(*shape, I)
            for hx in (None, state_of(module, *shape, H)):
                assert close(flat(module(x, hx)), exact(module, x, hx))
        assert counted.calls == 4


def test_the_long_way_leads_there_too(counted: Counted) -> None:
    """With what the short way does not know: a learned state, a state that C cannot read where it lies."""
    learned, gru, x = made("GRU", 6, 20, learned_state=True), made("GRU", 6, 20, impl="cpu"), torch.randn(3, 2, 6)
    assert close(flat(learned(x)), exact(learned, x)) and counted.calls == 1
    apart = torch.randn(1, 20, 2).transpose(1, 2)
    assert close(flat(gru(x, apart)), exact(gru, x, apart)) and counted.calls == 2


def test_functional(counted: Counted) -> None:
    gru, x = made("GRU", 6, 20), torch.randn(7, 2, 6)
    out, last = fastcells.functional.gru(x, None, *gru.parameters(), reverse=True, impl="cpu")
    assert counted.calls == 1
    assert close([out.flip(0), last], [t.squeeze(0) if i else t for i, t in enumerate(exact(gru, x.flip(0)))])


def test_gradients_go_another_way(counted: Counted) -> None:
    layer, x = made("GRU", 6, 20, impl="cpu"), torch.randn(3, 2, 6)
    with torch.enable_grad():
        assert layer(x)[0].requires_grad and counted.calls == 0
        assert fastcells.explain(layer, x).path == "cpu"
        layer.requires_grad_(False)
        assert not layer(x)[0].requires_grad and counted.calls == 1
        assert layer(x.requires_grad_())[0].requires_grad and counted.calls == 1
        assert layer(x.detach(), torch.zeros(1, 2, 20, requires_grad=True))[0].requires_grad and counted.calls == 1
        layer.bias_hh_l0.requires_grad_()
        assert layer(x.detach())[0].requires_grad and counted.calls == 1
        cell: Any = fastcells.GRUCell(6, 20).requires_grad_(False)
        assert not cell(x[0].detach()).requires_grad and counted.calls == 2
        assert cell(x[0]).requires_grad and counted.calls == 2


class Overridden(fastcells.GRU):
    """A subclass may check its input in its own way."""

    def check_input(self, input: Tensor, batch_sizes: Tensor | None) -> None:
        raise RuntimeError("not today")


def test_what_is_left_to_the_long_way(counted: Counted) -> None:
    gru, x = made("GRU", 6, 20), torch.randn(3, 2, 6)
    expected = gru(x)[0]
    assert counted.calls == 1
    gru(x, lengths=[3, 1]), gru(x, resets=torch.zeros(3, 2, dtype=torch.bool)), gru(torch.zeros(3, 2, dtype=torch.long))
    made("LSTM", 6, 20, proj_size=4)(x)
    made("LSTM", 6, 20, return_states=True, impl="torch")(x), made("GRU", 6, 20, impl="torch")(x)
    copy.deepcopy(gru).double()(x.double()), gru(x[:, :0])
    made("GRU", 6, 20, num_layers=2, dropout=0.5, impl="torch").train()(x)
    gru(nn.utils.rnn.pack_sequence([x[:, 0], x[:2, 1]]))
    with torch.autocast("cpu", torch.bfloat16):
        gru(x)
    torch.func.vmap(gru, in_dims=1, out_dims=1)(x)
    assert counted.calls == 1
    with pytest.raises(RuntimeError, match="not today"):
        Overridden(6, 20)(x)
    with pytest.raises(RuntimeError, match=r"input.size\(-1\) must be equal to input_size. Expected 6, got 5"):
        gru(torch.randn(3, 2, 5))
    with pytest.raises(RuntimeError, match="Expected hidden size"):
        gru(x, torch.zeros(1, 2, 19))
    with pytest.raises(ValueError, match="does not match weight dtype"):
        gru(x.double())
    assert counted.calls == 1
    normed = parametrizations.weight_norm(copy.deepcopy(gru), "weight_hh_l0")
    assert parametrize.is_parametrized(normed) and error(normed(x)[0], expected) <= 16 * EPS
    torch._dynamo.reset()
    assert error(torch.compile(copy.deepcopy(gru), fullgraph=True, backend="eager")(x)[0], expected) <= 16 * EPS


def test_each_call_reads_the_weights(counted: Counted) -> None:
    """Nothing of them is kept: changes in place, of `data`, of the Parameter, by an optimizer or a state_dict."""
    gru, other, x = made("GRU", 6, 20), made("GRU", 6, 20), torch.randn(3, 2, 6)
    optimizer = torch.optim.SGD(gru.parameters(), 0.1)

    def step() -> None:
        with torch.enable_grad():
            gru(x)[0].square().sum().backward()
        optimizer.step()

    changes = [
        lambda: gru.weight_hh_l0.mul_(1.1),
        lambda: setattr(gru.weight_hh_l0, "data", gru.weight_hh_l0.data * 1.1),
        lambda: setattr(gru, "weight_ih_l0", nn.Parameter(torch.randn(60, 6))),
        lambda: gru.bias_hh_l0.data.zero_(),
        step,
        lambda: gru.load_state_dict(other.state_dict()),
        lambda: setattr(gru.weight_ih_l0, "data", torch.randn(6, 60).t()),  # which C cannot read where it lies
    ]
    for change in changes:
        before = gru(x)[0]
        change()
        assert error(gru(x)[0], before) > 1e-4 and close(flat(gru(x)), exact(gru, x))
    assert counted.calls >= 3 * len(changes) - 2
    for copied in (copy.deepcopy(gru), pickle.loads(pickle.dumps(gru))):
        assert torch.equal(copied(x)[0], gru(x)[0])


def test_results_are_the_callers_own(counted: Counted) -> None:
    gru, x = made("GRU", 6, 20, batch_first=True), torch.randn(2, 1, 6)
    out, last = gru(x)
    kept = last.clone()
    out.detach_().zero_()
    assert torch.equal(last, kept) and out._base is None and last._base is None
    h = torch.randn(2, 6)
    cell = fastcells.RNNCell(6, 6)
    assert cell(h, h).data_ptr() != h.data_ptr() and counted.calls == 2


def test_a_verdict_is_heard(counted: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a trial has found for such calls comes before the rule."""
    from fastcells import dispatch
    from fastcells.backends.torch.backend import ATEN
    from fastcells.tuning import verdicts

    gru, x = made("GRU", 6, 20), torch.randn(3, 2, 6)
    gru(x)
    assert counted.calls == 1
    monkeypatch.setattr(dispatch.verdicts, "measured", lambda call: ATEN)
    verdicts.reset()
    gru(x)
    assert counted.calls == 1
    gru.pack()  # which no trial has timed
    for calls in (2, 3):
        gru(x)
        made("GRU", 6, 20)(x)
        assert counted.calls == calls
    assert fastcells.explain(gru, x).reason.endswith("weights kept packed")
    assert fastcells.explain(gru.unpack(), x).path == "aten"
    monkeypatch.undo()
    verdicts.reset()


def test_ambient_defaults(counted: Counted) -> None:
    gru, x = made("GRU", 6, 20), torch.randn(3, 2, 6)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"), torch.inference_mode():
            out, last = gru(x)
    finally:
        torch.set_default_dtype(torch.float32)
    assert out.dtype == last.dtype == torch.float32 and out.is_cpu and counted.calls == 1
