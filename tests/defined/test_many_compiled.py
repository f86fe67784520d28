"""More cells in one process than torch.compile keeps variants of one function."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import Tensor

import fastcells
from fastcells.defined.layer import DefinedLayer

MANY = 10
assert torch._dynamo.config.recompile_limit < MANY


def make(number: int) -> type[DefinedLayer]:
    def step(z: Tensor, n: Tensor, h: Tensor) -> Tensor:
        z = torch.sigmoid(z - number)
        return z * h + (1 - z) * torch.tanh(n)

    return fastcells.define(f"Leaky{number}", gates=("z", "n"), step=step)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_each_is_compiled(backend: str) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    x = torch.randn(3, 2, 4)
    for each in map(make, range(MANY)):
        layer, cell = each(4, 5), each.Cell(4, 5)
        out, _ = torch.compile(layer, fullgraph=True, backend=backend)(x)
        torch.testing.assert_close(out, layer(x)[0])
        torch.testing.assert_close(torch.compile(cell, fullgraph=True, backend=backend)(x[0]), cell(x[0]))
        gates = torch.randn(3, 2, 10)
        over_time = torch.compile(each.recurrence, fullgraph=True, backend=backend)
        theirs = each.recurrence(gates, weight_hh=layer.weight_hh_l0)[0]
        torch.testing.assert_close(over_time(gates, weight_hh=layer.weight_hh_l0)[0], theirs)


def test_a_copy_is_like_its_original() -> None:
    one, other = make(0), make(1)
    for mine, theirs, original in (
        (one.forward, other.forward, DefinedLayer.forward),
        (one.Cell.forward, other.Cell.forward, one.Cell.__base__.forward),  # type: ignore[union-attr]
    ):
        assert mine.__code__ is not theirs.__code__
        assert inspect.signature(mine) == inspect.signature(original)
        assert mine.__doc__ == original.__doc__
    assert one.forward.__qualname__ == "Leaky0.forward"
    assert one.recurrence.__self__ is one
