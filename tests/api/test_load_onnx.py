"""`load_onnx`: nodes written here, by onnxruntime and by hand; what torch.nn cannot express is refused by its name."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fastcells
from tests.support.accuracy import assert_equal_to_rounding

onnx = pytest.importorskip("onnx", reason="of the extra onnx")

T, B, I, H = 6, 3, 4, 5  # noqa: E741
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}


def constants(cell: str, directions: int = 1, inputs: int = I) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(7)
    rows = GATES[cell] * H
    shapes = {"W": (directions, rows, inputs), "R": (directions, rows, H), "B": (directions, 2 * rows)}
    return {name: generator.uniform(-1, 1, shape).astype(np.float32) for name, shape in shapes.items()}


def model_of(
    cell: str,
    inputs: list[str] | None = None,
    arrays: dict[str, np.ndarray] | None = None,
    *,
    before: list[Any] | None = None,
    name: str = "layer",
    opset: int = 17,
    **attributes: Any,
) -> Any:
    """A model of one node, with outputs Y, Y_h and of an LSTM Y_c. before: nodes that come first."""
    helper, directions = onnx.helper, 2 if attributes.get("direction") == "bidirectional" else 1
    arrays = constants(cell, directions) if arrays is None else arrays
    outputs = ["Y", "Y_h", "Y_c"][: 2 + (cell == "LSTM")]
    node = helper.make_node(cell, inputs or ["X", "W", "R", "B"], outputs, name=name, hidden_size=H, **attributes)
    graph = helper.make_graph(
        [*(before or []), node],
        "graph",
        [helper.make_tensor_value_info("X", onnx.TensorProto.FLOAT, ["T", "B", I])],
        [helper.make_tensor_value_info(each, onnx.TensorProto.FLOAT, None) for each in outputs],
        [onnx.numpy_helper.from_array(array, key) for key, array in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "RNN": ("RNN", {}),
    "RNN-relu": ("RNN", {"activations": ["Relu"]}),
    "RNN-both": ("RNN", {"direction": "bidirectional", "activations": ["Relu", "Relu"]}),
    "GRU": ("GRU", {}),
    "GRU-linear": ("GRU", {"linear_before_reset": 1}),
    "GRU-both": ("GRU", {"direction": "bidirectional"}),
    "GRU-linear-both": ("GRU", {"direction": "bidirectional", "linear_before_reset": 1}),
    "LSTM": ("LSTM", {"activations": ["Sigmoid", "tanh", "Tanh"], "direction": "forward", "input_forget": 0}),
    "LSTM-both": ("LSTM", {"direction": "bidirectional"}),
}


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_as_onnxruntime_computes(variant: str, bias: bool) -> None:
    ort = pytest.importorskip("onnxruntime", reason="of the extra onnx")
    cell, attributes = VARIANTS[variant]
    model = model_of(cell, None if bias else ["X", "W", "R"], **attributes)
    x = torch.randn(T, B, I)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    y, *states = (torch.from_numpy(each) for each in session.run(None, {"X": x.numpy()}))
    layer = fastcells.load_onnx(model)
    assert layer.bias == bias and getattr(layer, "reset_after", True) == (cell != "GRU" or "linear" in variant)
    with torch.no_grad():
        out, last = layer(x)
    ours = last if isinstance(last, tuple) else (last,)
    assert_equal_to_rounding([out, *ours], [y.transpose(1, 2).flatten(2), *states])


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_one_step_by_hand() -> None:
    """One unit, h = 0.5, c = -0.25: each gate has numbers of its own, so that no two may be exchanged."""
    x, h, c = 2.0, 0.5, -0.25
    given = torch.tensor([[[x]]]), torch.tensor([[[h]]])

    def loaded(cell: str, w: list[float], r: list[float], b: list[float], **attributes: int) -> Any:
        arrays = {"W": np.float32(w)[None, :, None], "R": np.float32(r)[None, :, None], "B": np.float32(b)[None]}
        model = model_of(cell, None, arrays, **attributes)
        next(a for a in model.graph.node[0].attribute if a.name == "hidden_size").i = 1
        return fastcells.load_onnx(model)

    w, r, b = [0.1, 0.2, 0.3], [1.1, -1.2, 1.3], [0.7, -0.8, 0.9, 0.07, 0.08, -0.09]
    z, reset = sigmoid(0.1 * x + 1.1 * h + 0.7 + 0.07), sigmoid(0.2 * x - 1.2 * h - 0.8 + 0.08)
    before = math.tanh(0.3 * x + 1.3 * (reset * h) - 0.09 + 0.9)
    after = math.tanh(0.3 * x + reset * (1.3 * h - 0.09) + 0.9)
    for linear, n in ((0, before), (1, after)):
        y = loaded("GRU", w, r, b, linear_before_reset=linear)(*given)[0].item()
        assert y == pytest.approx((1 - z) * n + z * h, rel=1e-6)

    w, r = [0.1, 0.2, 0.3, 0.4], [1.1, -1.2, 1.3, -1.4]
    b = [0.7, -0.8, 0.9, -0.5, 0.07, 0.08, -0.09, 0.05]
    i, o = sigmoid(0.1 * x + 1.1 * h + 0.77), sigmoid(0.2 * x - 1.2 * h - 0.72)
    f, g = sigmoid(0.3 * x + 1.3 * h + 0.81), math.tanh(0.4 * x - 1.4 * h - 0.45)
    y, (_, c_n) = loaded("LSTM", w, r, b)(given[0], (given[1], torch.tensor([[[c]]])))
    assert c_n.item() == pytest.approx(f * c + i * g, rel=1e-6)
    assert y.item() == pytest.approx(o * math.tanh(f * c + i * g), rel=1e-6)


def test_layout_1_is_batch_first() -> None:
    time_first, batch_first = (fastcells.load_onnx(model_of("GRU", layout=layout)) for layout in (0, 1))
    x = torch.randn(T, B, I)
    assert_equal_to_rounding([batch_first(x.transpose(0, 1))[0].transpose(0, 1)], [time_first(x)[0]])


def test_layouts_that_differ() -> None:
    model = model_of("GRU", layout=1)
    model.graph.node.append(model_of("GRU", name="other").graph.node[0])
    with pytest.raises(ValueError, match=r"the nodes differ in layout: \{'layer': 1, 'other': 0\}"):
        fastcells.load_onnx(model, ["layer", "other"])


LSTM_INPUTS = ["X", "W", "R", "B", "", "", "", "P"]
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("GRU", {"clip": 3.0}, r"layer: attribute clip=3\.0 is not supported"),
    ("GRU", {"activations": ["HardSigmoid", "Tanh"]}, r"attribute activations=\['hardsigmoid', 'tanh'\]"),
    ("RNN", {"activations": ["Affine"], "activation_alpha": [0.5]}, r"attribute activation_alpha=\[0\.5\]"),
    ("RNN", {"direction": "bidirectional", "activations": ["Relu", "Tanh"]}, r"activations=\['relu', 'tanh'\]"),
    ("LSTM", {"activation_beta": [0.5]}, r"attribute activation_beta=\[0\.5\]"),
    ("LSTM", {"input_forget": 1}, "attribute input_forget=1"),
    ("GRU", {"direction": "reverse"}, "attribute direction='reverse'"),
    ("GRU", {"output_sequence": 1}, "attribute output_sequence=1"),
    ("GRU", {"opset": 3}, "operator set 3: expected 7 or later"),
    ("LSTM", {"inputs": LSTM_INPUTS}, r"input P \('P'\) is not supported: torch\.nn has no peepholes"),
    ("GRU", {"inputs": ["X", "W", "R", "B", "lens"]}, r"input sequence_lens \('lens'\) .* packed sequence"),
    ("GRU", {"inputs": ["X", "X", "R", "B"]}, r"input W \('X'\) depends on the model's input"),
]


@pytest.mark.parametrize(("cell", "how", "message"), REFUSED, ids=[f"{c}-{'-'.join(h)}" for c, h, _ in REFUSED])
def test_refused_by_name(cell: str, how: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fastcells.load_onnx(model_of(cell, **how))


@pytest.mark.parametrize("name", ["W", "R", "B"])
def test_shapes_are_named(name: str) -> None:
    arrays = constants("LSTM")
    arrays[name] = arrays[name][:, 1:]
    with pytest.raises(ValueError, match=rf"layer: {name}: expected shape \[1, \d+.*\], got \[1, \d+.*\]"):
        fastcells.load_onnx(model_of("LSTM", None, arrays))


def test_weights_that_are_computed_from_constants() -> None:
    arrays = constants("GRU")
    expected = fastcells.load_onnx(model_of("GRU", None, arrays))
    w_z, rest = arrays["W"][:, :H], arrays["W"][:, H:]
    value = onnx.numpy_helper.from_array(rest, "rest")
    before = [
        onnx.helper.make_node("Constant", [], ["rest"], value=value),
        onnx.helper.make_node("Concat", ["w_z", "rest"], ["W"], axis=1),
    ]
    model = model_of("GRU", None, {"w_z": w_z, "R": arrays["R"], "B": arrays["B"]}, before=before)
    assert torch.equal(fastcells.load_onnx(model).weight_ih_l0, expected.weight_ih_l0)


def started(h: np.ndarray | None) -> Any:
    """A model whose initial_h is h for every row, or an input of the model's own."""
    nodes = [
        onnx.helper.make_node("Mul", ["X", "half"], ["small"]),  # of a number of the model's only the shape is asked
        onnx.helper.make_node("Shape", ["small"], ["batch"], start=1, end=2),
        onnx.helper.make_node("Concat", ["one", "batch", "hidden"], ["shape"], axis=0),
        onnx.helper.make_node("Expand", ["h", "shape"], ["start"]),
    ]
    own = {"one": np.array([1]), "hidden": np.array([H]), "half": np.float32(0.5)}
    arrays = constants("GRU") | own | ({} if h is None else {"h": h})
    return model_of("GRU", ["X", "W", "R", "B", "", "start"], arrays, before=nodes)


