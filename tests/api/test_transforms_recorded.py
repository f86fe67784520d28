"""What is recorded: torch.compile, export, jit.trace, dispatch modes; more cases than in test_transforms.py.

A gradient of the input as well as of the weights, states given, another length or batch than the recorded one, cells,
subclasses, packed batches. All against the textbook's steps.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

import fastcells
from tests.support.accuracy import assert_equal_to_rounding, cotangents
from tests.support.transform_cases import (
    CASES,
    CELLS,
    EACH,
    EACH_CELL,
    LAYERS,
    LONG,
    PACKED,
    SMALL,
    UNPACKED,
    FromData,
    Kind,
    Padded,
    Size,
    batch_sizes_of,
    each,
    floats,
    named,
    some_input,
    textbook,
    with_gradients,
    wrapped,
)

pytestmark = pytest.mark.slow

F32, F64 = torch.float32, torch.float64


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """torch.jit is deprecated, and warns."""
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class Given(nn.Module):
    """The module with the initial state it is given as plain tensors."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor, *hx: Tensor) -> Any:
        return self.module(x, hx if len(hx) > 1 else hx[0])


def some_state(kind: Kind, module: nn.Module, B: int, dtype: torch.dtype) -> list[Tensor]:
    if kind in CELLS:
        sizes = [(B, module.hidden_size)] * (1 + (kind.cls is fastcells.LSTMCell))
    else:
        rows = module.num_layers * (1 + module.bidirectional)
        sizes = [(rows, B, module.proj_size or module.hidden_size), (rows, B, module.hidden_size)]
        sizes = sizes[: 1 + (module.mode == "LSTM")]
    return [torch.randn(size, dtype=F64).to(dtype) for size in sizes]


def expected_with(module: nn.Module, x: Tensor, state: list[Tensor]) -> list[Tensor]:
    return textbook(module, x, tuple(state) if len(state) > 1 else state[0])


@each(
    [c for c in UNPACKED if c[1] == "dense" and "relu" not in c[0].name]
    + named(UNPACKED, "GRU-ids LSTM-ids GRUCell-ids")
)
def test_compiled_with_gradient_of_the_input_and_a_state(kind: Kind, given: str) -> None:
    module = kind.build(SMALL, F32)
    x, state = some_input(kind, given, SMALL, F32), some_state(kind, module, SMALL.B, F32)
    compiled = torch.compile(Given(module), fullgraph=True, backend="aot_eager")
    actual = with_gradients(module, lambda x: compiled(x, *state), x, True)
    assert_equal_to_rounding(actual, with_gradients(module, lambda x: expected_with(module, x, state), x, True))


@each(named(UNPACKED, "GRU-dense GRU-ids GRU-before-dense LSTM-dense GRUCell-before-dense"))
def test_compiled_for_another_length_and_batch(kind: Kind, given: str) -> None:
    """Compiled again, or general; never the old length."""
    module = kind.build(SMALL, F32)
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    for T, B in ((3, 2), (5, 4)):
        x = some_input(kind, given, Size("", T, B, SMALL.H), F32)
        actual = with_gradients(module, compiled, x, True)
        assert_equal_to_rounding(actual, with_gradients(module, lambda x: textbook(module, x), x, True))


@each(named(PACKED, "LSTM-proj-packed_ids GRU-2-bi-packed"))
def test_compiled_packed(kind: Kind, given: str) -> None:
    """With breaks in the graph, since batch_sizes are numbers in a tensor. torch.nn's breaks there too."""
    module, x = wrapped(kind, given, SMALL, F32), some_input(kind, given, SMALL, F32)
    actual = with_gradients(module, torch.compile(module, backend="eager"), x, True)
    assert_equal_to_rounding(actual, with_gradients(module, lambda x: textbook(module, x), x, True))


@each(UNPACKED)
def test_exported_with_a_state(kind: Kind, given: str) -> None:
    strict = given == "ids"  # by Dynamo, and in training; else by fake tensors
    module = kind.build(SMALL, F32).train(strict)
    x, state = some_input(kind, given, SMALL, F32), some_state(kind, module, SMALL.B, F32)
    exported = torch.export.export(Given(module), (x, *state), strict=strict).module()
    assert_equal_to_rounding(floats(exported(x, *state)), expected_with(module, x, state))


@EACH_CELL
@pytest.mark.parametrize("given", ["dense", "ids"])
def test_exported_cell_for_any_batch(kind: Kind, given: str) -> None:
    module = kind.build(SMALL, F32)
    batch = torch.export.Dim("B", min=2, max=64)
    example = some_input(kind, given, SMALL, F32)
    exported = torch.export.export(module, (example,), dynamic_shapes=({0: batch},)).module()
    x = some_input(kind, given, Size("", 1, 9, SMALL.H), F32)
    assert_equal_to_rounding(floats(exported(x)), textbook(module, x))


def trace_or_refusal(module: nn.Module, *args: Tensor, refuses: bool) -> Any:
    """What torch.jit.trace makes of it. refuses: whether it has to say that it cannot, since the number of steps or
    the batch would be fixed."""
    if refuses:
        with pytest.raises(fastcells.CannotRun, match=r"torch\.jit\.trace"):
            torch.jit.trace(module, args, check_trace=False)
        return None
    return torch.jit.trace(module, args, check_trace=False)


OTHERS = [Size("", 40, 2, 4), Size("", 3, 5, 4), Size("", 1, 1, 4)]


