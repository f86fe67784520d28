"""Token ids are the one-hot vectors that they stand for, in value and in every gradient, and cost no one-hot."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import fastcells
from fastcells import reference
from fastcells.backends.torch.backend import TOKEN_IDS
from tests.support.accuracy import assert_equal_to_rounding, cotangents
from tests.support.shapes import EACH_CELL, Case, gradients

T, B, H, V = 7, 5, 6, 11
LAYERS = {
    "rnn_tanh": (fastcells.RNN, {}),
    "rnn_relu": (fastcells.RNN, {"nonlinearity": "relu"}),
    "gru_reset_after": (fastcells.GRU, {}),
    "gru_reset_before": (fastcells.GRU, {"reset_after": False}),
    "lstm": (fastcells.LSTM, {}),
    "lstm_projection": (fastcells.LSTM, {"proj_size": 4}),
}
CELLS = {
    "rnn_tanh": (fastcells.RNNCell, {}),
    "rnn_relu": (fastcells.RNNCell, {"nonlinearity": "relu"}),
    "gru_reset_after": (fastcells.GRUCell, {}),
    "gru_reset_before": (fastcells.GRUCell, {"reset_after": False}),
    "lstm": (fastcells.LSTMCell, {}),
}
OPTIONS = {
    "plain": {},
    "no_bias": {"bias": False},
    "stacked": {"num_layers": 2},
    "bidirectional": {"num_layers": 2, "bidirectional": True},
    "batch_first": {"batch_first": True, "bidirectional": True},
}
INTEGERS = [torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64]
EACH_LAYER = pytest.mark.parametrize("name", LAYERS)
EACH_KIND = pytest.mark.parametrize("name", CELLS)
EACH_OPTION = pytest.mark.parametrize("option", OPTIONS)


def layer(name: str, **options: Any) -> fastcells.layers.Layer:
    cls, own = LAYERS[name]
    return cls(V, H, **own, **options).double()


def cell(name: str) -> nn.Module:
    cls, own = CELLS[name]
    return cls(V, H, **own).double()


def one_hot(ids: Tensor) -> Tensor:
    return nn.functional.one_hot(ids.long(), V).double()


def some_hx(module: nn.RNNBase, batch: tuple[int, ...] = (B,)) -> Any:
    rows = module.num_layers * (1 + module.bidirectional)
    sizes = [module.proj_size or H, H] if module.mode == "LSTM" else [H]
    hx = [torch.randn(rows, *batch, size, dtype=torch.float64, requires_grad=True) for size in sizes]
    return tuple(hx) if module.mode == "LSTM" else hx[0]


def floats(output: Any) -> tuple[Tensor, ...]:
    return tuple(t for t in tree_leaves(output) if isinstance(t, Tensor) and t.is_floating_point())


def assert_same(module: nn.Module, hx: Any, actual: Any, expected: Any) -> None:
    actual, expected = floats(actual), floats(expected)
    assert_equal_to_rounding(actual, expected)
    inputs, d = [*module.parameters(), *floats(hx)], cotangents(expected)
    assert_equal_to_rounding(gradients(actual, inputs, d), gradients(expected, inputs, d))


@pytest.mark.parametrize("given", [False, True], ids=["zero_hx", "hx"])
@EACH_OPTION
@EACH_LAYER
def test_layer(name: str, option: str, given: bool) -> None:
    module = layer(name, **OPTIONS[option])
    hx = some_hx(module) if given else None
    ids = torch.randint(V, (B, T) if module.batch_first else (T, B))
    assert fastcells.explain(module, ids)["l0"].reason == TOKEN_IDS.reason
    assert_same(module, hx, module(ids, hx), module(one_hot(ids), hx))
    assert_same(module, hx, module(ids, hx), reference.layer(module, ids, hx))


@EACH_OPTION
@EACH_LAYER
def test_unbatched(name: str, option: str) -> None:
    module = layer(name, **OPTIONS[option])
    ids, hx = torch.randint(V, (T,)), some_hx(module, ())
    assert_same(module, hx, module(ids, hx), module(one_hot(ids), hx))


@EACH_OPTION
@EACH_LAYER
def test_packed_unsorted(name: str, option: str) -> None:
    module = layer(name, **OPTIONS[option])
    dtype = INTEGERS[list(OPTIONS).index(option)]  # each of them somewhere
    sequences = [torch.randint(V, (length,), dtype=dtype) for length in (3, 7, 1, 7, 4)]
    hx = some_hx(module)
    ids = pack_sequence(sequences, enforce_sorted=False)
    dense = pack_sequence([one_hot(s) for s in sequences], enforce_sorted=False)
    actual, expected = module(ids, hx), module(dense, hx)
    assert_same(module, hx, actual, expected)
    assert all(torch.equal(a, e) for a, e in zip(actual[0][1:], expected[0][1:], strict=True))
    assert_same(module, hx, module(ids, hx), reference.layer(module, ids, hx))


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
@EACH_KIND
def test_cell(name: str, dtype: torch.dtype) -> None:
    module = cell(name)
    for ids in (torch.randint(V, (B,), dtype=dtype), torch.randint(V, (), dtype=dtype)):
        states = [torch.randn(*ids.shape, H, dtype=torch.float64, requires_grad=True) for _ in range(module.states)]
        for hx in (None, tuple(states) if module.states == 2 else states[0]):
            assert_same(module, hx, module(ids, hx), module(one_hot(ids), hx))


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
@EACH_LAYER
def test_every_integer_dtype_and_any_strides(name: str, dtype: torch.dtype) -> None:
    module, ids = layer(name), torch.randint(V, (B, 2 * T), dtype=dtype)
    strided = ids.t()[::2]
    assert not strided.is_contiguous()
    assert_same(module, None, module(strided), module(one_hot(strided)))


@EACH_LAYER
def test_empty_batch(name: str) -> None:
    module = layer(name, num_layers=2)
    ids = torch.zeros(T, 0, dtype=torch.long)
    assert_same(module, None, module(ids), module(torch.zeros(T, 0, V, dtype=torch.float64)))


@EACH_CELL
def test_derivatives_against_differences(case: Case) -> None:
    ids, lengths = torch.randint(3, (4, 2)), torch.tensor([4, 2])
    rows = 2 * case.spec.num_gates
    sizes = [*[(2, 2)] * case.states, (rows, 3), (rows, 2), (rows,), (rows,)]
    values = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in sizes]
    for options in ({}, {"lengths": lengths}):

        def function(*v: Tensor, options: dict[str, Any] = options) -> tuple[Tensor, ...]:
            return case.ours(ids, *v, **options)

        assert torch.autograd.gradcheck(function, values)
        assert torch.autograd.gradgradcheck(function, values, fast_mode=True)


@pytest.mark.parametrize("wrong", [-1, V, V + 100])
@EACH_LAYER
def test_out_of_range(name: str, wrong: int) -> None:
    ids = torch.randint(V, (T, B))
    ids[3, 2] = wrong
    message = rf"token id {wrong} at position \[3, 2\].*\[0, {V}\).*input_size"
    with pytest.raises(IndexError, match=message):
        layer(name)(ids)
    with pytest.raises(IndexError, match=f"token id {wrong} "):
        layer(name)(pack_sequence([ids[:, 2], ids[:2, 0]]))


def test_position_is_the_callers() -> None:
    """Not the one in the layout that the layer works in."""
    with pytest.raises(IndexError, match=r"token id 99 at position \[3\]"):
        layer("lstm")(torch.tensor([0, 0, 0, 99, 0]))
    with pytest.raises(IndexError, match=r"token id 99 at position \[0, 3\]"):
        layer("lstm", batch_first=True)(torch.tensor([[0, 0, 0, 99, 0]]))
    with pytest.raises(IndexError, match=r"token id 99 at position \[\]"):
        cell("lstm")(torch.tensor(99))


@pytest.mark.parametrize("wrong", [-1, V])
@EACH_KIND
def test_out_of_range_in_a_cell(name: str, wrong: int) -> None:
    with pytest.raises(IndexError, match=rf"token id {wrong} at position \[1\].*\[0, {V}\).*input_size"):
        cell(name)(torch.tensor([0, wrong]))
    with pytest.raises(IndexError, match=f"token id {wrong} "):
        cell(name)(torch.tensor(wrong))


@EACH_CELL
def test_padding_may_hold_any_id(case: Case) -> None:
    rows = H * case.spec.num_gates
    weights = [
        torch.randn(s, dtype=torch.float64, requires_grad=True) for s in [(rows, V), (rows, H), (rows,), (rows,)]
    ]
    ids, lengths = torch.randint(V, (T, B)), torch.tensor([7, 0, 3, 1, 6])
    padding = torch.arange(T).unsqueeze(1) >= lengths
    results = []
    for filler in (0, -1, V, torch.iinfo(torch.int64).min):
        out = case.ours(ids.masked_fill(padding, filler), *[None] * case.states, *weights, lengths=lengths)
        torch.manual_seed(0)
        results.append([*out, *gradients(out, weights, cotangents(out))])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    with pytest.raises(IndexError, match=r"token id -1 at position \[0, 0\]"):
        case.ours(ids.index_fill(0, torch.tensor(0), -1), *[None] * case.states, *weights, lengths=lengths)


@EACH_LAYER
def test_bool_and_complex_are_no_ids(name: str) -> None:
    for dtype in (torch.bool, torch.complex64):
        with pytest.raises(ValueError, match="does not match weight dtype"):
            layer(name)(torch.ones(T, B, V, dtype=dtype))


def test_wrong_dimensions() -> None:
    with pytest.raises(ValueError, match="GRU: Expected token ids to be 1D or 2D, got 3D"):
        layer("gru_reset_after")(torch.zeros(T, B, V, dtype=torch.long))
    with pytest.raises(ValueError, match="GRUCell: Expected token ids to be 0D or 1D, got 2D"):
        cell("gru_reset_after")(torch.zeros(T, B, dtype=torch.long))
    with pytest.raises(RuntimeError, match="sequence length to be larger than 0"):
        layer("gru_reset_after")(torch.zeros(0, B, dtype=torch.long))


class Sizes(TorchDispatchMode):
    """The sizes of all tensors that any operator returns."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **kwargs or {})
        self.seen |= {t.numel() for t in tree_leaves(out) if isinstance(t, Tensor)}
        return out


@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
@EACH_LAYER
def test_no_one_hot_is_built(name: str, packed: bool) -> None:
    """The sizes are such that only a one-hot can have V elements for each token, or more."""
    steps, batch, hidden, vocabulary = 13, 11, 6, 401
    cls, own = LAYERS[name]
    module = cls(vocabulary, hidden, **(own | ({"proj_size": 4} if own.get("proj_size") else {})))
    ids: Tensor | PackedSequence = torch.randint(vocabulary, (steps, batch))
    if packed:
        ids = pack_sequence(list(ids.unbind(1)))
    sizes = []
    for dense in (False, True):
        with Sizes() as mode:
            x = ids
            if dense:
                vectors = nn.functional.one_hot(ids.data, vocabulary).float()
                x = ids._replace(data=vectors) if isinstance(ids, PackedSequence) else vectors
            out = floats(module(x))
            torch.autograd.backward(out, cotangents(out))
        sizes.append(max(mode.seen))
    assert sizes[0] < steps * batch * vocabulary <= sizes[1]
