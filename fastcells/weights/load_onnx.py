"""ONNX's GRU, LSTM and RNN nodes as layers of fastcells."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from fastcells.layers import GRU, LSTM, RNN
from fastcells.weights.loaded import GATES, Direction, Loaded, check_shape, reorder, stack, tensor
from fastcells.weights.onnx_layout import ACTIVATIONS, TO_TORCH, require

INPUTS = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")
KNOWN = {"activations", "direction", "hidden_size", "layout"}
KNOWN_OF = {"GRU": {"linear_before_reset"}, "LSTM": {"input_forget"}, "RNN": set[str]()}
FIRST_OPSET = 7  # in the versions before, an attribute chose what the operators return


def load_onnx(model: Any, nodes: str | Sequence[str] | None = None) -> RNN | GRU | LSTM:
    """A GRU, LSTM or RNN node -> the fastcells layer that computes it. Needs the package onnx.

    model: a path or an `onnx.ModelProto`. nodes: the node's name, or of one without a name that of its first output;
    or several, which become one stack: whether they are connected as a stack is not looked at. Without it, the only
    one there is. `layout=1` gives `batch_first=True`; the layer returns [T, B, D*H] where ONNX has [T, D, B, H].

    W, R and B have to be constants, or computed from constants alone. `initial_h` and `initial_c` are the layer's hx,
    unless they hold a state of their own.

    Raises:
        ValueError: no such node; several and no name; by name, each attribute and input that torch.nn's layers cannot
            express: other activations, clip, input_forget, P, sequence_lens, direction="reverse", a stored state.
        ImportError: the package onnx is missing.
    """
    onnx = require("onnx", "load_onnx")
    if isinstance(model, str | os.PathLike):
        model = onnx.load(os.fspath(model))
    found = {node.name or node.output[0]: node for node in model.graph.node if node.op_type in GATES}
    if not found:
        others = sorted({node.op_type for node in model.graph.node})
        raise ValueError(f"the graph holds no GRU, LSTM or RNN node; its operators: {', '.join(others)}")
    if nodes is None and len(found) > 1:
        raise ValueError(f"the graph holds several recurrent nodes: name one, or several for a stack: {[*found]}")
    names = [*found] if nodes is None else [nodes] if isinstance(nodes, str) else [*nodes]
    for name in names:
        if name not in found:
            raise ValueError(f"no recurrent node {name!r}; there are {[*found]}")
    graph = _Graph(onnx, model)
    layouts = {name: graph.attributes(found[name]).get("layout", 0) for name in names}
    if len(set(layouts.values())) > 1:
        raise ValueError(f"the nodes differ in layout: {layouts}")
    return stack([_of_node(graph, name, found[name]) for name in names], batch_first=layouts[names[0]] == 1)


class _Graph:
    """What the names in a graph stand for."""

    def __init__(self, onnx: Any, model: Any) -> None:
        opsets = {each.domain: each.version for each in model.opset_import}
        if opsets.get("", FIRST_OPSET) < FIRST_OPSET:
            raise ValueError(f"operator set {opsets['']}: expected {FIRST_OPSET} or later; convert the model")
        self.onnx, self.opsets = onnx, opsets
        self.constants = {each.name: onnx.numpy_helper.to_array(each) for each in model.graph.initializer}
        self.producers = {output: node for node in model.graph.node for output in node.output if output}

    def attributes(self, node: Any) -> dict[str, Any]:
        found = {each.name: self.onnx.helper.get_attribute_value(each) for each in node.attribute}
        return {key: value.decode() if isinstance(value, bytes) else value for key, value in found.items()}

    def constant(self, name: str) -> np.ndarray | None:
        """What a name stands for; None if that depends on the model's input."""
        if name not in self.constants:
            node = self.producers.get(name)
            if node is None:
                return None
            inputs = {each: self.constant(each) for each in node.input if each}
            if any(value is None for value in inputs.values()):
                return None
            evaluator = require("onnx.reference", "load_onnx").ReferenceEvaluator(node, opsets=self.opsets)
            self.constants |= dict(zip(node.output, evaluator.run(None, inputs), strict=True))
        return self.constants[name]

    def stored(self, name: str) -> bool:
        """Whether numbers other than 0 go into what a name stands for, be they the model's own."""
        known = self.constant(name)
        if known is not None:
            return known.dtype.kind not in "iub" and bool(known.any())
        node = self.producers.get(name)
        return node is not None and node.op_type != "Shape" and any(self.stored(each) for each in node.input if each)


