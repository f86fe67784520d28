"""PyTorch's own module inputs, the ones its layers are tested with, run through ours."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_flatten, tree_unflatten

import fastcells
from fastcells import reference
from tests.support.accuracy import assert_equal_to_rounding

pytest.importorskip("expecttest", reason="torch.testing._internal.common_modules imports it")
from torch.testing._internal.common_modules import (
    FunctionInput,
    ModuleErrorEnum,
    ModuleInfo,
    ModuleInput,
    module_db,
)

pytestmark = pytest.mark.usefixtures("poisoned_memory")

OURS: dict[type[nn.Module], type[nn.Module]] = {
    nn.RNN: fastcells.RNN,
    nn.GRU: fastcells.GRU,
    nn.LSTM: fastcells.LSTM,
    nn.RNNCell: fastcells.RNNCell,
    nn.GRUCell: fastcells.GRUCell,
    nn.LSTMCell: fastcells.LSTMCell,
}
ENTRIES = [info for info in module_db if info.module_cls in OURS]
KNOWS_PACKED = (nn.RNN, nn.GRU)  # module_db has packed inputs for these two only
CASES = [pytest.param(info, False, id=info.module_cls.__name__) for info in ENTRIES]
CASES += [
    pytest.param(info, True, id=f"{info.module_cls.__name__}-packed")
    for info in ENTRIES
    if info.module_cls in KNOWS_PACKED
]
ENTRY = pytest.mark.parametrize("info", ENTRIES, ids=lambda info: info.module_cls.__name__)
TRAINING = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
RESET_BEFORE = pytest.mark.parametrize(
    ("info", "packed"), [case for case in CASES if case.values[0].module_cls in (nn.GRU, nn.GRUCell)]
)


def samples(info: ModuleInfo, training: bool, packed: bool = False, grad: bool = False) -> list[ModuleInput]:
    extra = {"with_packed_sequence": True} if packed else {}
    found = info.module_inputs_func(
        info, device="cpu", dtype=torch.float64, requires_grad=grad, training=training, **extra
    )
    found = [s for s in found if isinstance(s.forward_input.args[0], PackedSequence) == packed]
    assert len(found) > 0
    return found


def build(cls: type[nn.Module], given: FunctionInput, training: bool, **extra: bool) -> nn.Module:
    return cls(*given.args, **given.kwargs, **extra).double().train(training)


def flat(output: object) -> list[Tensor]:
    return [leaf for leaf in tree_flatten(output)[0] if leaf is not None]


def floats(output: object) -> list[Tensor]:
    """Without the batch sizes and indices of a PackedSequence."""
    return [leaf for leaf in flat(output) if leaf.is_floating_point()]


def expected_by_reference(module: nn.Module, *args: object) -> object:
    """What the textbook equations give; cells are called without a batch dimension here."""
    if isinstance(module, nn.RNNBase):
        return reference.layer(module, *args)
    x, *states = flat(args)
    weights = (module.weight_ih, module.weight_hh, module.bias_ih, module.bias_hh)
    if isinstance(module, fastcells.LSTMCell):
        return reference.lstm_cell(x, *states, *weights)
    if isinstance(module, fastcells.GRUCell):
        return reference.gru_cell(x, *states, *weights, reset_after=module.reset_after)
    return reference.rnn_cell(x, *states, *weights, nonlinearity=module.nonlinearity)


def test_every_entry_is_there() -> None:
    assert {info.module_cls for info in ENTRIES} == set(OURS)


@TRAINING
@pytest.mark.parametrize(("info", "packed"), CASES)
def test_forward(info: ModuleInfo, packed: bool, training: bool) -> None:
    for sample in samples(info, training, packed):
        theirs = build(info.module_cls, sample.constructor_input, training)
        ours = build(OURS[info.module_cls], sample.constructor_input, training)
        ours.load_state_dict(theirs.state_dict())
        args = sample.forward_input.args
        actual = flat(ours(*args, **sample.forward_input.kwargs))
        expected = flat(theirs(*args, **sample.forward_input.kwargs))
        assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))
        assert_equal_to_rounding(floats(actual), floats(expected_by_reference(ours, *args)))


@TRAINING
@RESET_BEFORE
def test_reset_before_forward(info: ModuleInfo, packed: bool, training: bool) -> None:
    for sample in samples(info, training, packed):
        ours = build(OURS[info.module_cls], sample.constructor_input, training, reset_after=False)
        args = sample.forward_input.args
        assert_equal_to_rounding(floats(ours(*args)), floats(expected_by_reference(ours, *args)))


@ENTRY
def test_errors(info: ModuleInfo) -> None:
    found = info.module_error_inputs_func(info, device="cpu", dtype=torch.float64, requires_grad=False, training=True)
    assert len(found) > 0
    cls = OURS[info.module_cls]
    for bad in found:
        given = bad.module_error_input.constructor_input
        if bad.error_on is ModuleErrorEnum.CONSTRUCTION_ERROR:
            with pytest.raises(bad.error_type, match=bad.error_regex):
                cls(*given.args, **given.kwargs)
        else:
            module, inputs = cls(*given.args, **given.kwargs), bad.module_error_input.forward_input
            with pytest.raises(bad.error_type, match=bad.error_regex):
                module(*inputs.args, **inputs.kwargs)


Function = Callable[..., tuple[Tensor, ...]]


def as_function(module: nn.Module, args: tuple[object, ...]) -> tuple[Function, list[Tensor]]:
    """The module as a function of input, hx and every parameter, and the values to call it with."""
    leaves, spec = tree_flatten(args)
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    names, parameters = zip(*module.named_parameters(), strict=True)

    def function(*values: Tensor) -> tuple[Tensor, ...]:
        new = dict(zip(places, values, strict=False))
        inputs = tree_unflatten([new.get(i, leaf) for i, leaf in enumerate(leaves)], spec)
        state = dict(zip(names, values[len(places) :], strict=True))
        return tuple(floats(torch.func.functional_call(module, state, inputs)))

    return function, [t.detach().requires_grad_() for t in (*(leaves[i] for i in places), *parameters)]


def check_gradients(info: ModuleInfo, packed: bool, training: bool, **extra: bool) -> None:
    for sample in samples(info, training, packed, grad=True):
        module = build(OURS[info.module_cls], sample.constructor_input, training, **extra)
        function, values = as_function(module, sample.forward_input.args)
        # fast_mode: one random direction an input; test_functional.py compares whole Jacobians.
        assert torch.autograd.gradcheck(function, values, fast_mode=True)
        if training and not (packed and sample.constructor_input.kwargs["batch_first"]):
            # Most of the time goes here, and batch_first says nothing about a packed batch, nor training about these.
            assert torch.autograd.gradgradcheck(function, values, fast_mode=True, check_undefined_grad=False)


@TRAINING
@pytest.mark.parametrize(("info", "packed"), CASES)
@pytest.mark.slow
def test_gradients(info: ModuleInfo, packed: bool, training: bool) -> None:
    check_gradients(info, packed, training)


@TRAINING
@RESET_BEFORE
@pytest.mark.slow
def test_reset_before_gradients(info: ModuleInfo, packed: bool, training: bool) -> None:
    check_gradients(info, packed, training, reset_after=False)
