"""One call of C for a layer and direction, whose input projection is made some steps at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fastcells import inference
from fastcells.backends.cpu import buffers, layer_call, native
from fastcells.backends.cpu.policy import CHUNK, FEWEST_TOKENS, MOST_WEIGHTS, steps_at_once
from tests.cpu.test_layer_call import CELLS, close, exact, made, state_of
from tests.support.packing import Watched, flat, same

pytestmark = pytest.mark.usefixtures("poisoned_memory")

OPTIONS = [{}, {"batch_first": True, "bias": False}, {"bidirectional": True, "num_layers": 2, "batch_first": True}]


def in_chunks(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    monkeypatch.setattr(layer_call, "steps_at_once", lambda T, *sizes: min(T, steps))
    inference._plans.clear()


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(o) or "plain")
def test_chunks_do_not_show(
    cell: str,
    options: dict[str, Any],
    watched: Watched,
    instructions: str,
    threads: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The bits of one chunk, with weights packed for the call, to keep, and kept; from one thread or several."""
    monkeypatch.setattr(native, "WORK_OF_A_THREAD", 1)
    for T, B, H, I in [(7, 9, 33, 20), (5, 37, 16, 7), (4, 130, 18, 3), (6, 1, 40, 5)]:  # noqa: E741
        layer: Any = made(cell, I, H, impl="cpu", **options)
        rows = layer.num_layers * (2 if layer.bidirectional else 1)
        x = torch.randn(*((B, T) if layer.batch_first else (T, B)), I)
        for hx in (None, state_of(layer, rows, B, H)):
            in_chunks(monkeypatch, T)
            expected = layer.unpack()(x, hx)
            assert close(flat(expected), exact(layer, x, hx))
            for steps in (1, 2, 3, T - 1):
                in_chunks(monkeypatch, steps)
                assert same(layer.unpack()(x, hx), expected), (T, B, H, I, steps)
                layer.pack()
                assert same(layer(x, hx), expected) and same(layer(x, hx), expected), (T, B, H, I, steps)


@pytest.mark.parametrize("cell", CELLS)
def test_nan_stays_in_its_row(cell: str, watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    in_chunks(monkeypatch, 2)
    layer, x = made(cell, 7, 35, impl="cpu"), torch.randn(5, 19, 7)
    x[1, 4, 2], x[0, 7, 0], x[3, 18] = torch.nan, torch.inf, -torch.inf
    found, expected = flat(layer(x)), exact(layer, x)
    assert expected[0].isnan().any()
    assert all(torch.equal(a.isnan(), b.isnan()) for a, b in zip(found, expected, strict=True))


def test_what_is_chosen() -> None:
    """The whole projection where it is small, or where the weights would take more memory than it."""
    assert steps_at_once(35, 8, 256, 128, kept=False) == 35
    assert steps_at_once(256, 128, 256, 128, kept=False) == CHUNK // 256 // 128
    assert steps_at_once(35, 32, 1024, 512, kept=False) == CHUNK // 1024 // 32
    assert steps_at_once(8, 50, 1024, 512, kept=False) == 8 and steps_at_once(8, 50, 1024, 512, kept=True) == 5
    assert steps_at_once(256, 32, 4096, 2048, kept=False) == 256 and MOST_WEIGHTS < 4096 * 2048
    assert steps_at_once(256, 32, 4096, 2048, kept=True) == FEWEST_TOKENS // 32
    assert steps_at_once(9, 1000, 4096, 64, kept=True) == 1


def test_memory(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more of the projection than a chunk of it is ever there."""
    asked: list[int] = []
    real = buffers.empty

    def empty(*shape: int, **kwargs: Any) -> Tensor:
        asked.append(shape[0])
        return real(*shape, **kwargs)

    monkeypatch.setattr(buffers, "empty", empty)
    gru, x = made("GRU", 5, 64, impl="cpu"), torch.randn(200, 40, 5)
    assert close(flat(gru(x)), exact(gru, x))
    assert len(asked) == 1 and max(asked) <= CHUNK < 200 * 40 * 3 * 64
