"""Modules, inputs and plain counterparts that the tests of transforms share (compile, export, trace, torch.func)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.utils._pytree import tree_leaves

import fastcells
from fastcells import reference
from tests.support.shapes import gradients

I = 3  # noqa: E741 the project's letter for the input size


class Size(NamedTuple):
    name: str
    T: int
    B: int
    H: int


SMALL = Size("small", 3, 2, 4)
LONG = Size("T20", 20, 3, 8)  # where C runs eagerly: every float32 case but a dense LSTM, cells and projections


@dataclass(frozen=True)
class Kind:
    """One of the layers or cells."""

    name: str
    cls: Callable[..., nn.Module]
    options: dict[str, Any] = field(default_factory=dict)

    def build(self, size: Size = SMALL, dtype: torch.dtype = torch.float64, **extra: Any) -> nn.Module:
        torch.manual_seed(1)
        return self.cls(I, size.H, **self.options, **extra, dtype=dtype)


LAYERS = [
    Kind("RNN", fastcells.RNN, {}),
    Kind("RNN-relu", fastcells.RNN, {"nonlinearity": "relu"}),
    Kind("GRU", fastcells.GRU, {}),
    Kind("GRU-before", fastcells.GRU, {"reset_after": False}),
    Kind("LSTM", fastcells.LSTM, {}),
    Kind("LSTM-proj", fastcells.LSTM, {"proj_size": 2}),
    Kind("GRU-2-bi", fastcells.GRU, {"num_layers": 2, "bidirectional": True}),
]
CELLS = [
    Kind("RNNCell", fastcells.RNNCell, {}),
    Kind("RNNCell-relu", fastcells.RNNCell, {"nonlinearity": "relu"}),
    Kind("GRUCell", fastcells.GRUCell, {}),
    Kind("GRUCell-before", fastcells.GRUCell, {"reset_after": False}),
    Kind("LSTMCell", fastcells.LSTMCell, {}),
]
INPUTS = ["dense", "ids", "packed", "packed_ids"]
EACH_LAYER = pytest.mark.parametrize("kind", LAYERS, ids=lambda k: k.name)
EACH_CELL = pytest.mark.parametrize("kind", CELLS, ids=lambda k: k.name)
EACH = pytest.mark.parametrize("kind", LAYERS + CELLS, ids=lambda k: k.name)
# Each layer with each input, each cell with those it takes.
CASES = [(k, g) for k in LAYERS for g in INPUTS] + [(k, g) for k in CELLS for g in ("dense", "ids")]
UNPACKED = [(k, g) for k, g in CASES if not g.startswith("packed")]
PACKED = [(k, g) for k, g in CASES if g.startswith("packed")]
# With size and dtype: each where torch's operators run, and where C does.
SIZED = [(k, g, SMALL, torch.float64) for k, g in CASES]
SIZED += [(k, g, LONG, torch.float32) for k, g in UNPACKED if k in LAYERS and k.name != "RNN-relu"]
SIZED += [(k, g, LONG, torch.float32) for k, g in PACKED if k.name in ("GRU", "LSTM")]


def each(cases: list[tuple[Any, ...]]) -> pytest.MarkDecorator:
    """Parametrize by (kind, input) or by (kind, input, size, dtype)."""
    names = ("kind", "given", "size", "dtype")[: len(cases[0])]
    return pytest.mark.parametrize(
        names, cases, ids=["-".join([c[0].name, c[1], *(s.name for s in c[2:3])]) for c in cases]
    )


def named(cases: list[tuple[Kind, str]], names: str) -> list[tuple[Kind, str]]:
    """A selection: "GRU-ids GRUCell-dense"."""
    found = [case for case in cases if f"{case[0].name}-{case[1]}" in names.split()]
    assert len(found) == len(names.split())
    return found


class FromData(nn.Module):
    """A layer on the data of a packed batch: what tools can follow that know tensors only."""

    def __init__(self, layer: nn.Module, batch_sizes: Tensor | None = None) -> None:
        super().__init__()
        self.layer = layer
        self.batch_sizes = batch_sizes

    def forward(self, data: Tensor, batch_sizes: Tensor | None = None) -> Any:
        sizes = self.batch_sizes if batch_sizes is None else batch_sizes
        out, last = self.layer(PackedSequence(data, sizes))
        return out.data, last


class Padded(nn.Module):
    """The usual code around a packed batch: padded sequences and their lengths."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, lengths: Tensor) -> Any:
        out, last = self.layer(pack_padded_sequence(x, lengths, enforce_sorted=False))
        return nn.utils.rnn.pad_packed_sequence(out)[0], last


