"""Other libraries' runtimes for inference on a CPU: ONNX Runtime and OpenVINO, each in its fastest form.

One GRU, LSTM or RNN node of ONNX with fixed shapes, that hands out y alone; input and output lie where they are before
timing, so that a call is a call of the runtime and nothing else. Neither is a dependency of fastcells.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, from_numpy
from torch.nn import RNNBase

import fastcells
from fastcells.tuning.machine import version_of


@dataclass(frozen=True)
class Session:
    """run: what is timed. x: what it reads, [T, B, I]. out: what it has written, [T, B, H]."""

    run: Callable[[], object]
    x: Tensor
    out: Callable[[], Tensor]


Start = Callable[[Any, Tensor, int], Session]  # of a model, an input and a number of threads


def one_node(layer: RNNBase, x: Tensor) -> Any:
    """`to_onnx`'s model of a one-layer RNN, GRU or LSTM for inputs of x's shape, without all that follows its node."""
    model = fastcells.to_onnx(layer)
    graph = model.graph
    for dimension, size in zip(graph.input[0].type.tensor_type.shape.dim, x.shape, strict=True):
        dimension.dim_value = size
    (node,) = [each for each in graph.node if each.op_type in layer.mode]
    del node.output[1:]  # the last states
    onnx = importlib.import_module("onnx")
    T, B, _ = x.shape
    y = onnx.helper.make_tensor_value_info(node.output[0], onnx.TensorProto.FLOAT, [T, 1, B, layer.hidden_size])
    kept = onnx.helper.make_graph(
        [node], "one", graph.input, [y], [c for c in graph.initializer if c.name in node.input]
    )
    model.graph.CopyFrom(kept)
    onnx.checker.check_model(model, full_check=True)
    return model


def onnxruntime(model: Any, x: Tensor, threads: int) -> Session:
    """By bound input and output."""
    ort = importlib.import_module("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    given, y = x.numpy(), model.graph.output[0]
    written = ort.OrtValue.ortvalue_from_shape_and_type(
        [d.dim_value for d in y.type.tensor_type.shape.dim], given.dtype
    )
    binding = session.io_binding()
    binding.bind_ortvalue_input("x", ort.OrtValue.ortvalue_from_numpy(given))
    binding.bind_ortvalue_output(y.name, written)

    def out() -> Tensor:
        return from_numpy(written.numpy()).squeeze(1)

    def run() -> None:
        session.run_with_iobinding(binding)

    return Session(run, from_numpy(given), out)


def openvino(model: Any, x: Tensor, threads: int) -> Session:
    """One stream, in float32 on processors too where it would take bfloat16, its threads where the system puts them."""
    ov = importlib.import_module("openvino")
    asked = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",
        "ENABLE_HYPER_THREADING": True,  # or two threads of a core would be one
        "ENABLE_CPU_PINNING": False,
    }
    core = ov.Core()
    request = core.compile_model(core.read_model(model.SerializeToString()), "CPU", asked).create_infer_request()
    given = ov.Tensor(x.numpy(), shared_memory=True)
    request.set_input_tensor(given)
    return Session(
        request.infer, from_numpy(given.data), lambda: from_numpy(request.get_output_tensor().data).squeeze(1)
    )


RUNTIMES: dict[str, Start] = {"onnxruntime": onnxruntime, "openvino": openvino}


def missing(name: str) -> str | None:
    """What is not installed of that which a runtime needs, and where it comes from; None if all is there."""
    lacking = " ".join(module for module in ("onnx", name) if importlib.util.find_spec(module) is None)
    return f"{name}: not installed (pip install {lacking})" if lacking else None


def label(name: str) -> str:
    """A runtime with its version."""
    return f"{name} {version_of(name)}"