@each(UNPACKED)
def test_traced_with_a_state(kind: Kind, given: str) -> None:
    module = kind.build(SMALL, F32)
    example = (some_input(kind, given, SMALL, F32), *some_state(kind, module, SMALL.B, F32))
    traced = trace_or_refusal(Given(module), *example, refuses=kind.name == "GRU-before")
    for size in OTHERS if traced is not None else ():
        x, state = some_input(kind, given, size, F32), some_state(kind, module, size.B, F32)
        assert_equal_to_rounding(floats(traced(x, *state)), expected_with(module, x, state))


@each(PACKED)
def test_traced_packed(kind: Kind, given: str) -> None:
    layer = kind.build(SMALL, F32)
    data = some_input(kind, given, SMALL, F32)
    traced = trace_or_refusal(
        FromData(layer), data, batch_sizes_of(SMALL.T, SMALL.B), refuses=kind.name == "GRU-before"
    )
    for size in OTHERS if traced is not None else ():
        sizes, data = batch_sizes_of(size.T, size.B), some_input(kind, given, size, F32)
        assert_equal_to_rounding(floats(traced(data, sizes)), textbook(FromData(layer, sizes), data))


@pytest.mark.parametrize("given", ["dense", "ids"])
@pytest.mark.parametrize("kind", LAYERS, ids=lambda k: k.name)
def test_traced_around_unsorted_lengths(kind: Kind, given: str) -> None:
    layer = kind.build(SMALL, F64)
    x, lengths = some_input(kind, given, SMALL, F64), torch.tensor([1, SMALL.T])
    traced = trace_or_refusal(Padded(layer), x, lengths, refuses=kind.name == "GRU-before")
    for size in OTHERS if traced is not None else ():
        lengths = torch.randint(1, size.T + 1, (size.B,))
        lengths[-1] = size.T
        x = some_input(kind, given, size, F64)
        outs = floats(traced(x, lengths))
        for b, length in enumerate(lengths):
            alone = textbook(layer, x[:length, b : b + 1])
            assert_equal_to_rounding([outs[0][:length, b : b + 1], *(s[:, b : b + 1] for s in outs[1:])], alone)
            assert not outs[0][length:, b].any()


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("given", ["dense", "ids"])
@pytest.mark.parametrize("kind", [k for k in LAYERS if k.name != "GRU-before"], ids=lambda k: k.name)
def test_traced_unbatched_and_batch_first(kind: Kind, given: str, batch_first: bool) -> None:
    module = kind.build(SMALL, F32, batch_first=batch_first)
    traced = torch.jit.trace(module, some_input(kind, given, SMALL, F32), check_trace=False)
    for size in OTHERS:
        x = some_input(kind, given, size, F32)
        assert_equal_to_rounding(floats(traced(x)), textbook(module, x))
    unbatched = torch.jit.trace(module, some_input(kind, given, SMALL, F32)[:, 0], check_trace=False)
    for size in OTHERS:
        x = some_input(kind, given, size, F32)[:, 0]
        assert_equal_to_rounding(floats(unbatched(x)), textbook(module, x))


class OwnGRU(fastcells.GRU):
    pass


class OwnLSTMCell(fastcells.LSTMCell):
    pass


@pytest.mark.parametrize("cls", [OwnGRU, OwnLSTMCell])
def test_script_of_a_subclass(cls: type[nn.Module]) -> None:
    with pytest.raises(RuntimeError, match="to_torch"):
        torch.jit.script(nn.Sequential(cls(3, 4)))


@each(CASES)
def test_operations_are_counted(kind: Kind, given: str) -> None:
    """FlopCounterMode, forward and backward; it has no place for autograd.grad."""
    module, x = wrapped(kind, given, LONG, F32), some_input(kind, given, LONG, F32)
    with FlopCounterMode(display=False) as counter:
        outs = floats(module(x))
        d_outs = cotangents(outs)
        torch.autograd.backward(outs, d_outs)
    assert counter.get_total_flops() > 0 or kind.name == "LSTM"  # dense: one of oneDNN's, which it does not know
    expected = textbook(module, x)
    d = torch.autograd.grad(expected, list(module.parameters()), d_outs)
    assert_equal_to_rounding([*outs, *(p.grad for p in module.parameters())], [*expected, *d])


@each(UNPACKED)
def test_make_fx_and_fake_tensors(kind: Kind, given: str) -> None:
    """Not on packed batches, of torch.nn either: their sizes are numbers, which a recorded tensor has not."""
    module, x = wrapped(kind, given, SMALL, F32), some_input(kind, given, SMALL, F32)
    recorded = make_fx(lambda x: floats(module(x)))(x)
    assert_equal_to_rounding(recorded(x), textbook(module, x))
    with FakeTensorMode() as mode:
        fake = floats(kind.build(LONG, F32)(mode.from_tensor(some_input(kind, given, LONG, F32))))
    module, x = wrapped(kind, given, LONG, F32), some_input(kind, given, LONG, F32)
    assert [t.shape for t in fake] == [t.shape for t in textbook(module, x)]


@EACH
def test_vmap_over_states(kind: Kind) -> None:
    module = kind.build(SMALL, F32)
    x = some_input(kind, "dense", SMALL, F32)
    states = [some_state(kind, module, SMALL.B, F32) for _ in range(3)]
    stacked = [torch.stack(s) for s in zip(*states, strict=True)]
    out = torch.func.vmap(lambda *hx: floats(Given(module)(x, *hx)))(*stacked)
    apart = [expected_with(module, x, state) for state in states]
    assert_equal_to_rounding(out, [torch.stack(s) for s in zip(*apart, strict=True)])
