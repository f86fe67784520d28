"""A layer of both directions with impl="gluon", its launches executed in the machine, against torch.nn in float64."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fastcells
from bench.cases.compile_cases import DEVICES
from fastcells.backends.gluon import backend
from tests.ptx.cases import ROUNDING, ROUNDINGS, error
from tests.ptx.launch import Launch, Options, executed

T, B, I, H, LAYERS = 3, 4, 5, 32, 2  # noqa: E741
LENGTHS = torch.tensor([3, 2, 2, 1])


@dataclass(frozen=True)
class Layer:
    """What is asked of the layer."""

    cell: str  # "GRU", "LSTM" or "RNN"
    dtype: torch.dtype
    ids: bool = False
    packed: bool = False
    bias: bool = True


@dataclass
class Outcome:
    """Errors relative to the largest exact value: of what comes out, of the gradients; and what was launched."""

    errors: dict[str, float]
    limit: float
    launches: list[tuple[str, int]]  # kernel, programs' directions
    explained: str


def run(layer: Layer) -> Outcome:
    """Forward and backward of a stack of two layers."""
    torch.manual_seed(7)
    exact = getattr(nn, layer.cell)(I, H, LAYERS, bidirectional=True, bias=layer.bias, dtype=torch.float64)
    ours = getattr(fastcells, layer.cell)(I, H, LAYERS, bidirectional=True, bias=layer.bias, impl="gluon")
    ours.load_state_dict(exact.state_dict())
    ours.to(layer.dtype)
    exact.load_state_dict(ours.state_dict())
    ids = torch.randint(I, (T, B))
    x = F.one_hot(ids, I).double() if layer.ids else torch.randn(T, B, I).to(layer.dtype).double()
    states = [torch.randn(2 * LAYERS, B, H).tanh().to(layer.dtype) for _ in range(1 + (layer.cell == "LSTM"))]
    given = ids if layer.ids else x.to(layer.dtype)
    with on_this_machine() as launches:
        explained = str(fastcells.explain(ours, _packed(given, layer)))
        found = _results(ours, given, states, layer)
    expected = _results(exact, x, [s.double() for s in states], layer)
    if layer.ids:
        del expected["d_x"]
    errors = {name: error(found[name], value) for name, value in expected.items()}
    rounding = ROUNDING[str(layer.dtype).removeprefix("torch.")]
    kernels = [(launch.kernel, launch.grid[2]) for launch in launches]
    return Outcome(errors, 2 * ROUNDINGS * rounding, kernels, explained)


@contextlib.contextmanager
def on_this_machine() -> Iterator[list[Launch]]:
    """The backend takes CPU tensors for those of an H100, and its launches run in the machine."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(backend, "gpu", return_value=DEVICES[90]))
        stack.enter_context(mock.patch.object(backend, "matmul_precision", return_value="tf32"))
        stack.enter_context(mock.patch.object(backend.GluonBackend, "obstacle", return_value=None))
        yield stack.enter_context(executed(Options(weak=True)))


def _packed(x: Tensor, layer: Layer) -> Tensor | PackedSequence:
    return pack_padded_sequence(x, LENGTHS) if layer.packed else x


def _results(module: nn.RNNBase, x: Tensor, states: list[Tensor], layer: Layer) -> dict[str, Tensor]:
    """Outputs, final states, and the gradients of everything for random ones."""
    x = x.clone().requires_grad_(x.is_floating_point())
    states = [s.clone().requires_grad_() for s in states]
    out, last = module(_packed(x, layer), tuple(states) if len(states) > 1 else states[0])
    results = [out.data if layer.packed else out, *(last if len(states) > 1 else [last])]
    torch.manual_seed(8)
    d = [torch.randn(r.shape).to(layer.dtype).to(r.dtype) for r in results]
    leaves = {**({"x": x} if x.requires_grad else {}), **{f"state{i}": s for i, s in enumerate(states)}}
    leaves |= dict(module.named_parameters())
    gradients = torch.autograd.grad(results, list(leaves.values()), d)
    found = {f"result{i}": r.detach() for i, r in enumerate(results)}
    return found | {f"d_{name}": g for name, g in zip(leaves, gradients, strict=True)}
