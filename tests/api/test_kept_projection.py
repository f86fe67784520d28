"""An input projection, three or four times the hidden states, is not kept for a backward that does not read it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastcells
from fastcells.backends.cpu import native
from fastcells.backends.cpu.backend import CPU
from fastcells.backends.torch.backend import TORCH
from tests.support.accuracy import assert_equal_to_rounding

T, B, I, H = 9, 4, 6, 5  # noqa: E741
BACKENDS = {"torch": TORCH, "cpu": CPU}
EACH_CELL = pytest.mark.parametrize("cell", ["RNN", "GRU", "LSTM"])
C = pytest.mark.skipif(native.obstacle() is not None, reason=str(native.obstacle()))
# On dense input `impl="torch"` is ATen's operator.
CALL = pytest.mark.parametrize(
    ("impl", "ids"),
    [("torch", True), pytest.param("cpu", False, marks=C), pytest.param("cpu", True, marks=C)],
    ids=["torch-ids", "cpu-dense", "cpu-ids"],
)


def made(cell: str, impl: str, ids: bool) -> tuple[Any, Tensor]:
    """A layer and its input, in float64 where C does not run."""
    layer = getattr(fastcells, cell)(I, H, impl=impl, dtype=torch.float64 if impl == "torch" else torch.float32)
    x = torch.randint(I, (T, B)) if ids else torch.randn(T, B, I, dtype=layer.weight_hh_l0.dtype, requires_grad=True)
    return layer, x


@EACH_CELL
@CALL
def test_no_projection_is_kept(cell: str, ids: bool, impl: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = made(cell, impl, ids)
    projections, kept = [], []
    backend, project = type(BACKENDS[impl]), type(BACKENDS[impl]).project

    def noted(self: Any, *given: Any) -> Tensor:
        projections.append(project(self, *given))
        return projections[-1]

    monkeypatch.setattr(backend, "project", noted)

    def run() -> set[int]:
        projections.clear()
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.data_ptr()) or t, lambda t: t):
            layer(x)
        assert projections and kept
        return {t.data_ptr() for t in projections}.intersection(kept)

    assert not run()
    monkeypatch.setattr(backend, "reads_projection", lambda self, spec: True)
    assert run(), "where it is kept, that is seen"


@EACH_CELL
@CALL
@pytest.mark.parametrize("frozen", ["", "weight_ih_l0"], ids=["all", "frozen"])
def test_second_derivatives_and_batches_of_gradients(cell: str, ids: bool, frozen: str, impl: str) -> None:
    """Both project again; with what torch.nn has in float64."""
    ours, x = made(cell, impl, ids)
    theirs = getattr(nn, cell)(I, H).double()
    theirs.load_state_dict(ours.state_dict())
    found = []
    for layer in (ours, theirs):
        own = x if layer is ours or ids else x.detach().double().requires_grad_()
        leaves = [p for name, p in layer.named_parameters() if name != frozen] + ([] if ids else [own])
        dense = nn.functional.one_hot(own, I).double() if ids and layer is theirs else own
        if frozen:
            layer.get_parameter(frozen).requires_grad_(False)
        out = layer(dense)[0]
        torch.manual_seed(0)
        d = torch.randn(3, T, B, H, dtype=torch.float64).to(out.dtype)
        batched = torch.autograd.grad(out, leaves, d, is_grads_batched=True, retain_graph=True)
        first = torch.autograd.grad(out, leaves, d[0], create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), leaves)
        found.append([*batched, *first, *second])
    for a, e in zip(*found, strict=True):
        assert_equal_to_rounding([a], [e.to(a.dtype)])
