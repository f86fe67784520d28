"""Layers, options, inputs and states that the tests of the layers share."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence
from torch.utils._pytree import tree_leaves

import fastcells

T, B, I, H = 6, 4, 5, 7  # noqa: E741
KINDS = {
    "RNN": (nn.RNN, fastcells.RNN, {}),
    "RNN-relu": (nn.RNN, fastcells.RNN, {"nonlinearity": "relu"}),
    "GRU": (nn.GRU, fastcells.GRU, {}),
    "LSTM": (nn.LSTM, fastcells.LSTM, {}),
    "LSTM-proj": (nn.LSTM, fastcells.LSTM, {"proj_size": 3}),
}
KEYS = ("num_layers", "bias", "batch_first", "bidirectional", "dropout")
STACKS = [
    dict(zip(KEYS, values, strict=True)) for values in itertools.product((1, 3), *[(False, True)] * 3, (0.0, 0.4))
]
STACKS = [s for s in STACKS if s["dropout"] == 0 or s["num_layers"] > 1]  # torch warns of a dropout without effect
EACH = pytest.mark.parametrize("kind", KINDS)
STACK = pytest.mark.parametrize("stack", STACKS, ids=lambda stack: "-".join(f"{k}={v}" for k, v in stack.items() if v))
LAYOUTS = ["dense", "unbatched", "packed", "packed_unsorted"]
# What runs our own recurrence: a variant and an input that ATen has not.
OWN = {"ids": {}, "reset_before": {"reset_after": False}}
EACH_OWN = pytest.mark.parametrize("own", OWN)


def pair(kind: str, dtype: torch.dtype = torch.float64, **options: Any) -> tuple[nn.RNNBase, fastcells.layers.Layer]:
    """torch's layer and ours with the same numbers in them."""
    theirs_cls, ours_cls, own = KINDS[kind]
    theirs, ours = theirs_cls(I, H, **own, **options, dtype=dtype), ours_cls(I, H, **own, **options, dtype=dtype)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return theirs, ours


def some(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def some_input(module: nn.RNNBase, layout: str) -> tuple[Any, list[Tensor]]:
    """An input, and the leaves it is made of."""
    if layout.startswith("packed"):
        leaves = [some(length, I) for length in ((6, 4, 4, 1) if layout == "packed" else (1, 4, 6, 4))]
        return pack_sequence(leaves, enforce_sorted=layout == "packed"), leaves
    x = some(T, I) if layout == "unbatched" else some(*((B, T) if module.batch_first else (T, B)), I)
    return x, [x]


def some_hx(module: nn.RNNBase, *batch: int) -> Any:
    rows = module.num_layers * (1 + module.bidirectional)
    h = some(rows, *batch, module.proj_size or H)
    return (h, some(rows, *batch, H)) if module.mode == "LSTM" else h


def own_case(own: str, **options: Any) -> tuple[fastcells.GRU, Tensor]:
    module = fastcells.GRU(I, H, dtype=torch.float64, **OWN[own], **options)
    return module, torch.randint(I, (T, B)) if own == "ids" else some(T, B, I).detach()


def assert_identical(actual: Any, expected: Any) -> None:
    assert type(actual) is type(expected)
    pairs = zip(tree_leaves(actual), tree_leaves(expected), strict=True)
    assert all(a is e is None or (a.dtype == e.dtype and torch.equal(a, e)) for a, e in pairs)