def lengths_of(T: int, B: int) -> Tensor:
    """Ragged, sorted, the longest T."""
    return torch.tensor([max(1, T - 2 * b) for b in range(B)])


def batch_sizes_of(T: int, B: int) -> Tensor:
    lengths = lengths_of(T, B)
    return torch.stack([(lengths > t).sum() for t in range(T)])


def some_input(kind: Kind, given: str, size: Size, dtype: torch.dtype, *more: int) -> Tensor:
    """x or ids; the data of a packed batch. more: dimensions ahead, to map over."""
    if given.startswith("packed"):
        sizes: tuple[int, ...] = (int(lengths_of(size.T, size.B).sum()),)
    else:
        sizes = (size.B,) if kind in CELLS else (size.T, size.B)
    if given.endswith("ids"):
        return torch.randint(I, (*more, *sizes))
    return torch.randn(*more, *sizes, I, dtype=torch.float64).to(dtype)


def wrapped(kind: Kind, given: str, size: Size, dtype: torch.dtype, **extra: Any) -> nn.Module:
    """The module as a function of one tensor."""
    module = kind.build(size, dtype, **extra)
    return FromData(module, batch_sizes_of(size.T, size.B)) if given.startswith("packed") else module


def textbook(module: nn.Module, x: Tensor, hx: Any = None) -> list[Tensor]:
    """What the plain loop of reference steps gives, for a layer, a cell or a FromData."""
    if isinstance(module, FromData):
        out, last = reference.layer(module.layer, PackedSequence(x, module.batch_sizes))
        return [out.data, *tree_leaves(last)]
    if isinstance(module, nn.RNNBase):
        return tree_leaves(reference.layer(module, x, hx))
    w = (module.weight_ih, module.weight_hh, module.bias_ih, module.bias_hh)
    if not x.is_floating_point():
        x = nn.functional.one_hot(x, I).to(w[0].dtype)
    states = 2 if isinstance(module, nn.LSTMCell | fastcells.LSTMCell) else 1
    state = [x.new_zeros(*x.shape[:-1], module.hidden_size)] * states if hx is None else tree_leaves(hx)
    if states == 2:
        return list(reference.lstm_cell(x, *state, *w))
    if hasattr(module, "nonlinearity"):
        return [reference.rnn_cell(x, *state, *w, nonlinearity=module.nonlinearity)]
    return [reference.gru_cell(x, *state, *w, reset_after=getattr(module, "reset_after", True))]


def floats(out: Any) -> list[Tensor]:
    """Without the batch sizes and indices of a PackedSequence."""
    return [t for t in tree_leaves(out) if isinstance(t, Tensor) and t.is_floating_point()]


def with_gradients(module: nn.Module, run: Callable[[Tensor], Any], x: Tensor, grad: bool) -> list[Tensor]:
    """The outputs of run(x), and by random cotangents the gradients of the weights and, if dense, of x."""
    if not grad:
        with torch.no_grad():
            return floats(run(x))
    leaves = list(module.parameters())
    if x.is_floating_point():
        x = x.clone().requires_grad_()
        leaves.append(x)
    outs = floats(run(x))
    torch.manual_seed(2)
    return [*outs, *gradients(tuple(outs), leaves, [torch.randn_like(o) for o in outs])]
