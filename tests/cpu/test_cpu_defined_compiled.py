"""Defined cells in C under torch.compile, against the same layers by themselves."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

import fastcells
from fastcells import zoo
from fastcells.backends.cpu import defined, native
from fastcells.defined.layer import DefinedLayer
from tests.defined.cells import TwinGRU, TwinRelu, TwinResetBefore

if native.obstacle() is not None and os.environ.get("CI") != "true":
    pytest.skip(native.obstacle() or "", allow_module_level=True)

CELLS: list[tuple[type[DefinedLayer], dict[str, Any]]] = [
    (zoo.PeepholeLSTM, {}),
    (zoo.IndRNN, {}),
    (zoo.SLSTM, {"num_heads": 2}),
    (TwinGRU, {}),
    (TwinResetBefore, {}),
    (TwinRelu, {"bias": False}),
]
T, B, I, H = 5, 4, 3, 8  # noqa: E741 the project's letter for the input size


@pytest.mark.parametrize(("cell", "more"), CELLS, ids=lambda v: getattr(v, "__name__", ""))
def test_compiled(cell: type[DefinedLayer], more: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defined, "_cells", {})  # the first call of all is traced
    torch._dynamo.reset()
    torch.manual_seed(0)
    layer, x = cell(I, H, bidirectional=True, impl="cpu", **more), torch.randn(T, B, I)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    ways: tuple[dict[str, Any], ...] = (
        {},
        {"lengths": torch.tensor([5, 2, 3, 0])},
        {"resets": torch.rand(T, B) < 0.3},
    )
    for options in ways:
        ours, theirs = compiled(x, **options)[0], layer(x, **options)[0]
        torch.testing.assert_close(ours, theirs)
        d = torch.randn_like(ours)
        grads = [torch.autograd.grad(out, list(layer.parameters()), d) for out in (ours, theirs)]
        torch.testing.assert_close(*grads)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x)[0], layer(x)[0])


def test_the_graph_has_the_operator() -> None:
    names: list[str] = []

    def backend(graph: torch.fx.GraphModule, _: object) -> Any:
        names.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    torch._dynamo.reset()
    with torch.no_grad():
        torch.compile(zoo.JANET(I, H, impl="cpu"), fullgraph=True, backend=backend)(torch.randn(T, B, I))
    assert [name for name in names if "fastcells" in name] == ["fastcells.cpu_defined_forward.default"]


def test_what_c_cannot_run_is_an_error_there_too() -> None:
    five = fastcells.define("Five", gates="abcde", step=lambda a, b, c, d, e: torch.tanh(a + b) * c + d * e)
    torch._dynamo.reset()
    with pytest.raises(fastcells.CannotRun, match="at most 4 gates at once"):
        torch.compile(five(I, H, impl="cpu"), backend="eager")(torch.randn(T, B, I))
