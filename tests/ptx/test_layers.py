"""Whole layers of both directions, from torch.nn's interface down to the compiled kernels, and back."""

from __future__ import annotations

import pytest
import torch

from tests.ptx import layers
from tests.ptx.layers import Layer
from tests.ptx.worker import Run

LAYERS = (
    Layer("GRU", torch.float32),
    Layer("LSTM", torch.bfloat16, packed=True),
    Layer("LSTM", torch.float32, ids=True, packed=True, bias=False),
)


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: f"{layer.cell}-{layer.dtype}")
def test_both_directions_in_one_launch(layer: Layer, execute: Run) -> None:
    outcome: layers.Outcome = execute(layers.run, layer)
    assert outcome.launches == [("forward_kernel", 2)] * layers.LAYERS + [("backward_kernel", 2)] * layers.LAYERS
    assert "gluon (both directions)" in outcome.explained
    assert max(outcome.errors.values()) <= outcome.limit, outcome.errors
