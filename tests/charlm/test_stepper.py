"""One character at a time in C: the scores are the model's."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

from fastcells.backends.cpu import native
from fastcells.backends.cpu.step_in_place import StepInPlace
from fastcells.charlm.model import CharLM
from fastcells.charlm.presets import Config
from fastcells.charlm.stepper import CStepper, ModelStepper, stepper
from tests.support.accuracy import rms_error

if native.obstacle() is not None and os.environ.get("CI") != "true":
    pytest.skip(native.obstacle() or "", allow_module_level=True)

VOCABULARY = 29
MODELS: dict[str, dict[str, Any]] = {
    "rnn": {"cell": "rnn"},
    "rnn-relu": {"cell": "rnn", "nonlinearity": "relu", "layers": 2},
    "gru": {"cell": "gru", "layers": 3},
    "gru-reset-before": {"cell": "gru", "reset_after": False, "layers": 2},
    "lstm": {"cell": "lstm", "layers": 2},
}
EACH_MODEL = pytest.mark.parametrize("name", MODELS)


def model(name: str, hidden: int = 37, **options: Any) -> CharLM:
    return CharLM(VOCABULARY, Config(**{**MODELS[name], "hidden": hidden, **options}))


@pytest.mark.parametrize("hidden", [1, 16, 37])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("instructions", list(native.INSTRUCTIONS))
@EACH_MODEL
@torch.no_grad()
def test_scores(name: str, instructions: str, threads: int, hidden: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if not native.INSTRUCTIONS[instructions]:
        pytest.skip(f"this machine has no {instructions}")
    monkeypatch.setattr(native, "_instructions", list(native.INSTRUCTIONS).index(instructions))
    monkeypatch.setattr(native, "WORK_OF_A_THREAD", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    ours = model(name, hidden)
    step, theirs = stepper(ours), ModelStepper(model(name, hidden).double())
    assert isinstance(step, CStepper)
    theirs.model.load_state_dict(ours.state_dict())
    for token in torch.randint(VOCABULARY, (9,)).tolist():
        assert rms_error(step(token), theirs(token)) <= 4 * torch.finfo(torch.float32).eps


@EACH_MODEL
@torch.no_grad()
def test_without_bias(name: str) -> None:
    """A layer may have none; the scores still do."""
    ours = model(name)
    layer = ours.layer
    for key in [k for k, _ in layer.named_parameters() if "bias" in k]:
        getattr(layer, key).zero_()
    with_zeros = stepper(ours)
    without = CStepper(ours)
    without.stack.layers = [
        (StepInPlace(step.cell, step.state, (*step.weights[:2], None, None)), h) for step, h in without.stack.layers
    ]
    for token in (3, 1, 4):
        assert torch.equal(with_zeros(token), without(token))


def test_who_steps() -> None:
    assert isinstance(stepper(model("gru")), CStepper)
    assert isinstance(stepper(model("gru", impl="torch")), ModelStepper)
    assert isinstance(stepper(model("gru", bidirectional=True)), ModelStepper)
    assert isinstance(stepper(model("gru").double()), ModelStepper)


@pytest.mark.parametrize("tied", [False, True])
@EACH_MODEL
@torch.no_grad()
def test_it_is_the_step_of_the_layer(name: str, tied: bool) -> None:
    ours = model(name, tied=tied)
    step, hx = stepper(ours), None
    for token in (3, 1, 4, 1, 5):
        given = ours.output.weight[token] if tied else torch.tensor(token)
        out, hx = ours.layer.step(given, hx)
        assert torch.equal(step(token), native.matvec(ours.output.weight, out, ours.output.bias))


def test_a_change_of_the_weights_is_seen() -> None:
    """The stepper reads the parameters, it keeps no copy."""
    ours = model("gru")
    step = stepper(ours)
    with torch.no_grad():
        ours.output.bias.fill_(100.0)
        ours.output.weight.zero_()
        assert torch.equal(step(3), torch.full((VOCABULARY,), 100.0))


@pytest.mark.parametrize("how", ["in place", "elsewhere", "in place, transposed", "another shape"])
def test_what_a_step_reads_is_what_the_tensors_hold(how: str) -> None:
    transposed = "transposed" in how
    w_ih, w_hh = torch.randn(9, 5), torch.randn(3, 9).t() if transposed else torch.randn(9, 3)
    h, x = torch.randn(3), torch.randn(5)
    step = StepInPlace("gru", (h,), (w_ih, w_hh, None, None))
    step(x)
    if how == "another shape":
        w_hh.data = torch.randn(9, 4)
        with pytest.raises(RuntimeError, match=r"w_ih must be float32 \[12, 5\]"):
            step(x)
        return
    w_hh.data = torch.randn(9, 3) if how == "elsewhere" else w_hh.data.zero_()
    expected = h.clone()
    StepInPlace("gru", (expected,), (w_ih, w_hh.clone(), None, None))(x)
    step(x)
    assert torch.equal(h, expected)


def test_wrong_input() -> None:
    w_ih, w_hh, h = torch.randn(9, 5), torch.randn(9, 3), torch.zeros(3)
    weights = (w_ih, w_hh, None, None)
    for token in (-1, 5):
        with pytest.raises(IndexError, match=rf"token id {token} is outside \[0, 5\)"):
            StepInPlace("gru", (h,), weights)(token)
    with pytest.raises(RuntimeError, match=r"a state that changes in place must be contiguous, got strides \(2,\)"):
        StepInPlace("gru", (torch.zeros(6)[::2],), weights)
    with pytest.raises(RuntimeError, match=r"expected 2 states, got 1"):
        StepInPlace("lstm", (h,), (torch.randn(12, 5), torch.randn(12, 3), None, None))
    with pytest.raises(RuntimeError, match=r"x must be float32 \[5\] on the CPU, got torch.float32 \[4\] on cpu"):
        StepInPlace("gru", (h,), weights)(torch.zeros(4))
    with pytest.raises(RuntimeError, match=r"x must be float32 \[3\] on the CPU, got torch.float64 \[3\]"):
        native.matvec(w_hh, torch.zeros(3).double(), None)
