"""`layer.pack()`: what is packed once gives the bits of what each call packs, whatever has changed in between."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastcells
from fastcells import kept_weights
from tests.cpu.test_layer_call import CELLS, SHAPES, made, state_of
from tests.support.accuracy import error
from tests.support.packing import KEPT, PACKED, PACKED_TO_KEEP, Watched, fresh, same

pytestmark = pytest.mark.usefixtures("poisoned_memory")

OPTIONS = [{}, {"bias": False, "batch_first": True}, {"bidirectional": True, "num_layers": 2}, {"num_layers": 3}]


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(o) or "plain")
def test_the_same_bits(cell: str, options: dict[str, Any], watched: Watched, instructions: str, threads: int) -> None:
    for T, B, H, I in SHAPES:  # noqa: E741
        layer: Any = made(cell, I, H, impl="cpu", **options)
        rows = layer.num_layers * (2 if layer.bidirectional else 1)
        inputs = [torch.randn(*((b, T) if layer.batch_first else (T, b)), I) for b in (B, 1, 2, 37)]
        states = [hx for x in inputs for hx in (None, state_of(layer, rows, x.shape[0 if layer.batch_first else 1], H))]
        calls = list(zip([x for x in inputs for _ in range(2)], states, strict=True))
        expected = [layer(*call) for call in calls]
        assert set(watched.taken()) == {PACKED}
        assert layer.pack() is layer and layer.packed
        assert all(same(layer(*call), e) for call, e in zip(calls, expected, strict=True)), (T, B, H, I)
        ways = watched.taken()
        assert set(ways) == {PACKED_TO_KEEP, KEPT} and ways.count(PACKED_TO_KEEP) <= 3 * rows
        assert all(same(layer(*call), e) for call, e in zip(calls, expected, strict=True)), (T, B, H, I)
        assert set(watched.taken()) == {KEPT}
        assert not layer.unpack().packed and same(layer(*calls[0]), expected[0])
        assert set(watched.taken()) == {PACKED}


def step(gru: Any) -> None:
    optimizer = torch.optim.SGD(gru.parameters(), 0.1)
    with torch.enable_grad():
        gru(torch.randn(3, 2, 6))[0].square().sum().backward()
    optimizer.step()


def assign(gru: Any, name: str) -> None:
    setattr(gru, name, nn.Parameter(torch.randn_like(getattr(gru, name))))


def to_and_fro(gru: Any) -> None:
    gru.double().weight_hh_l0.mul_(1.1)
    gru.float()


def twice(gru: Any) -> None:
    """Another `data`, and another: the second one may lie where the first has been."""
    for _ in range(2):
        gru.weight_ih_l0.data = torch.randn(60, 6)


CHANGES: dict[str, Callable[[Any], object]] = {
    "optimizer": step,
    "load_state_dict": lambda gru: gru.load_state_dict(made("GRU", 6, 20).state_dict()),
    "load_state_dict-assign": lambda gru: gru.load_state_dict(made("GRU", 6, 20).state_dict(), assign=True),
    "copy_": lambda gru: gru.weight_hh_l0.copy_(torch.randn(60, 20)),
    "mul_": lambda gru: gru.bias_ih_l0.mul_(1.1),
    "add_-of-a-view": lambda gru: gru.weight_ih_l0[3].add_(1),
    "foreach": lambda gru: torch._foreach_mul_(list(gru.parameters()), 1.1),
    "init": lambda gru: nn.init.orthogonal_(gru.weight_hh_l0),
    "reset_parameters": lambda gru: gru.reset_parameters(),
    "data": lambda gru: setattr(gru.weight_hh_l0, "data", gru.weight_hh_l0.data * 1.1),
    "data-twice": twice,
    "set_": lambda gru: gru.weight_hh_l0.set_(torch.randn(60, 20)),
    "weight_ih": lambda gru: assign(gru, "weight_ih_l0"),
    "weight_hh": lambda gru: assign(gru, "weight_hh_l0"),
    "bias_hh": lambda gru: assign(gru, "bias_hh_l0"),
    "to": to_and_fro,
    "apply": lambda gru: gru._apply(lambda t: t * 1.1),
    "vector_to_parameters": lambda gru: nn.utils.vector_to_parameters(
        nn.utils.parameters_to_vector(gru.parameters()) * 1.1, gru.parameters()
    ),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_each_change_is_noticed(change: Callable[[Any], object], watched: Watched) -> None:
    gru: Any = made("GRU", 6, 20, impl="cpu").pack()
    x, other = torch.randn(3, 2, 6), torch.randn(3, 1, 6)
    for _ in range(3):
        gru(other)
        before = gru(x)
        watched.taken()
        assert same(gru(x), before) and watched.taken() == [KEPT]
        change(gru)
        watched.taken()
        after = gru(x), gru(x)
        assert watched.taken() == [PACKED_TO_KEEP, KEPT]
        assert error(after[0][0], before[0]) > 1e-4
        assert all(same(a, fresh(gru)(x)) for a in after) and same(gru(other), fresh(gru)(other))


def test_a_parameter_in_the_place_of_another(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the same address and with the same count of changes: it is still another one."""
    gru: Any = made("GRU", 6, 20, impl="cpu").pack()
    x, memory = torch.randn(3, 2, 6), torch.randn(60, 20)
    gru.weight_hh_l0 = nn.Parameter(torch.from_numpy(memory.numpy()))
    before = gru(x)
    memory.mul_(1.1)
    assert same(gru(x), before)  # as the docstring says of numpy
    gru.weight_hh_l0 = nn.Parameter(torch.from_numpy(memory.numpy()))
    assert same(gru(x), fresh(gru)(x)) and not same(gru(x), before)


