"""A recurrent layer as an ONNX model of ONNX's own GRU, LSTM and RNN operators.

Written node by node, not by `torch.onnx.export`, which unrolls the reset-before GRU and the RNN for as many steps as it
was shown, and needs onnxscript. Here each layer of a stack is one operator, whatever the cell.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.modules.rnn import RNNBase

from fastcells.weights.loaded import reorder
from fastcells.weights.onnx_layout import FROM_TORCH, require

OPSET, IR_VERSION = 17, 8  # of 2022, so that older runtimes read it
DTYPES = (torch.float16, torch.float32, torch.float64)


def to_onnx(
    layer: RNNBase, path: str | os.PathLike[str] | None = None, *, state: bool = False, ids: bool = False
) -> Any:
    """`torch.onnx.export(layer, ...)`, in evaluation mode, with T and B free. Needs the package onnx.

    layer: RNN, GRU (both variants) or LSTM of fastcells or torch.nn, any stack, both directions, in float16, float32
    or float64. Whether a runtime knows the dtype is its own affair: onnxruntime on a CPU wants float32.

    Args:
        path: where the model is written, if given.
        state: whether h_0 (of an LSTM also c_0) [num_layers*D, B, H] are inputs; if not, a call starts from zeros, or
            from what `learned_state=True` has learned.
        ids: whether x is token ids, int64.

    Inputs: x [T, B, I], with batch_first [B, T, I], of ids without I; and the state.
    Outputs: y [T, B, D*H], with batch_first [B, T, D*H]; h_n (and c_n) [num_layers*D, B, H].

    Returns: the `onnx.ModelProto`.
    Raises:
        ValueError: what ONNX's operators lack: proj_size, return_states, layer normalisation, defined cells; another
            dtype.
        TypeError: not a recurrent layer.
        ImportError: the package onnx is missing.
    """
    onnx = require("onnx", "to_onnx")
    if not isinstance(layer, RNNBase):
        raise TypeError(f"expected a recurrent layer of fastcells or torch.nn, got {type(layer).__name__}")
    if layer.proj_size:
        raise ValueError(f"proj_size={layer.proj_size}: ONNX's LSTM has no projection")
    if getattr(layer, "return_states", False):
        raise ValueError("return_states=True: ONNX's LSTM hands on the last c alone")
    known = layer.mode in ("RNN_TANH", "RNN_RELU", "GRU", "LSTM")
    if not known or len(layer.all_weights[0]) != (4 if layer.bias else 2):  # layer normalisation has parameters more
        raise ValueError(f"ONNX has no such recurrence: {layer!r}")
    dtype = layer.all_weights[0][0].dtype
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype}: expected one of {', '.join(map(str, DTYPES))}")
    model = _Writer(onnx, layer, dtype).model(state, ids)
    onnx.checker.check_model(model, full_check=True)
    if path is not None:
        onnx.save(model, os.fspath(path))
    return model


class _Writer:
    """The nodes and constants of a graph that is being written."""

    def __init__(self, onnx: Any, layer: RNNBase, dtype: torch.dtype) -> None:
        self.onnx, self.layer = onnx, layer
        self.kind = onnx.helper.np_dtype_to_tensor_dtype(torch.empty(0, dtype=dtype).numpy().dtype)
        self.directions = 2 if layer.bidirectional else 1
        self.rows = layer.num_layers * self.directions
        self.states = ("h", "c") if layer.mode == "LSTM" else ("h",)
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def node(self, kind: str, inputs: list[str], *outputs: str, **attributes: Any) -> str:
        self.nodes.append(self.onnx.helper.make_node(kind, inputs, list(outputs), name=outputs[0], **attributes))
        return outputs[0]

    def constant(self, name: str, value: Tensor | list[int]) -> str:
        array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.array(value, np.int64)
        self.constants.append(self.onnx.numpy_helper.from_array(array, name))
        return name

    def value(self, name: str, *shape: int | str, kind: int | None = None) -> Any:
        return self.onnx.helper.make_tensor_value_info(name, kind or self.kind, shape)

    def model(self, state: bool, ids: bool) -> Any:
        layer, helper = self.layer, self.onnx.helper
        H, outer = layer.hidden_size, ("B", "T") if layer.batch_first else ("T", "B")
        integer = self.onnx.TensorProto.INT64
        inputs = [self.value("x", *outer, kind=integer) if ids else self.value("x", *outer, layer.input_size)]
        if state:
            inputs += [self.value(f"{s}_0", self.rows, "B", H) for s in self.states]
        x = self.layers(self.one_hot("x") if ids else "x", state)
        self.node("Transpose" if layer.batch_first else "Identity", [x], "y", **self.swap())
        outputs = [self.value("y", *outer, self.directions * H)]
        outputs += [self.value(f"{s}_n", self.rows, "B", H) for s in self.states]
        for s in self.states:
            self.node("Concat", [f"{s}_n_l{k}" for k in range(layer.num_layers)], f"{s}_n", axis=0)
        graph = helper.make_graph(self.nodes, layer._get_name(), inputs, outputs, self.constants)
        opset = helper.make_opsetid("", OPSET)
        return helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION, producer_name="fastcells")

    def swap(self) -> dict[str, list[int]]:
        """The attributes of a node that exchanges time and batch, if they have to be."""
        return {"perm": [1, 0, 2]} if self.layer.batch_first else {}

    def one_hot(self, ids: str) -> str:
        depth = self.constant("input_size", [self.layer.input_size])
        off_on = self.constant("off_on", torch.tensor([0, 1], dtype=self.layer.all_weights[0][0].dtype))
        return self.node("OneHot", [ids, depth, off_on], "one_hot", axis=-1)

    def layers(self, x: str, state: bool) -> str:
        """One operator a layer. Returns the name of the last one's output, [T, B, D*H]."""
        layer, D = self.layer, self.directions
        if layer.batch_first:
            x = self.node("Transpose", [x], "time_first", **self.swap())
        start = self.start(x, state)
        shape = self.constant("merged", [0, 0, D * layer.hidden_size])
        cell = layer.mode.split("_")[0]
        attributes: dict[str, Any] = {"hidden_size": layer.hidden_size}
        attributes["direction"] = "bidirectional" if D == 2 else "forward"
        if cell == "GRU":
            attributes["linear_before_reset"] = int(getattr(layer, "reset_after", True))
        elif cell == "RNN":
            attributes["activations"] = [layer.mode.split("_")[1].capitalize()] * D
        for k in range(layer.num_layers):
            inputs = [x, *self.weights(cell, k), ""]  # no sequence_lens
            inputs += [names[k] for names in start]
            last = [f"{s}_n_l{k}" for s in self.states]
            y = self.node(cell, inputs, f"y_l{k}", *last, **attributes)
            y = self.node("Transpose", [y], f"by_batch_l{k}", perm=[0, 2, 1, 3])
            x = self.node("Reshape", [y, shape], f"merged_l{k}")
        return x

    def weights(self, cell: str, k: int) -> list[str]:
        """W, R and B of a layer; the name of no B is empty."""
        groups = self.layer.all_weights[k * self.directions : (k + 1) * self.directions]
        parts = [[reorder(w.detach(), FROM_TORCH[cell]) for w in group] for group in groups]
        names = [
            self.constant(f"W_l{k}", torch.stack([p[0] for p in parts])),
            self.constant(f"R_l{k}", torch.stack([p[1] for p in parts])),
        ]
        if not self.layer.bias:
            return [*names, ""]
        return [*names, self.constant(f"B_l{k}", torch.stack([torch.cat(p[2:]) for p in parts]))]

    def start(self, x: str, state: bool) -> list[list[str]]:
        """For each state the names of what each layer starts from; none where that is zeros."""
        if not state and not getattr(self.layer, "learned_state", False):
            return []
        size = self.constant("directions", [self.directions] * self.layer.num_layers)
        start = []
        for s in self.states:
            whole = f"{s}_0" if state else self.learned(x, s)
            names = [f"{s}_0_l{k}" for k in range(self.layer.num_layers)]
            self.node("Split", [whole, size], *names, axis=0)
            start.append(names)
        return start

    def learned(self, x: str, s: str) -> str:
        """The state that a layer has learned, for each row of the batch."""
        if s == self.states[0]:
            dims = self.node("Shape", [x], "batch", start=1, end=2)
            rows, hidden = self.constant("rows", [self.rows]), self.constant("hidden", [self.layer.hidden_size])
            self.node("Concat", [rows, dims, hidden], "state_shape", axis=0)
        value = self.constant(f"{s}_learned", getattr(self.layer, f"{s}_0").unsqueeze(1))
        return self.node("Expand", [value, "state_shape"], f"{s}_0")
