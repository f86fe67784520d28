"""`to_onnx`: what onnxruntime makes of it is what the layer computes; by `to_torch` and torch's own exporter too."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import fastcells
from tests.support.accuracy import assert_equal_to_rounding

onnx = pytest.importorskip("onnx", reason="of the extra onnx")
ort = pytest.importorskip("onnxruntime", reason="of the extra onnx")

T, B, I, H = 6, 3, 4, 5  # noqa: E741
KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "RNN": (fastcells.RNN, {}),
    "RNN-relu": (fastcells.RNN, {"nonlinearity": "relu"}),
    "GRU": (fastcells.GRU, {}),
    "GRU-reset-before": (fastcells.GRU, {"reset_after": False}),
    "LSTM": (fastcells.LSTM, {}),
}
EACH = pytest.mark.parametrize("kind", KINDS)


def layer_of(kind: str, **options: Any) -> Any:
    cls, own = KINDS[kind]
    return cls(I, H, **own, **options).eval()


def run(model: Any, *inputs: Tensor) -> list[Tensor]:
    """What onnxruntime computes on a CPU."""
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    return [torch.from_numpy(y) for y in session.run(None, dict(zip(names, map(Tensor.numpy, inputs), strict=True)))]


STACKS: dict[str, dict[str, Any]] = {
    "one": {},
    "both": {"bidirectional": True},
    "deep": {"num_layers": 3, "bidirectional": True, "dropout": 0.5},
    "batch-first": {"num_layers": 2, "batch_first": True, "bias": False},
}


@EACH
@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("state", [False, True], ids=["zeros", "state"])
def test_as_the_layer_computes(kind: str, stack: str, state: bool) -> None:
    layer = layer_of(kind, **STACKS[stack])
    model = fastcells.to_onnx(layer, state=state)
    kinds = [node.op_type for node in model.graph.node if node.op_type in ("GRU", "LSTM", "RNN")]
    assert kinds == [layer.mode.split("_")[0]] * layer.num_layers
    for T_, B_ in ((T, B), (1, 1), (9, 2)):  # T and B are free
        x = torch.randn(B_, T_, I) if layer.batch_first else torch.randn(T_, B_, I)
        hx = [torch.randn(layer.num_layers * (1 + layer.bidirectional), B_, H) for _ in range(1 + (kind == "LSTM"))]
        with torch.no_grad():
            expected = layer(x, (tuple(hx) if kind == "LSTM" else hx[0]) if state else None)
        assert_equal_to_rounding(run(model, x, *(hx if state else [])), tree_leaves(expected))


@EACH
def test_learned_state_and_token_ids(kind: str) -> None:
    layer = layer_of(kind, num_layers=2, learned_state=True)
    nn.init.normal_(layer.h_0)
    if kind == "LSTM":
        nn.init.normal_(layer.c_0)
    ids = torch.randint(I, (T, B))
    with torch.no_grad():
        expected = tree_leaves(layer(ids))
    assert_equal_to_rounding(run(fastcells.to_onnx(layer, ids=True), ids), expected)
    x = nn.functional.one_hot(ids, I).float()
    assert_equal_to_rounding(run(fastcells.to_onnx(layer), x), expected)


def test_written_and_read(tmp_path: Path) -> None:
    layer, x = layer_of("GRU"), torch.randn(T, B, I)
    fastcells.to_onnx(layer, tmp_path / "gru.onnx")
    with torch.no_grad():
        expected = tree_leaves(layer(x))
    assert_equal_to_rounding(run(onnx.load(str(tmp_path / "gru.onnx")), x), expected)
    assert_equal_to_rounding(run(fastcells.to_onnx(fastcells.to_torch(layer)), x), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=["float16", "float64"])
def test_other_dtypes(dtype: torch.dtype) -> None:
    """onnxruntime has no such kernels on a CPU; ONNX's own reference does, for one direction."""
    layer, x = layer_of("LSTM").to(dtype), torch.randn(T, B, I, dtype=dtype)
    model = fastcells.to_onnx(layer)
    evaluator = pytest.importorskip("onnx.reference").ReferenceEvaluator(model)
    with torch.no_grad():
        expected = tree_leaves(layer.double()(x.double()))
    ours = [torch.from_numpy(np.array(y)) for y in evaluator.run(None, {"x": x.numpy()})]
    assert {y.dtype for y in ours} == {dtype}
    assert_equal_to_rounding(ours, [e.to(dtype) for e in expected])


def test_refused() -> None:
    with pytest.raises(ValueError, match="proj_size=2: ONNX's LSTM has no projection"):
        fastcells.to_onnx(fastcells.LSTM(I, H, proj_size=2))
    with pytest.raises(ValueError, match=r"dtype torch\.bfloat16: expected one of torch\.float16"):
        fastcells.to_onnx(fastcells.GRU(I, H, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match="return_states=True: ONNX's LSTM hands on the last c alone"):
        fastcells.to_onnx(fastcells.LSTM(I, H, return_states=True))
    for layer in (fastcells.LayerNormGRU(I, H), fastcells.LayerNormLSTM(I, H)):
        with pytest.raises(ValueError, match=r"ONNX has no such recurrence: LayerNorm(GRU|LSTM)\("):
            fastcells.to_onnx(layer)
    with pytest.raises(TypeError, match="got GRUCell"):
        fastcells.to_onnx(fastcells.GRUCell(I, H))


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    for call in (lambda: fastcells.to_onnx(fastcells.GRU(I, H)), lambda: fastcells.load_onnx("gru.onnx")):
        with pytest.raises(ImportError, match=r"needs the package onnx: pip install 'fastcells\[onnx\]'"):
            call()


@pytest.mark.parametrize("kind", ["GRU", "LSTM"])
def test_torch_exports_what_to_torch_gives(kind: str, tmp_path: Path) -> None:
    """A model around the layer, by torch.onnx.export: one operator a layer, which `load_onnx` reads."""
    pytest.importorskip("onnxscript", reason="of the extra onnx")
    model, x = nn.Sequential(layer_of(kind, bidirectional=True)), torch.randn(T, B, I)
    with torch.no_grad():
        expected = tree_leaves(model(x))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(fastcells.to_torch(model), (x,), tmp_path / "model.onnx", dynamo=True, verbose=False)
    exported = onnx.load(str(tmp_path / "model.onnx"))
    assert_equal_to_rounding(run(exported, x), expected)
    loaded = fastcells.load_onnx(tmp_path / "model.onnx")
    with torch.no_grad():
        assert_equal_to_rounding(tree_leaves(loaded(x)), expected)