def test_what_torch_does_not_count(watched: Watched) -> None:
    """As the docstring says, until `pack` is called again."""
    gru: Any = made("GRU", 6, 20, impl="cpu").pack()
    x = torch.randn(3, 2, 6)
    before = gru(x)
    gru.weight_hh_l0.data.mul_(1.1)
    assert same(gru(x), before)
    assert same(gru.pack()(x), fresh(gru)(x)) and not same(gru(x), before)


def test_gradients_do_without(watched: Watched) -> None:
    gru: Any = made("GRU", 6, 20, impl="cpu").pack()
    x = torch.randn(3, 2, 6)
    before = gru(x)
    watched.taken()
    with torch.enable_grad():
        assert "packed" not in fastcells.explain(gru, x).reason
        assert gru(x)[0].requires_grad and watched.taken() == []
        gru.requires_grad_(False)
        assert same(gru(x), before) and watched.taken() == [KEPT]
        gru.bias_hh_l0.requires_grad_()
        assert gru(x)[0].requires_grad and watched.taken() == []
        assert gru.requires_grad_()(x)[0].requires_grad and watched.taken() == []
    assert same(gru(x), before) and watched.taken() == [KEPT]


def test_memory_is_given_back(watched: Watched) -> None:
    def packed() -> tuple[Any, list[weakref.ref[Any]]]:
        layer: Any = made("GRU", 6, 200, num_layers=2, impl="cpu").pack()
        for B in (1, 2, 3):
            layer(torch.randn(3, B, 6))
        kept = layer._keeper.packed
        assert len(kept.panels) == 6
        return layer, [weakref.ref(kept), *map(weakref.ref, kept.panels.values())]

    def alive(refs: list[weakref.ref[Any]]) -> int:
        gc.collect()
        return sum(ref() is not None for ref in refs)

    changes: list[Callable[[Any], object]] = [lambda gru: gru.unpack(), lambda gru: gru.pack()]
    for change in (*changes, lambda gru: gru.double(), lambda gru: gru.to("meta")):
        layer, refs = packed()
        assert alive(refs) == 7
        change(layer)
        assert alive(refs) == 0
    layer, refs = packed()
    layer.weight_hh_l0.mul_(2)
    layer(torch.randn(3, 1, 6))
    assert alive(refs) == 0 and len(layer._keeper.packed.panels) == 2
    layer, refs = packed()
    del layer
    assert alive(refs) == 0


def test_few_layouts_are_kept(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of many processors has a layout for each size of a team."""
    monkeypatch.setattr(kept_weights, "MOST_LAYOUTS", 2)
    layer: Any = made("RNN", 6, 200, impl="cpu").pack()
    inputs = [torch.randn(3, B, 6) for B in (1, 2, 3)]
    expected = [fresh(layer)(x) for x in inputs]
    for _ in range(3):
        assert all(same(layer(x), e) for x, e in zip(inputs, expected, strict=True))
        assert len(layer._keeper.packed.panels) <= 2


def test_threads_at_once(watched: Watched) -> None:
    """All begin with nothing packed, and none sees what another one is still packing."""
    layer: Any = made("LSTM", 40, 90, num_layers=2, impl="cpu")
    inputs = [torch.randn(4, B, 40) for B in (1, 2, 3, 8)]
    expected = [layer(x) for x in inputs]
    wrong: list[int] = []
    barrier = threading.Barrier(4)

    def work(number: int) -> None:
        with torch.no_grad():
            for i in range(60):
                if i % 6 == 0:
                    barrier.wait()
                    if number == 0:
                        layer.pack()
                which = (i + number) % len(inputs)
                if not same(layer(inputs[which]), expected[which]):
                    wrong.append(which)

    workers = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for each in workers:
        each.start()
    for each in workers:
        each.join()
    assert not wrong and {PACKED_TO_KEEP, KEPT} <= set(watched.taken())


def test_each_thread_has_its_own_memory_to_pack_into(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is there to be found before C has written all of it."""
    layer: Any = made("GRU", 6, 20, impl="cpu").pack()
    x, seen = torch.randn(3, 1, 6), list[Tensor]()
    real = watched.layer

    def slow(*arguments: int) -> None:
        seen.extend(layer._keeper.packed.panels.values())
        real(*arguments)

    monkeypatch.setattr(watched, "layer", slow)
    layer(x)
    assert seen == [] and len(layer._keeper.packed.panels) == 1
