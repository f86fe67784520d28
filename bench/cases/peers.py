"""Other fused recurrent layers, timed where they import. None is a dependency.

Unverified: none of them has run under these adapters, for want of a GPU. They were written from FlashRNN's README and
the defaults of its configuration, from Haste's documentation, and from TorchRL's documentation and benchmark. The
guard compares outputs and gradients before anything is timed, so that a wrong guess cannot become a figure.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.cases.model import Build, Gradients, Model, Skipped, whole_layer
from bench.cases.task import Input, Task


def flashrnn(task: Task) -> Model:
    """FlashRNN: one head. Wx [B, T, G, 1, H], R [G, 1, H, H] (to, from) and b [G, 1, H] to states [S, B, T, 1, H].

    Its LSTM has torch's gates in torch's order; its GRU wants R as n r z, and four biases: n's of the recurrence, r,
    z, n's of the input. Its CUDA kernels are compiled at the first call.
    """
    module = _need("flashrnn", task)
    case, H = task.case, task.case.H
    function = {"GRU": "gru", "LSTM": "lstm", "RNN": "elman"}[case.cell]
    weights = task.weights()

    def forward(x: Input) -> Tensor:
        w_ih, w_hh, b_ih, b_hh = weights
        vectors = _vectors(task, x).transpose(0, 1)
        if function == "gru":
            n, r, z = (w_hh.view(3, H, H)[gate] for gate in (2, 0, 1))
            r_bias, z_bias, n_bias = (b_ih.view(3, H)[gate] for gate in range(3))
            h = b_hh.view(3, H)
            w, bias = torch.stack([n, r, z]), torch.stack([h[2], h[0] + r_bias, h[1] + z_bias, n_bias])
        else:
            w, bias = w_hh.view(-1, H, H), (b_ih + b_hh).view(-1, H)
        gates = F.linear(vectors, w_ih).unflatten(-1, (-1, 1, H))
        states, _ = module.flashrnn(
            gates, w.unsqueeze(1), bias.unsqueeze(1), function=function, backend="cuda_fused", dtype=case.dtype
        )
        return states[0].squeeze(-2).transpose(0, 1)

    return Model(forward, weights)


def torchrl(task: Task) -> Model:
    """TorchRL's GRUModule and LSTMModule with `recurrent_backend="triton"`, through a TensorDict."""
    if task.case.cell == "RNN":
        raise Skipped("TorchRL has no plain RNN")
    modules, tensordict = _need("torchrl.modules", task), _need("tensordict", task)
    T, B, H = task.case.T, task.case.B, task.case.H
    states = ["h", "c"] if task.case.cell == "LSTM" else ["h"]
    try:
        layer: nn.Module = getattr(modules, task.case.cell + "Module")(
            input_size=task.case.I,
            hidden_size=H,
            in_keys=["x", *states],
            out_keys=["out", *(("next", s) for s in states)],
            recurrent_backend="triton",
            default_recurrent_mode=True,
            device=task.device,
        )
    except (RuntimeError, TypeError) as error:  # TypeError: a version from before recurrent_backend
        raise Skipped(f"TorchRL: {str(error).splitlines()[0]}") from None
    layer = layer.to(task.dtype)
    source = dict(task.layer.named_parameters())
    parameters = {name.rsplit(".", 1)[-1]: p for name, p in layer.named_parameters()}
    with torch.no_grad():
        for name, p in source.items():
            parameters[name].copy_(p)
    zeros = {s: torch.zeros(B, T, 1, H, device=task.device, dtype=task.dtype) for s in states}
    resets = torch.zeros(B, T, 1, dtype=torch.bool, device=task.device)

    def forward(x: Input) -> Tensor:
        data = {"x": _vectors(task, x).transpose(0, 1), "is_init": resets, **zeros}
        out: Tensor = layer(tensordict.TensorDict(data, [B, T]))["out"]
        return out.transpose(0, 1)

    return Model(forward, [parameters[name] for name in source], layer)


def haste(task: Task) -> Model:
    """haste_pytorch's GRU and LSTM: kernels [I, G*H] and [H, G*H], gates z r h and i g f o, one bias in the LSTM."""
    if task.case.cell == "RNN":
        raise Skipped("Haste has no plain RNN")
    if task.case.dtype != "float32":
        raise Skipped("Haste has float32 kernels only")
    module = _need("haste_pytorch", task)
    lstm = task.case.cell == "LSTM"
    order = (0, 2, 1, 3) if lstm else (1, 0, 2)  # which is its own inverse
    layer = getattr(module, task.case.cell)(task.case.I, task.case.H)
    w_ih, w_hh, b_ih, b_hh = task.weights()
    given = [gates(w_ih, order).t(), gates(w_hh, order).t()]
    given += [gates(b_ih + b_hh, order)] if lstm else [gates(b_ih, order), gates(b_hh, order)]
    parameters = [layer.kernel, layer.recurrent_kernel, layer.bias] + ([] if lstm else [layer.recurrent_bias])
    with torch.no_grad():
        for p, value in zip(parameters, given, strict=True):
            p.copy_(value)

    def to_torch(gradients: Gradients) -> Gradients:
        w, r, *biases = gradients
        biases = [gates(b, order) for b in (biases * 2 if lstm else biases)]
        return [gates(w.t(), order), gates(r.t(), order), *biases]

    def forward(x: Input) -> Tensor:
        # Some versions return the initial state before the outputs.
        return layer(_vectors(task, x))[0][-task.case.T :]

    return Model(forward, parameters, layer, to_torch)


def gates(w: Tensor, order: Sequence[int]) -> Tensor:
    """The gates of w, [G*H, ...], in another order."""
    parts = w.chunk(len(order))
    return torch.cat([parts[gate] for gate in order])


def _need(name: str, task: Task) -> Any:
    """The module; Skipped where it does not import, or for a case that no peer has."""
    whole_layer(task)
    try:
        module = importlib.import_module(name)
    except Exception as error:  # one that compiles CUDA code at import fails in many ways
        raise Skipped(f"{name} does not import: {str(error).splitlines()[0]}") from None
    if task.device.type != "cuda":
        raise Skipped(f"{name} needs a GPU")
    return module


def _vectors(task: Task, x: Input) -> Tensor:
    vectors = task.one_hot(x)
    assert isinstance(vectors, Tensor)
    return vectors


PEERS: dict[str, Build] = {"flashrnn": flashrnn, "torchrl-triton": torchrl, "haste": haste}