def _of_node(graph: _Graph, where: str, node: Any) -> Loaded:
    cell, attributes = node.op_type, graph.attributes(node)
    inputs = {kind: name for kind, name in zip(INPUTS, node.input, strict=False) if name}
    options = _options(where, cell, attributes)
    directions = 2 if attributes.get("direction", "forward") == "bidirectional" else 1
    for kind, instead in (("sequence_lens", "give the layer a packed sequence"), ("P", "torch.nn has no peepholes")):
        if kind in inputs:
            raise ValueError(f"{where}: input {kind} ({inputs[kind]!r}) is not supported: {instead}")
    for kind in ("initial_h", "initial_c"):
        if kind in inputs and graph.stored(inputs[kind]):
            raise ValueError(
                f"{where}: input {kind} ({inputs[kind]!r}) is a state that the model stores; give it as hx"
            )
    arrays = {}
    for kind in ("W", "R", "B"):
        if kind in inputs:
            constant = graph.constant(inputs[kind])
            if constant is None:
                raise ValueError(f"{where}: input {kind} ({inputs[kind]!r}) depends on the model's input")
            arrays[kind] = tensor(constant, f"{where}: {kind}")
    W, R, B = arrays["W"], arrays["R"], arrays.get("B")
    H = int(attributes.get("hidden_size", R.shape[-1]))
    rows, order = GATES[cell] * H, TO_TORCH[cell]
    check_shape(W, f"{where}: W", directions, rows, W.shape[-1])
    check_shape(R, f"{where}: R", directions, rows, H)
    if B is not None:
        check_shape(B, f"{where}: B", directions, 2 * rows)
    biases = [(None, None)] * directions if B is None else [tuple(reorder(b, order) for b in d.chunk(2)) for d in B]
    return Loaded(
        where,
        cell,
        options,
        [Direction(reorder(w, order), reorder(r, order), *b) for w, r, b in zip(W, R, biases, strict=True)],
    )


def _options(where: str, cell: str, attributes: dict[str, Any]) -> dict[str, Any]:
    """What tells the cell's variant. ValueError, by name, for what torch.nn's layers lack."""
    for name in sorted(set(attributes) - KNOWN - KNOWN_OF[cell]):
        if attributes[name] not in ([], None):
            raise ValueError(f"{where}: attribute {name}={attributes[name]!r} is not supported")
    direction = attributes.get("direction", "forward")
    if direction not in ("forward", "bidirectional"):
        raise ValueError(f"{where}: attribute direction={direction!r}: torch.nn's layers run forwards, or both ways")
    if attributes.get("input_forget", 0):
        raise ValueError(f"{where}: attribute input_forget={attributes['input_forget']} is not supported")
    times = 2 if direction == "bidirectional" else 1
    given = [name.decode().lower() for name in attributes.get("activations", [])] or [*ACTIVATIONS[cell]] * times
    if cell == "RNN" and given == ["relu"] * times:
        return {"nonlinearity": "relu"}
    if given != [*ACTIVATIONS[cell]] * times:
        raise ValueError(f"{where}: attribute activations={given}: expected {[*ACTIVATIONS[cell]] * times}")
    if cell == "GRU":
        return {"reset_after": bool(attributes.get("linear_before_reset", 0))}
    return {"nonlinearity": "tanh"} if cell == "RNN" else {}