def test_a_state_that_the_model_stores_is_no_silent_loss() -> None:
    for h in (None, np.zeros((1, 1, H), np.float32)):  # the caller's, or zeros: hx is the layer's
        fastcells.load_onnx(started(h))
    for model in (started(np.ones((1, 1, H), np.float32)), fastcells.to_onnx(with_state())):
        with pytest.raises(ValueError, match=r"input initial_h \('.*'\) is a state that the model stores"):
            fastcells.load_onnx(model)


def with_state() -> Any:
    layer = fastcells.GRU(I, H, learned_state=True)
    torch.nn.init.ones_(layer.h_0)
    return layer


WAYS: dict[str, Callable[[], Any]] = {
    "RNN": lambda: fastcells.RNN(I, H, 2, "relu", bidirectional=True),
    "GRU": lambda: fastcells.GRU(I, H, 3, bias=False),
    "GRU-reset-before": lambda: fastcells.GRU(I, H, 2, bidirectional=True, reset_after=False),
    "LSTM": lambda: fastcells.LSTM(I, H, 2, dtype=torch.float64),
}


@pytest.mark.parametrize("way", WAYS)
def test_there_and_back(way: str, tmp_path: Path) -> None:
    """A stack is as many nodes, by whose names it comes back."""
    layer = WAYS[way]()
    fastcells.to_onnx(layer, tmp_path / "stack.onnx")
    with pytest.raises(
        ValueError, match=r"several recurrent nodes: name one, or several for a stack: \['y_l0', 'y_l1'"
    ):
        fastcells.load_onnx(tmp_path / "stack.onnx")
    back = fastcells.load_onnx(tmp_path / "stack.onnx", [f"y_l{k}" for k in range(layer.num_layers)])
    assert type(back) is type(layer) and repr(back) == repr(layer)
    assert list(back.state_dict()) == list(layer.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(back.parameters(), layer.parameters(), strict=True))
    top = fastcells.load_onnx(str(tmp_path / "stack.onnx"), "y_l1")
    assert top.num_layers == 1 and torch.equal(top.weight_hh_l0, layer.weight_hh_l1)
    with pytest.raises(ValueError, match=r"no recurrent node 'y_l9'; there are \['y_l0'"):
        fastcells.load_onnx(tmp_path / "stack.onnx", "y_l9")


def test_no_name_and_no_node() -> None:
    assert fastcells.load_onnx(model_of("GRU", name=""), "Y").hidden_size == H
    nothing = model_of("GRU")
    nothing.graph.node[0].op_type = "Add"
    with pytest.raises(ValueError, match="the graph holds no GRU, LSTM or RNN node; its operators: Add"):
        fastcells.load_onnx(nothing)
